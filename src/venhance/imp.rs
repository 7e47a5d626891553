// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * SECTION:element-venhance
 * @see_also: videoconvertscale, videorate
 *
 * `venhance` makes video larger and smoother: of N input frames of a clip it makes N + k(N-1)
 * frames, each up to 8 times larger in both directions, with k up to 8.
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! venhance up-scale=4 target-fps=24 ! x264enc ! mp4mux ! filesink location=out.mp4
 * ]| Four times the size, at the frame rate nearest to 24 that a whole factor reaches.
 *
 * The element holds frames back, seconds of them with the diffusion models. A muxer waits for video
 * meanwhile, so an audio branch beside it needs a queue without limits:
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin name=d  d. ! venhance ! x264enc ! mp4mux name=m ! filesink location=out.mp4  d. ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! audioconvert ! avenc_aac ! m.
 * ]|
 *
 * Element messages: `venhance-model` names the model and the reason for it, `venhance-progress`
 * comes with each unit of work.
 */
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use gst::{ClockTime, glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{
        base_transform::{BaseTransformImplExt, BaseTransformMode, GenerateOutputSuccess},
        prelude::*,
    },
};
use gst_video::VideoInfo;
use once_cell::sync::Lazy;

use super::{
    Model, caps,
    frames::{self, Packer},
    intake::Intake,
    meter::{Meter, Stage},
    settings::{PROPERTIES, Settings},
    worker::{Item, Queue},
};
use crate::{
    engine::Cancel,
    models::{self, Choice, Loaded},
};

mod compute;
mod model;
mod push;

use push::{Pack, Pushed};

static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "venhance",
        gst::DebugColorFlags::empty(),
        Some("Video enhancer: larger, smoother, cleaner"),
    )
});

/// The streaming thread's side. Never locked while anything waits.
#[derive(Default)]
struct Input {
    /// `None` before caps.
    intake: Option<Intake>,
    segment: gst::FormattedSegment<ClockTime>,
    /// Whether the next frame is the first of its segment.
    segment_starts: bool,
    /// Whether the next output frame is marked DISCONT, whatever the input's flags.
    discont: bool,
    /// The event that has ended the stream. Nobody asks for the flow any more: errors must go on the
    /// bus.
    eos: Option<gst::Event>,
}

pub struct VEnhance {
    settings: Mutex<Settings>,
    active_model: Mutex<Model>,
    /// The model of the last start, and what it is built from.
    choice: Mutex<Option<Choice>>,
    queue: Arc<Queue>,
    input: Mutex<Input>,
    pushed: Mutex<Pushed>,
    meter: Mutex<Meter>,
    /// The compute thread, and what ends the loading of its model.
    compute: Mutex<Option<(JoinHandle<()>, Cancel)>>,
    /// A loaded model while no thread works with it. It outlives PAUSED, so that one element takes one
    /// file after another without loading it again; it goes with READY.
    idle: Mutex<Option<Loaded>>,
}

/// Locks one of the above; they are whole even where a panic has left them poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[glib::object_subclass]
impl ObjectSubclass for VEnhance {
    const NAME: &'static str = "GstVEnhance";
    type Type = super::VEnhance;
    type ParentType = gst_base::BaseTransform;

    fn new() -> Self {
        Self {
            settings: Mutex::default(),
            active_model: Mutex::default(),
            choice: Mutex::default(),
            queue: Arc::new(Queue::new()),
            input: Mutex::default(),
            pushed: Mutex::default(),
            meter: Mutex::default(),
            compute: Mutex::default(),
            idle: Mutex::default(),
        }
    }
}

impl ObjectImpl for VEnhance {
    fn properties() -> &'static [glib::ParamSpec] {
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        lock(&self.settings).set(pspec.name(), value);
        if matches!(pspec.name(), "up-scale" | "target-fps") {
            self.obj().reconfigure_src();
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "active-model" => lock(&self.active_model).to_value(),
            "progress" => lock(&self.meter).structure().to_value(),
            name => lock(&self.settings).value(name),
        }
    }
}

impl GstObjectImpl for VEnhance {}

impl ElementImpl for VEnhance {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::new(
                "Video Enhancer",
                "Filter/Effect/Converter/Video",
                "Makes video larger and smoother",
                "The venhance authors",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    gst::PadTemplate::new(
                        name,
                        direction,
                        gst::PadPresence::Always,
                        &caps::template(),
                    )
                    .ok()
                })
                .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::PausedToReady {
            // Before the parent, which waits for the streaming threads.
            self.shut();
        }
        let changed = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            *lock(&self.idle) = None;
        }
        Ok(changed)
    }
}

impl BaseTransformImpl for VEnhance {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let options = lock(&self.settings).options.clone();
        let choice = models::choose(&options)
            .map_err(|error| gst::error_msg!(gst::ResourceError::Settings, ("{error}")))?;
        self.announce(&choice);
        *lock(&self.choice) = Some(choice.clone());

        *lock(&self.meter) = Meter::default();
        *lock(&self.input) = Input { discont: true, segment_starts: true, ..Input::default() };
        *lock(&self.pushed) = Pushed::default();
        self.queue.open();

        let cancel = Cancel::default();
        let thread = {
            let (imp, cancel) = (self.ref_counted(), cancel.clone());
            let work = move || imp.compute(&choice, &cancel);
            std::thread::Builder::new().name("venhance".into()).spawn(work).map_err(|error| {
                gst::error_msg!(gst::ResourceError::Failed, ("no thread can be started: {error}"))
            })?
        };
        *lock(&self.compute) = Some((thread, cancel));
        // The parent does not stop what has failed to start.
        self.start_task().inspect_err(|_| drop(self.stop()))
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.shut();
        if let Some((thread, _)) = lock(&self.compute).take() {
            // It catches its panics itself.
            let _ = thread.join();
        }
        let stopped = self.src_pad().stop_task();
        *lock(&self.input) = Input::default();
        *lock(&self.pushed) = Pushed::default();
        stopped.map_err(|error| gst::error_msg!(gst::CoreError::StateChange, ("{error}")))
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        let model = self.model();
        let out = caps::transform(&lock(&self.settings), model, direction, caps);
        gst::debug!(CAT, imp = self, "{direction:?} {caps} becomes {out}");
        Some(match filter {
            Some(filter) => filter.intersect_with_mode(&out, gst::CapsIntersectMode::First),
            None => out,
        })
    }

    fn fixate_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        mut othercaps: gst::Caps,
    ) -> gst::Caps {
        match direction {
            gst::PadDirection::Sink => caps::fixate(caps, &othercaps),
            _ => {
                othercaps.fixate();
                othercaps
            }
        }
    }

    /// Called for caps that differ from the last ones only.
    fn set_caps(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let input = VideoInfo::from_caps(incaps)?;
        let output = VideoInfo::from_caps(outcaps)?;
        // Interrupted, there is nothing left that would have to leave first.
        let _ = self.end_clip().and_then(|_| self.queue.drain());

        let target_fps = lock(&self.settings).target_fps;
        let prepare = || {
            let before = lock(&self.input);
            let intake = Intake::new(input.clone(), &output, target_fps, before.intake.as_ref())?;
            Ok((intake, Packer::new(output.clone())?))
        };
        let (intake, packer) = prepare().map_err(|error: frames::Error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::loggable_error!(CAT, "{error}")
        })?;
        gst::info!(CAT, imp = self, "{incaps} becomes {outcaps}");
        self.warn_of_size(&input, &output);

        lock(&self.pushed).pack = Some(Arc::new(Pack { packer, input, output }));
        let format = intake.format();
        lock(&self.input).intake = Some(intake);
        // Interrupted, it goes in again when the stream goes on.
        let _ = self.enter(format);
        Ok(())
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        use gst::QueryViewMut;
        match query.view_mut() {
            QueryViewMut::Position(q)
                if direction == gst::PadDirection::Src && q.format() == gst::Format::Time =>
            {
                let pushed = lock(&self.pushed);
                let Some(position) =
                    pushed.position.and_then(|time| pushed.segment.to_stream_time(time))
                else {
                    return false;
                };
                q.set(position);
                true
            }
            QueryViewMut::Latency(_) => {
                if !BaseTransformImplExt::parent_query(self, direction, query) {
                    return false;
                }
                if let QueryViewMut::Latency(q) = query.view_mut() {
                    let (live, min, max) = q.result();
                    if live {
                        let latency = lock(&self.meter).latency();
                        q.set(true, min + latency, max.map(|max| max + latency));
                    }
                }
                true
            }
            // Frames come when they are ready, not when they are pulled.
            QueryViewMut::Scheduling(q) if direction == gst::PadDirection::Src => {
                q.set(gst::SchedulingFlags::SEQUENTIAL, 1, -1, 0);
                q.add_scheduling_modes([gst::PadMode::Push]);
                true
            }
            _ => BaseTransformImplExt::parent_query(self, direction, query),
        }
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        gst::log!(CAT, imp = self, "Arrived: {event:?}");
        match event.view() {
            EventView::FlushStart(_) => {
                self.interrupt();
                let forwarded = self.parent_sink_event(event);
                let _ = self.src_pad().pause_task();
                forwarded
            }
            EventView::FlushStop(_) => {
                // As after FLUSH_START, which some forget: what the task still pushes must meet flushing
                // pads.
                self.interrupt();
                let _ = self.src_pad().pause_task();
                let forwarded = self.parent_sink_event(event);
                self.resume() && forwarded
            }
            EventView::Caps(e) => match caps::refusal(e.caps()) {
                Some(refusal) => {
                    gst::element_imp_error!(
                        self,
                        gst::StreamError::Format,
                        ("{refusal}"),
                        ["{}", e.caps()]
                    );
                    false
                }
                None => match self.same_picture(e.caps()) {
                    Some(outcaps) => {
                        let seqnum = event.seqnum();
                        self.pass(gst::event::Caps::builder(&outcaps).seqnum(seqnum).build())
                    }
                    None => self.parent_sink_event(event),
                },
            },
            EventView::Segment(e) => self.segment(e.segment().clone(), event),
            EventView::Gap(e) => {
                let (_, duration) = e.get();
                let input = lock(&self.input);
                let short = input.intake.as_ref().zip(duration);
                let short = short.is_some_and(|(intake, gap)| intake.spans_one_frame(gap));
                drop(input);
                (short || self.end_clip().is_ok()) && self.pass(event)
            }
            EventView::Eos(_) | EventView::SegmentDone(_) => {
                lock(&self.input).eos = Some(event.clone());
                let passed = self.end_clip().is_ok() && self.pass(event.clone());
                match self.queue.flow() {
                    // Downstream has had enough, and still waits for the end.
                    Err(gst::FlowError::Eos) if !passed => return self.src_pad().push_event(event),
                    Err(error) => self.report_flow(error),
                    Ok(_) => {}
                }
                passed
            }
            EventView::StreamStart(_) => {
                self.revive(gst::FlowError::Eos);
                self.pass(event)
            }
            _ if event.is_serialized() => self.pass(event),
            _ => self.parent_sink_event(event),
        }
    }

    fn src_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::Reconfigure {
            self.revive(gst::FlowError::NotLinked);
        }
        self.parent_src_event(event)
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        self.parent_propose_allocation(decide_query, query)?;
        // Input is converted at once: upstream's own buffers will do, of any stride.
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        Ok(())
    }

    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (caps, _) = query.get_owned();
        let caps = caps.ok_or_else(|| gst::loggable_error!(CAT, "No caps to allocate for"))?;
        let info = VideoInfo::from_caps(&caps)?;
        let proposed = query.allocation_pools().next();
        let proposes = proposed.is_some();
        let (pool, size, min, max) = match proposed {
            Some((pool, size, min, max)) => (pool, size.max(info.size() as u32), min, max),
            None => (None, info.size() as u32, 0, 0),
        };
        let pool = pool.unwrap_or_else(|| gst_video::VideoBufferPool::new().upcast());
        let mut config = pool.config();
        config.set_params(Some(&caps), size, min, max);
        if query.find_allocation_meta::<gst_video::VideoMeta>().is_some() {
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        }
        // A pool that changes the configuration says no as well: the parent looks at what it has become.
        let _ = pool.set_config(config);
        match proposes {
            true => query.set_nth_allocation_pool(0, Some(&pool), size, min, max),
            false => query.add_allocation_pool(Some(&pool), size, min, max),
        }
        self.parent_decide_allocation(query)
    }

    fn submit_input_buffer(
        &self,
        _is_discont: bool,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if !self.obj().reconfigure() {
            return Err(self.queue.flow().err().unwrap_or(gst::FlowError::NotNegotiated));
        }
        self.queue.flow()?;
        self.start_segment();

        let start = Instant::now();
        let items = {
            let input = &mut *lock(&self.input);
            let intake = input.intake.as_mut().ok_or(gst::FlowError::NotNegotiated)?;
            let mut flags =
                buffer.flags() & (gst::BufferFlags::DISCONT | gst::BufferFlags::CORRUPTED);
            flags.set(
                gst::BufferFlags::DISCONT,
                std::mem::take(&mut input.discont) || flags.contains(gst::BufferFlags::DISCONT),
            );
            intake.frame(&buffer, flags, input.segment.start().unwrap_or(ClockTime::ZERO)).map_err(
                |error| {
                    gst::element_imp_error!(self, gst::StreamError::Decode, ("{error}"));
                    gst::FlowError::Error
                },
            )?
        };
        // Upstream may have few of them.
        drop(buffer);
        lock(&self.meter).frames_in += 1;
        self.took(Stage::Read, start.elapsed());
        self.enter(items)
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        // Output leaves through the push task.
        Ok(GenerateOutputSuccess::NoOutput)
    }
}

/// The streaming thread.
impl VEnhance {
    fn src_pad(&self) -> gst::Pad {
        self.obj().src_pad().clone()
    }

    fn enter(
        &self,
        items: impl IntoIterator<Item = Item>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        items.into_iter().try_fold(gst::FlowSuccess::Ok, |_, item| {
            if let Item::Format(format, _) = &item {
                self.check_memory(format)?;
            }
            self.queue.enter(item)
        })
    }

    /// Lets an event go in its place between the frames.
    fn pass(&self, event: gst::Event) -> bool {
        let item = match &mut lock(&self.input).intake {
            Some(intake) => intake.event(event),
            None => Some(Item::Event(event)),
        };
        self.enter(item).is_ok()
    }

    /// Finishes what is held; nothing is made across this point.
    fn end_clip(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        let items = {
            let input = &mut *lock(&self.input);
            let start = input.segment.start().unwrap_or(ClockTime::ZERO);
            input.intake.as_mut().map(|intake| intake.end_clip(start)).unwrap_or_default()
        };
        self.enter(items)
    }

    /// The output caps for input caps that leave the picture as it is; `None` if they do not.
    fn same_picture(&self, caps: &gst::CapsRef) -> Option<gst::Caps> {
        let same = lock(&self.input)
            .intake
            .as_ref()
            .zip(VideoInfo::from_caps(caps).ok())
            .is_some_and(|(intake, info)| *intake.info() == info);
        let current = self
            .src_pad()
            .current_caps()
            .filter(|_| same && !self.src_pad().needs_reconfigure())?;
        let mut out = caps.structure(0)?.to_owned();
        for field in ["format", "width", "height", "framerate", "colorimetry", "chroma-site"] {
            match current.structure(0)?.value(field) {
                Ok(value) => out.set_value(field, value.clone()),
                Err(_) => out.remove_field(field),
            }
        }
        Some(gst::Caps::builder_full().structure(out).build())
    }

    fn segment(&self, segment: gst::Segment, event: gst::Event) -> bool {
        let segment = match segment.downcast::<ClockTime>() {
            Ok(segment) => segment,
            Err(segment) => {
                gst::element_imp_error!(
                    self,
                    gst::StreamError::Format,
                    ("frames need times: put a parser or a decoder before venhance"),
                    ["segment in {:?}", segment.format()]
                );
                return false;
            }
        };
        if segment.rate() < 0.0 {
            gst::element_imp_error!(
                self,
                gst::StreamError::NotImplemented,
                ("video cannot be enhanced backwards: seek with a rate above 0"),
                ["segment rate {}", segment.rate()]
            );
            return false;
        }
        self.revive(gst::FlowError::Eos);
        let continues = {
            let input = &mut *lock(&self.input);
            let continues = !input.segment_starts
                && input
                    .intake
                    .as_ref()
                    .is_some_and(|intake| intake.goes_on(&input.segment, &segment));
            input.segment = segment;
            input.segment_starts |= !continues;
            input.eos = None;
            continues
        };
        if !continues {
            if self.end_clip().is_err() {
                return false;
            }
            if let Some(intake) = &mut lock(&self.input).intake {
                intake.flush();
            }
        }
        self.pass(event)
    }

    /// With the first frame of a segment, finds out how long it will be.
    fn start_segment(&self) {
        let segment = {
            let input = &mut *lock(&self.input);
            if !std::mem::take(&mut input.segment_starts) {
                return;
            }
            input.segment.clone()
        };
        let start = segment.start().unwrap_or(ClockTime::ZERO);
        let duration = || self.obj().sink_pad().peer_query_duration::<ClockTime>();
        let stop = segment.stop().or_else(|| segment.position_from_stream_time(duration()?));
        lock(&self.meter).start_segment(start, stop);
    }
}

/// Starting, stopping, flushing.
impl VEnhance {
    /// Drops all frames and lets go of every thread that waits, within one network block.
    fn interrupt(&self) {
        let dropped = self.queue.fail(gst::FlowError::Flushing);
        self.keep_sticky(dropped);
        if let Some(pool) = self.obj().buffer_pool() {
            pool.set_flushing(true);
        }
    }

    /// As [`interrupt`](Self::interrupt), until the next start; also ends the loading of the model.
    fn shut(&self) {
        self.queue.close(gst::FlowError::Flushing);
        if let Some((_, loading)) = &*lock(&self.compute) {
            loading.cancel();
        }
        self.interrupt();
    }

    /// Begins anew after frames were dropped.
    fn resume(&self) -> bool {
        if !self.queue.restart() {
            return false;
        }
        if let Some(pool) = self.obj().buffer_pool() {
            pool.set_flushing(false);
        }
        let format = {
            let input = &mut *lock(&self.input);
            input.discont = true;
            input.eos = None;
            input.segment_starts = true;
            input.intake.as_mut().and_then(|intake| {
                intake.flush();
                intake.format()
            })
        };
        lock(&self.pushed).position = None;
        self.enter(format).is_ok() && self.start_task().is_ok()
    }

    /// Begins anew if the flow had ended with `error`.
    fn revive(&self, error: gst::FlowError) {
        if self.queue.flow() == Err(error) {
            // It is about to pause itself, and must not do so after it has been started again.
            let _ = self.src_pad().pause_task();
            self.resume();
        }
    }

    /// Leaves dropped events that describe the stream on the source pad, from where they go on with the
    /// next frame: upstream will not send them again. Only a flush is followed by a new segment.
    fn keep_sticky(&self, dropped: Vec<gst::Event>) {
        let flushing = self.queue.flow() == Err(gst::FlowError::Flushing);
        for event in dropped.iter().filter(|event| event.is_sticky()) {
            match event.view() {
                gst::EventView::Eos(_) => continue,
                gst::EventView::Segment(_) if flushing => continue,
                gst::EventView::Segment(e) => self.note_segment(e),
                _ => {}
            }
            let _ = self.src_pad().store_sticky_event(event);
        }
    }

    /// Positions are counted in this segment from now on.
    fn note_segment(&self, event: &gst::event::Segment) {
        if let Some(segment) = event.segment().downcast_ref::<ClockTime>() {
            lock(&self.pushed).segment = segment.clone();
        }
    }

    fn start_task(&self) -> Result<(), gst::ErrorMessage> {
        let imp = self.obj().downgrade();
        let step = move || {
            if let Some(obj) = imp.upgrade() {
                obj.imp().push_next();
            }
        };
        self.src_pad().start_task(step).map_err(|error| {
            gst::error_msg!(gst::ResourceError::Failed, ("no task can be started: {error}"))
        })
    }

    fn post(&self, structure: gst::Structure) {
        let obj = self.obj();
        let message = gst::message::Element::builder(structure).src(&*obj).build();
        // Without a bus, nobody wants to know.
        let _ = obj.post_message(message);
    }

    fn took(&self, stage: Stage, took: Duration) {
        if lock(&self.meter).took(stage, took) {
            self.post_latency();
        }
    }

    fn post_latency(&self) {
        let obj = self.obj();
        let _ = obj.post_message(gst::message::Latency::builder().src(&*obj).build());
    }
}
