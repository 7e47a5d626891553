// SPDX-License-Identifier: MIT OR Apache-2.0
//! When the output frames are shown.
//!
//! At a constant rate, times are computed from the frame's number in rational arithmetic, so that
//! nothing adds up. Where the input leaves its nominal rate, each key frame keeps its own time, and
//! the frames made go evenly between their neighbours.

use gst::{ClockTime, prelude::MulDiv};

/// How far a time may lie from the cadence and still be put on it: containers round to the
/// millisecond, and the first frame, from which the rest is counted, is rounded too. What is further
/// off is not rounding: the video has a variable rate, and the frame keeps its time.
const ROUNDING: ClockTime = ClockTime::from_useconds(1000);

/// The duration of an input frame, and of the parts that the output divides it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cadence {
    /// Nanoseconds of `per` frames.
    nanoseconds: u64,
    per: u64,
    parts: u64,
}

impl Cadence {
    /// For a rate (numerator, denominator) above zero, and `made` frames between two.
    pub(super) fn new((numer, denom): (u32, u32), made: usize) -> Self {
        Self {
            nanoseconds: u64::from(denom) * *ClockTime::SECOND,
            per: u64::from(numer),
            parts: made as u64 + 1,
        }
    }

    /// The time of part `part` of frame `n`, counted from the first; rounded down, as everywhere in
    /// GStreamer.
    fn offset(&self, n: u64, part: u64) -> ClockTime {
        let parts = u128::from(n) * u128::from(self.parts) + u128::from(part);
        let time =
            parts * u128::from(self.nanoseconds) / (u128::from(self.per) * u128::from(self.parts));
        ClockTime::from_nseconds(u64::try_from(time).unwrap_or(u64::MAX - 1))
    }

    /// The duration of an input frame.
    pub(super) fn frame(&self) -> ClockTime {
        self.offset(1, 0)
    }

    /// Whether an interval of this length is no more than one frame: 1.5 frames at most.
    pub(super) fn spans_one_frame(&self, interval: ClockTime) -> bool {
        u128::from(*interval) * 2 * u128::from(self.per) <= u128::from(self.nanoseconds) * 3
    }

    /// The time `part` parts of the way from a key frame to the next one.
    pub(super) fn between(&self, key: FrameTime, next: FrameTime, part: u64) -> ClockTime {
        match key.base == next.base && key.n + 1 == next.n {
            true => key.base + self.offset(key.n, part),
            false => {
                let interval = next.pts.saturating_sub(key.pts);
                key.pts + interval.mul_div_floor(part, self.parts).unwrap_or(interval)
            }
        }
    }

    /// How long a key frame is shown whose successor is not known: one part, of the cadence's frame or
    /// of the `input`'s duration if that differs; all of it if that is a gap.
    pub(super) fn key_duration(&self, key: FrameTime, input: Option<ClockTime>) -> ClockTime {
        let nominal = (key.base + self.offset(key.n, 1)).saturating_sub(key.pts);
        match input {
            Some(input) if !self.spans_one_frame(input) => input,
            Some(input) if input.max(self.frame()) - input.min(self.frame()) > ROUNDING => {
                input / self.parts
            }
            _ => nominal,
        }
    }
}

/// When a key frame is shown: `pts`, which is the cadence's frame `n` counted from `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameTime {
    pub(super) pts: ClockTime,
    base: ClockTime,
    n: u64,
}

impl FrameTime {
    pub(super) fn first(pts: ClockTime) -> Self {
        Self { pts, base: pts, n: 0 }
    }
}

/// Where an input frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// The frame after the last one.
    SameClip(FrameTime),
    /// The first frame of a clip: nothing may be made between it and the last one.
    NewClip(FrameTime),
}

/// Gives input frames their times, one after the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    last: Option<FrameTime>,
    /// The time that the last frame came with.
    given: Option<ClockTime>,
    /// Where the last frame ends, in whatever clip it was.
    end: Option<ClockTime>,
}

impl Timeline {
    /// Forgets the last frame: the next one is the first of a clip.
    pub(super) fn cut(&mut self) {
        self.last = None;
    }

    /// Places a frame with the time `pts`. Without one, or with that of the frame before (libav's GIFs
    /// stand still), it comes right after the last frame, or at `start` if it is the first. Without a
    /// `cadence`, every frame is a clip.
    pub(super) fn place(
        &mut self,
        pts: Option<ClockTime>,
        start: ClockTime,
        cadence: Option<Cadence>,
    ) -> Placement {
        let repeated = pts.is_some() && pts == self.given;
        self.given = pts;
        let place = match (self.last, cadence) {
            (Some(last), Some(cadence)) => follow(last, pts.filter(|_| !repeated), cadence),
            _ => {
                let pts = pts.filter(|_| !repeated).or(self.end).or(pts);
                Placement::NewClip(FrameTime::first(pts.unwrap_or(start)))
            }
        };
        let (Placement::SameClip(time) | Placement::NewClip(time)) = place;
        self.last = Some(time);
        self.end = cadence.map(|cadence| time.pts + cadence.frame());
        place
    }
}

fn follow(last: FrameTime, pts: Option<ClockTime>, cadence: Cadence) -> Placement {
    let on_cadence = last.base + cadence.offset(last.n + 1, 0);
    let next = FrameTime { pts: on_cadence, base: last.base, n: last.n + 1 };
    let Some(pts) = pts else {
        return Placement::SameClip(next);
    };
    if pts <= last.pts || !cadence.spans_one_frame(pts - last.pts) {
        return Placement::NewClip(FrameTime::first(pts));
    }
    let off = pts.max(on_cadence) - pts.min(on_cadence);
    let rounding = ROUNDING.min(cadence.frame() / 2);
    Placement::SameClip(if off <= rounding { next } else { FrameTime::first(pts) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> ClockTime {
        ClockTime::from_mseconds(ms)
    }

    #[test]
    fn times_at_30000_1001_are_exact_an_hour_in_for_every_k() {
        for made in 0..=8u64 {
            let cadence = Cadence::new((30000, 1001), made as usize);
            let mut timeline = Timeline::default();
            let mut key = None;
            for n in 0..=108_000u64 {
                // Matroska's rounding to milliseconds.
                let pts = ms((n * 1_001_000 + 15_000) / 30_000);
                let (Placement::NewClip(time) | Placement::SameClip(time)) =
                    timeline.place(Some(pts), ClockTime::ZERO, Some(cadence));
                let exact = |part| {
                    let outputs = u128::from(n.saturating_sub(1) * (made + 1) + part);
                    (outputs * 1_001_000_000_000 / (30_000 * u128::from(made + 1))) as u64
                };
                if let Some(key) = key {
                    for part in 1..=made {
                        assert_eq!(*cadence.between(key, time, part), exact(part), "{n} {part}");
                    }
                    assert_eq!(*time.pts, exact(made + 1), "{n}");
                }
                key = Some(time);
            }
        }
    }

    #[test]
    fn frames_off_the_nominal_rate_keep_their_times_and_made_frames_go_between() {
        let cadence = Cadence::new((30, 1), 1);
        let mut timeline = Timeline::default();
        let mut last: Option<FrameTime> = None;
        for at in [0, 33, 67, 107, 150, 170, 219] {
            let place = timeline.place(Some(ms(at)), ClockTime::ZERO, Some(cadence));
            let (Placement::NewClip(time) | Placement::SameClip(time)) = place;
            assert!(time.pts.max(ms(at)) - time.pts.min(ms(at)) < ms(1), "{at}");
            if let Some(last) = last {
                assert!(matches!(place, Placement::SameClip(_)), "{at}");
                let middle = cadence.between(last, time, 1);
                assert!(
                    *(time.pts - middle).max(middle - last.pts) - *(time.pts - last.pts) / 2 <= 1
                );
            }
            last = Some(time);
        }
    }

    #[test]
    fn a_gap_over_a_frame_and_a_half_or_a_step_back_starts_a_clip() {
        let cadence = Cadence::new((10, 1), 2);
        let place = |first, second| {
            let mut timeline = Timeline::default();
            timeline.place(Some(ms(first)), ClockTime::ZERO, Some(cadence));
            timeline.place(Some(ms(second)), ClockTime::ZERO, Some(cadence))
        };
        assert!(matches!(place(0, 150), Placement::SameClip(_)));
        assert!(matches!(place(0, 151), Placement::NewClip(_)));
        assert!(matches!(place(500, 400), Placement::NewClip(_)));
    }

    #[test]
    fn frames_without_times_or_all_with_the_same_follow_each_other() {
        let cadence = Cadence::new((25, 1), 0);
        for pts in [None, Some(ms(7))] {
            let mut timeline = Timeline::default();
            for n in 0..5 {
                let (Placement::NewClip(time) | Placement::SameClip(time)) =
                    timeline.place(pts, ms(7), Some(cadence));
                assert_eq!(time.pts, ms(7 + n * 40));
                if n == 2 {
                    timeline.cut();
                }
            }
        }
    }
}
