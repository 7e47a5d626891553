// SPDX-License-Identifier: MIT OR Apache-2.0
//! What arrives at the sink pad: cuts the stream into clips and turns buffers into queue items.

use gst::ClockTime;
use gst_video::VideoInfo;

use super::{
    caps,
    convert::{Error, Unpacker},
    queue::{BufferInfo, QueueItem},
    timeline::{Cadence, Placement, Timeline},
};
use crate::engine::{Format, Frame, made_frames};

/// Frames whose intervals tell the rate of a stream that does not name it.
const RATE_FRAMES: usize = 5;

/// The state of the sink pad between two caps.
pub(super) struct Clips {
    info: VideoInfo,
    target_fps: gst::Fraction,
    format: Format,
    unpacker: Unpacker,
    timeline: Timeline,
    /// `None` while it is not known, then every frame is a clip.
    cadence: Option<Cadence>,
    /// While the rate is being measured, what waits for it.
    measuring: Option<Vec<Waiting>>,
}

/// A frame with what its buffer says, or an event, that waits for the rate.
enum Waiting {
    Frame(Frame, Note),
    Event(gst::Event),
}

/// What a buffer says beside its picture.
struct Note {
    pts: Option<ClockTime>,
    duration: Option<ClockTime>,
    flags: gst::BufferFlags,
    metas: Option<gst::Buffer>,
}

impl Clips {
    /// For these formats, after what `before` has seen.
    pub(super) fn new(
        info: VideoInfo,
        output: &VideoInfo,
        target_fps: gst::Fraction,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let rate = caps::rate(info.fps());
        let made = caps::made(target_fps, info.fps());
        let mut timeline = before.map(|before| before.timeline.clone()).unwrap_or_default();
        timeline.cut();
        Ok(Self {
            format: Format {
                input: (info.width() as usize, info.height() as usize),
                output: (output.width() as usize, output.height() as usize),
                made,
                // Where it is thrown away, it must not touch the colours.
                alpha: info.has_alpha() && output.has_alpha(),
            },
            unpacker: Unpacker::new(info.clone())?,
            timeline,
            cadence: (rate.0 > 0).then(|| Cadence::new(rate, made)),
            measuring: (rate.0 == 0).then(Vec::new),
            target_fps,
            info,
        })
    }

    pub(super) fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// What the compute thread must know before the first frame; nothing while the rate is measured.
    pub(super) fn format(&self) -> Option<QueueItem> {
        self.measuring.is_none().then_some(QueueItem::Format(self.format, self.cadence))
    }

    /// Whether a gap of this length is known to be no longer than a frame and a half.
    pub(super) fn spans_one_frame(&self, gap: ClockTime) -> bool {
        self.cadence.is_some_and(|cadence| cadence.spans_one_frame(gap))
    }

    /// Whether a segment goes on with the one before: it is the same but for its position, which says
    /// nothing of what follows, and for a shift of its times by less than half a frame. Such a shift is
    /// how matroskademux corrects where a stream begins.
    pub(super) fn goes_on(
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

    /// Takes a frame; `start` is the time of one that has none and is the first.
    ///
    /// `flags` are those that the output shall have.
    pub(super) fn frame(
        &mut self,
        buffer: &gst::BufferRef,
        flags: gst::BufferFlags,
        start: ClockTime,
    ) -> Result<Vec<QueueItem>, Error> {
        let frame = self.unpacker.unpack(buffer)?;
        let note =
            Note { pts: buffer.pts(), duration: buffer.duration(), flags, metas: metas(buffer) };
        let Some(waiting) = &mut self.measuring else {
            let mut items = Vec::with_capacity(2);
            self.place(frame, note, start, &mut items);
            return Ok(items);
        };
        waiting.push(Waiting::Frame(frame, note));
        let frames = waiting.iter().filter(|item| matches!(item, Waiting::Frame(..))).count();
        Ok(if frames < RATE_FRAMES { Vec::new() } else { self.settle(start) })
    }

    /// Takes an event that leaves the clip as it is.
    pub(super) fn event(&mut self, event: gst::Event) -> Option<QueueItem> {
        match &mut self.measuring {
            Some(waiting) if !waiting.is_empty() => {
                waiting.push(Waiting::Event(event));
                None
            }
            _ => Some(QueueItem::Event(event)),
        }
    }

    /// Ends the clip; the next frame begins one.
    pub(super) fn end_clip(&mut self, start: ClockTime) -> Vec<QueueItem> {
        let mut items = self.settle(start);
        self.timeline.cut();
        items.push(QueueItem::EndOfClip);
        items
    }

    /// Forgets all frames, and their times.
    pub(super) fn flush(&mut self) {
        self.timeline = Timeline::default();
        if let Some(waiting) = &mut self.measuring {
            waiting.clear();
        }
    }

    /// Takes the median of the intervals seen as the rate, and lets go what has waited for it.
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
                Waiting::Frame(_, note) => note.pts,
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
                self.format.made = made_frames(caps::rate(self.target_fps), rate);
                self.cadence = Some(Cadence::new(rate, self.format.made));
            }
            // Too few frames to tell; the next clip may have more.
            None => self.measuring = Some(Vec::new()),
        }
        items.push(QueueItem::Format(self.format, self.cadence));
        for item in waiting {
            match item {
                Waiting::Frame(frame, note) => self.place(frame, note, start, &mut items),
                Waiting::Event(event) => items.push(QueueItem::Event(event)),
            }
        }
        items
    }

    /// Gives a frame its time and its clip.
    fn place(&mut self, frame: Frame, note: Note, start: ClockTime, items: &mut Vec<QueueItem>) {
        if note.flags.contains(gst::BufferFlags::DISCONT) {
            self.timeline.cut();
        }
        let time = match self.timeline.place(note.pts, start, self.cadence) {
            Placement::SameClip(time) => time,
            Placement::NewClip(time) => {
                items.push(QueueItem::EndOfClip);
                time
            }
        };
        items.push(QueueItem::Frame(
            frame,
            BufferInfo { time, duration: note.duration, flags: note.flags, metas: note.metas },
        ));
    }
}

/// The metas that may go on to the output, in a buffer without memory: those of the input's memory
/// and colours mean nothing there, and would keep the input alive.
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
