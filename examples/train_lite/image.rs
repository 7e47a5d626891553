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

/// What a filter does at the border of an image.
#[derive(Debug, Clone, Copy)]
pub enum Border {
    /// The outermost pixels repeat, as in FFmpeg.
    Replicated,
    /// The filter is cut off and normalized, as in the plugin.
    Cut,
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
    fn weights(self, from: usize, to: usize, border: Border) -> Vec<(usize, Vec<f32>)> {
        let ratio = from as f32 / to as f32;
        // Downscaling widens the filter to avoid aliasing.
        let widen = ratio.max(1.0);
        let radius = self.radius() * widen;
        (0..to)
            .map(|n| {
                let centre = (n as f32 + 0.5) * ratio - 0.5;
                let (begin, end) = ((centre - radius).ceil() as i32, (centre + radius) as i32 + 1);
                let (first, last) = (begin.max(0), end.min(from as i32) - 1);
                let mut weights = vec![0.0; (last - first) as usize + 1];
                for at in begin..end {
                    let inside = at.clamp(first, last);
                    if at == inside || matches!(border, Border::Replicated) {
                        let weight = self.weight((at as f32 - centre) / widen);
                        weights[(inside - first) as usize] += weight;
                    }
                }
                let sum: f32 = weights.iter().sum();
                (first as usize, weights.iter().map(|weight| weight / sum).collect())
            })
            .collect()
    }
}

/// Operations on a luma plane.
pub trait Image {
    /// The part of `size` (w, h) at `at` (x, y).
    fn crop(&self, at: (usize, usize), size: (usize, usize)) -> Self;
    /// Resizes to `size` (w, h).
    fn resample(&self, size: (usize, usize), filter: Filter, border: Border) -> Self;
    /// Gaussian blur; `std` is in pixels.
    fn blur(&self, std: f32) -> Self;
    /// Adds Gaussian noise.
    fn add_noise(&mut self, std: f32, random: &mut Random);
    /// Quantizes the DCT coefficients of 8×8 blocks, as JPEG does; the outermost pixels repeat in blocks beyond the border.
    /// `step` is that of the DC coefficient; high frequencies have larger ones.
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

    fn resample(&self, (w, h): (usize, usize), filter: Filter, border: Border) -> Self {
        let mut wide = Self::new(w, self.height);
        let columns = filter.weights(self.width, w, border);
        for (row, out) in self.values.chunks_exact(self.width).zip(wide.values.chunks_exact_mut(w))
        {
            for (out, (first, weights)) in out.iter_mut().zip(&columns) {
                *out = row[*first..].iter().zip(weights).map(|(x, weight)| x * weight).sum();
            }
        }
        let mut out = Self::new(w, h);
        let rows = filter.weights(self.height, h, border);
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
        for top in (0..self.height).step_by(8) {
            for left in (0..self.width).step_by(8) {
                let row = |y: usize| (top + y).min(self.height - 1) * self.width;
                let pixel =
                    |y: usize, x: usize| self.values[row(y) + (left + x).min(self.width - 1)];
                let pixels: Block = std::array::from_fn(|y| std::array::from_fn(|x| pixel(y, x)));
                let mut coefficients = product(&product(&basis, &pixels), &transpose(&basis));
                for (n, coefficient) in coefficients.as_flattened_mut().iter_mut().enumerate() {
                    let step = step * (1.0 + 0.25 * (n / 8 + n % 8) as f32);
                    *coefficient = (*coefficient / step).round() * step;
                }
                let pixels = product(&product(&transpose(&basis), &coefficients), &basis);
                let rows = self.values.chunks_exact_mut(self.width).skip(top);
                for (row, pixels) in rows.zip(&pixels) {
                    row[left..].iter_mut().zip(pixels).for_each(|(out, pixel)| *out = *pixel);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(width: usize, height: usize) -> Plane {
        let mut random = Random::new(3);
        let mut plane = Plane::new(width, height);
        plane.values.iter_mut().for_each(|value| *value = random.uniform(0.0, 1.0));
        plane
    }

    /// Repeats the outermost pixels: `before` times on the left and at the top, `after` times on the right and at the
    /// bottom.
    fn pad(plane: &Plane, before: usize, after: usize) -> Plane {
        let mut padded = Plane::new(plane.width + before + after, plane.height + before + after);
        let width = padded.width;
        for (n, value) in padded.values.iter_mut().enumerate() {
            let x = (n % width).saturating_sub(before).min(plane.width - 1);
            let y = (n / width).saturating_sub(before).min(plane.height - 1);
            *value = plane.values[y * plane.width + x];
        }
        padded
    }

    fn assert_near(a: &Plane, b: &Plane) {
        assert_eq!((a.width, a.height), (b.width, b.height));
        let errors = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs());
        assert!(errors.fold(0.0, f32::max) < 1e-5);
    }

    #[test]
    fn a_downscale_repeats_the_border_as_ffmpeg_does() {
        let image = plane(36, 24);
        for filter in [Filter::Cubic(-0.6), Filter::Lanczos3, Filter::Gauss(0.7), Filter::Box] {
            for factor in [2, 3, 4] {
                let size = |border: usize| ((36 + border) / factor, (24 + border) / factor);
                let padded = pad(&image, 12, 12).resample(size(24), filter, Border::Replicated);
                let expected = padded.crop((12 / factor, 12 / factor), size(0));
                assert_near(&image.resample(size(0), filter, Border::Replicated), &expected);
            }
        }
    }

    #[test]
    fn an_upscale_ignores_what_is_beyond_the_border() {
        let mut image = Plane::new(8, 1);
        image.values[0] = 1.0;
        let weight = |x| Filter::Lanczos3.weight(x);
        // The first output pixel is a quarter of a pixel before the first input pixel.
        let sum: f32 = (0..3).map(|n| weight(n as f32 + 0.25)).sum();
        let found = image.resample((16, 2), Filter::Lanczos3, Border::Cut);
        assert!((found.values[0] - weight(0.25) / sum).abs() < 1e-6, "{:?}", found.values);
    }

    #[test]
    fn blocks_beyond_the_border_are_quantized() {
        let mut image = plane(20, 13);
        let mut padded = pad(&image, 0, 12);
        image.quantize_dct(0.1);
        padded.quantize_dct(0.1);
        assert_near(&image, &padded.crop((0, 0), (20, 13)));
    }
}
