// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes output sizes and frame rates, the same for every model and for caps negotiation.

use std::ops::RangeInclusive;

/// The most interpolated frames between two input frames: nine times the frame rate.
pub const MAX_INTERPOLATED_FRAMES: usize = 8;

/// Returns a scaled side in pixels: floor(side·scale/2)·2, at least 2. Scale 1 returns `side` unchanged.
///
/// Sides are even, because video encoders require it. Source: the reference implementation.
pub fn scaled_side(side: usize, scale: f64) -> usize {
    if scale == 1.0 {
        return side;
    }
    even_side(side, scale)
}

fn even_side(side: usize, scale: f64) -> usize {
    // In floating point, as in the reference.
    ((side as f64 * scale / 2.0).floor() as usize * 2).max(2)
}

/// Returns the output size (w, h) of the diffusion models for input of size (width, height).
///
/// The size is `scale` times the input. If that is lower than `min_height`, the output is `min_height` high.
/// Otherwise the area is limited to `max_pixels`; 0 means no limit. Sides are even. Source: the reference
/// implementation.
pub fn target_size(
    (width, height): (usize, usize),
    scale: f64,
    min_height: u32,
    max_pixels: u32,
) -> (usize, usize) {
    let (w, h) = (width as f64, height as f64);
    let requested = (h * scale, h * w * scale * scale);
    let scale = limited_scale((w, h), requested, min_height, max_pixels).unwrap_or(scale);
    (even_side(width, scale), even_side(height, scale))
}

/// As [`target_size`], for a requested output size (w, h) instead of a scale.
pub(super) fn limited_size(
    (width, height): (usize, usize),
    requested: (usize, usize),
    min_height: u32,
    max_pixels: u32,
) -> (usize, usize) {
    let input = (width as f64, height as f64);
    let (w, h) = (requested.0 as f64, requested.1 as f64);
    match limited_scale(input, (h, w * h), min_height, max_pixels) {
        Some(scale) => (even_side(width, scale), even_side(height, scale)),
        None => (even_side(requested.0, 1.0), even_side(requested.1, 1.0)),
    }
}

/// Returns the scale that a limit demands for output of a requested height and area, or `None` if it is within the
/// limits.
fn limited_scale(
    (w, h): (f64, f64),
    (height, area): (f64, f64),
    min_height: u32,
    max_pixels: u32,
) -> Option<f64> {
    let (least, most) = (f64::from(min_height), f64::from(max_pixels));
    if height < least {
        Some(least / h)
    } else if max_pixels > 0 && area > most {
        Some((most / (h * w)).sqrt())
    } else {
        None
    }
}

/// Returns the input sides that [`scaled_side`] maps into `sides`, or `None` if there are none.
pub fn unscaled_sides(sides: RangeInclusive<usize>, scale: f64) -> Option<RangeInclusive<usize>> {
    // scaled_side is monotonic, so two binary searches find the ends. Rounding subtracts at most 1.
    let most = sides.end().saturating_add(1);
    let first = partition(most, |side| scaled_side(side, scale) >= *sides.start());
    let after = partition(most, |side| scaled_side(side, scale) > *sides.end());
    (first < after).then(|| first..=after - 1)
}

/// Returns the smallest n in 1..=most for which the monotonic predicate `holds` is true, or most + 1.
fn partition(most: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, most.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Returns the number of interpolated frames between two input frames:
/// min(max(round_half_even(target/input) − 1, 0), 8).
///
/// Rates are (numerator, denominator) in frames per second. A target of 0 keeps the rate. Source: the
/// reference implementation.
pub fn interpolated_frames(target: (u32, u32), input: (u32, u32)) -> usize {
    let dividend = u64::from(target.0) * u64::from(input.1);
    let divisor = u64::from(target.1) * u64::from(input.0);
    if divisor == 0 {
        return 0;
    }
    let (whole, rest) = (dividend / divisor, dividend % divisor);
    let up = match (rest * 2).cmp(&divisor) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => whole % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    (whole + u64::from(up)).saturating_sub(1).min(MAX_INTERPOLATED_FRAMES as u64) as usize
}

/// Returns the smallest number of interpolated frames with which the output rate is at least the target, or
/// [`MAX_INTERPOLATED_FRAMES`] if that is too few.
///
/// Rates are as in [`interpolated_frames`].
pub fn covering_frames(target: (u32, u32), input: (u32, u32)) -> usize {
    let dividend = u64::from(target.0) * u64::from(input.1);
    let divisor = u64::from(target.1) * u64::from(input.0);
    if divisor == 0 {
        return 0;
    }
    let factor = dividend.div_ceil(divisor);
    factor.saturating_sub(1).min(MAX_INTERPOLATED_FRAMES as u64) as usize
}

/// Returns the number of output frames of a clip of `inputs` input frames: N + k·(N−1).
pub fn output_frames(inputs: usize, interpolated: usize) -> usize {
    inputs + interpolated * inputs.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_sides_are_even_and_scale_1_keeps_odd_sides() {
        assert_eq!(scaled_side(480, 2.5), 1200);
        assert_eq!(scaled_side(33, 3.0), 98);
        assert_eq!(scaled_side(33, 1.0), 33);
        assert_eq!(scaled_side(1, 1.5), 2);
    }

    #[test]
    fn unscaled_sides_inverts_scaled_side() {
        for scale in [1.0, 1.3, 1.5, 2.0, 3.0, 4.0, 8.0] {
            for side in 1..=200 {
                let sides: Vec<_> =
                    (1..=side + 2).filter(|&s| scaled_side(s, scale) == side).collect();
                let found = unscaled_sides(side..=side, scale);
                assert_eq!(
                    found.map(Vec::from_iter).unwrap_or_default(),
                    sides,
                    "{side} / {scale}"
                );
            }
        }
        assert_eq!(unscaled_sides(641..=641, 2.0), None);
        assert_eq!(unscaled_sides(100..=200, 2.0), Some(50..=100));
    }

    #[test]
    fn the_model_makes_as_many_frames_as_the_target_rate_needs() {
        let k = |target, input| covering_frames(target, input);
        assert_eq!(k((60, 1), (24, 1)), 2);
        assert_eq!(k((60, 1), (30, 1)), 1);
        assert_eq!(k((60, 1), (30000, 1001)), 2, "slightly more than twice");
        assert_eq!(k((24, 1), (60, 1)), 0);
        assert_eq!(k((240, 1), (1, 1)), 8);
        assert_eq!(k((0, 1), (24, 1)), 0);
        assert_eq!(k((24, 1), (0, 1)), 0);
    }

    #[test]
    fn the_frame_rate_is_multiplied_by_the_nearest_integer_with_ties_to_even() {
        let k = |target, input| interpolated_frames(target, input);
        assert_eq!(k((24, 1), (8, 1)), 2);
        assert_eq!(k((24, 1), (30, 1)), 0);
        assert_eq!(k((24, 1), (24000, 1001)), 0);
        assert_eq!(k((24000, 1001), (8, 1)), 2);
        assert_eq!(k((25, 1), (10, 1)), 1, "2.5 rounds to 2");
        assert_eq!(k((35, 1), (10, 1)), 3, "3.5 rounds to 4");
        assert_eq!(k((240, 1), (1, 1)), 8);
        assert_eq!(k((0, 1), (10, 1)), 0);
        assert_eq!(k((24, 1), (0, 1)), 0);
        assert_eq!(k((u32::MAX >> 1, 1), (1, u32::MAX >> 1)), 8);
    }
}
