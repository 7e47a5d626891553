// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress and latency.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use gst::ClockTime;

use crate::engine::Progress;

/// The most messages in a second.
const MESSAGES: usize = 10;
/// The time between two messages, so that there are less than [`MESSAGES`] and the last one can follow
/// at once.
const INTERVAL: Duration = Duration::from_millis(125);

/// Counts and times from start to stop.
#[derive(Default)]
pub(super) struct Statistics {
    pub(super) frames_in: u64,
    pub(super) frames_out: u64,
    /// When the last messages were posted, at most [`MESSAGES`] of them, the oldest first.
    posted: VecDeque<Instant>,
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
    /// The longest time that an input frame has taken, for each [`LatencyPart`].
    parts: [Duration; 3],
}

/// A part of the work on a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum LatencyPart {
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
        self.parts = Default::default();
    }

    /// Records the time that a frame took in a part. Returns whether this changes the latency.
    pub(super) fn record(&mut self, part: LatencyPart, took: Duration) -> bool {
        let before = self.latency();
        let longest = &mut self.parts[part as usize];
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
            ClockTime::try_from(self.parts.iter().sum::<Duration>()).unwrap_or(ClockTime::ZERO);
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

    /// The message to post after a unit of work; `None` if one was posted not long ago.
    pub(super) fn message(&mut self, now: Instant) -> Option<gst::Structure> {
        let due = self.posted.back().is_none_or(|last| now - *last >= INTERVAL);
        due.then(|| self.last_message(now)).flatten()
    }

    /// The message to post at the end; `None` if there were too many in this second.
    pub(super) fn last_message(&mut self, now: Instant) -> Option<gst::Structure> {
        self.posted.retain(|posted| now - *posted < Duration::from_secs(1));
        (self.posted.len() < MESSAGES).then(|| {
            self.posted.push_back(now);
            self.structure()
        })
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
        assert!(!statistics.record(LatencyPart::Compute, Duration::from_millis(60)));
        assert!(!statistics.record(LatencyPart::Input, Duration::from_millis(40)));
        assert!(statistics.record(LatencyPart::Output, Duration::from_millis(50)));
        assert_eq!(statistics.latency(), ClockTime::from_mseconds(250));
        assert!(!statistics.record(LatencyPart::Output, Duration::from_millis(5)));
    }

    #[test]
    fn at_most_ten_messages_come_in_any_second_however_many_streams_end() {
        gst::init().unwrap();
        let mut statistics = Statistics::default();
        let start = Instant::now();
        let mut posted = Vec::new();
        for ms in 0..3000 {
            let now = start + Duration::from_millis(ms);
            let ends = ms % 30 == 29;
            let message = if ends { statistics.last_message(now) } else { statistics.message(now) };
            posted.extend(message.map(|_| ms));
        }
        assert_eq!(posted[0], 0);
        assert!(posted.windows(11).all(|eleven| eleven[10] - eleven[0] >= 1000), "{posted:?}");
        assert!(posted.len() >= 24, "{posted:?}");
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
