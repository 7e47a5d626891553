// SPDX-License-Identifier: MIT OR Apache-2.0
//! What waits for the output of one clip, and the buffer fields of that output.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use gst::ClockTime;
use gst_video::ValidVideoTimeCode;

use super::{BufferInfo, ClipFormat, InputFrame, OutputFrame};
use crate::{
    element::{
        schedule::{NextClip, OutputRate, PlannedFrame, Schedule},
        timecode,
        timeline::FrameTime,
    },
    engine::{Error, Frame, count},
};

/// The output frames that the model has to deliver, and the input frames and events that they have not reached
/// yet.
///
/// The metadata of an input buffer goes to the first output frame at its time or later, or to the last one if there is
/// none.
pub(super) struct PendingQueue {
    schedule: Schedule,
    rate: OutputRate,
    /// Frames that the model makes between two input frames.
    interpolated: usize,
    /// Clip index of the first input frame that is not skipped.
    first: u64,
    /// The index in the stream of the first input frame of the clip.
    start: u64,
    entries: VecDeque<Entry>,
    planned: VecDeque<PlannedFrame>,
    /// The last frame delivered, while its duration may depend on what comes after it. If the clip continues the grid of
    /// the one before, and has no output yet, it is that clip's.
    held: Option<OutputFrame>,
    /// What follows the clip, when all input frames have come.
    next: Option<NextClip>,
    /// The last input frame that the output has reached.
    last: Option<FrameTime>,
    timecodes: Timecodes,
    /// Input frames so far.
    inputs: u64,
    /// Output frames so far, delivered and planned.
    delivered: u64,
    expected: u64,
    /// The first input frames of the shot of the last output frame, and of the next one.
    shot: u64,
    next_shot: u64,
    /// Whether the next output frame begins a shot.
    begins_shot: bool,
    /// How long the model has waited for the push task.
    waited: Duration,
}

enum Entry {
    Frame { time: u64, at: FrameTime, info: BufferInfo },
    Event(gst::Event),
}

/// The timecodes of the output.
#[derive(Default)]
struct Timecodes {
    /// Those of the last input frame.
    input: Vec<ValidVideoTimeCode>,
    /// The timecodes of an output frame, and its index. Those of the frames after it follow from them. At an exact
    /// rate they are consecutive as long as those of the input are.
    output: (Vec<ValidVideoTimeCode>, u64),
}

impl Timecodes {
    /// Those of the output frame `number`.
    fn at(&self, number: u64) -> Vec<ValidVideoTimeCode> {
        let (timecodes, from) = &self.output;
        let at = |timecode: &ValidVideoTimeCode| {
            let mut timecode = timecode.clone();
            timecode.add_frames((number - from) as i64);
            timecode
        };
        timecodes.iter().map(at).collect()
    }
}

impl PendingQueue {
    /// For a clip whose output is counted from the input frame `origin`. `first`: clip index of the first input frame
    /// that is not skipped.
    pub(super) fn new(format: &ClipFormat, origin: FrameTime, first: u64) -> Self {
        Self {
            schedule: Schedule::new(format.rate, format.cadence, origin, first),
            rate: format.rate,
            interpolated: format.format.interpolated,
            first,
            start: 0,
            entries: VecDeque::new(),
            planned: VecDeque::new(),
            held: None,
            next: None,
            last: None,
            timecodes: Timecodes::default(),
            inputs: 0,
            delivered: 0,
            expected: 0,
            shot: 0,
            next_shot: 0,
            begins_shot: false,
            waited: Duration::ZERO,
        }
    }

    /// Takes over what is left of the clip before, whose grid this one continues: its last output frame, which lasts until
    /// the next one, and the events after that.
    pub(super) fn continue_after(mut self, before: Self) -> Self {
        (self.held, self.entries) = (before.held, before.entries);
        self
    }

    /// Whether the next clip continues the grid of this one, which has ended.
    pub(super) fn is_continued(&self) -> bool {
        matches!(self.next, Some(NextClip::Continues(_)))
    }

    /// Takes an input frame. Returns its time in the clip and the times of the output frames up to it.
    pub(super) fn push_frame(&mut self, at: FrameTime, info: BufferInfo) -> (u64, Vec<u64>) {
        if self.inputs == 0 {
            self.start = info.number.saturating_sub(self.first);
        }
        self.inputs += 1;
        let (time, planned) = self.schedule.push(at, info.duration);
        self.entries.push_back(Entry::Frame { time, at, info });
        (time, self.plan(planned))
    }

    /// Ends the clip. Returns the times of the output frames after the last input frame.
    pub(super) fn finish(&mut self, next: NextClip) -> Vec<u64> {
        let (planned, end) = self.schedule.finish(next);
        let times = self.plan(planned);
        self.next = Some(next);
        let set = |pts, duration: &mut Option<ClockTime>| {
            if let Some(end) = end {
                *duration = Some(end.saturating_sub(pts));
            }
        };
        if let Some(last) = self.planned.back_mut() {
            set(last.pts, &mut last.duration);
        } else if let Some(mut last) = self.held.take() {
            set(last.pts, &mut last.duration);
            let events = self.reach(&mut last, 0, u64::MAX);
            // They came after its input frame.
            for event in events.into_iter().rev() {
                self.entries.push_front(Entry::Event(event));
            }
            self.held = Some(last);
        }
        times
    }

    fn plan(&mut self, planned: Vec<PlannedFrame>) -> Vec<u64> {
        let times = planned.iter().map(|frame| frame.time).collect();
        self.expected += planned.len() as u64;
        self.planned.extend(planned);
        times
    }

    pub(super) fn push_event(&mut self, event: gst::Event) {
        self.entries.push_back(Entry::Event(event));
    }

    /// The next output frame is of the shot that begins with input frame `first`.
    pub(super) fn begin_shot(&mut self, first: u64) {
        self.next_shot = first;
        // Otherwise the clip begins with this shot, or within it.
        self.begins_shot = first > self.first;
    }

    /// Input frames held.
    pub(super) fn frames(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry, Entry::Frame { .. })).count()
    }

    /// The next event, if no input or output frame is before it.
    pub(super) fn pop_event(&mut self) -> Option<gst::Event> {
        if self.held.is_some() {
            return None;
        }
        match self.entries.pop_front()? {
            Entry::Event(event) => Some(event),
            frame => {
                self.entries.push_front(frame);
                None
            }
        }
    }

    /// Takes the model's next output frame, for [`pop_frame`](Self::pop_frame). Returns the events before it.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is one too many for the input frames so far.
    pub(super) fn deliver(&mut self, frame: Arc<Frame>) -> Result<Vec<gst::Event>, Error> {
        self.delivered += 1;
        let planned = self.planned.pop_front().ok_or_else(|| Error::Internal {
            what: format!(
                "the model delivered {}, too many for {} of a clip",
                count(self.delivered, "output frame"),
                count(self.inputs, "input frame")
            ),
        })?;
        let number = self.first + planned.input;
        // A frame between two shots belongs to the last input frame of the first one, also if it shows the second.
        if number >= self.next_shot {
            self.shot = self.next_shot;
        }
        let mut output = OutputFrame {
            frame,
            number: planned.number,
            begins_shot: std::mem::take(&mut self.begins_shot),
            pts: planned.pts,
            duration: planned.duration,
            flags: gst::BufferFlags::empty(),
            metas: Vec::new(),
            timecodes: Vec::new(),
            input: InputFrame {
                number,
                shot: self.shot,
                clip: self.start,
                interpolated: self.interpolated,
            },
        };
        let is_last = self.next.is_some() && self.planned.is_empty();
        let events =
            self.reach(&mut output, planned.time, if is_last { u64::MAX } else { planned.time });
        output.timecodes = self.timecodes.at(output.number);
        self.held = Some(output);
        Ok(events)
    }

    /// Moves to `output`, which is at `time`, what the input frames up to `limit` carry. Returns the events between
    /// them.
    fn reach(&mut self, output: &mut OutputFrame, time: u64, limit: u64) -> Vec<gst::Event> {
        let is_reached =
            |entry: &Entry| matches!(entry, Entry::Frame { time: at, .. } if *at <= limit);
        // The events after the last of these frames come after the output frame.
        let count = self.entries.iter().rposition(is_reached).map_or(0, |at| at + 1);
        let mut events = Vec::new();
        for entry in self.entries.drain(..count) {
            match entry {
                Entry::Event(event) => events.push(event),
                Entry::Frame { time: at, at: input, info } => {
                    self.last = Some(input);
                    output.flags |= info.flags;
                    output.metas.extend(info.metas);
                    let before = std::mem::replace(&mut self.timecodes.input, info.timecodes);
                    let timecodes = &self.timecodes.input;
                    let continue_before = matches!(self.rate, OutputRate::Exact(_))
                        && !self.timecodes.output.0.is_empty()
                        && timecode::follow(&before, timecodes);
                    if !continue_before {
                        let later = self.schedule.output_frames(time.saturating_sub(at));
                        let at_rate = |input| timecode::output(input, self.rate, later);
                        let at_rate = timecodes.iter().filter_map(at_rate).collect();
                        self.timecodes.output = (at_rate, output.number);
                    }
                }
            }
        }
        events
    }

    /// The output frame that is ready to leave.
    pub(super) fn pop_frame(&mut self) -> Option<OutputFrame> {
        let is_known = self.next.is_some() && !self.is_continued();
        let lasts = self.schedule.waits_for_next() && self.planned.is_empty() && !is_known;
        if lasts { None } else { self.held.take() }
    }

    /// The number of input and of output frames of a clip that has ended.
    ///
    /// # Errors
    /// [`Error::Internal`] if output frames are missing.
    pub(super) fn check_end(&self) -> Result<(u64, u64), Error> {
        if self.delivered == self.expected {
            return Ok((self.inputs, self.delivered));
        }
        Err(Error::Internal {
            what: format!(
                "the model delivered {} for {} of a clip, instead of {}",
                count(self.delivered, "output frame"),
                count(self.inputs, "input frame"),
                self.expected
            ),
        })
    }

    /// The time of the last input frame that the output has reached.
    pub(super) fn position(&self) -> Option<ClockTime> {
        self.last.map(|last| last.pts)
    }

    pub(super) fn add_wait(&mut self, waited: Duration) {
        self.waited += waited;
    }

    pub(super) fn take_wait(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    pub(super) fn into_events(self) -> impl Iterator<Item = gst::Event> {
        self.entries.into_iter().filter_map(|entry| match entry {
            Entry::Event(event) => Some(event),
            Entry::Frame { .. } => None,
        })
    }
}
