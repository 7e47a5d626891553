// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timestamps, and the clip boundaries that follow from them.
//!
//! At a constant rate, timestamps are computed from the frame's index in rational arithmetic, so
//! rounding errors do not add up. Where the input leaves its nominal rate, each input frame keeps its
//! own timestamp, and the interpolated frames are spread evenly between their neighbours.

use std::fmt;

use gst::{ClockTime, prelude::MulDiv};

/// The largest distance of a timestamp from the cadence that counts as rounding: containers round to
/// the millisecond, also the first frame, from which the others are counted. A frame that is further
/// off belongs to a video of variable rate and keeps its timestamp.
pub(super) const ROUNDING: ClockTime = ClockTime::from_useconds(1000);

/// The shortest time from a frame to the first one of another clip. An output frame may be [`ROUNDING`] after the input
/// frame that it shows, and another clip's before.
const CLIP_DISTANCE: ClockTime = ClockTime::from_useconds(2001);

/// The shortest time between two output frames. A frame whose timestamp leaves less is moved.
const SMALLEST_STEP: ClockTime = ClockTime::USECOND;

/// The longest way back in time after which timestamps catch up. After a longer one they have begun anew.
const MAX_LAG: ClockTime = ClockTime::from_seconds(1);

/// The duration of an input frame, exactly, and the parts that the output divides it into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cadence {
    /// Nanoseconds of `per` frames.
    nanoseconds: u64,
    per: u64,
    parts: u64,
}

impl Cadence {
    /// For a rate (numerator, denominator) above zero, and `interpolated` frames between two.
    pub(super) fn new((numer, denom): (u32, u32), interpolated: usize) -> Self {
        Self {
            nanoseconds: u64::from(denom) * *ClockTime::SECOND,
            per: u64::from(numer),
            parts: interpolated as u64 + 1,
        }
    }

    /// The time of part `part` of frame `n` after that of frame 0, rounded down as GStreamer does.
    fn offset(&self, n: u64, part: u64) -> ClockTime {
        let parts = u128::from(n) * u128::from(self.parts) + u128::from(part);
        let time =
            parts * u128::from(self.nanoseconds) / (u128::from(self.per) * u128::from(self.parts));
        ClockTime::from_nseconds(u64::try_from(time).unwrap_or(u64::MAX - 1))
    }

    /// The frame rate (numerator, denominator).
    pub(super) fn rate(&self) -> (u32, u32) {
        (self.per as u32, (self.nanoseconds / *ClockTime::SECOND) as u32)
    }

    /// The duration of an input frame.
    pub(super) fn frame(&self) -> ClockTime {
        self.offset(1, 0)
    }

    /// Whether no frame is missing in an interval of this length: it is at most 1.5 frames.
    pub(super) fn spans_one_frame(&self, interval: ClockTime) -> bool {
        u128::from(*interval) * 2 * u128::from(self.per) <= u128::from(self.nanoseconds) * 3
    }

    /// Whether a frame is more than 1.5 times as long as an interval.
    pub(super) fn is_much_longer_than(&self, interval: ClockTime) -> bool {
        u128::from(*interval) * 3 * u128::from(self.per) < u128::from(self.nanoseconds) * 2
    }

    /// The time at `part` of the way from an input frame to the next one.
    pub(super) fn between(&self, frame: FrameTime, next: FrameTime, part: u64) -> ClockTime {
        match frame.base == next.base && frame.n + 1 == next.n {
            true => frame.base + self.offset(frame.n, part),
            false => {
                let interval = next.pts.saturating_sub(frame.pts);
                frame.pts + interval.mul_div_floor(part, self.parts).unwrap_or(interval)
            }
        }
    }

    /// When an input frame ends whose buffer has this duration.
    pub(super) fn end(&self, frame: FrameTime, duration: Option<ClockTime>) -> ClockTime {
        match duration {
            Some(duration) if duration.absdiff(self.frame()) > ROUNDING => frame.pts + duration,
            _ => frame.next(*self).pts,
        }
    }

    /// Duration of the output frame at an input frame. If the buffer's duration is a gap, that duration.
    /// If it differs from the nominal one, that duration / (k+1). Otherwise the nominal output duration.
    pub(super) fn input_duration(
        &self,
        frame: FrameTime,
        duration: Option<ClockTime>,
    ) -> ClockTime {
        let nominal = (frame.base + self.offset(frame.n, 1)).saturating_sub(frame.pts);
        match duration {
            Some(duration) if !self.spans_one_frame(duration) => duration,
            Some(duration) if duration.absdiff(self.frame()) > ROUNDING => duration / self.parts,
            _ => nominal,
        }
    }
}

/// When an input frame is shown: at `pts`, as frame `n` of the cadence counted from `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameTime {
    pub(super) pts: ClockTime,
    pub(super) base: ClockTime,
    pub(super) n: u64,
}

impl FrameTime {
    /// The frame that the cadence is counted from.
    pub(super) fn first(pts: ClockTime) -> Self {
        Self { pts, base: pts, n: 0 }
    }

    /// The frame after this one, if it is on the cadence.
    pub(super) fn next(self, cadence: Cadence) -> Self {
        let (base, n) = (self.base, self.n + 1);
        Self { pts: base + cadence.offset(n, 0), base, n }
    }
}

/// Why a clip ends: nothing is interpolated across this point. A flush, a stop and an error drop the
/// clip instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClipEnd {
    /// A buffer with the flag DISCONT. At an exact rate, missing frames count instead, if there are some.
    Discont,
    /// Frames are missing between these two timestamps: more than 1.5 frames.
    TimestampGap(ClockTime, ClockTime),
    /// The second of these timestamps is more than [`MAX_LAG`] before the first.
    TimestampBackwards(ClockTime, ClockTime),
    /// The frame rate is not known, so each frame is a clip.
    UnknownRate,
    /// The measured frame rate changes, or target-fps where the rate is measured. Output at an exact rate stays on its
    /// grid, unless it begins or ceases to have one.
    MeasuredRate { same_grid: bool },
    /// A GAP event that is longer than 1.5 frames, has no duration, or comes while the frame rate is
    /// unknown.
    Gap,
    /// Caps with another VideoInfo (format, size, rate, colorimetry, aspect ratio), also after
    /// renegotiation.
    Caps,
    /// A segment that does not continue the one before.
    Segment,
    /// EOS or SEGMENT_DONE.
    EndOfStream,
}

impl fmt::Display for ClipEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discont => f.write_str("buffer with DISCONT"),
            Self::TimestampGap(last, pts) => write!(f, "frames missing between {last} and {pts}"),
            Self::TimestampBackwards(last, pts) => {
                write!(f, "timestamp {pts} is long before {last}")
            }
            Self::UnknownRate => f.write_str("unknown frame rate"),
            Self::MeasuredRate { .. } => f.write_str("another measured frame rate or target-fps"),
            Self::Gap => f.write_str("GAP event"),
            Self::Caps => f.write_str("new caps"),
            Self::Segment => f.write_str("new segment"),
            Self::EndOfStream => f.write_str("end of stream or segment"),
        }
    }
}

/// The clip that an input frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// That of the frame before.
    SameClip(FrameTime),
    /// A new one. The reason why the clip before ends; `None` if it has ended, or there was none.
    NewClip(FrameTime, Option<ClipEnd>),
}

/// Gives each input frame its timestamp and its clip. Timestamps increase.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    /// The last frame of the clip; `None` if the next frame begins one.
    last: Option<FrameTime>,
    /// The timestamp that the last frame came with.
    given: Option<ClockTime>,
    /// The timestamp that the last frame has got, in whatever clip it was.
    shown: Option<ClockTime>,
    /// When the last frame ends at the rate of its clip.
    end: Option<ClockTime>,
    /// When the last frame ends by its duration, which may be longer or shorter.
    covered: Option<ClockTime>,
    /// The earliest time of the first frame of the next clip.
    earliest: ClockTime,
    /// How much later frames are shown than their timestamps say, since these have begun anew.
    delay: ClockTime,
}

impl Timeline {
    /// The next frame begins a clip.
    pub(super) fn end_clip(&mut self) {
        self.last = None;
    }

    /// The next frame begins a clip, and is not shown before the last frame ends.
    pub(super) fn end_clip_with_its_last_frame(&mut self) {
        self.last = None;
        self.earliest = self.earliest.max(self.covered.unwrap_or_default());
    }

    /// Whether frames are missing between the last one of the clip and this time: more than 1.5 frames.
    pub(super) fn is_gap_before(&self, time: ClockTime, cadence: Cadence) -> bool {
        let interval = self.last.and_then(|last| time.checked_sub(last.pts));
        interval.is_some_and(|interval| !cadence.spans_one_frame(interval))
    }

    /// Whether a frame is missing between the last one and this time.
    pub(super) fn awaits_frame_before(&self, time: ClockTime) -> bool {
        self.end.is_some_and(|end| time > end + ROUNDING)
    }

    /// Places a frame by the timestamp and the duration of its buffer. A frame without a timestamp follows the last
    /// frame. The first frame is then at `start`. A frame with the timestamp of the frame before counts as one
    /// without: libav's GIF decoder gives all frames the same. Without a `cadence`, each frame is a
    /// clip.
    pub(super) fn place(
        &mut self,
        (pts, duration): (Option<ClockTime>, Option<ClockTime>),
        start: ClockTime,
        cadence: Option<Cadence>,
    ) -> Placement {
        let repeated = pts.is_some() && pts == self.given;
        self.given = pts;
        let (time, begins_anew) = match pts.filter(|_| !repeated) {
            Some(pts) => self.increasing(pts, cadence),
            None => (None, None),
        };
        let first = || {
            let time = time.or(self.end).or(pts).unwrap_or(start);
            FrameTime::first(time.max(self.earliest))
        };
        let placement = match (self.last, cadence) {
            (None, _) => Placement::NewClip(first(), None),
            (Some(_), _) if begins_anew.is_some() => Placement::NewClip(first(), begins_anew),
            (Some(_), None) => Placement::NewClip(first(), Some(ClipEnd::UnknownRate)),
            (Some(last), Some(cadence)) => follow(last, time, cadence),
        };
        let (Placement::SameClip(time) | Placement::NewClip(time, _)) = placement;
        self.last = Some(time);
        self.shown = Some(time.pts);
        self.end = cadence.map(|cadence| time.pts + cadence.frame());
        self.covered = cadence.map(|cadence| cadence.end(time, duration));
        self.earliest = time.pts + CLIP_DISTANCE;
        placement
    }

    /// A time for a timestamp, after that of the last frame. Timestamps that fall behind catch up, two frames in the
    /// time of one. Where they have begun anew, all that follow are moved, and a clip begins.
    fn increasing(
        &mut self,
        pts: ClockTime,
        cadence: Option<Cadence>,
    ) -> (Option<ClockTime>, Option<ClipEnd>) {
        let frame = cadence.map_or(ClockTime::ZERO, |cadence| cadence.frame());
        // Interpolated frames go between.
        let step = SMALLEST_STEP * cadence.map_or(1, |cadence| cadence.parts);
        let Some(shown) = self.shown.filter(|shown| pts < *shown + step) else {
            self.delay = ClockTime::ZERO;
            return (Some(pts), None);
        };
        let time = pts + self.delay;
        if time >= shown + step {
            (Some(time), None)
        } else if shown.saturating_sub(time) <= MAX_LAG {
            (Some(shown + (frame / 2).max(step)), None)
        } else {
            self.delay = shown + frame - pts;
            (Some(shown + frame), Some(ClipEnd::TimestampBackwards(shown, pts)))
        }
    }
}

/// Places a frame after the `last` one of a clip, at `pts` or else at the next time.
fn follow(last: FrameTime, pts: Option<ClockTime>, cadence: Cadence) -> Placement {
    let next = last.next(cadence);
    let Some(pts) = pts else {
        return Placement::SameClip(next);
    };
    if !cadence.spans_one_frame(pts - last.pts) {
        let gap = ClipEnd::TimestampGap(last.pts, pts);
        return Placement::NewClip(FrameTime::first(pts), Some(gap));
    }
    let rounding = ROUNDING.min(cadence.frame() / 2);
    match pts.absdiff(next.pts) <= rounding {
        true => Placement::SameClip(next),
        false => Placement::SameClip(FrameTime::first(pts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> ClockTime {
        ClockTime::from_mseconds(ms)
    }

    #[test]
    fn times_at_30000_1001_are_exact_an_hour_in_for_every_k() {
        for k in 0..=8u64 {
            let cadence = Cadence::new((30000, 1001), k as usize);
            let mut timeline = Timeline::default();
            let mut last = None;
            for n in 0..=108_000u64 {
                // Matroska's rounding to milliseconds.
                let pts = ms((n * 1_001_000 + 15_000) / 30_000);
                let (Placement::NewClip(time, _) | Placement::SameClip(time)) =
                    timeline.place((Some(pts), None), ClockTime::ZERO, Some(cadence));
                let exact = |part| {
                    let outputs = u128::from(n.saturating_sub(1) * (k + 1) + part);
                    (outputs * 1_001_000_000_000 / (30_000 * u128::from(k + 1))) as u64
                };
                if let Some(last) = last {
                    for part in 1..=k {
                        assert_eq!(*cadence.between(last, time, part), exact(part), "{n} {part}");
                    }
                    assert_eq!(*time.pts, exact(k + 1), "{n}");
                }
                last = Some(time);
            }
        }
    }

    #[test]
    fn frames_off_the_nominal_rate_keep_their_times_and_interpolated_frames_go_between() {
        let cadence = Cadence::new((30, 1), 1);
        let mut timeline = Timeline::default();
        let mut last: Option<FrameTime> = None;
        for at in [0, 33, 67, 107, 150, 170, 219] {
            let place = timeline.place((Some(ms(at)), None), ClockTime::ZERO, Some(cadence));
            let (Placement::NewClip(time, _) | Placement::SameClip(time)) = place;
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
    fn a_gap_over_a_frame_and_a_half_or_timestamps_that_begin_anew_start_a_clip() {
        let cadence = Cadence::new((10, 1), 2);
        let place = |first, second| {
            let mut timeline = Timeline::default();
            timeline.place((Some(ms(first)), None), ClockTime::ZERO, Some(cadence));
            timeline.place((Some(ms(second)), None), ClockTime::ZERO, Some(cadence))
        };
        assert!(matches!(place(0, 150), Placement::SameClip(_)));
        assert!(matches!(place(0, 151), Placement::NewClip(_, Some(ClipEnd::TimestampGap(..)))));
        assert!(matches!(place(1500, 500), Placement::SameClip(_)));
        assert!(matches!(
            place(1501, 500),
            Placement::NewClip(_, Some(ClipEnd::TimestampBackwards(..)))
        ));
    }

    #[test]
    fn times_increase_and_return_to_the_timestamps_where_these_only_stumble() {
        let cadence = Cadence::new((10, 1), 2);
        for (given, expected) in [
            (&[0, 100, 100, 200, 300, 400][..], &[0, 100, 200, 250, 300, 400][..]),
            (&[0, 200, 100, 300, 500, 400, 600], &[0, 200, 250, 300, 500, 550, 600]),
            // Another beginning, and a return to the times before it.
            (&[5000, 0, 100, 200, 5400], &[5000, 5100, 5200, 5300, 5400]),
        ] {
            let mut timeline = Timeline::default();
            let times = given.iter().map(|at| {
                let placement = timeline.place((Some(ms(*at)), None), ms(0), Some(cadence));
                let (Placement::NewClip(time, _) | Placement::SameClip(time)) = placement;
                time.pts.mseconds()
            });
            assert_eq!(times.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn frames_without_times_or_all_with_the_same_follow_each_other() {
        let cadence = Cadence::new((25, 1), 0);
        for pts in [None, Some(ms(7))] {
            let mut timeline = Timeline::default();
            for n in 0..5 {
                let (Placement::NewClip(time, _) | Placement::SameClip(time)) =
                    timeline.place((pts, None), ms(7), Some(cadence));
                assert_eq!(time.pts, ms(7 + n * 40));
                if n == 2 {
                    timeline.end_clip();
                }
            }
        }
    }
}
