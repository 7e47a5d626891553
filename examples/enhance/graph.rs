// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipelines: one that works, into a partial file, and one that puts the finished file together.
//!
//! ```text
//! work:    IN ─► decoder ─► venhance ─► encoder ─► matroskamux ─► partial file
//!          IN ─► sound, subtitles ─────────────────────┘
//!
//! finish:  partial file ─► video ──► muxer ─► OUT
//!          IN ─► sound, subtitles ─────┘
//! ```
//!
//! Every stream has a reader of its own, so that none waits for another: a muxer waits for all of them,
//! and `venhance` holds seconds of video back.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use gst::{ClockTime, prelude::*};

use crate::{
    failure::{Failure, Kind, READER, WRITER, make},
    partial::{Joint, Partial},
    source::{Source, Stream},
    target::{Container, Encoder, MATROSKA, Treatment},
};

/// Video between two places at which work can be taken up again. Each costs a key frame.
const PIECE: ClockTime = ClockTime::from_seconds(2);

/// How far the time of a frame may differ from one run to the next: what containers round to, twice.
const ROUNDING: ClockTime = ClockTime::from_mseconds(2);

/// The pipeline that works.
pub struct Work {
    pub pipeline: gst::Pipeline,
    enhancer: gst::Element,
    /// What watches the enhancer, which goes on to the next file.
    probes: Vec<(gst::Pad, gst::PadProbeId)>,
    /// Pads at which the streams are ended when the user has had enough.
    ends: Vec<gst::Pad>,
    pub state: Arc<State>,
}

/// What the threads of the pipeline share with the one that waits for it.
pub struct State {
    /// The partial file; nothing else is locked with it.
    partial: Mutex<Partial>,
    /// Why the partial file could not be written.
    failure: Mutex<Option<Failure>>,
    /// Whether the user has had enough: nothing more goes to the encoder and the muxer.
    stopped: AtomicBool,
    /// Joints on their way through the encoder, each with the frame after it.
    joints: Mutex<VecDeque<Joint>>,
    /// Input frames whose output has left the enhancer, with those that were skipped.
    keys: AtomicU64,
    /// Number of the piece that is with the enhancer.
    piece: AtomicU64,
    frames: AtomicU64,
    /// Running time of the last frame that has left the enhancer.
    position: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    pub fn position(&self) -> ClockTime {
        ClockTime::from_nseconds(self.position.load(Ordering::Relaxed))
    }

    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    pub fn partial(&self) -> MutexGuard<'_, Partial> {
        lock(&self.partial)
    }

    /// Does something with the partial file; a failure ends the pipeline.
    fn write(
        &self,
        element: &gst::Element,
        action: impl FnOnce(&mut Partial) -> Result<(), Failure>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.failure().is_some() {
            return Err(gst::FlowError::Error);
        }
        match action(&mut lock(&self.partial)) {
            Ok(()) => Ok(gst::FlowSuccess::Ok),
            Err(failure) => {
                let text = failure.to_string();
                lock(&self.failure).get_or_insert(failure);
                gst::element_error!(element, gst::ResourceError::Write, ("{text}"));
                Err(gst::FlowError::Error)
            }
        }
    }

    /// Takes a buffer of the muxer.
    fn muxed(
        &self,
        element: &gst::Element,
        buffer: &gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let begins_cluster =
            !buffer.flags().intersects(gst::BufferFlags::DELTA_UNIT | gst::BufferFlags::HEADER);
        let joint = begins_cluster.then(|| self.joint_at(buffer.pts()?)).flatten();
        self.write(element, |partial| {
            if let Some(joint) = joint {
                partial.end_piece(joint)?;
            }
            partial.write(buffer)
        })
    }

    /// The joint before a cluster's first key frame, if there is one.
    fn joint_at(&self, pts: ClockTime) -> Option<Joint> {
        let joints = &mut *lock(&self.joints);
        let near = |joint: &Joint| joint.time.absdiff(pts) <= ClockTime::MSECOND;
        let index = joints.iter().position(near)?;
        joints.drain(..=index).next_back()
    }
}

impl Work {
    /// Builds the pipeline. Frames before the joint are in the partial file already.
    pub fn new(
        source: &Source,
        encoder: &Encoder,
        enhancer: &gst::Element,
        partial: Partial,
        joint: Joint,
    ) -> Result<Self, Failure> {
        let pipeline = gst::Pipeline::new();
        // Without times they cannot be told from each other.
        let joint = if source.timed { joint } else { Joint { skip: 0, first: 0, ..joint } };
        let from = joint.time;
        let state = Arc::new(State {
            partial: Mutex::new(partial),
            failure: Mutex::default(),
            stopped: AtomicBool::new(false),
            joints: Mutex::default(),
            keys: AtomicU64::new(joint.skip),
            piece: AtomicU64::new(from.nseconds() / PIECE.nseconds()),
            frames: AtomicU64::new(0),
            position: AtomicU64::new(from.nseconds()),
        });

        let muxer = make(MATROSKA.muxer)?;
        muxer.set_property("streamable", true);
        // Finer than the usual millisecond, so that the finished file gets the frames' exact times.
        muxer.set_property("timecodescale", 100_000i64);
        muxer.set_property("min-cluster-duration", 0i64);
        let writer = writer(&state);
        add(&pipeline, &[&muxer, writer.upcast_ref()])?;

        let mut path = Vec::new();
        if source.interlaced {
            path.extend([make("videoconvert")?, make("deinterlace")?]);
        }
        if source.rotated {
            let flip = make("videoflip")?;
            flip.set_property_from_str("video-direction", "auto");
            path.extend([make("videoconvert")?, flip]);
        }
        path.push(enhancer.clone());
        if let Some(caps) = &encoder.input {
            let filter = make("capsfilter")?;
            filter.set_property("caps", caps);
            path.push(filter);
        }
        add(&pipeline, &path.iter().collect::<Vec<_>>())?;
        let encoding = chain(&pipeline, &encoder.description)?;
        link(&static_pad(&path[path.len() - 1], "src")?, &static_pad(&encoding, "sink")?)?;
        let video = link_to_muxer(&static_pad(&encoding, "src")?, &muxer, "video_%u")?;
        let decoder = decoder(&pipeline, &static_pad(&path[0], "sink")?)?;
        read(&pipeline, &source.path, Select::Id(source.video.id.clone()), &decoder)?;

        let others = others(&pipeline, source, &MATROSKA, &muxer)?;
        let mut work = Self {
            ends: others.clone(),
            probes: Vec::new(),
            pipeline,
            enhancer: enhancer.clone(),
            state,
        };
        work.watch_enhancer(joint)?;
        for pad in &others {
            work.watch_other(pad, from);
        }
        let (state, enhancer) = (work.state.clone(), enhancer.clone());
        video.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else {
                return gst::PadProbeReturn::Ok;
            };
            let model = enhancer.property::<gstvenhance::Model>("active-model");
            let stream = format!("{model:?}, {}", caps.caps());
            let element = pad.parent_element().unwrap_or(enhancer.clone());
            match state.write(&element, |partial| partial.stream(stream)) {
                Ok(_) => gst::PadProbeReturn::Ok,
                // Nothing of another stream gets to the file.
                Err(_) => pass_unless(true),
            }
        });
        Ok(work)
    }

    /// Lets only the frames to and from the enhancer that are needed, and marks the pieces.
    fn watch_enhancer(&mut self, joint: Joint) -> Result<(), Failure> {
        let Joint { time: from, skip, first } = joint;
        let sink = static_pad(&self.enhancer, "sink")?;
        let src = static_pad(&self.enhancer, "src")?;
        self.enhancer.set_property("first-frame", first);
        // Frames come to the decoder from the first one on, which is exact in every format, and fast
        // beside what the model takes for them.
        if skip > 0 {
            let arrived = AtomicU64::new(0);
            let probe = sink.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                pass_unless(arrived.fetch_add(1, Ordering::Relaxed) < skip)
            });
            self.probes.extend(probe.map(|probe| (sink.clone(), probe)));
        }
        let (state, enhancer) = (self.state.clone(), self.enhancer.downgrade());
        let probe = src.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let number = info.buffer().map_or(0, |buffer| buffer.offset());
            let made = made_frames(&sink, pad);
            let key = number / (made + 1);
            if number % (made + 1) == 0 {
                state.keys.fetch_add(1, Ordering::Relaxed);
            }
            let time = info.buffer().and_then(|buffer| running_time(pad, buffer));
            let Some(time) = time else { return gst::PadProbeReturn::Ok };
            let early = time + (frame_duration(pad) / 2).min(ROUNDING) < from;
            if early || state.stopped.load(Ordering::Relaxed) {
                return pass_unless(true);
            }
            let piece = time.nseconds() / PIECE.nseconds();
            if piece > state.piece.fetch_max(piece, Ordering::Relaxed) {
                let keys = state.keys.load(Ordering::Relaxed);
                let joint = enhancer.upgrade().and_then(|enhancer| {
                    let first = first_needed(&enhancer, &sink, key)?;
                    // The frames of this clip up to the key frame have been counted.
                    Some(Joint { time, skip: keys.checked_sub(key + 1)? + u64::from(first), first })
                });
                // Else all before it is made again.
                let joint = joint.unwrap_or(Joint { time, ..Joint::BEGINNING });
                lock(&state.joints).push_back(joint);
                // For the very next frame. With its time, x264enc of GStreamer 1.22 follows only the first
                // request: it compares the time with one that it has put 1000 hours ahead.
                let event =
                    gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(true).build();
                pad.push_event(event);
            }
            state.frames.fetch_add(1, Ordering::Relaxed);
            state.position.store(time.nseconds(), Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        self.probes.extend(probe.map(|probe| (src, probe)));
        Ok(())
    }

    /// Leaves out what the partial file has already, and what comes after the user has had enough.
    fn watch_other(&self, pad: &gst::Pad, from: ClockTime) {
        let state = self.state.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let early = info
                .buffer()
                .and_then(|buffer| running_time(pad, buffer))
                .is_none_or(|time| time < from);
            let drop = state.stopped.load(Ordering::Relaxed) || early && from > ClockTime::ZERO;
            pass_unless(drop)
        });
    }

    /// Ends all streams where they are: what is in the enhancer is dropped, what is in the encoder is
    /// written. The end comes on the bus.
    pub fn stop(&self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        let video = self.enhancer.static_pad("src").and_then(|pad| pad.peer());
        for pad in self.ends.iter().chain(&video) {
            let pad = pad.clone();
            // Each waits for what is on its way through its pad, which may wait for another stream.
            std::thread::spawn(move || pad.send_event(gst::event::Eos::new()));
        }
    }

    /// What has been written, once the pipeline has come to rest.
    pub fn output_info(&self) -> Option<gst_video::VideoInfo> {
        let caps = self.enhancer.static_pad("src")?.current_caps()?;
        gst_video::VideoInfo::from_caps(&caps).ok()
    }
}

impl Drop for Work {
    /// Stops the pipeline, and takes the enhancer out of it with its model loaded.
    fn drop(&mut self) {
        // Lets go of every thread that is in the enhancer, or that waits in the muxer for its frames.
        if let Some(sink) = self.enhancer.static_pad("sink") {
            sink.send_event(gst::event::FlushStart::new());
        }
        self.enhancer.set_locked_state(true);
        let _ = self.enhancer.set_state(gst::State::Ready);
        let _ = self.pipeline.set_state(gst::State::Null);
        let _ = self.pipeline.remove(&self.enhancer);
        self.enhancer.set_locked_state(false);
        for (pad, probe) in self.probes.drain(..) {
            pad.remove_probe(probe);
        }
    }
}

/// Builds the pipeline that copies the video of the partial file and the rest of the source into the
/// finished file.
pub fn finish(
    source: &Source,
    container: &Container,
    encoder: &Encoder,
    partial: &Path,
    finished: &Path,
) -> Result<gst::Pipeline, Failure> {
    let pipeline = gst::Pipeline::new();
    let muxer = make(container.muxer)?;
    if let Some(setter) = muxer.dynamic_cast_ref::<gst::TagSetter>() {
        setter.merge_tags(&source.tags, gst::TagMergeMode::Keep);
    }
    let file = make("filesink")?;
    file.set_property("name", WRITER);
    file.set_property("location", finished);
    add(&pipeline, &[&muxer, &file])?;

    let video = chain(&pipeline, &format!("{} ! queue", encoder.finish))?;
    link_to_muxer(&static_pad(&video, "src")?, &muxer, "video_%u")?;
    let sink = static_pad(&video, "sink")?;
    keep_times(&sink);
    read(&pipeline, partial, Select::Video, &sink)?;
    others(&pipeline, source, container, &muxer)?;
    Ok(pipeline)
}

/// The partial file's times are those of the other streams, even where the first is not zero: its
/// demuxer would begin at zero.
fn keep_times(sink: &gst::Pad) {
    sink.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && event.type_() == gst::EventType::Segment
        {
            let segment = gst::FormattedSegment::<ClockTime>::new();
            *event = gst::event::Segment::new(&segment);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Adds the streams of the source that are no video to a muxer, and gives its pads for them.
fn others(
    pipeline: &gst::Pipeline,
    source: &Source,
    container: &Container,
    muxer: &gst::Element,
) -> Result<Vec<gst::Pad>, Failure> {
    let mut pads = Vec::new();
    let audio = source.audio.iter().map(|stream| (stream, container.audio(stream), "audio_%u"));
    let subtitles =
        source.subtitles.iter().map(|stream| (stream, container.subtitles(stream), "subtitle_%u"));
    for (stream, treatment, template) in audio.chain(subtitles) {
        let treatment = treatment?;
        let (description, decode) = match treatment {
            Treatment::Drop => continue,
            Treatment::Copy => (copying(stream).to_owned(), false),
            Treatment::Plain => {
                ("capssetter replace=true caps=text/x-raw,format=utf8".to_owned(), false)
            }
            Treatment::Encode(encoder) => {
                (format!("audioconvert ! audioresample ! {encoder}"), true)
            }
        };
        let chain = chain(pipeline, &format!("{description} ! queue"))?;
        pads.push(link_to_muxer(&static_pad(&chain, "src")?, muxer, template)?);
        let sink = static_pad(&chain, "sink")?;
        if treatment == Treatment::Plain {
            sink.add_probe(gst::PadProbeType::BUFFER, |_, info| {
                if let Some(buffer) = info.buffer_mut() {
                    remove_markup(buffer);
                }
                gst::PadProbeReturn::Ok
            });
        }
        let sink = if decode { decoder(pipeline, &sink)? } else { sink };
        read(pipeline, &source.path, Select::Id(stream.id.clone()), &sink)?;
    }
    Ok(pads)
}

/// Turns Pango's markup into plain text: no tags, no entities.
fn remove_markup(buffer: &mut gst::Buffer) {
    let Ok(map) = buffer.map_readable() else { return };
    let text = String::from_utf8_lossy(&map).into_owned();
    drop(map);
    let mut parts = text.split('<');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    plain.extend(parts.filter_map(|part| part.split_once('>')).map(|(_tag, after)| after));
    // "&" last, so that nothing is replaced twice.
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    let plain = entities.iter().fold(plain, |text, (entity, letter)| text.replace(entity, letter));
    let flags = gst::BufferCopyFlags::FLAGS | gst::BufferCopyFlags::TIMESTAMPS;
    let mut stripped = gst::Buffer::from_slice(plain.into_bytes());
    if let Some(target) = stripped.get_mut() {
        let _ = buffer.copy_into(target, flags, ..);
    }
    *buffer = stripped;
}

/// What brings a stream into the form that a muxer takes.
fn copying(stream: &Stream) -> &'static str {
    let structure = stream.caps.structure(0);
    let version = structure.and_then(|structure| structure.get::<i32>("mpegversion").ok());
    match (structure.map(|structure| structure.name().as_str()), version) {
        (Some("audio/mpeg"), Some(2 | 4)) => "aacparse",
        _ => "identity",
    }
}

/// Which stream of a file is read.
enum Select {
    Id(String),
    /// The only video.
    Video,
}

impl Select {
    fn takes(&self, pad: &gst::Pad) -> bool {
        match self {
            Self::Id(id) => pad.stream_id().is_some_and(|stream| stream == id.as_str()),
            // Not the current caps: a parser may still be working on those.
            Self::Video => pad.query_caps(None).iter().any(|s| s.name().starts_with("video/")),
        }
    }
}

/// Adds what reads one stream of a file into `sink`.
fn read(
    pipeline: &gst::Pipeline,
    path: &Path,
    select: Select,
    sink: &gst::Pad,
) -> Result<(), Failure> {
    let (file, parser) = (make("filesrc")?, make("parsebin")?);
    file.set_property("location", path);
    let reader = gst::Bin::new();
    reader.add_many([&file, &parser]).and_then(|()| file.link(&parser)).map_err(internal)?;
    end_at_end_of_file(&static_pad(&file, "src")?, path, sink);
    add_in_front(pipeline, &reader, &parser, sink, move |pad| select.takes(pad))
}

/// Ends a stream whose demuxer does not see that its file is over: the GIF demuxer of libav as in Debian
/// 12 reads at the end of the file for ever.
fn end_at_end_of_file(file: &gst::Pad, path: &Path, sink: &gst::Pad) {
    /// Demuxers look at the end of a file a few times at most.
    const READS: u64 = 64;
    let Ok(length) = path.metadata().map(|metadata| metadata.len()) else { return };
    let (reads, sink) = (AtomicU64::new(0), sink.clone());
    file.add_probe(gst::PadProbeType::PULL | gst::PadProbeType::BLOCK, move |_, info| {
        if info.offset < length {
            reads.store(0, Ordering::Relaxed);
            return gst::PadProbeReturn::Pass;
        }
        let reads = reads.fetch_add(1, Ordering::Relaxed);
        if reads == READS {
            sink.send_event(gst::event::Eos::new());
        }
        if reads > READS {
            std::thread::sleep(Duration::from_millis(10));
        }
        gst::PadProbeReturn::Pass
    });
}

/// Adds a decoder in front of `sink`, and gives the pad that it is fed through.
fn decoder(pipeline: &gst::Pipeline, sink: &gst::Pad) -> Result<gst::Pad, Failure> {
    let (bin, decoder) = (gst::Bin::new(), make("decodebin")?);
    bin.add(&decoder).map_err(internal)?;
    let input = gst::GhostPad::with_target(&static_pad(&decoder, "sink")?).map_err(internal)?;
    bin.add_pad(&input).map_err(internal)?;
    add_in_front(pipeline, &bin, &decoder, sink, |_| true)?;
    Ok(input.upcast())
}

/// Adds a bin that gives `sink` the first pad of its element `source` that is wanted.
///
/// They are linked from the beginning, through a pad that only its stream is still missing from: a
/// pipeline starts its elements in the order of their links, and what is started before that which it
/// feeds finds it flushing, and stops for good.
pub fn add_in_front(
    pipeline: &gst::Pipeline,
    bin: &gst::Bin,
    source: &gst::Element,
    sink: &gst::Pad,
    wanted: impl Fn(&gst::Pad) -> bool + Send + Sync + 'static,
) -> Result<(), Failure> {
    bin.set_property("name", format!("{READER}-{}", pipeline.children().len()));
    let output = gst::GhostPad::new(gst::PadDirection::Src);
    bin.add_pad(&output).map_err(internal)?;
    add(pipeline, &[bin.upcast_ref()])?;
    link(output.upcast_ref(), sink)?;
    let output = output.downgrade();
    source.connect_pad_added(move |_, pad| {
        let output = output.upgrade().filter(|output| output.target().is_none());
        if let Some(output) = output.filter(|_| wanted(pad)) {
            // What does not fit is an error of the demuxer's: not linked.
            let _ = output.set_target(Some(pad));
        }
    });
    Ok(())
}

/// What takes the bytes of the muxer to the partial file.
fn writer(state: &Arc<State>) -> gst_app::AppSink {
    let state = state.clone();
    gst_app::AppSink::builder()
        .name(WRITER)
        .sync(false)
        .callbacks(
            gst_app::AppSinkCallbacks::builder()
                .new_sample(move |sink| {
                    let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                    match sample.buffer() {
                        Some(buffer) => state.muxed(sink.upcast_ref(), buffer),
                        None => Ok(gst::FlowSuccess::Ok),
                    }
                })
                .build(),
        )
        .build()
}

/// The frame rate of a pad's video, numerator and denominator.
fn rate(pad: &gst::Pad) -> (u32, u32) {
    let caps = pad.current_caps();
    let info = caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok());
    let fps = info.map_or(gst::Fraction::new(0, 1), |info| info.fps());
    (fps.numer().max(0) as u32, fps.denom().max(1) as u32)
}

/// The frames that the enhancer makes between two of its input's, as its caps say.
fn made_frames(sink: &gst::Pad, src: &gst::Pad) -> u64 {
    gstvenhance::engine::made_frames(rate(src), rate(sink)) as u64
}

/// The number in its clip of the first frame that the enhancer needs to go on at frame `key` as if it had
/// seen all before. `None` where it finds out the rate by itself, from the first frames that come.
fn first_needed(enhancer: &gst::Element, sink: &gst::Pad, key: u64) -> Option<u32> {
    let (enhancer, rate) = (enhancer.downcast_ref::<gstvenhance::VEnhance>()?, rate(sink));
    let first = (rate.0 > 0).then(|| enhancer.resume_from(rate, key as usize))?;
    first.ok()?.try_into().ok()
}

/// The duration of a frame by the caps; that of film where they do not say.
fn frame_duration(pad: &gst::Pad) -> ClockTime {
    let caps = pad.current_caps();
    let info = caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok());
    match info.map(|info| info.fps()).filter(|fps| fps.numer() > 0) {
        Some(fps) => ClockTime::SECOND
            .mul_div_floor(fps.denom() as u64, fps.numer() as u64)
            .unwrap_or(ClockTime::ZERO),
        None => ClockTime::SECOND / 24,
    }
}

/// What a probe says of a buffer.
fn pass_unless(drop: bool) -> gst::PadProbeReturn {
    match drop {
        // Not `Drop`: the binding has dropped the buffer by then, of which GStreamer 1.22 complains.
        true => gst::PadProbeReturn::Handled,
        false => gst::PadProbeReturn::Ok,
    }
}

fn running_time(pad: &gst::Pad, buffer: &gst::Buffer) -> Option<ClockTime> {
    let event = pad.sticky_event::<gst::event::Segment>(0)?;
    let segment = event.segment().downcast_ref::<ClockTime>()?;
    segment.to_running_time(buffer.pts().or(buffer.dts())?)
}

/// Adds elements, linked in their order.
fn add(pipeline: &gst::Pipeline, elements: &[&gst::Element]) -> Result<(), Failure> {
    pipeline.add_many(elements).and_then(|()| gst::Element::link_many(elements)).map_err(internal)
}

/// Adds a chain of elements, as in gst-launch, with a pad at each end.
fn chain(pipeline: &gst::Pipeline, description: &str) -> Result<gst::Element, Failure> {
    let bin = crate::target::parse(description)?;
    add(pipeline, &[bin.upcast_ref()])?;
    Ok(bin.upcast())
}

fn link(src: &gst::Pad, sink: &gst::Pad) -> Result<(), Failure> {
    src.link(sink).map(|_| ()).map_err(internal)
}

fn link_to_muxer(
    src: &gst::Pad,
    muxer: &gst::Element,
    template: &str,
) -> Result<gst::Pad, Failure> {
    let pad = muxer.request_pad_simple(template).ok_or_else(|| internal(template))?;
    link(src, &pad)?;
    Ok(pad)
}

pub fn static_pad(element: &gst::Element, name: &str) -> Result<gst::Pad, Failure> {
    element.static_pad(name).ok_or_else(|| internal(format!("{} has no {name}", element.name())))
}

/// A pipeline that cannot be put together.
fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Output, format!("the pipeline cannot be built: {error}"))
}
