// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brightness to work on: filters, resampling, and what cameras and encoders do to it.

use std::f32::consts::PI;

pub use gstvenhance::lite::plane::Plane;

use super::random::Random;

/// A resampling kernel.
#[derive(Debug, Clone, Copy)]
pub enum Kernel {
    Box,
    /// Keys' cubic with this coefficient.
    Cubic(f32),
    Lanczos3,
}

impl Kernel {
    fn support(self) -> f32 {
        match self {
            Self::Box => 0.5,
            Self::Cubic(_) => 2.0,
            Self::Lanczos3 => 3.0,
        }
    }

    fn weight(self, x: f32) -> f32 {
        let x = x.abs();
        if x > self.support() {
            return 0.0;
        }
        match self {
            Self::Box => 1.0,
            Self::Cubic(a) if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Self::Cubic(a) => a * (((x - 5.0) * x + 8.0) * x - 4.0),
            Self::Lanczos3 if x < 1e-4 => 1.0,
            Self::Lanczos3 => 3.0 * (PI * x).sin() * (PI * x / 3.0).sin() / (PI * x).powi(2),
        }
    }

    /// For each of `to` places: the first of `from` that counts, and the weights from there on.
    fn weights(self, from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
        let ratio = from as f32 / to as f32;
        // Shrinking widens the kernel: no aliasing.
        let widen = ratio.max(1.0);
        let reach = self.support() * widen;
        (0..to)
            .map(|n| {
                let centre = (n as f32 + 0.5) * ratio - 0.5;
                let first = (centre - reach).ceil() as i32;
                let last = (centre + reach).floor() as i32;
                let begin = first.clamp(0, from as i32 - 1) as usize;
                let end = last.clamp(0, from as i32 - 1) as usize;
                // What lies outside repeats the border.
                let mut weights = vec![0.0; end - begin + 1];
                for place in first..=last {
                    let weight = self.weight((place as f32 - centre) / widen);
                    weights[place.clamp(begin as i32, end as i32) as usize - begin] += weight;
                }
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
                (begin, weights)
            })
            .collect()
    }
}

/// What happens to pictures.
pub trait Picture {
    fn crop(&self, at: (usize, usize), size: (usize, usize)) -> Self;
    fn resample(&self, size: (usize, usize), kernel: Kernel) -> Self;
    /// With a Gaussian of this deviation in pixels.
    fn blur(&self, deviation: f32) -> Self;
    fn add_noise(&mut self, deviation: f32, random: &mut Random);
    /// What an encoder that works in blocks of 8×8 makes of it: steps of `step` in the cosine transform,
    /// finer for low frequencies.
    fn quantise(&mut self, step: f32);
    /// To whole steps of 8 bits.
    fn round(&mut self);
    /// Mirrored left to right, top to bottom, and across the diagonal; the last only if it is a square.
    fn turn(&mut self, mirrors: [bool; 3]);
}

type Block = [[f32; 8]; 8];

fn product(a: &Block, b: &Block) -> Block {
    a.map(|row| {
        std::array::from_fn(|x| row.iter().zip(b).map(|(value, line)| value * line[x]).sum())
    })
}

fn transposed(a: &Block) -> Block {
    std::array::from_fn(|y| a.map(|row| row[y]))
}

impl Picture for Plane {
    fn crop(&self, (x, y): (usize, usize), (w, h): (usize, usize)) -> Self {
        let rows = (y..y + h).flat_map(|y| &self.values[y * self.width + x..][..w]);
        Self { width: w, height: h, values: rows.copied().collect() }
    }

    fn resample(&self, (w, h): (usize, usize), kernel: Kernel) -> Self {
        let mut wide = Self::new(w, self.height);
        let columns = kernel.weights(self.width, w);
        for (row, out) in self.values.chunks_exact(self.width).zip(wide.values.chunks_exact_mut(w))
        {
            for (out, (first, weights)) in out.iter_mut().zip(&columns) {
                *out = row[*first..].iter().zip(weights).map(|(x, weight)| x * weight).sum();
            }
        }
        let mut out = Self::new(w, h);
        let rows = kernel.weights(self.height, h);
        for (row, (first, weights)) in out.values.chunks_exact_mut(w).zip(&rows) {
            for (source, weight) in wide.values[first * w..].chunks_exact(w).zip(weights) {
                row.iter_mut().zip(source).for_each(|(sum, x)| *sum += x * weight);
            }
        }
        out
    }

    fn blur(&self, deviation: f32) -> Self {
        let reach = (deviation * 3.0).ceil() as i32;
        let weights: Vec<f32> =
            (-reach..=reach).map(|x| (-0.5 * (x as f32 / deviation).powi(2)).exp()).collect();
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
                    (-reach..=reach).zip(&weights).map(|(k, weight)| at(k) * weight).sum::<f32>()
                        / sum;
            }
            out
        };
        pass(&pass(self, 1, 0), 0, 1)
    }

    fn add_noise(&mut self, deviation: f32, random: &mut Random) {
        self.values.iter_mut().for_each(|x| *x += deviation * random.normal());
    }

    fn quantise(&mut self, step: f32) {
        let basis: Block = std::array::from_fn(|k| {
            let scale = if k == 0 { 0.125_f32.sqrt() } else { 0.5 };
            std::array::from_fn(|n| scale * (PI * (n as f32 + 0.5) * k as f32 / 8.0).cos())
        });
        for top in (0..self.height / 8 * 8).step_by(8) {
            for left in (0..self.width / 8 * 8).step_by(8) {
                let at = |y: usize| (top + y) * self.width + left;
                let pixels: Block =
                    std::array::from_fn(|y| std::array::from_fn(|x| self.values[at(y) + x]));
                let mut waves = product(&product(&basis, &pixels), &transposed(&basis));
                for (n, wave) in waves.as_flattened_mut().iter_mut().enumerate() {
                    let step = step * (1.0 + 0.25 * (n / 8 + n % 8) as f32);
                    *wave = (*wave / step).round() * step;
                }
                let pixels = product(&product(&transposed(&basis), &waves), &basis);
                for (y, row) in pixels.iter().enumerate() {
                    self.values[at(y)..][..8].copy_from_slice(row);
                }
            }
        }
    }

    fn round(&mut self) {
        self.values.iter_mut().for_each(|x| *x = (x.clamp(0.0, 1.0) * 255.0).round() / 255.0);
    }

    fn turn(&mut self, [across, down, diagonal]: [bool; 3]) {
        if across {
            self.values.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
        }
        if down {
            self.values.reverse();
            self.values.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
        }
        if diagonal && self.width == self.height {
            let old = self.values.clone();
            for (n, value) in self.values.iter_mut().enumerate() {
                *value = old[n % self.width * self.width + n / self.width];
            }
        }
    }
}
