// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chains of small 3×3 convolutions, computed row by row: what a layer hands to the next never leaves the
//! cache. At the borders the outermost pixels are repeated.

use candle_core::{Result, Tensor};

use super::host::Host;

/// Slope of a layer's activation below zero.
pub const SLOPE: f32 = 0.1;

/// Outputs that are computed together: two vectors of 8.
const LANES: usize = 16;
/// Pixels that are computed together: 6·2 sums and the weights fill the registers of AVX2.
const PIXELS: usize = 6;

/// Layers on the CPU, ready to be computed.
#[derive(Debug, Clone)]
pub struct Chain {
    layers: Vec<Layer>,
}

/// One layer: a 3×3 convolution, and a leaky ReLU behind all but the last.
#[derive(Debug, Clone)]
struct Layer {
    input: usize,
    output: usize,
    /// [outputs / 16, 3, 3·input, 16], filled up with zeros.
    weights: Vec<f32>,
    /// Filled up with zeros to whole lanes.
    bias: Vec<f32>,
    activated: bool,
}

/// Rows of a picture with one more pixel on either side.
struct Ring {
    rows: [Vec<f32>; 3],
}

impl Ring {
    fn new(width: usize, channels: usize) -> Self {
        Self { rows: std::array::from_fn(|_| vec![0.0; (width + 2) * channels]) }
    }

    fn row_mut(&mut self, y: usize) -> &mut [f32] {
        &mut self.rows[y % 3]
    }

    /// Rows y−1, y, y+1, as far as there are any.
    fn around(&self, y: usize, height: usize) -> [&[f32]; 3] {
        [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| &self.rows[y % 3][..])
    }
}

/// Repeats the first and the last pixel of a row that has room for it.
fn pad(row: &mut [f32], channels: usize) {
    let end = row.len() - channels;
    row.copy_within(channels..2 * channels, 0);
    row.copy_within(end - channels..end, end);
}

impl Layer {
    /// `weight` is [out, in, 3, 3], `bias` \[out\].
    fn new(weight: &Tensor, bias: &Tensor, activated: bool) -> Result<Self> {
        let (output, input, ..) = weight.dims4()?;
        let values = Host::new(weight)?;
        let values = values.values()?;
        let groups = output.div_ceil(LANES);
        let mut weights = vec![0.0; groups * 9 * input * LANES];
        for (n, lanes) in weights.chunks_exact_mut(LANES).enumerate() {
            let (group, tap, channel) = (n / (9 * input), n / input % 9, n % input);
            for (lane, weight) in lanes.iter_mut().enumerate() {
                let out = group * LANES + lane;
                if out < output {
                    *weight = values[(out * input + channel) * 9 + tap];
                }
            }
        }
        let mut padded = Host::new(bias)?.values()?.to_vec();
        padded.resize(groups * LANES, 0.0);
        Ok(Self { input, output, weights, bias: padded, activated })
    }

    fn row(&self, rows: [&[f32]; 3], out: &mut [f32]) {
        let groups = self.weights.chunks_exact(9 * self.input * LANES);
        for (group, (weights, bias)) in groups.zip(self.bias.as_chunks().0).enumerate() {
            let (channels, activated) = (self.input, self.activated);
            let weights = weights.as_chunks().0;
            let target = Target { out: &mut *out, stride: self.output, first: group * LANES };
            Source { rows, channels, weights, bias, activated }.compute(target);
        }
    }
}

/// Where the outputs of a group of lanes go.
struct Target<'a> {
    out: &'a mut [f32],
    stride: usize,
    first: usize,
}

impl Target<'_> {
    #[inline(always)]
    fn store(&mut self, x: usize, sums: &[[f32; LANES]]) {
        let used = (self.stride - self.first).min(LANES);
        for (p, sums) in sums.iter().enumerate() {
            let at = (x + p) * self.stride + self.first;
            self.out[at..at + used].copy_from_slice(&sums[..used]);
        }
    }
}

/// One row of a layer, for 16 of its outputs: what it is made of.
#[derive(Clone, Copy)]
struct Source<'a> {
    rows: [&'a [f32]; 3],
    channels: usize,
    weights: &'a [[f32; LANES]],
    bias: &'a [f32; LANES],
    activated: bool,
}

impl Source<'_> {
    fn compute(self, target: Target) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.with_fma(target) };
        }
        self.blocks(target, Self::pixels::<1>, Self::pixels::<PIXELS>);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn with_fma(self, target: Target) {
        self.blocks(
            target,
            #[inline(always)]
            |source, x| source.pixels_with_fma::<1>(x),
            #[inline(always)]
            |source, x| source.pixels_with_fma::<PIXELS>(x),
        );
    }

    #[inline(always)]
    fn blocks(
        self,
        mut target: Target,
        one: impl Fn(&Self, usize) -> [[f32; LANES]; 1],
        block: impl Fn(&Self, usize) -> [[f32; LANES]; PIXELS],
    ) {
        let width = target.out.len() / target.stride;
        if width < PIXELS {
            for x in 0..width {
                target.store(x, &one(&self, x));
            }
            return;
        }
        for x in (0..width).step_by(PIXELS) {
            // The last block reaches back, so that it is as long as the others.
            let x = x.min(width - PIXELS);
            target.store(x, &block(&self, x));
        }
    }

    /// `N` pixels from `x` on.
    fn pixels<const N: usize>(&self, x: usize) -> [[f32; LANES]; N] {
        let mut sums = [*self.bias; N];
        let taps = 3 * self.channels;
        for (row, weights) in self.rows.iter().zip(self.weights.chunks_exact(taps)) {
            let row = &row[x * self.channels..];
            for (k, weights) in weights.iter().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    let value = row[p * self.channels + k];
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += value * weight;
                    }
                }
            }
        }
        if self.activated {
            for sum in sums.as_flattened_mut() {
                *sum = sum.max(*sum * SLOPE);
            }
        }
        sums
    }

    /// As [`Source::pixels`], with all sums in registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn pixels_with_fma<const N: usize>(&self, x: usize) -> [[f32; LANES]; N] {
        use std::arch::x86_64::{
            __m256, _mm256_fmadd_ps, _mm256_max_ps, _mm256_mul_ps, _mm256_set1_ps,
        };
        let mut sums: [[__m256; 2]; N] = [bytemuck::cast(*self.bias); N];
        let taps = 3 * self.channels;
        for (row, weights) in self.rows.iter().zip(self.weights.chunks_exact(taps)) {
            let row = &row[x * self.channels..(x + N + 2) * self.channels];
            // One length for all, so that one check serves all.
            let values: [&[f32]; N] = std::array::from_fn(|p| &row[p * self.channels..][..taps]);
            for (k, weights) in weights.iter().enumerate() {
                let weights: [__m256; 2] = bytemuck::cast(*weights);
                for p in 0..N {
                    let value = _mm256_set1_ps(values[p][k]);
                    sums[p][0] = _mm256_fmadd_ps(value, weights[0], sums[p][0]);
                    sums[p][1] = _mm256_fmadd_ps(value, weights[1], sums[p][1]);
                }
            }
        }
        if self.activated {
            let slope = _mm256_set1_ps(SLOPE);
            for sum in sums.as_flattened_mut() {
                *sum = _mm256_max_ps(*sum, _mm256_mul_ps(*sum, slope));
            }
        }
        sums.map(bytemuck::cast)
    }
}

impl Chain {
    /// Layers in order, each with its weight [out, in, 3, 3] and bias \[out\].
    ///
    /// # Errors
    /// On other shapes.
    pub fn new(layers: &[(Tensor, Tensor)]) -> Result<Self> {
        let last = layers.len().saturating_sub(1);
        let layers = layers.iter().enumerate();
        let layers = layers.map(|(n, (weight, bias))| Layer::new(weight, bias, n < last));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// Computes rows `rows` of a picture of `size` (w, h), one after the other: `input` writes row y of the
    /// input, `output` takes row y of the output.
    pub fn rows(
        &self,
        (width, height): (usize, usize),
        rows: std::ops::Range<usize>,
        mut input: impl FnMut(usize, &mut [f32]),
        mut output: impl FnMut(usize, &[f32]),
    ) {
        let channels = self.layers.iter().map(|layer| layer.input);
        let mut rings: Vec<_> = channels.map(|channels| Ring::new(width, channels)).collect();
        let depth = self.layers.len();
        let mut last = vec![0.0; width * self.layers[depth - 1].output];
        // Layer n needs a row more on either side than layer n + 1.
        let wanted =
            |n: usize| rows.start.saturating_sub(depth - n)..(rows.end + depth - n).min(height);
        for time in wanted(0).start..rows.end + depth {
            if wanted(0).contains(&time) {
                let channels = self.layers[0].input;
                let row = rings[0].row_mut(time);
                input(time, &mut row[channels..(width + 1) * channels]);
                pad(row, channels);
            }
            for (n, layer) in self.layers.iter().enumerate() {
                let Some(y) = time.checked_sub(n + 1).filter(|y| wanted(n + 1).contains(y)) else {
                    continue;
                };
                let (before, after) = rings.split_at_mut(n + 1);
                let source = before[n].around(y, height);
                match after.first_mut() {
                    Some(ring) => {
                        let row = ring.row_mut(y);
                        layer.row(source, &mut row[layer.output..(width + 1) * layer.output]);
                        pad(row, layer.output);
                    }
                    None => {
                        layer.row(source, &mut last);
                        output(y, &last);
                    }
                }
            }
        }
    }
}
