// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps the colours of the output at those of the input, because a diffusion model and its autoencoder shift
//! them.
//!
//! The low frequencies of an output frame are replaced by those of the resized input frame, and the high
//! frequencies, which hold the generated detail, are kept. The low frequencies are the means of blocks of 8×8
//! pixels, smoothed by two steps of an à-trous wavelet.

use rayon::prelude::*;

use super::{
    geometry::Canvas,
    model::COLOURS,
    picture::{Neighbours, neighbours},
};
use crate::engine::ColourFix;

/// Height and width of a block in pixels.
const BLOCK: usize = 8;

/// Distances between the taps of the two smoothing steps, in blocks.
const DILATIONS: [usize; 2] = [1, 2];

/// Low frequencies of a frame, or a difference of them: [3, h, w].
#[derive(Debug, Clone)]
pub(super) struct LowFrequencies {
    values: Vec<f32>,
    size: (usize, usize),
}

impl LowFrequencies {
    /// Returns the low frequencies of a frame on a canvas, planes [3, H, W] of the padded size. `None` without
    /// a colour fix.
    pub(super) fn of(fix: ColourFix, planes: &[f32], canvas: &Canvas) -> Option<Self> {
        let blocks = || Self::blocks(planes, canvas);
        match fix {
            ColourFix::None => None,
            ColourFix::Wavelet => Some(DILATIONS.into_iter().fold(blocks(), Self::smooth)),
            ColourFix::Mean => Some(blocks().mean()),
        }
    }

    /// Returns the means of all blocks. A block at the right or lower edge may be smaller.
    fn blocks(planes: &[f32], canvas: &Canvas) -> Self {
        let ((height, width), (top, left)) = (canvas.padded, canvas.origin);
        let (h, w) = canvas.target;
        let (rows, columns) = (h.div_ceil(BLOCK), w.div_ceil(BLOCK));
        let mut values = vec![0.0; COLOURS * rows * columns];
        values.par_chunks_mut(columns).enumerate().for_each(|(row, means)| {
            let (colour, first) = (row / rows, row % rows * BLOCK);
            let lines = first..h.min(first + BLOCK);
            let count = lines.len();
            for y in lines {
                let line = &planes[(colour * height + top + y) * width + left..][..w];
                for (mean, part) in means.iter_mut().zip(line.chunks(BLOCK)) {
                    *mean += part.iter().sum::<f32>() / (part.len() * count) as f32;
                }
            }
        });
        Self { values, size: (rows, columns) }
    }

    /// Applies the kernel [1, 2, 1]/4 in both directions, with taps `dilation` blocks apart. Edges are
    /// repeated.
    fn smooth(self, dilation: usize) -> Self {
        let (h, w) = self.size;
        let tap = |values: &[f32], at: [usize; 3]| {
            (values[at[0]] + 2.0 * values[at[1]] + values[at[2]]) / 4.0
        };
        let around =
            |n: usize, count: usize| [n.saturating_sub(dilation), n, (n + dilation).min(count - 1)];
        let mut values = vec![0.0; self.values.len()];
        for (plane, out) in self.values.chunks_exact(h * w).zip(values.chunks_exact_mut(h * w)) {
            let mut across = vec![0.0; h * w];
            for (n, value) in across.iter_mut().enumerate() {
                *value = tap(plane, around(n % w, w).map(|x| n / w * w + x));
            }
            for (n, value) in out.iter_mut().enumerate() {
                *value = tap(&across, around(n / w, h).map(|y| y * w + n % w));
            }
        }
        Self { values, size: self.size }
    }

    /// Returns the mean of each colour.
    fn mean(self) -> Self {
        let planes = self.values.chunks_exact(self.size.0 * self.size.1);
        let mean = |plane: &[f32]| plane.iter().sum::<f32>() / plane.len() as f32;
        Self { values: planes.map(mean).collect(), size: (1, 1) }
    }

    /// Returns (1 − weight)·self + weight·other.
    pub(super) fn blend(&self, other: &Self, weight: f32) -> Self {
        self.zip(other, |a, b| a * (1.0 - weight) + b * weight)
    }

    /// Returns self − other.
    pub(super) fn minus(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| f(*a, *b)).collect();
        Self { values, size: self.size }
    }

    /// Returns the values as a function of the pixel row of a frame on `canvas`: [3, w] for each row.
    pub(super) fn rows(&self, canvas: &Canvas) -> impl Fn(usize) -> Vec<f32> + Sync + '_ {
        let ((h, w), (rows, columns)) = (canvas.target, self.size);
        let (vertical, horizontal) = (neighbours(rows, h), neighbours(columns, w));
        move |y| {
            let Neighbours(above, below, weight) = vertical[y];
            let mut values = Vec::with_capacity(COLOURS * w);
            for plane in self.values.chunks_exact(rows * columns) {
                let row = |y: usize| &plane[y * columns..][..columns];
                let mixed: Vec<f32> = (row(above).iter().zip(row(below)))
                    .map(|(a, b)| a * (1.0 - weight) + b * weight)
                    .collect();
                values.extend(horizontal.iter().map(|Neighbours(left, right, weight)| {
                    mixed[*left] * (1.0 - weight) + mixed[*right] * weight
                }));
            }
            values
        }
    }
}
