// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress and latency.

use std::time::{Duration, Instant};

use gst::ClockTime;

use crate::engine::Progress;

/// Counts and times from start to stop.
#[derive(Default)]
pub(super) struct Statistics {
    pub(super) frames_in: u64,
    pub(super) frames_out: u64,
    /// The last unit of work of the model, and the time that it took.
    unit: Option<(String, Duration)>,
    /// When the work on the current segment began, and the segment's start and stop.
    segment: Option<(Instant, ClockTime, Option<ClockTime>)>,
    /// Time left for the segment, if it continues at the same speed.
    eta: Option<Duration>,
    /// Duration of an input frame.
    frame: Option<ClockTime>,
    /// Input frames that the model holds back.
    lookahead: usize,
    /// The longest time that an input frame has taken, for each [`Stage`].
    stages: [Duration; 3],
}

/// A part of the work on a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// Conversion of an input buffer.
    Input,
    /// The model.
    Compute,
    /// Conversion to an output buffer.
    Output,
}

impl Statistics {
    /// Begins a segment from `start` to `stop`.
    pub(super) fn start_segment(&mut self, start: ClockTime, stop: Option<ClockTime>) {
        self.segment = Some((Instant::now(), start, stop));
        self.eta = None;
    }

    /// Begins a format: input frames of this duration, `lookahead` of them held back, nothing measured.
    pub(super) fn start_format(&mut self, frame: Option<ClockTime>, lookahead: usize) {
        self.frame = frame;
        self.lookahead = lookahead;
        self.stages = Default::default();
    }

    /// Records the time that a frame took in a stage. Returns whether this changes the latency.
    pub(super) fn record(&mut self, stage: Stage, took: Duration) -> bool {
        let before = self.latency();
        let longest = &mut self.stages[stage as usize];
        *longest = took.max(*longest);
        self.latency() != before
    }

    /// The latency in live use: the duration of the frames held back, and the time of the work.
    ///
    /// A machine that keeps up needs at most one frame's duration for a frame, so that much is
    /// reserved from the start, and more after more was measured.
    pub(super) fn latency(&self) -> ClockTime {
        let frame = self.frame.unwrap_or(ClockTime::ZERO);
        let work =
            ClockTime::try_from(self.stages.iter().sum::<Duration>()).unwrap_or(ClockTime::ZERO);
        frame * self.lookahead as u64 + frame.max(work)
    }

    /// Records a finished unit of work, when the output is at `position`.
    pub(super) fn progress(&mut self, progress: Progress, position: Option<ClockTime>) {
        self.unit = Some((progress.unit, progress.took));
        if let (Some((since, start, Some(stop))), Some(position)) = (self.segment, position) {
            let done = position.saturating_sub(start).seconds_f64();
            let left = stop.saturating_sub(position).seconds_f64();
            self.eta = (done > 0.0)
                .then(|| {
                    Duration::try_from_secs_f64(since.elapsed().as_secs_f64() * left / done).ok()
                })
                .flatten();
        }
    }

    /// The `progress` property and the `venhance-progress` message.
    pub(super) fn structure(&self) -> gst::Structure {
        let (unit, took) = match &self.unit {
            Some((unit, took)) => (unit.as_str(), took.as_secs_f64()),
            None => ("", -1.0),
        };
        gst::Structure::builder("venhance-progress")
            .field("frames-in", self.frames_in)
            .field("frames-out", self.frames_out)
            .field("unit", unit)
            .field("seconds-per-unit", took)
            .field("eta-seconds", self.eta.map_or(-1.0, |eta| eta.as_secs_f64()))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_the_lookahead_and_one_frame_or_the_work_if_that_takes_longer() {
        let frame = ClockTime::from_mseconds(100);
        let mut statistics = Statistics::default();
        statistics.start_format(Some(frame), 0);
        assert_eq!(statistics.latency(), frame);
        statistics.start_format(Some(frame), 1);
        assert_eq!(statistics.latency(), frame * 2);
        assert!(!statistics.record(Stage::Compute, Duration::from_millis(60)));
        assert!(!statistics.record(Stage::Input, Duration::from_millis(40)));
        assert!(statistics.record(Stage::Output, Duration::from_millis(50)));
        assert_eq!(statistics.latency(), ClockTime::from_mseconds(250));
        assert!(!statistics.record(Stage::Output, Duration::from_millis(5)));
    }

    #[test]
    fn the_time_left_follows_from_the_part_done_and_is_unknown_without_an_end() {
        let progress = || Progress { unit: "frame".into(), took: Duration::from_millis(20) };
        let eta =
            |statistics: &Statistics| statistics.structure().get::<f64>("eta-seconds").unwrap();
        gst::init().unwrap();
        let mut statistics = Statistics::default();
        assert_eq!(eta(&statistics), -1.0);
        statistics.start_segment(ClockTime::ZERO, None);
        statistics.progress(progress(), Some(ClockTime::SECOND));
        assert_eq!(eta(&statistics), -1.0);
        statistics.start_segment(ClockTime::SECOND, Some(ClockTime::from_seconds(5)));
        std::thread::sleep(Duration::from_millis(20));
        statistics.progress(progress(), Some(ClockTime::from_seconds(2)));
        assert!(eta(&statistics) >= 0.06);
        statistics.progress(progress(), Some(ClockTime::from_seconds(5)));
        assert_eq!(eta(&statistics), 0.0);
        assert_eq!(statistics.structure().get::<f64>("seconds-per-unit").unwrap(), 0.02);
    }
}
