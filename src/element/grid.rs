// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output frames of `rate-mode=exact`: they lie on a grid that begins with the clip.
//!
//! Output frame m is at m / rate after the first input frame. Times in the clip are in a unit of which input and
//! output frames are multiples, if there is one, so that fractions are exact and rounding errors do not add up.
//! Past the last input frame, the grid goes on as long as that frame lasts; where frames are missing, up to the next one.

use gst::ClockTime;

use super::{
    schedule::{NextClip, PlannedFrame},
    timeline::{Cadence, FrameTime, ROUNDING},
};

const NANOSECONDS: u64 = 1_000_000_000;
/// The longest gap that is filled by repeating the last frame. A longer one is rather an error in the timestamps than a
/// still picture.
const MAX_REPEAT: ClockTime = ClockTime::from_seconds(600);
/// The most units in a second, with which a clip can last for years. The fewest are nanoseconds, or timestamps
/// could coincide.
const MAX_UNITS: u64 = 10 * NANOSECONDS;

/// Plans the output of one clip.
pub(super) struct Grid {
    /// The output rate (numerator, denominator).
    rate: (u32, u32),
    cadence: Cadence,
    /// Units in a second.
    units: u64,
    /// An input frame that is no further from an output frame is used as it is.
    tolerance: Tolerance,
    /// The input frame at output frame 0: the first one of the clip, or of the clip that this one continues.
    origin: FrameTime,
    /// The last input frame.
    last: Option<Last>,
    /// How many came before it.
    inputs: u64,
    /// The index of the next output frame.
    next: u64,
}

/// How far an input frame may be from an output frame.
struct Tolerance {
    units: u64,
    time: ClockTime,
}

struct Last {
    time: u64,
    /// Until when its picture is repeated.
    covers: ClockTime,
    /// When it ends, which is later before a gap.
    end: ClockTime,
}

/// Number of input frames after an output frame until its duration is known: until the next output frame, or until
/// another clip begins.
pub(super) fn frames_held(rate: (u32, u32), cadence: Cadence) -> usize {
    let (numer, denom) = outputs_per_input(rate, cadence);
    usize::try_from(denom.div_ceil(numer)).unwrap_or(usize::MAX)
}

/// Whether a frame is repeated from `last` until the next one at `next`, where frames are missing.
pub(super) fn repeats(last: ClockTime, next: ClockTime) -> bool {
    next.saturating_sub(last) <= MAX_REPEAT
}

/// The number of output frames at a rate for a clip of `inputs` frames at the rate `fps`.
pub(super) fn frames(inputs: usize, fps: (u32, u32), rate: (u32, u32)) -> usize {
    if fps.0 == 0 {
        return inputs;
    }
    let cadence = Cadence::new(fps, 0);
    let grid = Grid::new(rate, cadence, FrameTime::first(ClockTime::ZERO));
    let (numer, denom) = outputs_per_input(rate, cadence);
    let count = (inputs as u128 * numer).div_ceil(denom);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let end = ClockTime::from_nseconds(scaled(inputs as u64, fps, NANOSECONDS));
    let is_too_short = |last| !grid.is_before(last, end);
    (count - u64::from(count.checked_sub(1).is_some_and(is_too_short))) as usize
}

/// The output frames for an input frame (numerator, denominator).
pub(super) fn outputs_per_input(rate: (u32, u32), cadence: Cadence) -> (u128, u128) {
    let [numer, denom] = [rate.0, rate.1].map(u128::from);
    let (input_numer, input_denom) = cadence.rate();
    (numer * u128::from(input_denom), denom * u128::from(input_numer))
}

impl Grid {
    pub(super) fn new(rate: (u32, u32), cadence: Cadence, origin: FrameTime) -> Self {
        let units = units(rate.0.into(), cadence.rate().0.into());
        let step = scaled(1, rate, units);
        let tolerance = Tolerance {
            units: to_units(ROUNDING, units).min(step / 4),
            time: ROUNDING.min(ClockTime::from_nseconds(scaled(1, rate, NANOSECONDS)) / 4),
        };
        Self { rate, cadence, units, tolerance, origin, last: None, inputs: 0, next: 0 }
    }

    /// The time in the clip of an output frame.
    fn time(&self, number: u64) -> u64 {
        scaled(number, self.rate, self.units)
    }

    /// The time in the clip of an input frame.
    fn input_time(&self, frame: FrameTime) -> u64 {
        let base = to_units(frame.base.saturating_sub(self.origin.base), self.units);
        base.saturating_add(scaled(frame.n, self.cadence.rate(), self.units))
    }

    /// When an output frame is shown.
    fn pts(&self, number: u64) -> ClockTime {
        self.origin.pts + ClockTime::from_nseconds(scaled(number, self.rate, NANOSECONDS))
    }

    /// Whether an output frame belongs before an input frame that is shown at this time. The clip before and the one
    /// after it on the same grid decide alike.
    fn is_before(&self, number: u64, time: ClockTime) -> bool {
        self.pts(number) + self.tolerance.time < time
    }

    fn planned(&self, number: u64, time: u64, input: u64) -> PlannedFrame {
        let pts = self.pts(number);
        let duration = Some(self.pts(number + 1).saturating_sub(pts));
        PlannedFrame { time, number, input, pts, duration }
    }

    pub(super) fn push(
        &mut self,
        frame: FrameTime,
        duration: Option<ClockTime>,
    ) -> (u64, Vec<PlannedFrame>) {
        let time = match &self.last {
            Some(last) => {
                self.inputs += 1;
                self.input_time(frame).max(last.time + 1)
            }
            None => {
                // Where the first frames of the clip are missing, so is their output.
                while self.is_before(self.next, frame.pts) {
                    self.next += 1;
                }
                self.input_time(frame)
            }
        };
        let mut planned = Vec::new();
        while self.time(self.next) <= time.saturating_add(self.tolerance.units) {
            let at = self.time(self.next);
            let near = at.saturating_add(self.tolerance.units) >= time;
            planned.push(match near {
                true => self.planned(self.next, time, self.inputs),
                false => self.planned(self.next, at, self.inputs.saturating_sub(1)),
            });
            self.next += 1;
        }
        let end = self.cadence.end(frame, duration);
        let is_gap = duration.is_some_and(|duration| !self.cadence.spans_one_frame(duration));
        let covers = if is_gap { frame.next(self.cadence).pts } else { end };
        self.last = Some(Last { time, covers, end });
        (time, planned)
    }

    /// Plans the output after the last input frame, which is repeated until it ends or `next` begins. Returns also when
    /// the last output frame ends.
    pub(super) fn finish(&mut self, next: NextClip) -> (Vec<PlannedFrame>, Option<ClockTime>) {
        let Some(last) = &self.last else { return (Vec::new(), None) };
        let (covers, end) = match next {
            NextClip::Unknown => (last.covers, Some(last.end)),
            NextClip::Begins(at) => (last.covers.min(at), Some(last.end.min(at))),
            NextClip::Continues(at) => (at, None),
        };
        let mut planned = Vec::new();
        while self.is_before(self.next, covers) {
            planned.push(self.planned(self.next, self.time(self.next), self.inputs));
            self.next += 1;
        }
        (planned, end)
    }

    pub(super) fn output_frames(&self, time: u64) -> f64 {
        time as f64 * f64::from(self.rate.0) / (self.units as f64 * f64::from(self.rate.1))
    }
}

/// The units in a second for two rates with these numerators: a common multiple, if it is not too large.
fn units(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    match (a / x.max(1)).checked_mul(b) {
        Some(common) if (1..=MAX_UNITS).contains(&common) => common * NANOSECONDS.div_ceil(common),
        _ => NANOSECONDS,
    }
}

/// Converts a time to units, of which a second has `units`.
fn to_units(time: ClockTime, units: u64) -> u64 {
    let time = u128::from(*time) * u128::from(units) / u128::from(NANOSECONDS);
    u64::try_from(time).unwrap_or(u64::MAX - 1)
}

/// The time of frame `number` at a rate, in parts of a second, rounded down.
fn scaled(number: u64, (numer, denom): (u32, u32), parts: u64) -> u64 {
    // In two steps, because three factors may exceed 128 bits: first the whole periods of `numer` frames.
    let (periods, rest) = (number / u64::from(numer), number % u64::from(numer));
    let period = u128::from(denom) * u128::from(parts);
    let rest = u128::from(rest) * period / u128::from(numer);
    let time = u128::from(periods).saturating_mul(period).saturating_add(rest);
    // GStreamer's largest time, which no timestamp comes near to.
    u64::try_from(time).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::timeline::{Placement, Timeline};

    fn ns(ns: u64) -> ClockTime {
        ClockTime::from_nseconds(ns)
    }

    /// The input frames of a stream at a constant rate whose timestamps are rounded to multiples of `rounding`.
    fn stream(fps: (u32, u32), count: u64, rounding: u64) -> (Cadence, Vec<FrameTime>) {
        let cadence = Cadence::new(fps, 0);
        let mut timeline = Timeline::default();
        let frames = (0..count).map(|n| {
            let at = n as f64 * f64::from(fps.1) * 1e9 / f64::from(fps.0);
            let pts = (at / rounding as f64).round() as u64 * rounding;
            let (Placement::NewClip(time, _) | Placement::SameClip(time)) =
                timeline.place((Some(ns(pts)), None), ClockTime::ZERO, Some(cadence));
            time
        });
        (cadence, frames.collect())
    }

    /// All output frames of a clip, each with the fraction of the way from the input frame before it to the next
    /// one, and the index of the former.
    fn outputs(
        rate: (u32, u32),
        cadence: Cadence,
        frames: &[FrameTime],
    ) -> Vec<(PlannedFrame, f64)> {
        let mut grid = Grid::new(rate, cadence, frames[0]);
        let mut outputs: Vec<(PlannedFrame, f64)> = Vec::new();
        let mut before = 0;
        for (n, frame) in frames.iter().enumerate() {
            let (time, planned) = grid.push(*frame, None);
            let position = |planned: PlannedFrame| {
                let part = (planned.time - before) as f64 / (time - before).max(1) as f64;
                (planned, n as f64 - 1.0 + part)
            };
            match n {
                0 => outputs.extend(planned.into_iter().map(|planned| (planned, 0.0))),
                _ => outputs.extend(planned.into_iter().map(position)),
            }
            before = time;
        }
        let (planned, end) = grid.finish(NextClip::Unknown);
        let last = frames.len() as f64 - 1.0;
        outputs.extend(planned.into_iter().map(|planned| (planned, last)));
        if let (Some((last, _)), Some(end)) = (outputs.last_mut(), end) {
            last.duration = Some(end.saturating_sub(last.pts));
        }
        outputs
    }

    /// Compares the grid with the definition in rational arithmetic, over an hour.
    #[test]
    fn an_hour_is_exact_at_all_rates() {
        for (fps, rate) in [
            ((24000, 1001), (60, 1)),
            ((24, 1), (60, 1)),
            ((25, 1), (60, 1)),
            ((30, 1), (25, 1)),
            ((60, 1), (24, 1)),
            ((30000, 1001), (60000, 1001)),
            ((1_000_000_000, 41_708_333), (48, 1)),
        ] {
            let [(n, d), (to_n, to_d)] = [fps, rate].map(|(n, d)| (u128::from(n), u128::from(d)));
            let count = (3600 * n / d) as u64;
            let (cadence, inputs) = stream(fps, count, 1);
            let outputs = outputs(rate, cadence, &inputs);
            let expected = (u128::from(count) * d * to_n).div_ceil(n * to_d);
            assert_eq!(outputs.len() as u128, expected, "{fps:?} to {rate:?}");
            assert_eq!(frames(count as usize, fps, rate), outputs.len());
            for (m, (output, position)) in (0u128..).zip(&outputs) {
                assert_eq!(u128::from(output.number), m);
                assert_eq!(u128::from(*output.pts), m * to_d * 1_000_000_000 / to_n);
                // Position m·to_d/to_n·n/d in input frames, except within a millisecond of one.
                let exact = (m * to_d * n) as f64 / (to_n * d) as f64;
                let exact = exact.min(count as f64 - 1.0);
                let tolerance = 0.0011 * n as f64 / d as f64;
                let near = (exact - exact.round()).abs() < tolerance;
                let most = if near { tolerance } else { 1e-6 };
                assert!(
                    (position - exact).abs() <= most,
                    "{fps:?} to {rate:?}, {m}: {position} {exact}"
                );
            }
            let total: u64 = outputs.iter().map(|(output, _)| *output.duration.unwrap()).sum();
            let input = (u128::from(count) * d * 1_000_000_000 / n) as u64;
            assert!(total.abs_diff(input) <= 1, "{fps:?} to {rate:?}: {total} {input}");
        }
    }

    #[test]
    fn rounded_timestamps_give_the_same_fractions_as_exact_ones() {
        for (fps, rate) in [((24000, 1001), (60, 1)), ((25, 1), (60, 1)), ((60, 1), (24, 1))] {
            let times = |rounding| {
                let (cadence, inputs) = stream(fps, 500, rounding);
                outputs(rate, cadence, &inputs).into_iter().map(|(output, _)| output.time)
            };
            assert!(times(1).eq(times(1_000_000)), "{fps:?} to {rate:?}");
        }
    }

    #[test]
    fn a_clip_whose_first_frames_are_missing_has_the_rest_of_its_output() {
        let (cadence, inputs) = stream((24000, 1001), 100, 1_000_000);
        let all = outputs((60, 1), cadence, &inputs);
        let mut grid = Grid::new((60, 1), cadence, inputs[0]);
        let mut planned: Vec<PlannedFrame> =
            inputs[37..].iter().flat_map(|frame| grid.push(*frame, None).1).collect();
        planned.extend(grid.finish(NextClip::Unknown).0);
        let rest = &all[all.len() - planned.len()..];
        assert_eq!(rest[0].0.number, 93, "37 · 2.5025 = 92.6");
        for (planned, (expected, _)) in planned.iter().zip(rest) {
            let fields = |planned: &PlannedFrame| (planned.number, planned.time, planned.pts);
            assert_eq!(fields(planned), fields(expected));
        }
    }

    #[test]
    fn frames_off_the_cadence_and_those_of_a_short_or_long_duration_are_covered() {
        let cadence = Cadence::new((10, 1), 0);
        let at = |ms| FrameTime::first(ClockTime::from_mseconds(ms));
        // 25 fps: every 40 ms.
        for (duration, numbers, end) in [
            (None, 0..8, 310),
            (Some(60), 0..7, 270),
            (Some(0), 0..6, 210),
            // A gap.
            (Some(2000), 0..8, 2210),
        ] {
            let mut grid = Grid::new((25, 1), cadence, at(0));
            let mut planned = grid.push(at(0), None).1;
            planned.extend(grid.push(at(90), None).1);
            let (time, last) = grid.push(at(210), duration.map(ClockTime::from_mseconds));
            planned.extend(last);
            let (rest, ends) = grid.finish(NextClip::Unknown);
            planned.extend(rest);
            assert_eq!(time, 210_000_000 * (grid.units / NANOSECONDS));
            let actual: Vec<u64> = planned.iter().map(|planned| planned.number).collect();
            assert_eq!(actual, numbers.collect::<Vec<_>>(), "{duration:?}");
            assert_eq!(ends, Some(ClockTime::from_mseconds(end)));
        }
    }

    #[test]
    fn times_do_not_overflow() {
        for (number, rate) in [(u64::MAX, (1, u32::MAX)), (u64::MAX, (u32::MAX, 1)), (5, (7, 3))] {
            assert!(scaled(number, rate, MAX_UNITS) < u64::MAX);
        }
        assert_eq!(units(24_000, 60), 24_000 * 41_667);
        assert_eq!(units(u64::from(u32::MAX), u64::from(u32::MAX) - 1), NANOSECONDS);
    }
}
