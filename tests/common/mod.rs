// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests share: the plugin, a harness that records what leaves in order, whole pipelines.
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::{
    path::Path,
    sync::{Arc, Mutex, Once},
    time::{Duration, Instant},
};

use gst::prelude::*;

/// Long enough for the slowest machine; nothing waits for it when all is well.
pub const TIMEOUT: Duration = Duration::from_secs(60);

pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstvenhance::plugin_register_static().unwrap();
    });
}

/// Waits until `done`, or fails with `what`.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What left the element, in order.
#[derive(Debug, Clone)]
pub enum Seen {
    Frame(gst::Buffer),
    Event(gst::Event),
}

/// A harness around one `venhance` with everything that leaves it.
pub struct Rig {
    pub harness: gst_check::Harness,
    pub element: gst::Element,
    pub bus: gst::Bus,
    pub info: gst_video::VideoInfo,
    seen: Arc<Mutex<Vec<Seen>>>,
    next: u64,
}

impl Rig {
    /// 32×16 GRAY8 at 10 fps, twice the size, three times the rate.
    pub fn new() -> Self {
        Self::with("up-scale=2 target-fps=30", &caps("GRAY8", 32, 16, (10, 1)))
    }

    /// With properties as in gst-launch.
    pub fn with(properties: &str, caps: &gst::Caps) -> Self {
        let mut rig = Self::without_caps(properties);
        rig.set_caps(caps);
        rig
    }

    /// Without shot detection, which holds a frame back, unless the properties turn it on.
    pub fn without_caps(properties: &str) -> Self {
        init();
        let description = format!("venhance shot-detection=false {properties}");
        let element = gst::parse::launch(&description).unwrap();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let harness = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let kinds = gst::PadProbeType::BUFFER
            | gst::PadProbeType::EVENT_DOWNSTREAM
            | gst::PadProbeType::EVENT_FLUSH;
        element.static_pad("src").unwrap().add_probe(kinds, move |_, info| {
            log.lock().unwrap().push(match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => Seen::Frame(buffer.clone()),
                Some(gst::PadProbeData::Event(event)) => Seen::Event(event.clone()),
                _ => unreachable!(),
            });
            gst::PadProbeReturn::Ok
        });
        let info =
            gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, 1, 1).build().unwrap();
        Self { harness, element, bus, info, seen, next: 0 }
    }

    pub fn set_caps(&mut self, caps: &gst::Caps) {
        self.harness.set_src_caps(caps.clone());
        self.info = gst_video::VideoInfo::from_caps(caps).unwrap();
    }

    /// Begins a stream as upstream does after a start of the element.
    pub fn begin_stream(&mut self, caps: &gst::Caps) {
        self.event(gst::event::StreamStart::new("again"));
        self.event(gst::event::Caps::new(caps));
        self.info = gst_video::VideoInfo::from_caps(caps).unwrap();
        self.begin_segment();
    }

    /// A segment from 0 without an end.
    pub fn begin_segment(&mut self) {
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        self.event(gst::event::Segment::new(&segment));
    }

    /// A flat frame at the next time of the caps' rate.
    pub fn frame(&mut self) -> gst::Buffer {
        let fps = self.info.fps();
        let at = |n: u64| {
            gst::ClockTime::SECOND
                .mul_div_floor(n * fps.denom() as u64, fps.numer() as u64)
                .unwrap()
        };
        let (pts, end) = (at(self.next), at(self.next + 1));
        self.next += 1;
        self.frame_at(pts, end - pts)
    }

    pub fn frame_at(&self, pts: gst::ClockTime, duration: gst::ClockTime) -> gst::Buffer {
        let mut buffer = gst::Buffer::with_size(self.info.size()).unwrap();
        {
            let buffer = buffer.get_mut().unwrap();
            buffer.set_pts(pts);
            buffer.set_duration(duration);
            buffer.map_writable().unwrap().fill(100);
        }
        buffer
    }

    pub fn push(&mut self, frames: usize) {
        for _ in 0..frames {
            let frame = self.frame();
            self.harness.push(frame).unwrap();
        }
    }

    /// Pushes a frame with the bytes of each picture.
    pub fn push_pictures(&mut self, pictures: &[Vec<u8>]) {
        for picture in pictures {
            let mut buffer = self.frame();
            buffer.get_mut().unwrap().map_writable().unwrap().copy_from_slice(picture);
            self.harness.push(buffer).unwrap();
        }
    }

    pub fn push_at(&mut self, ms: u64) {
        let frame =
            self.frame_at(gst::ClockTime::from_mseconds(ms), gst::ClockTime::from_mseconds(100));
        self.harness.push(frame).unwrap();
    }

    pub fn event(&mut self, event: gst::Event) {
        assert!(self.harness.push_event(event));
    }

    /// Ends the stream and gives all that has left.
    pub fn finish(&mut self) -> Vec<Seen> {
        self.event(gst::event::Eos::new());
        self.wait_for_event(gst::EventType::Eos);
        self.seen()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn frames(&self) -> Vec<gst::Buffer> {
        frames(&self.seen())
    }

    pub fn wait_for_frames(&self, count: usize) {
        wait_for(&format!("{count} frames"), || self.frames().len() >= count);
    }

    pub fn wait_for_event(&self, kind: gst::EventType) {
        wait_for(&format!("{kind:?}"), || {
            self.seen()
                .iter()
                .any(|seen| matches!(seen, Seen::Event(event) if event.type_() == kind))
        });
    }

    pub fn error(&self) -> Option<String> {
        let message = self.bus.pop_filtered(&[gst::MessageType::Error])?;
        match message.view() {
            gst::MessageView::Error(error) => Some(error.error().to_string()),
            _ => None,
        }
    }

    /// All warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Warning]))
            .filter_map(|message| match message.view() {
                gst::MessageView::Warning(warning) => Some(warning.error().to_string()),
                _ => None,
            })
            .collect()
    }

    /// The resume point of each output frame from now on.
    pub fn resume_points(&self) -> Arc<Mutex<Vec<u64>>> {
        let points = Arc::new(Mutex::new(Vec::new()));
        let (log, element) = (points.clone(), self.element.downgrade());
        let src = self.element.static_pad("src").unwrap();
        src.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            let element = element.upgrade().unwrap().downcast::<gstvenhance::VEnhance>().unwrap();
            log.lock().unwrap().push(element.resume_from().unwrap());
            gst::PadProbeReturn::Ok
        });
        points
    }

    /// Input frames so far.
    pub fn frames_in(&self) -> u64 {
        self.element.property::<gst::Structure>("progress").get("frames-in").unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Its messages hold the element, which holds it.
        self.element.set_bus(None);
    }
}

pub fn bytes(buffer: &gst::Buffer) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

pub fn frames(seen: &[Seen]) -> Vec<gst::Buffer> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Frame(buffer) => Some(buffer.clone()),
            Seen::Event(_) => None,
        })
        .collect()
}

/// PTS in milliseconds, rounded down.
pub fn times(seen: &[Seen]) -> Vec<u64> {
    frames(seen).iter().map(|frame| frame.pts().unwrap().mseconds()).collect()
}

/// The times of `frames` input frames at 10 fps tripled, from `start` milliseconds.
pub fn tripled(start: u64, frames: u64) -> Vec<u64> {
    (0..frames * 3 - 2).map(|j| start + j * 100 / 3).collect()
}

pub fn discont(buffer: &gst::Buffer) -> bool {
    buffer.flags().contains(gst::BufferFlags::DISCONT)
}

pub fn tag(title: &str) -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.get_mut().unwrap().add::<gst::tags::Title>(&title, gst::TagMergeMode::Append);
    gst::event::Tag::new(tags)
}

/// The order of frames (by PTS in milliseconds) and events (by name), the beginning of the stream
/// left out.
pub fn order(seen: &[Seen]) -> Vec<String> {
    let words: Vec<String> = seen
        .iter()
        .map(|seen| match seen {
            Seen::Frame(frame) => frame.pts().unwrap().mseconds().to_string(),
            Seen::Event(event) => event.type_().name().to_string(),
        })
        .collect();
    let begin = words.iter().position(|word| word.parse::<u64>().is_ok()).unwrap_or(words.len());
    words[begin..].to_vec()
}

pub fn caps(format: &str, width: i32, height: i32, (numer, denom): (i32, i32)) -> gst::Caps {
    init();
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", width)
        .field("height", height)
        .field("framerate", gst::Fraction::new(numer, denom))
        .build()
}

/// What has gone through a pad.
#[derive(Debug, Default)]
pub struct Recorded {
    pub caps: Option<gst::Caps>,
    /// Copies, so that no pool waits for them.
    pub buffers: Vec<gst::Buffer>,
}

/// Records the buffers that go through a pad, and their caps.
pub fn record(pad: &gst::Pad) -> Arc<Mutex<Recorded>> {
    let recorded = Arc::new(Mutex::new(Recorded::default()));
    let log = recorded.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data {
            let mut log = log.lock().unwrap();
            log.caps = pad.current_caps();
            log.buffers.push(buffer.copy_deep().unwrap());
        }
        gst::PadProbeReturn::Ok
    });
    recorded
}

/// Runs a pipeline to its end and gives its element messages.
///
/// # Panics
/// On an error message or when it takes too long.
pub fn run(pipeline: &str) -> Vec<gst::Structure> {
    let (messages, error) = try_run(pipeline);
    assert_eq!(error, None, "{pipeline}");
    messages
}

/// Runs a pipeline to its end or first error.
pub fn try_run(pipeline: &str) -> (Vec<gst::Structure>, Option<String>) {
    init();
    let pipeline = gst::parse::launch(pipeline).unwrap();
    let bus = pipeline.bus().unwrap();
    // An error is on the bus as well.
    let _ = pipeline.set_state(gst::State::Playing);
    let (mut messages, mut failure) = (Vec::new(), None);
    loop {
        let timeout = gst::ClockTime::try_from(TIMEOUT).unwrap();
        let message = bus.timed_pop(timeout).unwrap_or_else(|| panic!("the pipeline hangs"));
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => {
                failure = Some(error.error().to_string());
                break;
            }
            gst::MessageView::Element(element) => {
                messages.extend(element.structure().map(|s| s.to_owned()))
            }
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    (messages, failure)
}

/// Plays to the end of the stream, and stops.
pub fn play(pipeline: &gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
    wait_for_end(pipeline);
}

/// Waits for the end of the stream, and stops.
pub fn wait_for_end(pipeline: &gst::Pipeline) {
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let timeout = gst::ClockTime::try_from(TIMEOUT).unwrap();
    let end = pipeline.bus().unwrap().timed_pop_filtered(timeout, &ends);
    pipeline.set_state(gst::State::Null).unwrap();
    let end = end.expect("the pipeline hangs");
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
}

/// The decoded frames of a file after these elements, one after the other.
pub fn pixels(file: &Path, elements: &str) -> Vec<u8> {
    let raw = file.with_extension("raw");
    let (file, location) = (file.display(), raw.display());
    run(&format!(
        "filesrc location={file} ! decodebin ! {elements} ! filesink location={location}"
    ));
    std::fs::read(raw).unwrap()
}

/// Writes a GIF of `frames` frames at 10 fps, white in the columns for which `white` (frame, column) holds.
pub fn gif(
    path: &Path,
    (width, height): (u16, u16),
    frames: usize,
    white: impl Fn(usize, usize) -> bool,
) {
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = gif::Encoder::new(file, width, height, &[0, 0, 0, 255, 255, 255]).unwrap();
    let columns = usize::from(width);
    for n in 0..frames {
        let area = 0..columns * usize::from(height);
        let pixels: Vec<u8> = area.map(|at| u8::from(white(n, at % columns))).collect();
        let mut frame = gif::Frame::from_indexed_pixels(width, height, pixels, None);
        frame.delay = 10;
        encoder.write_frame(&frame).unwrap();
    }
}

/// What a decoder finds in a file; times are running times, what a player goes by.
#[derive(Debug, Default)]
pub struct Video {
    pub caps: Option<gst::Caps>,
    pub times: Vec<gst::ClockTime>,
    /// Time and duration.
    pub audio: Vec<(gst::ClockTime, gst::ClockTime)>,
}

impl Video {
    pub fn info(&self) -> gst_video::VideoInfo {
        gst_video::VideoInfo::from_caps(self.caps.as_ref().unwrap()).unwrap()
    }
}

/// Decodes a file.
pub fn decode(file: &Path) -> Video {
    init();
    let pipeline =
        gst::parse::launch(&format!("filesrc location={} ! decodebin name=d", file.display()))
            .unwrap()
            .downcast::<gst::Pipeline>()
            .unwrap();
    let video = Arc::new(Mutex::new(Video::default()));
    let (found, weak) = (video.clone(), pipeline.downgrade());
    pipeline.by_name("d").unwrap().connect_pad_added(move |_, pad| {
        let Some(pipeline) = weak.upgrade() else {
            return;
        };
        let sink = gst::ElementFactory::make("fakesink").property("sync", false).build().unwrap();
        pipeline.add(&sink).unwrap();
        sink.sync_state_with_parent().unwrap();
        pad.link(&sink.static_pad("sink").unwrap()).unwrap();
        let found = found.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let Some(gst::PadProbeData::Buffer(buffer)) = &info.data else { unreachable!() };
            let caps = pad.current_caps().unwrap();
            let segment = pad.sticky_event::<gst::event::Segment>(0).unwrap();
            let segment = segment.segment().downcast_ref::<gst::ClockTime>().unwrap().clone();
            let Some(time) = segment.to_running_time(buffer.pts().unwrap()) else {
                return gst::PadProbeReturn::Ok;
            };
            let mut found = found.lock().unwrap();
            match caps.structure(0).unwrap().name().starts_with("video") {
                true => {
                    found.times.push(time);
                    found.caps = Some(caps);
                }
                false => found.audio.push((time, buffer.duration().unwrap())),
            }
            gst::PadProbeReturn::Ok
        });
    });
    play(&pipeline);
    std::mem::take(&mut *video.lock().unwrap())
}
