// SPDX-License-Identifier: MIT OR Apache-2.0
//! What arrives at the sink pad: cuts the stream into clips and turns buffers into queue items.

use std::sync::Arc;

use gst::ClockTime;
use gst_video::VideoInfo;

use super::{
    RateMode, caps,
    convert::{Error, Unpacker},
    logging::CAT,
    properties::Properties,
    queue::{BufferInfo, ClipFormat, Picture, QueueItem},
    rate::{ASSUMED_RATE, RATE_FRAMES, RateMeter, RateSource, is_time_base},
    schedule::OutputRate,
    timeline::{Cadence, ClipEnd, Placement, ROUNDING, Timeline},
};
use crate::engine::{Format, Model, covering_frames, interpolated_frames};

/// The most by which a segment that continues the one before begins earlier. After more it is another one, as after a
/// seek.
const MAX_START_SHIFT: ClockTime = ClockTime::SECOND;

/// The state of the sink pad between two caps.
pub(super) struct Clips {
    info: VideoInfo,
    format: Format,
    /// The interpolated frames between two at the rate of the caps.
    interpolated: usize,
    target_fps: gst::Fraction,
    rate_mode: RateMode,
    /// The rate of the output's caps.
    output_fps: (u32, u32),
    unpacker: Arc<Unpacker>,
    timeline: Timeline,
    meter: RateMeter,
    rate: Rate,
    /// If a clip at another rate begins with the next frame: whether its output lies on the grid of the one before.
    rate_changes: Option<bool>,
    /// While the rate is not known: what waits for it.
    waiting: Option<Vec<Waiting>>,
}

/// The rate of the input frames.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// (numerator, denominator); `None` while it is unknown: then each frame is a clip.
    fps: Option<(u32, u32)>,
    source: RateSource,
}

impl Rate {
    fn of_caps(info: &VideoInfo) -> Self {
        match caps::rate(info.fps()) {
            (0, _) => Self { fps: None, source: RateSource::Timestamps },
            fps if is_time_base(fps) => Self { fps: None, source: RateSource::NotCaps },
            fps => Self { fps: Some(fps), source: RateSource::Caps },
        }
    }

    fn cadence(self, interpolated: usize) -> Option<Cadence> {
        self.fps.map(|fps| Cadence::new(fps, interpolated))
    }
}

enum Waiting {
    Frame(Picture, BufferInfo),
    Event(gst::Event),
}

impl Clips {
    /// Creates the state for these formats and this model. `before` is the state until the new caps, if there is one.
    pub(super) fn new(
        info: VideoInfo,
        output: &VideoInfo,
        properties: &Properties,
        model: Model,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let timeline = before.map(|before| before.timeline.clone()).unwrap_or_default();
        let measured = before.filter(|before| before.info == info);
        let rate = measured.map_or_else(|| Rate::of_caps(&info), |before| before.rate);
        let interpolated = interpolated(&info, output);
        let mut clips = Self {
            format: Format {
                input: (info.width() as usize, info.height() as usize),
                output: (output.width() as usize, output.height() as usize),
                interpolated,
                exact: false,
                // Alpha that the output drops must not affect the colours.
                alpha: caps::has_alpha(info.format_info()) && caps::has_alpha(output.format_info()),
            },
            unpacker: Arc::new(Unpacker::new(info.clone(), output, model.takes_ycbcr())?),
            meter: measured.map(|before| before.meter.clone()).unwrap_or_default(),
            waiting: rate.fps.is_none().then(Vec::new),
            info,
            interpolated,
            target_fps: properties.target_fps,
            rate_mode: properties.rate_mode,
            output_fps: caps::rate(output.fps()),
            timeline,
            rate,
            rate_changes: None,
        };
        clips.timeline.end_clip();
        clips.set_rate(rate);
        Ok(clips)
    }

    pub(super) fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The sizes (w, h) of input and output frames.
    pub(super) fn sizes(&self) -> ((usize, usize), (usize, usize)) {
        (self.format.input, self.format.output)
    }

    /// Converts buffers of these caps. Shared, so that no lock is held meanwhile.
    pub(super) fn unpacker(&self) -> Arc<Unpacker> {
        self.unpacker.clone()
    }

    /// What the compute thread needs before the first frame; `None` while the rate is being measured.
    pub(super) fn format(&self) -> Option<QueueItem> {
        self.waiting.is_none().then(|| self.format_item())
    }

    fn format_item(&self) -> QueueItem {
        QueueItem::Format(ClipFormat {
            format: self.format,
            cadence: self.cadence(),
            source: self.rate.source,
            rate: self.output_rate(),
        })
    }

    /// The rate of the output.
    fn output_rate(&self) -> OutputRate {
        match self.exact_rate() {
            Some(rate) => OutputRate::Exact(rate),
            None => OutputRate::Multiple(self.format.interpolated),
        }
    }

    /// The rate (numerator, denominator) on whose grid the output lies.
    fn exact_rate(&self) -> Option<(u32, u32)> {
        // Without an input rate, each frame is a clip, and stays as it is.
        let is_exact = self.rate_mode == RateMode::Exact && self.rate.fps.is_some();
        // Without a target, the output has the rate of the input, which the caps may name wrongly.
        let keeps_rate = caps::rate(self.target_fps).0 == 0;
        let is_wrong = keeps_rate && self.rate.source == RateSource::NotCaps;
        (is_exact && !is_wrong && self.output_fps.0 > 0).then_some(self.output_fps)
    }

    fn cadence(&self) -> Option<Cadence> {
        self.rate.cadence(self.format.interpolated)
    }

    /// Whether a gap is known to be at most 1.5 frames long.
    pub(super) fn spans_one_frame(&self, gap: ClockTime) -> bool {
        self.cadence().is_some_and(|cadence| cadence.spans_one_frame(gap))
    }

    /// Whether a frame is missing between the last one and this time.
    pub(super) fn awaits_frame_before(&self, time: ClockTime) -> bool {
        self.timeline.awaits_frame_before(time)
    }

    /// Whether a segment continues the one before. They may differ in position, which does not affect later
    /// timestamps. It may also begin earlier: matroskademux takes the time of the first block for the start of the
    /// stream, and corrects that when an earlier one comes, as in files whose video begins after their sound. The
    /// timestamps go on. Any other shift is less than half a frame.
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
        let most = match before.base() == segment.base() && segment.start() < before.start() {
            true => MAX_START_SHIFT,
            false => self.cadence().map_or(ClockTime::ZERO, |cadence| cadence.frame() / 2),
        };
        let mut before = before.clone();
        before.set_position(segment.position());
        if shift < u128::from(most.nseconds()) {
            before.set_start(segment.start());
            before.set_base(segment.base());
            before.set_time(segment.time());
        }
        before == *segment
    }

    /// Takes a frame. `start` is the timestamp of a first frame that has none.
    pub(super) fn push_frame(
        &mut self,
        frame: Picture,
        info: BufferInfo,
        start: ClockTime,
    ) -> Vec<QueueItem> {
        let mut items = Vec::with_capacity(2);
        if info.flags.contains(gst::BufferFlags::DISCONT) {
            self.meter.skip_interval();
        }
        self.meter.push(info.pts);
        match &mut self.waiting {
            Some(waiting) => {
                waiting.push(Waiting::Frame(frame, info));
                let frames = waiting.iter().filter(|item| matches!(item, Waiting::Frame(..)));
                if frames.count() == RATE_FRAMES {
                    self.settle(start, &mut items);
                }
            }
            None => {
                self.correct_rate();
                self.place(frame, info, start, &mut items);
            }
        }
        items
    }

    /// Takes an event that does not end the clip; `None` if it waits for the rate.
    pub(super) fn push_event(&mut self, event: gst::Event) -> Option<QueueItem> {
        match &mut self.waiting {
            Some(waiting) if !waiting.is_empty() => {
                waiting.push(Waiting::Event(event));
                None
            }
            _ => Some(QueueItem::Event(event)),
        }
    }

    /// Ends the clip.
    pub(super) fn end_clip(&mut self, reason: ClipEnd, start: ClockTime) -> Vec<QueueItem> {
        let mut items = Vec::new();
        self.settle(start, &mut items);
        match self.format.exact {
            true => self.timeline.end_clip_with_its_last_frame(),
            false => self.timeline.end_clip(),
        }
        self.meter.skip_interval();
        items.push(QueueItem::EndOfClip(reason, None));
        items
    }

    /// Changes target-fps. New caps follow where the output rate is that of the caps; where the rate is measured, the
    /// next frame begins a clip.
    pub(super) fn set_target_fps(&mut self, target_fps: gst::Fraction) {
        let changes = std::mem::replace(&mut self.target_fps, target_fps) != target_fps;
        if changes && self.rate.source != RateSource::Caps && self.waiting.is_none() {
            self.change_rate(self.rate);
        }
    }

    /// Forgets all frames and their timestamps. Returns the events that waited for the rate.
    pub(super) fn reset(&mut self) -> Vec<gst::Event> {
        self.timeline = Timeline::default();
        self.meter = RateMeter::default();
        let waiting = self.waiting.as_mut().map(std::mem::take).unwrap_or_default();
        waiting
            .into_iter()
            .filter_map(|item| match item {
                Waiting::Event(event) => Some(event),
                Waiting::Frame(..) => None,
            })
            .collect()
    }

    /// Determines the rate by the timestamps of the waiting frames, and adds all that waits to `items`.
    fn settle(&mut self, start: ClockTime, items: &mut Vec<QueueItem>) {
        let waiting = match &mut self.waiting {
            Some(waiting) if !waiting.is_empty() => std::mem::take(waiting),
            _ => return,
        };
        let times = || {
            waiting.iter().filter_map(|item| match item {
                Waiting::Frame(_, info) => Some(info.pts),
                Waiting::Event(_) => None,
            })
        };
        let mut known: Vec<ClockTime> = times().flatten().collect();
        known.dedup();
        let rate = match self.meter.rate() {
            Some(fps) => Some(Rate { fps: Some(fps), source: self.rate.source }),
            None if times().count() > 1 && known.len() <= 1 => {
                Some(Rate { fps: Some(ASSUMED_RATE), source: RateSource::Assumed })
            }
            // Too few frames; the next clip may have more.
            None => None,
        };
        if let Some(rate) = rate {
            self.set_rate(rate);
            self.waiting = None;
        }
        items.push(self.format_item());
        for item in waiting {
            match item {
                Waiting::Frame(frame, info) => self.place(frame, info, start, items),
                Waiting::Event(event) => items.push(QueueItem::Event(event)),
            }
        }
    }

    /// Follows the timestamps if they contradict the rate.
    fn correct_rate(&mut self) {
        let contradicts =
            |rate: Rate| rate.cadence(0).is_some_and(|cadence| self.meter.contradicts(cadence));
        if !contradicts(self.rate) {
            return;
        }
        let of_caps = Rate::of_caps(&self.info);
        let rate = match of_caps.source {
            RateSource::Caps if !contradicts(of_caps) => of_caps,
            RateSource::Caps => Rate { fps: self.meter.rate(), source: RateSource::NotCaps },
            source => Rate { fps: self.meter.rate(), source },
        };
        self.change_rate(rate);
    }

    fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
        let exact = self.exact_rate();
        self.format.interpolated = match (self.rate_mode, rate.source, rate.fps) {
            (RateMode::Exact, _, Some(fps)) => exact.map_or(0, |exact| covering_frames(exact, fps)),
            (RateMode::Multiple, RateSource::Caps, _) => self.interpolated,
            (RateMode::Multiple, _, Some(fps)) => {
                interpolated_frames(caps::rate(self.target_fps), fps)
            }
            (_, _, None) => 0,
        };
        self.format.exact = exact.is_some();
    }

    /// Lets the next frame begin a clip at this rate.
    fn change_rate(&mut self, rate: Rate) {
        let exact = self.format.exact;
        self.set_rate(rate);
        let same_grid = self.rate_changes.unwrap_or(true) && exact == self.format.exact;
        self.rate_changes = Some(same_grid);
    }

    /// Gives a frame its timestamp and its clip.
    fn place(
        &mut self,
        frame: Picture,
        info: BufferInfo,
        start: ClockTime,
        items: &mut Vec<QueueItem>,
    ) {
        let rate_changes = std::mem::take(&mut self.rate_changes);
        // Where packets are lost, frames are missing. At an exact rate, the output goes on with or without the flag.
        let is_gap = |pts| {
            let cadence = self.cadence().filter(|_| self.format.exact);
            cadence.is_some_and(|cadence| self.timeline.is_gap_before(pts, cadence))
        };
        let discont =
            info.flags.contains(gst::BufferFlags::DISCONT) && !info.pts.is_some_and(is_gap);
        if rate_changes.is_some() || discont {
            self.timeline.end_clip();
        }
        let placement = self.timeline.place((info.pts, info.duration), start, self.cadence());
        let (time, reason) = match (placement, rate_changes) {
            (Placement::SameClip(time), _) => (time, None),
            (Placement::NewClip(time, _), _) if discont => (time, Some(ClipEnd::Discont)),
            (Placement::NewClip(time, _), Some(same_grid)) => {
                (time, Some(ClipEnd::MeasuredRate { same_grid }))
            }
            (Placement::NewClip(time, reason), None) => (time, reason),
        };
        if let Some(pts) = info.pts.filter(|pts| pts.absdiff(time.pts) > ROUNDING) {
            gst::debug!(CAT, "A frame with the timestamp {pts} is shown at {}", time.pts);
        }
        items.extend(reason.map(|reason| QueueItem::EndOfClip(reason, Some(time))));
        if rate_changes.is_some() {
            items.push(self.format_item());
        }
        items.push(match frame {
            Picture::Frame(frame) => QueueItem::Frame(frame, time, info),
            Picture::Skipped(frame) => QueueItem::Skipped(frame, time),
        });
    }
}

/// Number of frames to interpolate between two input frames, by the frame rates of the caps.
fn interpolated(input: &VideoInfo, output: &VideoInfo) -> usize {
    let ((numer, denom), (out_numer, out_denom)) =
        (caps::rate(input.fps()), caps::rate(output.fps()));
    let parts = (u64::from(out_numer) * u64::from(denom))
        .checked_div(u64::from(numer) * u64::from(out_denom))
        .unwrap_or(1);
    parts.saturating_sub(1) as usize
}
