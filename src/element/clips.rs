// SPDX-License-Identifier: MIT OR Apache-2.0
//! What arrives at the sink pad: cuts the stream into clips and turns buffers into queue items.

use std::sync::Arc;

use gst::ClockTime;
use gst_video::VideoInfo;

use super::{
    caps,
    convert::{Error, Unpacker},
    queue::{BufferInfo, QueueItem},
    timeline::{Cadence, ClipEnd, Placement, Timeline},
};
use crate::engine::{Format, Frame, interpolated_frames};

/// The frame rate of a stream that does not name it is measured over this many frames.
const RATE_FRAMES: usize = 5;

/// The state of the sink pad between two caps.
pub(super) struct Clips {
    info: VideoInfo,
    target_fps: gst::Fraction,
    format: Format,
    unpacker: Arc<Unpacker>,
    timeline: Timeline,
    /// `None` while the rate is unknown: then each frame is a clip.
    cadence: Option<Cadence>,
    /// While the rate is being measured: what waits for the result.
    measuring: Option<Vec<Waiting>>,
}

enum Waiting {
    Frame(Frame, BufferInfo),
    Event(gst::Event),
}

impl Clips {
    /// For these formats. Frames without a timestamp follow those of `timeline`.
    pub(super) fn new(
        info: VideoInfo,
        output: &VideoInfo,
        target_fps: gst::Fraction,
        mut timeline: Timeline,
    ) -> Result<Self, Error> {
        let rate = caps::rate(info.fps());
        let interpolated = caps::interpolated(target_fps, info.fps());
        timeline.cut(ClipEnd::Caps);
        Ok(Self {
            format: Format {
                input: (info.width() as usize, info.height() as usize),
                output: (output.width() as usize, output.height() as usize),
                interpolated,
                // Alpha that the output drops must not affect the colours.
                alpha: info.has_alpha() && output.has_alpha(),
            },
            unpacker: Arc::new(Unpacker::new(info.clone())?),
            timeline,
            cadence: (rate.0 > 0).then(|| Cadence::new(rate, interpolated)),
            measuring: (rate.0 == 0).then(Vec::new),
            target_fps,
            info,
        })
    }

    pub(super) fn info(&self) -> &VideoInfo {
        &self.info
    }

    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Converts buffers of these caps. Shared, so that no lock is held meanwhile.
    pub(super) fn unpacker(&self) -> Arc<Unpacker> {
        self.unpacker.clone()
    }

    /// What the compute thread needs before the first frame; `None` while the rate is being measured.
    pub(super) fn format(&self) -> Option<QueueItem> {
        self.measuring.is_none().then_some(QueueItem::Format(self.format, self.cadence))
    }

    /// Whether a gap is known to be at most 1.5 frames long.
    pub(super) fn spans_one_frame(&self, gap: ClockTime) -> bool {
        self.cadence.is_some_and(|cadence| cadence.spans_one_frame(gap))
    }

    /// Whether a segment continues the one before. They may differ in position, which says nothing of
    /// what follows, and by a shift of less than half a frame, with which matroskademux corrects the
    /// start of a stream.
    pub(super) fn continues(
        &self,
        before: &gst::FormattedSegment<ClockTime>,
        segment: &gst::FormattedSegment<ClockTime>,
    ) -> bool {
        let running = |segment: &gst::FormattedSegment<ClockTime>| {
            let nseconds = |time: Option<ClockTime>| time.map_or(0, ClockTime::nseconds);
            i128::from(nseconds(segment.base())) - i128::from(nseconds(segment.start()))
        };
        let shift = running(before).abs_diff(running(segment));
        let half = self.cadence.map_or(0, |cadence| u128::from(cadence.frame().nseconds() / 2));
        let mut before = before.clone();
        before.set_position(segment.position());
        if shift < half {
            before.set_start(segment.start());
            before.set_base(segment.base());
            before.set_time(segment.time());
        }
        before == *segment
    }

    /// Takes a frame. `start` is the timestamp of a first frame that has none.
    pub(super) fn push_frame(
        &mut self,
        frame: Frame,
        info: BufferInfo,
        start: ClockTime,
    ) -> Vec<QueueItem> {
        let Some(waiting) = &mut self.measuring else {
            let mut items = Vec::with_capacity(2);
            self.place(frame, info, start, &mut items);
            return items;
        };
        waiting.push(Waiting::Frame(frame, info));
        let frames = waiting.iter().filter(|item| matches!(item, Waiting::Frame(..))).count();
        if frames < RATE_FRAMES { Vec::new() } else { self.settle(start) }
    }

    /// Takes an event that does not end the clip; `None` if it waits for the rate.
    pub(super) fn push_event(&mut self, event: gst::Event) -> Option<QueueItem> {
        match &mut self.measuring {
            Some(waiting) if !waiting.is_empty() => {
                waiting.push(Waiting::Event(event));
                None
            }
            _ => Some(QueueItem::Event(event)),
        }
    }

    /// Ends the clip.
    pub(super) fn end_clip(&mut self, reason: ClipEnd, start: ClockTime) -> Vec<QueueItem> {
        let mut items = self.settle(start);
        self.timeline.cut(reason);
        items.push(QueueItem::EndOfClip(reason));
        items
    }

    /// Forgets all frames and their timestamps.
    pub(super) fn flush(&mut self) {
        self.timeline = Timeline::default();
        if let Some(waiting) = &mut self.measuring {
            waiting.clear();
        }
    }

    /// Ends the measurement: takes the median of the intervals as the frame duration, and lets what
    /// waits for it go.
    fn settle(&mut self, start: ClockTime) -> Vec<QueueItem> {
        let mut items = Vec::new();
        match &self.measuring {
            Some(waiting) if !waiting.is_empty() => {}
            _ => return items,
        }
        let waiting = self.measuring.take().unwrap_or_default();
        let times: Vec<ClockTime> = waiting
            .iter()
            .filter_map(|item| match item {
                Waiting::Frame(_, info) => info.pts,
                Waiting::Event(_) => None,
            })
            .collect();
        let mut intervals: Vec<ClockTime> = times
            .windows(2)
            .filter_map(|pair| pair[1].checked_sub(pair[0]).filter(|interval| !interval.is_zero()))
            .collect();
        intervals.sort();
        match intervals.get(intervals.len().saturating_sub(1) / 2) {
            Some(&median) => {
                let rate = (1_000_000, u32::try_from(median.useconds()).unwrap_or(u32::MAX));
                self.format.interpolated = interpolated_frames(caps::rate(self.target_fps), rate);
                self.cadence = Some(Cadence::new(rate, self.format.interpolated));
            }
            // Too few frames; the next clip may have more.
            None => self.measuring = Some(Vec::new()),
        }
        items.push(QueueItem::Format(self.format, self.cadence));
        for item in waiting {
            match item {
                Waiting::Frame(frame, info) => self.place(frame, info, start, &mut items),
                Waiting::Event(event) => items.push(QueueItem::Event(event)),
            }
        }
        items
    }

    /// Gives a frame its timestamp and its clip.
    fn place(
        &mut self,
        frame: Frame,
        info: BufferInfo,
        start: ClockTime,
        items: &mut Vec<QueueItem>,
    ) {
        if info.flags.contains(gst::BufferFlags::DISCONT) {
            self.timeline.cut(ClipEnd::Discont);
        }
        let time = match self.timeline.place(info.pts, start, self.cadence) {
            Placement::SameClip(time) => time,
            Placement::NewClip(time, reason) => {
                items.push(QueueItem::EndOfClip(reason));
                time
            }
        };
        items.push(QueueItem::Frame(frame, time, info));
    }
}

impl BufferInfo {
    /// What a buffer carries, with these flags instead of its own.
    pub(super) fn new(buffer: &gst::BufferRef, flags: gst::BufferFlags) -> Self {
        Self { pts: buffer.pts(), duration: buffer.duration(), flags, metas: metas(buffer) }
    }
}

/// The metas that the output may have, in a buffer without memory. Those of the input's memory and
/// colours have no meaning there, and would keep the input alive.
fn metas(buffer: &gst::BufferRef) -> Option<gst::Buffer> {
    let mut carrier = gst::Buffer::new();
    let target = carrier.get_mut()?;
    let mut any = false;
    for meta in buffer.iter_meta::<gst::Meta>() {
        let bound = meta.has_tag::<gst::meta::tags::Memory>()
            || meta.has_tag::<gst::meta::tags::MemoryReference>()
            || meta.has_tag::<gst_video::video_meta::tags::Colorspace>();
        if !bound {
            any |= meta.transform(target, &gst::meta::MetaTransformCopy::new(..)).is_ok();
        }
    }
    any.then_some(carrier)
}
