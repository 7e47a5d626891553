// SPDX-License-Identifier: MIT OR Apache-2.0
//! When the output frames of a clip are shown: the times that the model is asked for, and the timestamps of the
//! buffers.

use gst::ClockTime;

use super::{
    grid::{self, Grid},
    timeline::{Cadence, ClipEnd, FrameTime},
};
use crate::engine::{Error, multiple_times};

/// The most output frames for an input frame. More is an error in one of the rates, and would exhaust memory.
const MAX_RATIO: u128 = 240;

/// The rate of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputRate {
    /// k frames are interpolated between two input frames.
    Multiple(usize),
    /// This rate (numerator, denominator), above zero.
    Exact((u32, u32)),
}

impl OutputRate {
    /// Input frames that pass before it is known how long an output frame lasts.
    pub(super) fn frames_held(self, cadence: Option<Cadence>) -> usize {
        match (self, cadence) {
            (Self::Exact(rate), Some(cadence)) => grid::frames_held(rate, cadence),
            _ => 0,
        }
    }

    /// Checks an exact rate.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is more than [`MAX_RATIO`] times that of the input.
    pub(super) fn check(self, cadence: Option<Cadence>) -> Result<(), Error> {
        let (Self::Exact(rate), Some(cadence)) = (self, cadence) else { return Ok(()) };
        let (numer, denom) = grid::outputs_per_input(rate, cadence);
        if numer <= denom * MAX_RATIO {
            return Ok(());
        }
        Err(Error::Setting {
            setting: "target-fps",
            value: format!("{}/{}", rate.0, rate.1),
            why: format!(
                "it is {} times the rate of the input, and rate-mode=exact allows at most {MAX_RATIO} times",
                numer / denom
            ),
            instead: "use a lower target-fps".into(),
        })
    }
}

/// What follows a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextClip {
    /// It is not known, or nothing.
    Unknown,
    /// Another clip begins at this time.
    Begins(ClockTime),
    /// At this time, a clip begins whose output lies on the same grid.
    Continues(ClockTime),
}

impl NextClip {
    /// For a clip that ended for this `reason`; `next` is the frame after it, if that has come.
    pub(super) fn new(reason: ClipEnd, next: Option<FrameTime>) -> Self {
        match (reason, next) {
            (_, None) => Self::Unknown,
            (ClipEnd::TimestampGap(last, pts), Some(next)) if grid::repeats(last, pts) => {
                Self::Continues(next.pts)
            }
            (ClipEnd::MeasuredRate { same_grid: true }, Some(next)) => Self::Continues(next.pts),
            (_, Some(next)) => Self::Begins(next.pts),
        }
    }
}

/// An output frame that the model will deliver.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedFrame {
    /// Its time in the clip, as the model knows it.
    pub(super) time: u64,
    /// Its index in the clip.
    pub(super) number: u64,
    /// Index, among the frames pushed, of the input frame at this time, else of the last one before it.
    pub(super) input: u64,
    pub(super) pts: ClockTime,
    pub(super) duration: Option<ClockTime>,
}

/// Plans the output of one clip.
pub(super) enum Schedule {
    /// See [`OutputRate::Multiple`].
    Multiple(Multiple),
    /// See [`OutputRate::Exact`].
    Exact(Grid),
}

impl Schedule {
    /// For a clip whose output is counted from the input frame `origin`. `first`: clip index of the first input frame
    /// that is not skipped. Without a cadence there is only one.
    pub(super) fn new(
        rate: OutputRate,
        cadence: Option<Cadence>,
        origin: FrameTime,
        first: u64,
    ) -> Self {
        match (rate, cadence) {
            (OutputRate::Exact(rate), Some(cadence)) => {
                Self::Exact(Grid::new(rate, cadence, origin))
            }
            (OutputRate::Exact(_), None) => Self::Multiple(Multiple::new(0, None, first)),
            (OutputRate::Multiple(interpolated), _) => {
                Self::Multiple(Multiple::new(interpolated, cadence, first))
            }
        }
    }

    /// Plans the output up to an input frame. Returns the time of that frame in the clip.
    pub(super) fn push(
        &mut self,
        frame: FrameTime,
        duration: Option<ClockTime>,
    ) -> (u64, Vec<PlannedFrame>) {
        match self {
            Self::Multiple(multiple) => multiple.push(frame, duration),
            Self::Exact(grid) => grid.push(frame, duration),
        }
    }

    /// Plans the output after the last input frame. Returns also when the last output frame ends, if its duration
    /// depends on the end of the clip.
    pub(super) fn finish(&mut self, next: NextClip) -> (Vec<PlannedFrame>, Option<ClockTime>) {
        match self {
            Self::Multiple(_) => (Vec::new(), None),
            Self::Exact(grid) => grid.finish(next),
        }
    }

    /// Whether the duration of the last planned frame depends on what comes after it.
    pub(super) fn waits_for_next(&self) -> bool {
        matches!(self, Self::Exact(_))
    }

    /// How many output frames long a time in the clip is.
    pub(super) fn output_frames(&self, time: u64) -> f64 {
        match self {
            Self::Multiple(_) => time as f64,
            Self::Exact(grid) => grid.output_frames(time),
        }
    }
}

/// N + k·(N−1) output frames. Their times in the clip are their indices.
pub(super) struct Multiple {
    interpolated: usize,
    cadence: Option<Cadence>,
    /// The last input frame.
    last: Option<FrameTime>,
    /// Clip index of the first input frame that is not skipped.
    first: u64,
    /// How many came before the last one.
    inputs: u64,
}

impl Multiple {
    fn new(interpolated: usize, cadence: Option<Cadence>, first: u64) -> Self {
        Self { interpolated, cadence, last: None, first, inputs: 0 }
    }

    fn push(&mut self, frame: FrameTime, duration: Option<ClockTime>) -> (u64, Vec<PlannedFrame>) {
        let last = self.last.replace(frame);
        self.inputs += u64::from(last.is_some());
        let number = self.first + self.inputs;
        let (time, times) = multiple_times(number, last.is_none(), self.interpolated);
        let planned = |(part, number): (u64, &u64)| {
            let between = last.zip(self.cadence).filter(|_| *number < time);
            let (pts, duration) = match between {
                Some((last, cadence)) => {
                    let pts = cadence.between(last, frame, part);
                    (pts, Some(cadence.between(last, frame, part + 1).saturating_sub(pts)))
                }
                None => (frame.pts, self.input_duration(frame, duration)),
            };
            let input = self.inputs - u64::from(*number < time);
            PlannedFrame { time: *number, number: *number, input, pts, duration }
        };
        (time, (1..).zip(&times).map(planned).collect())
    }

    /// Duration of the output frame at an input frame.
    fn input_duration(&self, frame: FrameTime, duration: Option<ClockTime>) -> Option<ClockTime> {
        // The frame before a gap lasts through the gap, as the input says.
        match (self.cadence, duration) {
            (Some(_), Some(duration)) if self.interpolated == 0 => Some(duration),
            (Some(cadence), duration) => Some(cadence.input_duration(frame, duration)),
            (None, duration) => duration,
        }
    }
}
