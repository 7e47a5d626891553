// SPDX-License-Identifier: MIT OR Apache-2.0
//! The brightness of a picture.

use rayon::prelude::*;

use crate::engine::Frame;

/// What the components add to the brightness: ITU-R BT.709.
const WEIGHTS: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// See [`Plane::grid`].
pub(super) const MOST: usize = 5;

/// Values [h, w], 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Row by row.
    pub values: Vec<f32>,
}

impl Plane {
    /// All zeros.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, values: vec![0.0; width * height] }
    }

    /// Of a picture.
    pub(super) fn of(frame: &Frame) -> Self {
        let mut plane = Self::new(frame.width(), frame.height());
        let rows = plane.values.par_chunks_mut(plane.width);
        let pixels = frame.pixels().par_chunks(plane.width * Frame::COMPONENTS);
        let scale = WEIGHTS.map(|weight| weight / 65535.0);
        rows.zip(pixels).for_each(|(row, pixels)| {
            for (value, &[r, g, b, _]) in row.iter_mut().zip(pixels.as_chunks().0) {
                *value =
                    f32::from(r) * scale[0] + f32::from(g) * scale[1] + f32::from(b) * scale[2];
            }
        });
        plane
    }

    /// Half as large: means of four pixels. Where a side is odd, its last pixel counts twice.
    pub fn halve(&self) -> Self {
        let mut half = Self::new(self.width.div_ceil(2), self.height.div_ceil(2));
        for (y, row) in half.values.chunks_exact_mut(half.width).enumerate() {
            let [top, bottom] = [2 * y, (2 * y + 1).min(self.height - 1)]
                .map(|y| &self.values[y * self.width..][..self.width]);
            let (tops, bottoms) = (top.as_chunks::<2>().0, bottom.as_chunks::<2>().0);
            for ((value, top), bottom) in row.iter_mut().zip(tops).zip(bottoms) {
                *value = 0.25 * (top[0] + top[1] + bottom[0] + bottom[1]);
            }
            if let (true, Some(value)) = (self.width % 2 == 1, row.last_mut()) {
                *value = 0.5 * (top[self.width - 1] + bottom[self.width - 1]);
            }
        }
        half
    }

    /// The value between pixels: bilinear. Beyond the border it is the border's.
    #[inline]
    pub fn sample(&self, x: f32, y: f32) -> f32 {
        self.between(Place::new(x, self.width, 1), Place::new(y, self.height, self.width))
    }

    /// The values at some places in rows (distance 1), at each of some places in columns (distance `width`).
    /// They are at most [`MOST`], each less than a pixel from the one before.
    #[inline]
    pub(super) fn grid(&self, xs: &[Place], ys: &[Place]) -> [[f32; MOST]; MOST] {
        const WINDOW: usize = 8;
        let mut values = [[0.0; MOST]; MOST];
        let left = xs[0].before.min(xs[xs.len() - 1].before);
        if left + WINDOW > self.width {
            for (values, y) in values.iter_mut().zip(ys) {
                values.iter_mut().zip(xs).for_each(|(value, x)| *value = self.between(*x, *y));
            }
            return values;
        }
        // All lie in a few columns: between two rows these are the same for all.
        for (values, y) in values.iter_mut().zip(ys) {
            let upper = &self.values[y.before + left..][..WINDOW];
            let lower = &self.values[y.behind + left..][..WINDOW];
            let mut row = [0.0; WINDOW];
            for ((value, upper), lower) in row.iter_mut().zip(upper).zip(lower) {
                *value = upper + y.share * (lower - upper);
            }
            for (value, x) in values.iter_mut().zip(xs) {
                // Never more than MOST: this only spares a check.
                let at = (x.before - left).min(WINDOW - 2);
                *value = row[at] + x.share * (row[at + 1] - row[at]);
            }
        }
        values
    }

    /// The value at a place in a row (distance 1) and a place in a column (distance `width`).
    #[inline]
    pub(super) fn between(&self, x: Place, y: Place) -> f32 {
        let along = |row: usize| {
            let (before, behind) = (self.values[row + x.before], self.values[row + x.behind]);
            before + x.share * (behind - before)
        };
        let (upper, lower) = (along(y.before), along(y.behind));
        upper + y.share * (lower - upper)
    }
}

/// A place between two pixels of a side, or on its border.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    /// How far from the first pixel they are.
    pub before: usize,
    pub behind: usize,
    /// How near it is to the one behind, 0 to 1.
    pub share: f32,
}

impl Place {
    /// On a side of `count` pixels that are `distance` apart.
    #[inline]
    pub(super) fn new(at: f32, count: usize, distance: usize) -> Self {
        // In this order a place that is no number is the first.
        let at = at.max(0.0).min((count - 1) as f32);
        let before = at as i32 as usize;
        let behind = (before + 1).min(count - 1);
        Self { before: before * distance, behind: behind * distance, share: at - before as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_places_is_what_they_are_one_by_one() {
        let mut plane = Plane::new(23, 9);
        let values = plane.values.iter_mut().enumerate();
        values.for_each(|(n, value)| *value = (n * 7919 % 101) as f32 / 101.0);
        for (x, y, step) in
            [(3.3, 2.6, 0.5), (8.0, -1.2, -0.9), (20.1, 7.9, 0.9), (-4.0, 12.0, 0.1)]
        {
            let at = |start: f32, n: usize| start + step * n as f32;
            let xs: Vec<_> = (0..MOST).map(|n| Place::new(at(x, n), 23, 1)).collect();
            let ys: Vec<_> = (0..MOST).map(|n| Place::new(at(y, n), 9, 23)).collect();
            for (n, row) in plane.grid(&xs, &ys).iter().enumerate() {
                for (m, value) in row.iter().enumerate() {
                    assert!((value - plane.sample(at(x, m), at(y, n))).abs() < 1e-6);
                }
            }
        }
    }
}
