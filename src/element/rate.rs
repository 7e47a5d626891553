// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the frame rate by the timestamps: caps may not name it, or name a wrong one. A camera in the
//! dark delivers half the rate of its caps; the headers of H.264 often say twice the rate, or 90,000.

use gst::ClockTime;

use super::timeline::Cadence;

/// The frame rate is measured over this many frames.
pub(super) const RATE_FRAMES: usize = 5;

/// The rate of a stream that has neither a rate nor timestamps, such as one of images.
pub(super) const ASSUMED_RATE: (u32, u32) = (25, 1);

/// The highest frame rate that is believed.
const MAX_RATE: u32 = 1000;

/// Whether a rate (numerator, denominator) of caps is no frame rate: the clock of the stream, such as 90,000, or
/// nonsense.
pub(super) fn is_time_base((numer, denom): (u32, u32)) -> bool {
    numer > denom.saturating_mul(MAX_RATE)
}

/// Where the frame rate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RateSource {
    /// The caps.
    Caps,
    /// The timestamps: the caps do not name a rate.
    Timestamps,
    /// The timestamps: they contradict the caps.
    NotCaps,
    /// Nothing: [`ASSUMED_RATE`].
    Assumed,
}

impl RateSource {
    /// Input frames that were held back until the rate was known.
    pub(super) fn frames_held(self) -> usize {
        match self {
            Self::Timestamps | Self::Assumed => RATE_FRAMES - 1,
            Self::Caps | Self::NotCaps => 0,
        }
    }
}

/// The last intervals between two input frames.
#[derive(Debug, Clone, Default)]
pub(super) struct RateMeter {
    last: Option<ClockTime>,
    /// Oldest first; at most [`RATE_FRAMES`] − 1.
    intervals: Vec<ClockTime>,
}

impl RateMeter {
    /// Takes the timestamp of the next input frame.
    pub(super) fn push(&mut self, pts: Option<ClockTime>) {
        match (self.last, pts) {
            (Some(last), Some(pts)) if pts > last => {
                if self.is_full() {
                    self.intervals.remove(0);
                }
                self.intervals.push(pts - last);
            }
            (Some(last), Some(pts)) if pts < last => self.intervals.clear(),
            _ => {}
        }
        self.last = pts.or(self.last);
    }

    /// The interval to the next frame is not one between two frames.
    pub(super) fn skip_interval(&mut self) {
        self.last = None;
    }

    pub(super) fn is_full(&self) -> bool {
        self.intervals.len() == RATE_FRAMES - 1
    }

    /// The frame rate (numerator, denominator) by the median interval: the standard rate that is within
    /// 0.1 %, if there is one.
    pub(super) fn rate(&self) -> Option<(u32, u32)> {
        let mut sorted = self.intervals.clone();
        sorted.sort();
        let median = *sorted.get(sorted.len().saturating_sub(1) / 2)?;
        Some(match gst_video::guess_framerate(median) {
            Some(rate) => (rate.numer() as u32, rate.denom() as u32),
            None => match u32::try_from(*median) {
                Ok(nanoseconds) => (1_000_000_000, nanoseconds),
                Err(_) => (1_000_000, u32::try_from(median.useconds()).unwrap_or(u32::MAX)),
            },
        })
    }

    /// Whether all of the last intervals contradict a cadence: they are longer than 1.5 frames of it, or
    /// 1.5 times shorter. Short intervals must be alike, because streams with jitter have some.
    pub(super) fn contradicts(&self, cadence: Cadence) -> bool {
        let intervals = || self.intervals.iter().copied();
        let (Some(least), Some(most)) = (intervals().min(), intervals().max()) else {
            return false;
        };
        self.is_full()
            && (intervals().all(|interval| !cadence.spans_one_frame(interval))
                || intervals().all(|interval| cadence.is_much_longer_than(interval))
                    && most * 2 <= least * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(times: &[u64]) -> RateMeter {
        let mut meter = RateMeter::default();
        times.iter().for_each(|ms| meter.push(Some(ClockTime::from_mseconds(*ms))));
        meter
    }

    #[test]
    fn the_rate_is_the_standard_one_that_the_median_interval_is_near_to() {
        let rate = |intervals: &[u64]| {
            let mut meter = RateMeter::default();
            let mut time = ClockTime::ZERO;
            meter.push(Some(time));
            for interval in intervals {
                time += ClockTime::from_nseconds(*interval);
                meter.push(Some(time));
            }
            meter.rate()
        };
        assert_eq!(rate(&[]), None);
        assert_eq!(rate(&[66_666_667; 4]), Some((15, 1)));
        assert_eq!(rate(&[33_366_666, 33_366_667, 1_000_000_000, 33_366_667]), Some((30000, 1001)));
        assert_eq!(rate(&[70_000_000; 4]), Some((1_000_000_000, 70_000_000)));
        assert_eq!(rate(&[10_000_000_000]), Some((1_000_000, 10_000_000)));
    }

    #[test]
    fn four_intervals_that_all_differ_contradict_a_cadence_and_fewer_do_not() {
        let cadence = Cadence::new((30, 1), 0);
        for (times, contradicts) in [
            // A camera in the dark, at 15 fps; then a pause.
            (&[0, 66, 133, 200, 266][..], true),
            (&[0, 66, 133, 200], false),
            (&[0, 66, 133, 1133, 1200], true),
            // At 20 fps frames are interpolated all the same.
            (&[0, 50, 100, 150, 200], false),
            // Holes in a stream of 30 fps.
            (&[0, 66, 133, 166, 233], false),
            // At 60 fps; frames that came in a burst.
            (&[0, 17, 33, 50, 67], true),
            (&[0, 5, 16, 18, 30], false),
            // Backwards.
            (&[0, 66, 133, 100, 166, 233, 300], false),
        ] {
            assert_eq!(meter(times).contradicts(cadence), contradicts, "{times:?}");
        }
    }
}
