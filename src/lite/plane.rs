// SPDX-License-Identifier: MIT OR Apache-2.0
//! A luma plane, bilinear and cubic sampling of it.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::engine::{Cancel, Error, Frame, zeroed};

/// The largest side of the grid that [`Plane::sample_grid`] samples.
pub(super) const MAX_GRID: usize = 5;

/// A luma plane [h, w]. Black is 0, the nominal peak 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The values in row-major order, without padding.
    pub values: Vec<f32>,
}

impl Plane {
    /// A black plane.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, values: vec![0.0; width * height] }
    }

    /// The luma of `frame`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub(super) fn luma(frame: &Frame, cancel: &Cancel) -> Result<Self, Error> {
        let (width, height) = (frame.width(), frame.height());
        let mut values = zeroed((width, height), 1)?;
        let pixels = frame.pixels().par_chunks(width * Frame::COMPONENTS);
        let (weights, constant) = frame.components().luma();
        values.par_chunks_mut(width).zip(pixels).try_for_each(
            |(row, pixels): (&mut [f32], _)| {
                cancel.check()?;
                write_luma(row, pixels.as_chunks().0, weights, constant);
                Ok(())
            },
        )?;
        Ok(Self { width, height, values })
    }

    /// Downscales by 2 with a 2×2 box filter. An odd side is rounded up: its last pixel is used twice.
    pub fn halve(&self) -> Self {
        let mut half = Self::new(self.width.div_ceil(2), self.height.div_ceil(2));
        half.values.par_chunks_mut(half.width).enumerate().for_each(|(y, row)| {
            let [top, bottom] = [2 * y, (2 * y + 1).min(self.height - 1)]
                .map(|y| &self.values[y * self.width..][..self.width]);
            let (tops, bottoms) = (top.as_chunks::<2>().0, bottom.as_chunks::<2>().0);
            for ((value, top), bottom) in row.iter_mut().zip(tops).zip(bottoms) {
                *value = 0.25 * (top[0] + top[1] + bottom[0] + bottom[1]);
            }
            if let (true, Some(value)) = (self.width % 2 == 1, row.last_mut()) {
                *value = 0.5 * (top[self.width - 1] + bottom[self.width - 1]);
            }
        });
        half
    }

    /// Samples at (x, y) in pixels with bilinear interpolation. Coordinates outside the plane are clamped.
    #[inline]
    pub fn sample(&self, x: f32, y: f32) -> f32 {
        self.bilinear(LinearTap::new(x, self.width, 1), LinearTap::new(y, self.height, self.width))
    }

    /// Samples at every combination of the horizontal taps `xs` (stride 1) and the vertical taps `ys` (stride
    /// `width`): the result is indexed [y][x]. There are at most [`MAX_GRID`] of each, in ascending or descending order;
    /// together, the horizontal ones read at most eight columns.
    #[inline(always)]
    pub(super) fn sample_grid(
        &self,
        xs: &[LinearTap],
        ys: &[LinearTap],
    ) -> [[f32; MAX_GRID]; MAX_GRID] {
        const WINDOW: usize = 8;
        let mut values = [[0.0; MAX_GRID]; MAX_GRID];
        let left = xs[0].lower.min(xs[xs.len() - 1].lower);
        if left + WINDOW > self.width {
            for (values, y) in values.iter_mut().zip(ys) {
                values.iter_mut().zip(xs).for_each(|(value, x)| *value = self.bilinear(*x, *y));
            }
            return values;
        }
        // All horizontal taps read the same few columns, so these are interpolated vertically only once.
        for (values, y) in values.iter_mut().zip(ys) {
            let upper = &self.values[y.lower + left..][..WINDOW];
            let lower = &self.values[y.upper + left..][..WINDOW];
            let mut row = [0.0; WINDOW];
            for ((value, upper), lower) in row.iter_mut().zip(upper).zip(lower) {
                *value = upper + y.weight * (lower - upper);
            }
            for (value, x) in values.iter_mut().zip(xs) {
                // Always within the window; `min` only removes a bounds check.
                let at = (x.lower - left).min(WINDOW - 2);
                *value = row[at] + x.weight * (row[at + 1] - row[at]);
            }
        }
        values
    }

    /// Samples at (x, y) in pixels with cubic convolution. Coordinates outside the plane are clamped.
    #[inline(always)]
    pub(super) fn sample_cubic(&self, x: f32, y: f32) -> f32 {
        let x = LinearTap::new(x, self.width, 1);
        let y = LinearTap::new(y, self.height, 1);
        let (columns, rows) = (cubic_weights(x.weight), cubic_weights(y.weight));
        let mut sums = [0.0; 4];
        for (weight, row) in rows.into_iter().zip(cubic_neighbourhood(y.lower, self.height)) {
            let row = &self.values[row * self.width..][..self.width];
            let pixels = match x.lower.checked_sub(1).and_then(|left| row[left..].first_chunk()) {
                Some(pixels) => *pixels,
                None => cubic_neighbourhood(x.lower, self.width).map(|at| row[at]),
            };
            sums.iter_mut()
                .zip(pixels)
                .for_each(|(sum, pixel): (&mut f32, f32)| *sum += weight * pixel);
        }
        sums.iter().zip(columns).map(|(sum, weight)| sum * weight).sum()
    }

    /// Interpolates between the four pixels of a horizontal tap (stride 1) and a vertical tap (stride
    /// `width`).
    #[inline]
    fn bilinear(&self, x: LinearTap, y: LinearTap) -> f32 {
        let along_row = |row: usize| {
            let (left, right) = (self.values[row + x.lower], self.values[row + x.upper]);
            left + x.weight * (right - left)
        };
        let (top, bottom) = (along_row(y.lower), along_row(y.upper));
        top + y.weight * (bottom - top)
    }
}

/// The luma of a row: the sum of the first three components times `weights`, plus `constant`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn write_luma(luma: &mut [f32], pixels: &[[u16; 4]], weights: [f32; 3], constant: f32) {
    for (value, &[x, y, z, _]) in luma.iter_mut().zip(pixels) {
        *value = f32::from(x) * weights[0]
            + f32::from(y) * weights[1]
            + f32::from(z) * weights[2]
            + constant;
    }
}

/// The two pixels that linear interpolation along one axis reads, and their weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinearTap {
    /// Offset of the pixel before the position, in elements.
    pub lower: usize,
    /// Offset of the pixel after the position, in elements.
    pub upper: usize,
    /// Weight of `upper`, 0 to 1; `lower` has the rest.
    pub weight: f32,
}

impl LinearTap {
    /// The tap at `position` (in pixels) along an axis of `size` pixels that are `stride` elements apart.
    #[inline]
    pub(super) fn new(position: f32, size: usize, stride: usize) -> Self {
        // `max` before `min` turns NaN into 0.
        let position = position.max(0.0).min((size - 1) as f32);
        let lower = position as i32 as usize;
        let upper = (lower + 1).min(size - 1);
        Self { lower: lower * stride, upper: upper * stride, weight: position - lower as f32 }
    }
}

/// The pixel `at` of an axis, the one before and the two after it. Those beyond the ends are replaced by the
/// outermost ones.
#[inline(always)]
pub(super) fn cubic_neighbourhood(at: usize, size: usize) -> [usize; 4] {
    [at.saturating_sub(1), at, (at + 1).min(size - 1), (at + 2).min(size - 1)]
}

/// The parameter a of [`cubic_weights`]. −0.5 is Catmull-Rom; −0.6 keeps more detail, and was best on test clips.
const CUBIC: f32 = -0.6;

/// The weights of four consecutive pixels at a position that is a `fraction` of the way from the second to the third.
/// Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
#[inline(always)]
pub(super) fn cubic_weights(fraction: f32) -> [f32; 4] {
    let rest = 1.0 - fraction;
    let outer = [CUBIC * fraction * rest * rest, CUBIC * rest * fraction * fraction];
    let second = ((CUBIC + 2.0) * fraction - (CUBIC + 3.0)) * fraction * fraction + 1.0;
    [outer[0], second, 1.0 - outer[0] - second - outer[1], outer[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_grid_equals_single_samples() {
        let mut plane = Plane::new(23, 9);
        let values = plane.values.iter_mut().enumerate();
        values.for_each(|(n, value)| *value = (n * 7919 % 101) as f32 / 101.0);
        for (x, y, step, count) in [
            (3.3, 2.6, 0.5, MAX_GRID),
            (8.0, -1.2, -0.9, MAX_GRID),
            (20.1, 7.9, 0.9, MAX_GRID),
            (-4.0, 12.0, 0.1, MAX_GRID),
            (-1.3, 3.5, 2.0, 3),
            (9.4, 3.5, 2.0, 3),
            (12.9, 3.5, 2.0, 3),
            (18.7, 6.2, 2.0, 3),
        ] {
            let at = |start: f32, n: usize| start + step * n as f32;
            let xs: Vec<_> = (0..count).map(|n| LinearTap::new(at(x, n), 23, 1)).collect();
            let ys: Vec<_> = (0..count).map(|n| LinearTap::new(at(y, n), 9, 23)).collect();
            for (n, row) in plane.sample_grid(&xs, &ys).iter().take(count).enumerate() {
                for (m, value) in row.iter().take(count).enumerate() {
                    assert!((value - plane.sample(at(x, m), at(y, n))).abs() < 1e-6);
                }
            }
        }
    }
}
