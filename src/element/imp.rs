// SPDX-License-Identifier: MIT OR Apache-2.0
/**
 * SECTION:element-venhance
 * @see_also: videoconvertscale, videorate
 *
 * `venhance` upscales video and multiplies its frame rate: N input frames of a clip become
 * N + k(N-1) output frames, each up to 8 times larger in both directions, with k up to 8.
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! venhance up-scale=4 target-fps=24 ! x264enc ! mp4mux ! filesink location=out.mp4
 * ]| Four times the width and height, at the multiple of the input frame rate that is nearest to 24.
 * With `rate-mode=exact` the output has the target rate, whatever the rate of the input.
 *
 * The element holds frames back, several seconds of them with the diffusion models. A muxer waits for
 * video meanwhile, so an audio branch needs a queue without limits:
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin name=d  d. ! venhance ! x264enc ! mp4mux name=m ! filesink location=out.mp4  d. ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! audioconvert ! avenc_aac ! m.
 * ]|
 *
 * Properties are read when the element starts (READY to PAUSED); changes in PAUSED and PLAYING take
 * effect at the next start. The exceptions are `up-scale`, `target-width`, `target-height` and `target-fps`: a change
 * while the element plays ends the clip, and new caps follow.
 *
 * `target-width` and `target-height` count stored pixels, and the pixel aspect ratio stays: with `target-height=1080`, a
 * frame of 720×576 pixels with the pixel aspect ratio 64/45 becomes 1350×1080, which is shown as 1920×1080.
 *
 * Element messages: `venhance-model` names the model and the reason for the choice,
 * `venhance-progress` reports on the work, at most ten times a second, `venhance-shot` announces the first
 * frame of a shot, `venhance-download` and `venhance-conversion` report on files while the model is loaded.
 *
 * Debug categories: `venhance`, `venhance-models`, `venhance-sampler`, `venhance-weights`.
 */
use std::{
    sync::Arc,
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
use parking_lot::Mutex;

use super::{
    caps,
    clips::Clips,
    convert::{self, Packer},
    logging::CAT,
    progress::{LatencyPart, Statistics},
    properties::{PROPERTIES, PropertyValues},
    queue::{InputFrame, Queue},
    timeline::ClipEnd,
};
use crate::{
    engine::{self, Cancel},
    models::{self, Choice, Loaded},
};

mod compute;
mod flush;
mod model;
mod push;
mod stream;
mod upstream;

use push::Writer;

pub struct VEnhance {
    /// Protects the values of the properties. Held while one is read or written, or all are copied.
    properties: Mutex<PropertyValues>,
    /// The items between the threads. Has its own mutex.
    queue: Arc<Queue>,
    /// Protects everything else that threads share. Held while fields are read or written, never while
    /// anything waits.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    input: Input,
    output: Output,
    statistics: Statistics,
    /// The model of the last start.
    choice: Option<Choice>,
    /// Whether black frames are made instead of enhanced ones.
    dry_run: bool,
    /// Whether an error has been posted since the last start or flush.
    failed: bool,
    /// Whether a warning has said, since the last start, why caps are refused.
    warned_of_refusal: bool,
    /// Whether a warning has said, since the last start, that the frame rate is not that of the caps.
    warned_of_rate: bool,
    /// The compute thread, and what cancels the loading of its model; `None` while stopped.
    compute: Option<(JoinHandle<()>, Cancel)>,
    /// The loaded model while no compute thread works with it. Kept in READY, so that an element that
    /// plays one file after another loads it once; dropped in NULL.
    idle: Option<Loaded>,
}

/// The streaming thread's part of the state. A flush resets it.
#[derive(Default)]
struct Input {
    /// `None` before caps.
    clips: Option<Clips>,
    segment: gst::FormattedSegment<ClockTime>,
    /// Whether the next frame is the first of its segment.
    segment_starts: bool,
    /// Whether the next frame is marked DISCONT whatever its flags: after a start or a flush.
    discont: bool,
    /// EOS or SEGMENT_DONE, once it has come. Upstream pushes no more buffers then, so a flow error
    /// must go to the bus.
    eos: Option<gst::Event>,
}

/// The push task's part of the state.
#[derive(Default)]
struct Output {
    /// `None` before caps, and while the push task uses it.
    writer: Option<Writer>,
    /// The segment that has been pushed.
    segment: gst::FormattedSegment<ClockTime>,
    /// The input frame of the last output frame.
    input: Option<InputFrame>,
    /// The end of the last frame that has been pushed.
    position: Option<ClockTime>,
}

#[glib::object_subclass]
impl ObjectSubclass for VEnhance {
    const NAME: &'static str = "GstVEnhance";
    type Type = super::VEnhance;
    type ParentType = gst_base::BaseTransform;

    fn new() -> Self {
        Self {
            properties: Mutex::default(),
            queue: Arc::new(Queue::new()),
            state: Mutex::default(),
        }
    }
}

impl ObjectImpl for VEnhance {
    fn constructed(&self) {
        self.parent_constructed();
        self.explain_refused_caps();
    }

    fn properties() -> &'static [glib::ParamSpec] {
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        self.properties.lock().set(pspec, value);
        if pspec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
            self.obj().reconfigure_src();
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "progress" => self.state.lock().statistics.structure().to_value(),
            "active-model" => self.active_model().to_value(),
            name => self.properties.lock().latest().value(name),
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
                "Upscales video and multiplies its frame rate",
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
            self.shutdown();
        }
        let changed = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            let idle = self.state.lock().idle.take();
            if let Some(idle) = idle {
                gst::debug!(CAT, imp = self, "Dropping model {}", idle.choice.model);
            }
        }
        Ok(changed)
    }
}

impl BaseTransformImpl for VEnhance {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        // The parent does not call `stop` after a `start` that failed.
        self.begin().inspect_err(|_| drop(self.stop()))
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.shutdown();
        let compute = self.state.lock().compute.take();
        if let Some((thread, _)) = compute {
            // It catches its panics.
            let _ = thread.join();
        }
        let stopped = self.src_pad().stop_task();
        let (input, output) = {
            let state = &mut *self.state.lock();
            (std::mem::take(&mut state.input), std::mem::take(&mut state.output))
        };
        drop((input, output));
        self.properties.lock().stop();
        gst::debug!(CAT, imp = self, "Stopped");
        stopped.map_err(|error| {
            gst::error_msg!(gst::CoreError::StateChange, ("cannot stop the push task: {error}"))
        })
    }

    fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
        if direction == gst::PadDirection::Sink
            && let Some(refusal) = caps::refusal(caps)
        {
            self.warn_of_refusal(&refusal);
            return false;
        }
        self.parent_accept_caps(direction, caps)
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        let model = self.model();
        let properties = self.properties.lock().in_effect().clone();
        let out = caps::transform(&properties, model, direction, caps);
        gst::log!(CAT, imp = self, "Caps {caps} of the {direction:?} pad allow {out} on the other");
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
        let fixed = match direction {
            gst::PadDirection::Sink => caps::fixate(caps, &othercaps),
            _ => {
                othercaps.fixate();
                othercaps
            }
        };
        gst::debug!(CAT, imp = self, "Fixated to {fixed}");
        fixed
    }

    /// Called only for caps that differ from the last ones.
    fn set_caps(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let input = VideoInfo::from_caps(incaps)?;
        let output = VideoInfo::from_caps(outcaps)?;
        gst::debug!(CAT, imp = self, "Draining for new caps; {}", self.queue.levels());
        if self.end_clip(ClipEnd::Caps).and_then(|_| self.queue.drain()).is_err() {
            // The flow has ended: nothing is left to drain. Older caps must not replace the new ones on
            // the source pad: neither those in the hands of the push task nor those that are kept.
            let _ = self.src_pad().pause_task();
            if let Some(event) = self.queue.replace_caps() {
                let _ = self.src_pad().store_sticky_event(&event);
            }
        }

        let properties = self.properties.lock().in_effect().clone();
        let model = self.model();
        let before = self.state.lock().input.clips.take();
        let prepare = || {
            let clips = Clips::new(input.clone(), &output, &properties, model, before.as_ref())?;
            Ok((clips, Packer::new(&input, output.clone())?))
        };
        let (clips, packer) = prepare().map_err(|error: convert::Error| {
            self.fail(gst::error_msg!(gst::StreamError::Format, ("{error}")));
            gst::loggable_error!(CAT, "{error}")
        })?;
        gst::info!(CAT, imp = self, "Input {incaps}, output {outcaps}");
        self.warn_of_size(&input, &output);

        let format = clips.format();
        {
            let state = &mut *self.state.lock();
            state.output.writer = Some(Writer { packer, input, output });
            state.input.clips = Some(clips);
        }
        // After a flush, `begin_epoch` pushes it.
        let _ = self.push_items(format);
        Ok(())
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        self.answer(direction, query)
    }

    /// | event | clip | event passes |
    /// |---|---|---|
    /// | FLUSH_START, FLUSH_STOP | dropped | at once |
    /// | CAPS of the same picture; SEGMENT that continues; GAP up to 1.5 frames, or before which a frame is still to come; STREAM_START, TAG and all other serialized events | continues | after the frames before it |
    /// | CAPS, SEGMENT, GAP otherwise; EOS, SEGMENT_DONE | ends | after the clip |
    /// | not serialized | continues | at once |
    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        gst::log!(CAT, imp = self, "Received {event:?}; {}", self.queue.levels());
        match event.view() {
            EventView::FlushStart(_) => {
                self.flush_start();
                let forwarded = self.parent_sink_event(event);
                let _ = self.src_pad().pause_task();
                forwarded
            }
            EventView::FlushStop(_) => self.flush_stop(event),
            EventView::Caps(e) => self.caps_event(e.caps_owned(), event),
            EventView::Segment(e) => self.segment_event(e.segment().clone(), event),
            EventView::Gap(e) => {
                let (start, duration) = e.get();
                self.gap_event(start, duration, event)
            }
            EventView::Eos(_) | EventView::SegmentDone(_) => self.end_event(event),
            EventView::StreamStart(_) => self.stream_start_event(event),
            _ if event.is_serialized() => self.push_event(event),
            _ => self.parent_sink_event(event),
        }
    }

    fn src_event(&self, event: gst::Event) -> bool {
        self.upstream_event(event)
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        self.parent_propose_allocation(decide_query, query)?;
        // The input is converted at once, so upstream can use buffers of its own, of any stride.
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        Ok(())
    }

    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        self.choose_pool(query)?;
        self.parent_decide_allocation(query)
    }

    fn submit_input_buffer(
        &self,
        _is_discont: bool,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.take_buffer(buffer)
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        // The push task pushes the output.
        Ok(GenerateOutputSuccess::NoOutput)
    }
}

impl VEnhance {
    /// Puts the properties into effect and starts the threads.
    fn begin(&self) -> Result<(), gst::ErrorMessage> {
        let properties = self.properties.lock().start().clone();
        let choice = properties
            .check()
            .and_then(|()| models::choose(&properties.options))
            .map_err(|error| gst::error_msg!(gst::ResourceError::Settings, ("{error}")))?;
        {
            let state = &mut *self.state.lock();
            state.statistics = Statistics::default();
            state.choice = Some(choice.clone());
            state.input = Input { discont: true, segment_starts: true, ..Input::default() };
            state.output = Output::default();
            state.failed = false;
            (state.warned_of_refusal, state.warned_of_rate) = (false, false);
        }
        self.announce(&choice);
        self.queue.open();

        let cancel = Cancel::default();
        let thread = {
            let (imp, cancel) = (self.ref_counted(), cancel.clone());
            let work = move || imp.compute(&choice, &cancel);
            std::thread::Builder::new().name("venhance".into()).spawn(work).map_err(|error| {
                gst::error_msg!(
                    gst::ResourceError::Failed,
                    ("cannot start the compute thread: {error}")
                )
            })?
        };
        self.state.lock().compute = Some((thread, cancel));
        self.start_task()
    }

    fn src_pad(&self) -> gst::Pad {
        self.obj().src_pad().clone()
    }

    fn post(&self, structure: gst::Structure) {
        let obj = self.obj();
        let message = gst::message::Element::builder(structure).src(&*obj).build();
        // Fails without a bus, and then nobody listens.
        let _ = obj.post_message(message);
    }

    /// Posts an error, unless one was posted since the last start or flush: upstream sends refused
    /// events again and again.
    fn fail(&self, error: gst::ErrorMessage) {
        if std::mem::replace(&mut self.state.lock().failed, true) {
            gst::debug!(CAT, imp = self, "Not posted: {error}");
        } else {
            self.post_error_message(error);
        }
    }

    /// Posts the progress at the end of a stream.
    fn post_last_progress(&self) {
        let message = self.state.lock().statistics.last_message(Instant::now());
        if let Some(message) = message {
            self.post(message);
        }
    }

    /// Posts an error of a conversion, unless it was cancelled, and returns the flow error.
    fn convert_failed(&self, error: convert::Error, code: gst::StreamError) -> gst::FlowError {
        match error {
            convert::Error::Frame(engine::Error::Cancelled) => {
                self.queue.flow().err().unwrap_or(gst::FlowError::Flushing)
            }
            error => {
                self.fail(gst::error_msg!(code, ("{error}")));
                gst::FlowError::Error
            }
        }
    }

    /// Records the time that a frame took in a part.
    fn record(&self, part: LatencyPart, took: Duration) {
        gst::trace!(CAT, imp = self, "{part:?} of a frame took {took:?}");
        let changed = self.state.lock().statistics.record(part, took);
        if changed {
            self.post_latency();
        }
    }

    fn post_latency(&self) {
        let latency = self.state.lock().statistics.latency();
        gst::debug!(CAT, imp = self, "Latency is now {latency}");
        let obj = self.obj();
        let _ = obj.post_message(gst::message::Latency::builder().src(&*obj).build());
    }
}
