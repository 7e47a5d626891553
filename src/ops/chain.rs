// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chains of small 3×3 convolutions, computed row by row: what a layer hands to the next never leaves the
//! cache. At the borders the outermost pixels are repeated.
//!
//! Along a row, four outputs share their products: six of six sums of inputs with six sums of a row of the
//! kernel, for twelve (Winograd, "Arithmetic Complexity of Computations", 1980; the sums are those of Lavin
//! and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, F(4, 3)).

use candle_core::{Result, Tensor};
use multiversion::multiversion;

use super::host::Host;

/// Slope of a layer's activation below zero.
pub const SLOPE: f32 = 0.1;

/// Outputs that are computed together: two vectors of 8.
const LANES: usize = 16;
/// Pixels side by side that share their products.
const TILE: usize = 4;
/// Products that they share.
const PRODUCTS: usize = 6;
/// Tiles that are computed together: 6·2 sums and the weights fill the registers of AVX2.
const BLOCK: usize = 6;

/// Rows of a picture of `height` that a thread should compute at a time, for all to have work: the fewer
/// they are, the more of the rows around them are computed twice; the more, the longer takes a
/// cancellation. The result does not depend on it.
pub fn band_rows(height: usize) -> usize {
    height.div_ceil(2 * rayon::current_num_threads()).clamp(8, 64)
}

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
    /// [outputs / 16, 6, 3, input, 16], filled up with zeros.
    weights: Vec<f32>,
    /// Filled up with zeros to whole lanes.
    bias: Vec<f32>,
    activated: bool,
}

/// Where a chain computes; kept from one picture to the next, for memory costs time when it is fresh.
#[derive(Default)]
pub struct Room {
    /// What each layer sees.
    rings: Vec<Ring>,
    /// [6, tiles, 16].
    sums: Vec<[f32; LANES]>,
    /// A row of the output.
    last: Vec<f32>,
}

/// Three rows of a picture, as what is multiplied with weights.
#[derive(Default)]
struct Ring {
    width: usize,
    channels: usize,
    /// The row that is being written: a pixel of the border, the pixels, and the last one repeated.
    line: Vec<f32>,
    /// [6, tiles, channels] each.
    rows: [Vec<f32>; 3],
}

/// Tiles of a row, in whole blocks.
fn tiles(width: usize) -> usize {
    width.div_ceil(TILE).next_multiple_of(BLOCK)
}

impl Ring {
    /// What it held before may be anything.
    fn fit(&mut self, width: usize, channels: usize) {
        (self.width, self.channels) = (width, channels);
        let tiles = tiles(width);
        self.line.resize((TILE * tiles + 2) * channels, 0.0);
        for row in &mut self.rows {
            row.resize(PRODUCTS * tiles * channels, 0.0);
        }
    }

    /// Where the pixels of a row are to be written.
    fn line(&mut self) -> &mut [f32] {
        &mut self.line[self.channels..(self.width + 1) * self.channels]
    }

    /// Takes what has been written for row y.
    fn put(&mut self, y: usize) {
        let (channels, end) = (self.channels, self.width * self.channels);
        self.line.copy_within(channels..2 * channels, 0);
        for at in (end + channels..self.line.len()).step_by(channels) {
            self.line.copy_within(end..end + channels, at);
        }
        factors(&self.line, channels, &mut self.rows[y % 3]);
    }

    /// Rows y−1, y, y+1, as far as there are any.
    fn around(&self, y: usize, height: usize) -> [&[f32]; 3] {
        [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| &self.rows[y % 3][..])
    }
}

/// The factors of each tile.
#[multiversion(targets("x86_64+avx2+fma"))]
fn factors(line: &[f32], channels: usize, out: &mut [f32]) {
    match channels {
        8.. => factors_of::<8>(line, channels, out),
        4.. => factors_of::<4>(line, channels, out),
        _ => factors_of::<1>(line, channels, out),
    }
}

/// The same, `N` channels at a time. The last may be computed twice.
#[inline(always)]
fn factors_of<const N: usize>(line: &[f32], channels: usize, out: &mut [f32]) {
    let part = out.len() / PRODUCTS;
    for at in (0..part).step_by(channels) {
        let pixels = &line[TILE * at..][..PRODUCTS * channels];
        for c in (0..channels).step_by(N) {
            let c = c.min(channels - N);
            factor::<N>(&pixels[c..], channels, &mut out[at + c..], part);
        }
    }
}

/// `N` channels of a tile's six factors, each a `part` behind the one before: sums of the six pixels that
/// its outputs see.
#[inline(always)]
fn factor<const N: usize>(pixels: &[f32], channels: usize, out: &mut [f32], part: usize) {
    let mut d = [[0.0; N]; PRODUCTS];
    for (n, d) in d.iter_mut().enumerate() {
        d.copy_from_slice(&pixels[n * channels..][..N]);
    }
    let mut factors = [[0.0; N]; PRODUCTS];
    for c in 0..N {
        let (a, b) = (d[4][c] - 4.0 * d[2][c], d[3][c] - 4.0 * d[1][c]);
        let (e, f) = (d[4][c] - d[2][c], 2.0 * (d[3][c] - d[1][c]));
        factors[0][c] = 4.0 * d[0][c] - 5.0 * d[2][c] + d[4][c];
        (factors[1][c], factors[2][c]) = (a + b, a - b);
        (factors[3][c], factors[4][c]) = (e + f, e - f);
        factors[5][c] = 4.0 * d[1][c] - 5.0 * d[3][c] + d[5][c];
    }
    for (n, factor) in factors.iter().enumerate() {
        out[n * part..][..N].copy_from_slice(factor);
    }
}

impl Layer {
    /// `weight` is [out, in, 3, 3], `bias` \[out\].
    fn new(weight: &Tensor, bias: &Tensor, activated: bool) -> Result<Self> {
        let (output, input, ..) = weight.dims4()?;
        let values = Host::new(weight)?;
        let values = values.values()?;
        let groups = output.div_ceil(LANES);
        let mut weights = vec![0.0; groups * PRODUCTS * 3 * input * LANES];
        for (n, weight) in weights.iter_mut().enumerate() {
            let (lane, n) = (n % LANES, n / LANES);
            let (channel, n) = (n % input, n / input);
            let (row, n) = (n % 3, n / 3);
            let (product, group) = (n % PRODUCTS, n / PRODUCTS);
            let out = group * LANES + lane;
            if out < output {
                let g = &values[(out * input + channel) * 9 + row * 3..][..3];
                *weight = match product {
                    0 => g[0] / 4.0,
                    1 => (g[0] + g[1] + g[2]) / -6.0,
                    2 => (g[0] - g[1] + g[2]) / -6.0,
                    3 => (g[0] + 2.0 * g[1] + 4.0 * g[2]) / 24.0,
                    4 => (g[0] - 2.0 * g[1] + 4.0 * g[2]) / 24.0,
                    _ => g[2],
                };
            }
        }
        let mut padded = Host::new(bias)?.values()?.to_vec();
        padded.resize(groups * LANES, 0.0);
        Ok(Self { input, output, weights, bias: padded, activated })
    }

    /// One row of outputs; `sums` is room for [6, tiles, 16].
    fn row(&self, rows: [&[f32]; 3], sums: &mut [[f32; LANES]], out: &mut [f32]) {
        let tiles = sums.len() / PRODUCTS;
        let groups = self.weights.chunks_exact(PRODUCTS * 3 * self.input * LANES);
        for (group, (weights, bias)) in groups.zip(self.bias.as_chunks().0).enumerate() {
            let weights = weights.as_chunks().0.chunks_exact(3 * self.input);
            for (n, (weights, sums)) in weights.zip(sums.chunks_exact_mut(tiles)).enumerate() {
                let part = n * tiles * self.input;
                let rows = rows.map(|row| &row[part..part + tiles * self.input]);
                multiply(rows, self.input, weights, sums);
            }
            self.finish(group, bias, sums, out);
        }
    }

    fn finish(&self, group: usize, bias: &[f32; LANES], sums: &[[f32; LANES]], out: &mut [f32]) {
        let first = group * LANES;
        let used = (self.output - first).min(LANES);
        // Without an activation, a slope of 1 changes nothing.
        let slope = if self.activated { SLOPE } else { 1.0 };
        finish(sums, bias, slope, out, (self.output, first, used));
    }
}

/// The outputs of each tile, of which `used` go to every `stride` from `first` on.
#[multiversion(targets("x86_64+avx2+fma"))]
fn finish(
    sums: &[[f32; LANES]],
    bias: &[f32; LANES],
    slope: f32,
    out: &mut [f32],
    (stride, first, used): (usize, usize, usize),
) {
    let tiles = sums.len() / PRODUCTS;
    for (n, out) in out.chunks_mut(TILE * stride).enumerate() {
        let mut tile = [[0.0; LANES]; TILE];
        let mut m = [[0.0; LANES]; PRODUCTS];
        for (product, m) in m.iter_mut().enumerate() {
            *m = sums[product * tiles + n];
        }
        for lane in 0..LANES {
            let (a, b) = (m[1][lane] + m[2][lane] + bias[lane], m[3][lane] + m[4][lane]);
            let (c, d) = (m[1][lane] - m[2][lane] + bias[lane], m[3][lane] - m[4][lane]);
            let outputs = [m[0][lane] + a + b, c + 2.0 * d, a + 4.0 * b, c + 8.0 * d + m[5][lane]];
            for (tile, output) in tile.iter_mut().zip(outputs) {
                tile[lane] = if output < 0.0 { output * slope } else { output };
            }
        }
        for (out, values) in out.chunks_exact_mut(stride).zip(&tile) {
            match out[first..first + used].as_mut_array() {
                Some(out) => *out = *values,
                None => out[first..first + used].copy_from_slice(&values[..used]),
            }
        }
    }
}

/// Products of all tiles with `weights` [3·channels, 16], added up over rows and channels.
fn multiply(
    rows: [&[f32]; 3],
    channels: usize,
    weights: &[[f32; LANES]],
    sums: &mut [[f32; LANES]],
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { multiply_with_fma(rows, channels, weights, sums) };
    }
    for (n, sums) in sums.iter_mut().enumerate() {
        *sums = [0.0; LANES];
        for (row, weights) in rows.iter().zip(weights.chunks_exact(channels)) {
            for (value, weights) in row[n * channels..].iter().zip(weights) {
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * weight);
            }
        }
    }
}

/// As [`multiply`], with the sums of a block in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_with_fma(
    rows: [&[f32]; 3],
    channels: usize,
    weights: &[[f32; LANES]],
    sums: &mut [[f32; LANES]],
) {
    use std::arch::x86_64::{__m256, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps};
    for (n, out) in sums.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let mut sums = [[_mm256_setzero_ps(); 2]; BLOCK];
        for (row, weights) in rows.iter().zip(weights.chunks_exact(channels)) {
            let row = &row[n * BLOCK * channels..][..BLOCK * channels];
            // One length for all, so that one check serves all. No closures: they would be calls, as
            // they are not compiled for this processor.
            let mut values = [row; BLOCK];
            for (p, values) in values.iter_mut().enumerate() {
                *values = &row[p * channels..][..weights.len()];
            }
            for (k, weights) in weights.iter().enumerate() {
                let weights: [__m256; 2] = bytemuck::cast(*weights);
                for p in 0..BLOCK {
                    let value = _mm256_set1_ps(values[p][k]);
                    sums[p][0] = _mm256_fmadd_ps(value, weights[0], sums[p][0]);
                    sums[p][1] = _mm256_fmadd_ps(value, weights[1], sums[p][1]);
                }
            }
        }
        *out = bytemuck::cast(sums);
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
        room: &mut Room,
        (width, height): (usize, usize),
        rows: std::ops::Range<usize>,
        mut input: impl FnMut(usize, &mut [f32]),
        mut output: impl FnMut(usize, &[f32]),
    ) {
        let depth = self.layers.len();
        let Room { rings, sums, last } = room;
        rings.resize_with(depth, Ring::default);
        for (ring, layer) in rings.iter_mut().zip(&self.layers) {
            ring.fit(width, layer.input);
        }
        sums.resize(PRODUCTS * tiles(width), [0.0; LANES]);
        last.resize(width * self.layers[depth - 1].output, 0.0);
        for layer in &self.layers {
            super::count(rows.len() * width, layer.output, 9 * layer.input);
        }
        // Layer n needs a row more on either side than layer n + 1.
        let wanted =
            |n: usize| rows.start.saturating_sub(depth - n)..(rows.end + depth - n).min(height);
        for time in wanted(0).start..rows.end + depth {
            if wanted(0).contains(&time) {
                input(time, rings[0].line());
                rings[0].put(time);
            }
            for (n, layer) in self.layers.iter().enumerate() {
                let Some(y) = time.checked_sub(n + 1).filter(|y| wanted(n + 1).contains(y)) else {
                    continue;
                };
                let (before, after) = rings.split_at_mut(n + 1);
                let source = before[n].around(y, height);
                match after.first_mut() {
                    Some(ring) => {
                        layer.row(source, sums, ring.line());
                        ring.put(y);
                    }
                    None => {
                        layer.row(source, sums, last);
                        output(y, last);
                    }
                }
            }
        }
    }
}
