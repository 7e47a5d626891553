// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fades and flashes: neighbours that differ in brightness or contrast are matched before motion is searched for.

use super::plane::Plane;

/// An affine map of the luma: `gain`·luma + `offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tone {
    pub gain: f32,
    pub offset: f32,
}

impl Tone {
    /// Leaves everything as it is.
    pub(super) const IDENTITY: Self = Self { gain: 1.0, offset: 0.0 };

    /// The map from the first of two planes to the second that matches mean and standard deviation, if it makes
    /// them clearly more similar. The planes are small, so that motion hardly matters.
    pub(super) fn between([a, b]: [&Plane; 2]) -> Option<Self> {
        /// A larger gain amplifies noise and rounding too much.
        const MAX_GAIN: f32 = 4.0;
        /// Flat planes have no contrast to match.
        const MIN_DEVIATION: f32 = 0.01;
        /// Differences that remain, relative to those before.
        const MAX_RATIO: f32 = 0.7;
        /// A smaller mean difference than that of rounding to 8 bits needs no match.
        const MIN_DIFFERENCE: f32 = 0.004;

        let [(mean, deviation), (to_mean, to_deviation)] = [a, b].map(mean_and_deviation);
        if deviation.min(to_deviation) < MIN_DEVIATION {
            return None;
        }
        let gain = to_deviation / deviation;
        let tone = Self { gain, offset: to_mean - gain * mean };
        let difference = |tone: Self| {
            let pairs = a.values.iter().zip(&b.values);
            pairs.map(|(a, b)| (tone.map(*a) - b).abs()).sum::<f32>() / a.values.len() as f32
        };
        let before = difference(Self::IDENTITY);
        ((1.0 / MAX_GAIN..=MAX_GAIN).contains(&gain)
            && before > MIN_DIFFERENCE
            && difference(tone) < MAX_RATIO * before)
            .then_some(tone)
    }

    /// The maps of the first and of the second frame to `time`, 0 to 1, in a linear fade that maps the first to the
    /// second like `self`.
    pub(super) fn at(self, time: f32) -> [Self; 2] {
        let from_first = Self { gain: 1.0 + time * (self.gain - 1.0), offset: time * self.offset };
        let gain = from_first.gain / self.gain;
        [from_first, Self { gain, offset: from_first.offset - gain * self.offset }]
    }

    pub(super) fn map(self, luma: f32) -> f32 {
        self.gain * luma + self.offset
    }
}

fn mean_and_deviation(plane: &Plane) -> (f32, f32) {
    let mean = |values: &mut dyn Iterator<Item = f32>| {
        values.map(f64::from).sum::<f64>() / plane.values.len() as f64
    };
    let average = mean(&mut plane.values.iter().copied()) as f32;
    let variance = mean(&mut plane.values.iter().map(|value| (value - average).powi(2)));
    (average, variance.sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(value: impl Fn(f32) -> f32) -> Plane {
        let values = (0..20 * 12).map(|n| value((n * 7919 % 101) as f32 / 101.0));
        Plane { width: 20, height: 12, values: values.collect() }
    }

    #[test]
    fn a_fade_is_matched_and_both_neighbours_come_to_the_same_tone() {
        let scene = plane(|x| x);
        let fade = Tone { gain: 0.6, offset: 0.1 };
        let tone = Tone::between([&scene, &plane(|x| fade.map(x))]).unwrap();
        assert!((tone.gain - fade.gain).abs() < 1e-4 && (tone.offset - fade.offset).abs() < 1e-4);
        let [first, second] = tone.at(0.25);
        for x in [0.0, 0.3, 1.0] {
            let expected = 0.75 * x + 0.25 * fade.map(x);
            assert!((first.map(x) - expected).abs() < 1e-4);
            assert!((second.map(fade.map(x)) - expected).abs() < 1e-4);
        }
    }

    #[test]
    fn other_scenes_flat_and_almost_black_planes_are_not_matched() {
        let scene = plane(|x| x);
        let other = plane(|x| (x * 37.0).fract());
        for pair in [
            [&scene, &scene],
            [&scene, &other],
            [&scene, &plane(|x| 0.1 * x)],
            [&plane(|_| 0.2), &plane(|_| 0.4)],
        ] {
            assert_eq!(Tone::between(pair), None);
        }
    }
}
