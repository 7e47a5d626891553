// SPDX-License-Identifier: MIT OR Apache-2.0
//! What waits for the output of one clip, and the times of that output.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use gst::ClockTime;
use gst_video::ValidVideoTimeCode;

use super::{BufferInfo, OutputFrame};
use crate::{
    element::{
        timecode,
        timeline::{Cadence, FrameTime},
    },
    engine::{Error, Frame},
};

/// The input frames that the model has and whose output it has not delivered, and the events between
/// and after them.
///
/// A clip of N input frames gives N + k·(N−1) output frames. Those at a multiple of k + 1 are the input
/// frames, the others are interpolated.
pub(super) struct PendingQueue {
    cadence: Option<Cadence>,
    /// Output frames from one input frame to the next: k + 1.
    parts: u64,
    entries: VecDeque<Entry>,
    /// The last input frame delivered.
    last: Option<FrameTime>,
    /// Its timecodes.
    timecodes: Vec<ValidVideoTimeCode>,
    /// Input frames so far.
    inputs: u64,
    /// The index of the first output frame: not 0 if the clip's first frames are missing.
    first: u64,
    /// The index of the next output frame.
    number: u64,
    /// How long the model has waited for the push task.
    waited: Duration,
}

enum Entry {
    Frame(FrameTime, BufferInfo),
    Event(gst::Event),
}

impl PendingQueue {
    /// With `interpolated` frames between two. Without a cadence there must be none.
    pub(super) fn new(interpolated: usize, cadence: Option<Cadence>, first: u64) -> Self {
        Self {
            cadence,
            parts: interpolated as u64 + 1,
            entries: VecDeque::new(),
            last: None,
            timecodes: Vec::new(),
            inputs: 0,
            first,
            number: first,
            waited: Duration::ZERO,
        }
    }

    pub(super) fn push_frame(&mut self, time: FrameTime, info: BufferInfo) {
        self.inputs += 1;
        self.entries.push_back(Entry::Frame(time, info));
    }

    pub(super) fn push_event(&mut self, event: gst::Event) {
        self.entries.push_back(Entry::Event(event));
    }

    /// Input frames held.
    pub(super) fn frames(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry, Entry::Frame(..))).count()
    }

    /// The next event, if no input frame is before it.
    pub(super) fn pop_event(&mut self) -> Option<gst::Event> {
        match self.entries.pop_front()? {
            Entry::Event(event) => Some(event),
            frame => {
                self.entries.push_front(frame);
                None
            }
        }
    }

    /// The model's next output frame with the fields of its buffer.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is one too many for the input frames so far.
    pub(super) fn pop_frame(&mut self, frame: Arc<Frame>) -> Result<OutputFrame, Error> {
        let output = match self.number % self.parts {
            0 => self.pop_input(frame),
            part => self.interpolated(frame, part),
        };
        let output = output.ok_or_else(|| Error::Internal {
            what: format!(
                "the model delivered {}, too many for {} of a clip",
                frames(self.number + 1 - self.first, "output"),
                frames(self.inputs, "input")
            ),
        })?;
        self.number += 1;
        Ok(output)
    }

    fn pop_input(&mut self, frame: Arc<Frame>) -> Option<OutputFrame> {
        let Entry::Frame(..) = self.entries.front()? else { return None };
        let Some(Entry::Frame(time, info)) = self.entries.pop_front() else { return None };
        self.last = Some(time);
        self.timecodes = info.timecodes;
        // The frame before a gap lasts through the gap, as the input says.
        let duration = match (self.cadence, info.duration) {
            (Some(_), Some(duration)) if self.parts == 1 => Some(duration),
            (Some(cadence), duration) => Some(cadence.input_duration(time, duration)),
            (None, duration) => duration,
        };
        Some(OutputFrame {
            frame,
            number: self.number,
            pts: time.pts,
            duration,
            flags: info.flags,
            metas: info.metas,
            timecodes: self.timecodes(0),
        })
    }

    /// A frame at `part` of the way from the last input frame to the next.
    fn interpolated(&self, frame: Arc<Frame>, part: u64) -> Option<OutputFrame> {
        let Entry::Frame(next, _) = self.entries.front()? else { return None };
        let (last, cadence) = self.last.zip(self.cadence)?;
        let pts = cadence.between(last, *next, part);
        let end = cadence.between(last, *next, part + 1);
        Some(OutputFrame {
            frame,
            number: self.number,
            pts,
            duration: Some(end.saturating_sub(pts)),
            flags: gst::BufferFlags::empty(),
            metas: None,
            timecodes: self.timecodes(part),
        })
    }

    /// The timecodes of the output frame `part` frames after the last input frame.
    fn timecodes(&self, part: u64) -> Vec<ValidVideoTimeCode> {
        let output = |input| timecode::output(input, self.parts, part);
        self.timecodes.iter().filter_map(output).collect()
    }

    /// The number of input and of output frames of a clip that has ended.
    ///
    /// # Errors
    /// [`Error::Internal`] if output frames are missing.
    pub(super) fn check_end(&self) -> Result<(u64, u64), Error> {
        let delivered = self.number - self.first;
        let expected = (self.inputs * self.parts).saturating_sub(self.parts - 1);
        if delivered == expected {
            return Ok((self.inputs, delivered));
        }
        Err(Error::Internal {
            what: format!(
                "the model delivered {} for {} of a clip, instead of {expected}",
                frames(delivered, "output"),
                frames(self.inputs, "input")
            ),
        })
    }

    /// The time of the last input frame delivered.
    pub(super) fn position(&self) -> Option<ClockTime> {
        self.last.map(|time| time.pts)
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
            Entry::Frame(..) => None,
        })
    }
}

fn frames(count: u64, kind: &str) -> String {
    format!("{count} {kind} frame{}", if count == 1 { "" } else { "s" })
}
