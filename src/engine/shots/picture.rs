// SPDX-License-Identifier: MIT OR Apache-2.0
//! The small picture of a frame in which shots are looked for, and the differences between two of them.

use crate::engine::Frame;

/// Width and height in cells. Averaging over a cell removes grain and compression noise.
const WIDTH: usize = 64;
const HEIGHT: usize = 36;
const CELLS: usize = WIDTH * HEIGHT;

/// Width and height of a block for motion compensation, in cells.
const BLOCK: (usize, usize) = (8, 6);
/// The largest motion that is compensated, in cells: an eighth of the width and a seventh of the height.
const RANGE: (usize, usize) = (8, 5);

/// The largest gain of a flash.
const MAX_GAIN: f32 = 8.0;

/// A contrast below this (standard deviation of the luma, 0 to 1) is not amplified: it may be noise.
const MIN_CONTRAST: f32 = 0.02;
/// Added to the energy that a residual is divided by, relative to that of the whole picture.
const ENERGY_FLOOR: f32 = 0.1;

/// The luma of a frame, averaged over [`WIDTH`]·[`HEIGHT`] cells.
#[derive(Debug, Clone)]
pub(super) struct Picture {
    /// 0 to 1, [h, w].
    luma: Vec<f32>,
    /// The mean luma.
    mean: f32,
    /// The luma with mean 0 and standard deviation 1, [h, w]: a change of brightness or contrast, as in a fade, does
    /// not change it.
    shape: Vec<f32>,
}

impl Picture {
    pub(super) fn new(frame: &Frame) -> Self {
        let (width, height) = (frame.width(), frame.height());
        // A frame smaller than the picture has some pixels in several cells.
        let span = |cell: usize, cells: usize, size: usize| {
            let start = cell * size / cells;
            start..((cell + 1) * size / cells).max(start + 1)
        };
        let columns: Vec<_> = (0..WIDTH).map(|cell| span(cell, WIDTH, width)).collect();
        let (weights, constant) = frame.components().luma();
        let mut luma = vec![0.0; CELLS];
        for (row, cells) in luma.chunks_exact_mut(WIDTH).enumerate() {
            let rows = span(row, HEIGHT, height);
            let mut sums = [[0_u64; Frame::COMPONENTS]; WIDTH];
            for y in rows.clone() {
                let line = &frame.pixels()[y * width * Frame::COMPONENTS..];
                let pixels = line.as_chunks::<{ Frame::COMPONENTS }>().0;
                for (sums, columns) in sums.iter_mut().zip(&columns) {
                    let mut sum = [0_u32; Frame::COMPONENTS];
                    for pixel in &pixels[columns.clone()] {
                        sum.iter_mut().zip(pixel).for_each(|(sum, x)| *sum += u32::from(*x));
                    }
                    sums.iter_mut().zip(sum).for_each(|(total, sum)| *total += u64::from(sum));
                }
            }
            for ((cell, sums), columns) in cells.iter_mut().zip(sums).zip(&columns) {
                let scale = 1.0 / (rows.len() * columns.len()) as f32;
                let weighted = weights.iter().zip(sums).map(|(weight, sum)| weight * sum as f32);
                *cell = weighted.sum::<f32>() * scale + constant;
            }
        }
        let mean = luma.iter().sum::<f32>() / CELLS as f32;
        let variance = luma.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / CELLS as f32;
        let scale = 1.0 / variance.sqrt().max(MIN_CONTRAST);
        let shape = luma.iter().map(|x| (x - mean) * scale).collect();
        Self { luma, mean, shape }
    }

    /// The mean luma.
    pub(super) fn mean(&self) -> f32 {
        self.mean
    }

    /// The part of the change to `brighter` that remains if this picture gets the light that gives it the same mean: 0
    /// if the light alone has changed. White stays white.
    pub(super) fn lit(&self, brighter: &Self) -> f32 {
        let lit = |gain: f32| self.luma.iter().map(move |x| (x * gain).min(1.0));
        let (mut low, mut high) = (1.0, MAX_GAIN);
        for _ in 0..8 {
            let gain = (low + high) / 2.0;
            match lit(gain).sum::<f32>() < brighter.mean * CELLS as f32 {
                true => low = gain,
                false => high = gain,
            }
        }
        let rest = lit(low).zip(&brighter.luma).map(|(a, b)| (a - b).abs()).sum::<f32>();
        rest / CELLS as f32 / self.luma_change(brighter).max(f32::EPSILON)
    }

    /// Mean absolute difference of the luma, 0 to 1.
    pub(super) fn luma_change(&self, other: &Self) -> f32 {
        mean_difference(&self.luma, &other.luma)
    }

    /// Mean absolute difference after the contrast is made equal: 0 for the same picture in another brightness,
    /// about 1 for unrelated pictures.
    pub(super) fn shape_change(&self, other: &Self) -> f32 {
        mean_difference(&self.shape, &other.shape)
    }

    /// The part of the two pictures that the other one does not have, moved or in another brightness: 0 for the same
    /// picture, towards 1 for unrelated ones.
    ///
    /// In both directions, because what enters or leaves the picture is in one of the two only.
    pub(super) fn residual(&self, other: &Self) -> f32 {
        let (forwards, energy) = block_residual(&self.shape, &other.shape);
        let (backwards, other_energy) = block_residual(&other.shape, &self.shape);
        (forwards + backwards) / (energy + other_energy + ENERGY_FLOOR / 2.0 * CELLS as f32)
    }
}

fn mean_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
}

/// Predicts each block of `picture` by the most similar part of `reference` within [`RANGE`], of any brightness.
/// Returns the squared error and the squared contrast, both summed over the blocks.
fn block_residual(picture: &[f32], reference: &[f32]) -> (f32, f32) {
    const LENGTH: f32 = (BLOCK.0 * BLOCK.1) as f32;
    let (mut residual, mut energy) = (0.0, 0.0);
    for top in (0..HEIGHT).step_by(BLOCK.1) {
        for left in (0..WIDTH).step_by(BLOCK.0) {
            let block: [&[f32]; BLOCK.1] =
                std::array::from_fn(|y| &picture[(top + y) * WIDTH + left..][..BLOCK.0]);
            // The squared difference from the reference at (x, y), less that of the means.
            let error = |x: usize, y: usize| {
                let (mut sum, mut squares) = ([0.0_f32; BLOCK.0], [0.0_f32; BLOCK.0]);
                for (n, row) in block.iter().enumerate() {
                    let reference = &reference[(y + n) * WIDTH + x..][..BLOCK.0];
                    for i in 0..BLOCK.0 {
                        let difference = row[i] - reference[i];
                        sum[i] += difference;
                        squares[i] += difference * difference;
                    }
                }
                squares.iter().sum::<f32>() - sum.iter().sum::<f32>().powi(2) / LENGTH
            };
            let xs = left.saturating_sub(RANGE.0)..=(left + RANGE.0).min(WIDTH - BLOCK.0);
            let ys = top.saturating_sub(RANGE.1)..=(top + RANGE.1).min(HEIGHT - BLOCK.1);
            let errors = ys.flat_map(|y| xs.clone().map(move |x| (x, y)));
            residual += errors.map(|(x, y)| error(x, y)).fold(f32::INFINITY, f32::min).max(0.0);
            let sum: f32 = block.iter().flat_map(|row| *row).sum();
            let squares: f32 = block.iter().flat_map(|row| *row).map(|x| x * x).sum();
            energy += (squares - sum * sum / LENGTH).max(0.0);
        }
    }
    (residual, energy)
}
