// SPDX-License-Identifier: MIT OR Apache-2.0
//! Image operations on luma planes: resampling, flips, and the degradations of cameras and encoders.

use std::f32::consts::PI;

pub use gstvenhance::lite::plane::Plane;

use super::random::Random;

/// A resampling filter.
#[derive(Debug, Clone, Copy)]
pub enum Filter {
    Box,
    Triangle,
    /// A Gaussian; its standard deviation is in pixels of the smaller image.
    Gauss(f32),
    /// Keys' cubic convolution with parameter a.
    Cubic(f32),
    Lanczos3,
}

impl Filter {
    /// Radius in pixels.
    fn radius(self) -> f32 {
        match self {
            Self::Box => 0.5,
            Self::Triangle => 1.0,
            Self::Gauss(std) => 3.0 * std,
            Self::Cubic(_) => 2.0,
            Self::Lanczos3 => 3.0,
        }
    }

    fn weight(self, x: f32) -> f32 {
        let x = x.abs();
        if x > self.radius() {
            return 0.0;
        }
        match self {
            Self::Box => 1.0,
            Self::Triangle => 1.0 - x,
            Self::Gauss(std) => (-0.5 * (x / std).powi(2)).exp(),
            Self::Cubic(a) if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Self::Cubic(a) => a * (((x - 5.0) * x + 8.0) * x - 4.0),
            Self::Lanczos3 if x < 1e-4 => 1.0,
            Self::Lanczos3 => 3.0 * (PI * x).sin() * (PI * x / 3.0).sin() / (PI * x).powi(2),
        }
    }

    /// The taps of each of `to` output pixels: the first of the `from` input pixels, and the weights from there on.
    fn weights(self, from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
        let ratio = from as f32 / to as f32;
        // Downscaling widens the filter to avoid aliasing.
        let widen = ratio.max(1.0);
        let radius = self.radius() * widen;
        (0..to)
            .map(|n| {
                let centre = (n as f32 + 0.5) * ratio - 0.5;
                // At a border, the filter is cut off, as it is in the plugin.
                let first = (centre - radius).ceil().max(0.0) as usize;
                let end = ((centre + radius).floor() as usize + 1).min(from);
                let weight = |at: usize| self.weight((at as f32 - centre) / widen);
                let weights: Vec<_> = (first..end).map(weight).collect();
                let sum: f32 = weights.iter().sum();
                (first, weights.iter().map(|weight| weight / sum).collect())
            })
            .collect()
    }
}

/// Operations on a luma plane.
pub trait Image {
    /// The part of `size` (w, h) at `at` (x, y).
    fn crop(&self, at: (usize, usize), size: (usize, usize)) -> Self;
    /// Resizes to `size` (w, h).
    fn resample(&self, size: (usize, usize), filter: Filter) -> Self;
    /// Gaussian blur; `std` is in pixels.
    fn blur(&self, std: f32) -> Self;
    /// Adds Gaussian noise.
    fn add_noise(&mut self, std: f32, random: &mut Random);
    /// Quantizes the DCT coefficients of 8×8 blocks, as JPEG does. `step` is that of the DC coefficient; high
    /// frequencies have larger ones.
    fn quantize_dct(&mut self, step: f32);
    /// Rounds to multiples of 1/255, and clamps to 0..=1.
    fn round_to_8_bits(&mut self);
    /// Flips left to right, flips top to bottom, and transposes; the last for square planes only.
    fn flip(&mut self, flips: [bool; 3]);
}

/// Pixels or DCT coefficients of a block.
type Block = [[f32; 8]; 8];

/// Matrix product.
fn product(a: &Block, b: &Block) -> Block {
    a.map(|row| {
        std::array::from_fn(|x| row.iter().zip(b).map(|(value, line)| value * line[x]).sum())
    })
}

fn transpose(a: &Block) -> Block {
    std::array::from_fn(|y| a.map(|row| row[y]))
}

impl Image for Plane {
    fn crop(&self, (x, y): (usize, usize), (w, h): (usize, usize)) -> Self {
        let rows = (y..y + h).flat_map(|y| &self.values[y * self.width + x..][..w]);
        Self { width: w, height: h, values: rows.copied().collect() }
    }

    fn resample(&self, (w, h): (usize, usize), filter: Filter) -> Self {
        let mut wide = Self::new(w, self.height);
        let columns = filter.weights(self.width, w);
        for (row, out) in self.values.chunks_exact(self.width).zip(wide.values.chunks_exact_mut(w))
        {
            for (out, (first, weights)) in out.iter_mut().zip(&columns) {
                *out = row[*first..].iter().zip(weights).map(|(x, weight)| x * weight).sum();
            }
        }
        let mut out = Self::new(w, h);
        let rows = filter.weights(self.height, h);
        for (row, (first, weights)) in out.values.chunks_exact_mut(w).zip(&rows) {
            for (source, weight) in wide.values[first * w..].chunks_exact(w).zip(weights) {
                row.iter_mut().zip(source).for_each(|(sum, x)| *sum += x * weight);
            }
        }
        out
    }

    fn blur(&self, std: f32) -> Self {
        let radius = (std * 3.0).ceil() as i32;
        let weights: Vec<f32> =
            (-radius..=radius).map(|x| (-0.5 * (x as f32 / std).powi(2)).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let pass = |plane: &Self, dx: i32, dy: i32| {
            let mut out = Self::new(plane.width, plane.height);
            for (n, out) in out.values.iter_mut().enumerate() {
                let (x, y) = ((n % plane.width) as i32, (n / plane.width) as i32);
                let at = |k: i32| {
                    let x = (x + k * dx).clamp(0, plane.width as i32 - 1) as usize;
                    let y = (y + k * dy).clamp(0, plane.height as i32 - 1) as usize;
                    plane.values[y * plane.width + x]
                };
                *out =
                    (-radius..=radius).zip(&weights).map(|(k, weight)| at(k) * weight).sum::<f32>()
                        / sum;
            }
            out
        };
        pass(&pass(self, 1, 0), 0, 1)
    }

    fn add_noise(&mut self, std: f32, random: &mut Random) {
        self.values.iter_mut().for_each(|x| *x += std * random.normal());
    }

    fn quantize_dct(&mut self, step: f32) {
        let basis: Block = std::array::from_fn(|k| {
            let scale = if k == 0 { 0.125_f32.sqrt() } else { 0.5 };
            std::array::from_fn(|n| scale * (PI * (n as f32 + 0.5) * k as f32 / 8.0).cos())
        });
        for top in (0..self.height / 8 * 8).step_by(8) {
            for left in (0..self.width / 8 * 8).step_by(8) {
                let at = |y: usize| (top + y) * self.width + left;
                let pixels: Block =
                    std::array::from_fn(|y| std::array::from_fn(|x| self.values[at(y) + x]));
                let mut coefficients = product(&product(&basis, &pixels), &transpose(&basis));
                for (n, coefficient) in coefficients.as_flattened_mut().iter_mut().enumerate() {
                    let step = step * (1.0 + 0.25 * (n / 8 + n % 8) as f32);
                    *coefficient = (*coefficient / step).round() * step;
                }
                let pixels = product(&product(&transpose(&basis), &coefficients), &basis);
                for (y, row) in pixels.iter().enumerate() {
                    self.values[at(y)..][..8].copy_from_slice(row);
                }
            }
        }
    }

    fn round_to_8_bits(&mut self) {
        self.values.iter_mut().for_each(|x| *x = (x.clamp(0.0, 1.0) * 255.0).round() / 255.0);
    }

    fn flip(&mut self, [horizontal, vertical, transpose]: [bool; 3]) {
        if horizontal {
            self.values.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
        }
        if vertical {
            self.values.reverse();
            self.values.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
        }
        if transpose && self.width == self.height {
            let old = self.values.clone();
            for (n, value) in self.values.iter_mut().enumerate() {
                *value = old[n % self.width * self.width + n / self.width];
            }
        }
    }
}
