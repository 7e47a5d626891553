// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chains of small 3×3 convolutions on the CPU. They run row by row and keep only three rows of
//! each layer's input, so that intermediate results stay in the cache. Borders are replicated.
//!
//! The convolution along a row is the minimal filtering algorithm F(4, 3) of Winograd ("Arithmetic
//! Complexity of Computations", 1980), with the transforms of Lavin and Gray ("Fast Algorithms for
//! Convolutional Neural Networks", 2015): 6 multiplications instead of 12 for a tile of 4 outputs.

use candle_core::{Result, Tensor};
use multiversion::multiversion;

use super::host::Host;

/// Negative slope of the leaky ReLU.
pub const LEAKY_SLOPE: f32 = 0.1;

/// Output channels per group.
const LANES: usize = 16;
/// A value for each output channel of a group: two AVX registers or one of AVX-512, and a line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Lanes([f32; LANES]);

/// Output pixels per tile: m of F(m, r).
const TILE: usize = 4;
/// Transformed values per tile: m + r − 1 for a kernel of r = 3.
const POINTS: usize = 6;
/// Tiles per inner loop: 6·2 accumulators and the weights fill the 16 registers of AVX2.
const BLOCK: usize = 6;

/// Rows per band for an image of `height`, so that every thread gets about two bands. Smaller bands compute
/// more rows twice at their borders; larger ones take longer to cancel. The result does not depend on it.
pub fn band_rows(height: usize) -> usize {
    height.div_ceil(2 * rayon::current_num_threads()).clamp(8, 64)
}

/// A chain of 3×3 convolutions with a leaky ReLU after all but the last.
#[derive(Debug, Clone)]
pub struct ConvChain {
    layers: Vec<Layer>,
}

/// A 3×3 convolution with an optional leaky ReLU.
#[derive(Debug, Clone)]
struct Layer {
    in_channels: usize,
    out_channels: usize,
    groups: Vec<Group>,
    activation: bool,
}

/// 16 output channels of a convolution, padded with zeros.
#[derive(Debug, Clone)]
struct Group {
    /// Transformed weights [6, 3 kernel rows, in].
    weights: Vec<Lanes>,
    bias: Lanes,
}

impl Group {
    /// The weights of a point, [3 kernel rows, in].
    fn point(&self, point: usize) -> &[Lanes] {
        let count = self.weights.len() / POINTS;
        &self.weights[point * count..][..count]
    }
}

/// Buffers of a chain. Reuse them across calls to avoid allocations.
#[derive(Default)]
pub struct Scratch {
    /// The input of each layer.
    inputs: Vec<RowRing>,
    /// Products in the transformed domain of two groups, [6, tiles] each.
    products: [Vec<Lanes>; 2],
    /// A row of the output, [w, out].
    output: Vec<f32>,
}

/// The last three rows of an image in the transformed domain.
#[derive(Default)]
struct RowRing {
    width: usize,
    channels: usize,
    /// The row being written: one pixel of left border, the pixels, and the right border up to whole tiles.
    line: Vec<f32>,
    /// Transformed rows, [6, tiles, channels] each; row y is at y mod 3.
    rows: [Vec<f32>; 3],
}

/// Number of tiles of a row, rounded up to whole blocks.
fn tiles(width: usize) -> usize {
    width.div_ceil(TILE).next_multiple_of(BLOCK)
}

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);
}

impl RowRing {
    /// Sets the size. The contents are undefined.
    fn resize(&mut self, width: usize, channels: usize) {
        (self.width, self.channels) = (width, channels);
        let tiles = tiles(width);
        self.line.resize((TILE * tiles + 2) * channels, 0.0);
        for row in &mut self.rows {
            row.resize(POINTS * tiles * channels, 0.0);
        }
    }

    /// The buffer for the pixels of a row, [w, channels].
    fn line_mut(&mut self) -> &mut [f32] {
        &mut self.line[self.channels..(self.width + 1) * self.channels]
    }

    /// Stores the buffer as row y: replicates the border and transforms the row.
    fn commit(&mut self, y: usize) {
        let (channels, end) = (self.channels, self.width * self.channels);
        self.line.copy_within(channels..2 * channels, 0);
        for at in (end + channels..self.line.len()).step_by(channels) {
            self.line.copy_within(end..end + channels, at);
        }
        transform_input(&self.line, channels, &mut self.rows[y % 3]);
    }

    /// Rows y−1, y and y+1, clamped to the image.
    fn neighbourhood(&self, y: usize, height: usize) -> [&[f32]; 3] {
        [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|y| &self.rows[y % 3][..])
    }
}

/// Input transform of a row: `line` is [4·tiles + 2, channels], `out` is [6, tiles, channels].
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn transform_input(line: &[f32], channels: usize, out: &mut [f32]) {
    match channels {
        8.. => transform_channels::<8>(line, channels, out),
        4.. => transform_channels::<4>(line, channels, out),
        _ => transform_channels::<1>(line, channels, out),
    }
}

/// [`transform_input`], `N` channels at a time. If `N` does not divide `channels`, some are computed twice.
#[inline(always)]
fn transform_channels<const N: usize>(line: &[f32], channels: usize, out: &mut [f32]) {
    let part = out.len() / POINTS;
    for at in (0..part).step_by(channels) {
        let pixels = &line[TILE * at..][..POINTS * channels];
        for c in (0..channels).step_by(N) {
            let c = c.min(channels - N);
            transform_tile::<N>(&pixels[c..], channels, &mut out[at + c..], part);
        }
    }
}

/// Transforms `N` channels of the six input pixels of a tile (Bᵀd of Lavin and Gray). Consecutive outputs are
/// `part` elements apart.
#[inline(always)]
fn transform_tile<const N: usize>(pixels: &[f32], channels: usize, out: &mut [f32], part: usize) {
    let mut d = [[0.0; N]; POINTS];
    for (n, d) in d.iter_mut().enumerate() {
        d.copy_from_slice(&pixels[n * channels..][..N]);
    }
    let mut points = [[0.0; N]; POINTS];
    for c in 0..N {
        let (a, b) = (d[4][c] - 4.0 * d[2][c], d[3][c] - 4.0 * d[1][c]);
        let (e, f) = (d[4][c] - d[2][c], 2.0 * (d[3][c] - d[1][c]));
        points[0][c] = 4.0 * d[0][c] - 5.0 * d[2][c] + d[4][c];
        (points[1][c], points[2][c]) = (a + b, a - b);
        (points[3][c], points[4][c]) = (e + f, e - f);
        points[5][c] = 4.0 * d[1][c] - 5.0 * d[3][c] + d[5][c];
    }
    for (n, point) in points.iter().enumerate() {
        out[n * part..][..N].copy_from_slice(point);
    }
}

impl Layer {
    /// Transforms the weights (Gg of Lavin and Gray). `weight` is [out, in, 3, 3], `bias` \[out\].
    fn new(weight: &Tensor, bias: &Tensor, activation: bool) -> Result<Self> {
        let (out_channels, in_channels, ..) = weight.dims4()?;
        let values = Host::new(weight)?;
        let values = values.values()?;
        let bias = Host::new(bias)?;
        let bias = bias.values()?;
        let groups = (0..out_channels).step_by(LANES).map(|first| {
            let mut weights = vec![Lanes::ZERO; POINTS * 3 * in_channels];
            for (n, weights) in weights.iter_mut().enumerate() {
                let (channel, n) = (n % in_channels, n / in_channels);
                let (row, point) = (n % 3, n / 3);
                for (out, weight) in (first..out_channels).zip(&mut weights.0) {
                    let g = &values[(out * in_channels + channel) * 9 + row * 3..][..3];
                    *weight = match point {
                        0 => g[0] / 4.0,
                        1 => (g[0] + g[1] + g[2]) / -6.0,
                        2 => (g[0] - g[1] + g[2]) / -6.0,
                        3 => (g[0] + 2.0 * g[1] + 4.0 * g[2]) / 24.0,
                        4 => (g[0] - 2.0 * g[1] + 4.0 * g[2]) / 24.0,
                        _ => g[2],
                    };
                }
            }
            let mut padded = Lanes::ZERO;
            let biases = bias.iter().skip(first);
            padded.0.iter_mut().zip(biases).for_each(|(lane, bias)| *lane = *bias);
            Group { weights, bias: padded }
        });
        Ok(Self { in_channels, out_channels, groups: groups.collect(), activation })
    }

    /// Computes one output row [w, out] from three transformed input rows; `products` is [6, tiles] for each of two groups.
    fn run_row(&self, rows: [&[f32]; 3], products: &mut [Vec<Lanes>; 2], out: &mut [f32]) {
        let tiles = products[0].len() / POINTS;
        let length = tiles * self.in_channels;
        for (pair, groups) in self.groups.chunks(2).enumerate() {
            for point in 0..POINTS {
                let rows = rows.map(|row| &row[point * length..][..length]);
                let [first, second] =
                    products.each_mut().map(|products| &mut products[point * tiles..][..tiles]);
                match groups {
                    [a, b] => multiply(rows, [a.point(point), b.point(point)], [first, second]),
                    _ => multiply(rows, [groups[0].point(point)], [first]),
                }
            }
            for (n, (group, products)) in groups.iter().zip(&*products).enumerate() {
                self.write_group(2 * pair + n, &group.bias, products, out);
            }
        }
    }

    /// Writes the output channels of a group.
    fn write_group(&self, group: usize, bias: &Lanes, products: &[Lanes], out: &mut [f32]) {
        let first = group * LANES;
        let used = (self.out_channels - first).min(LANES);
        // A slope of 1 is the identity.
        let slope = if self.activation { LEAKY_SLOPE } else { 1.0 };
        transform_output(products, bias, slope, out, (self.out_channels, first, used));
    }
}

/// Output transform of a row (Aᵀm of Lavin and Gray), bias and leaky ReLU. Of the 16 channels, `used` are
/// written, to channels `first`.. of `out`, [w, `stride`].
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn transform_output(
    products: &[Lanes],
    Lanes(bias): &Lanes,
    slope: f32,
    out: &mut [f32],
    (stride, first, used): (usize, usize, usize),
) {
    let tiles = products.len() / POINTS;
    for (n, out) in out.chunks_mut(TILE * stride).enumerate() {
        let mut tile = [[0.0; LANES]; TILE];
        let mut m = [[0.0; LANES]; POINTS];
        for (point, m) in m.iter_mut().enumerate() {
            *m = products[point * tiles + n].0;
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

/// Multiplies one point of all tiles, 3 rows of [tiles, channels], with the weights [3·channels] of each group, and sums over
/// rows and channels.
fn multiply<const GROUPS: usize>(
    rows: [&[f32]; 3],
    weights: [&[Lanes]; GROUPS],
    sums: [&mut [Lanes]; GROUPS],
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU supports AVX-512.
        return unsafe { multiply_avx512(rows, weights, sums) };
    }
    for (weights, sums) in weights.into_iter().zip(sums) {
        multiply_group(rows, weights, sums);
    }
}

/// [`multiply`] for one group.
fn multiply_group(rows: [&[f32]; 3], weights: &[Lanes], sums: &mut [Lanes]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { multiply_avx2(rows, weights, sums) };
    }
    let channels = weights.len() / 3;
    for (n, sums) in sums.iter_mut().enumerate() {
        *sums = Lanes::ZERO;
        for (row, weights) in rows.iter().zip(weights.chunks_exact(channels)) {
            for (value, weights) in row[n * channels..].iter().zip(weights) {
                sums.0.iter_mut().zip(weights.0).for_each(|(sum, weight)| *sum += value * weight);
            }
        }
    }
}

/// [`multiply_group`] with the accumulators of a block of tiles in registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(rows: [&[f32]; 3], weights: &[Lanes], sums: &mut [Lanes]) {
    use std::arch::x86_64::{__m256, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps};
    let channels = weights.len() / 3;
    for (n, out) in sums.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let mut sums = [[_mm256_setzero_ps(); 2]; BLOCK];
        for (row, weights) in rows.iter().zip(weights.chunks_exact(channels)) {
            let row = &row[n * BLOCK * channels..][..BLOCK * channels];
            // Slices of one length need only one bounds check. No closures: they do not inherit the target
            // features, so they would not be inlined.
            let mut values = [row; BLOCK];
            for (p, values) in values.iter_mut().enumerate() {
                *values = &row[p * channels..][..weights.len()];
            }
            for (k, weights) in weights.iter().enumerate() {
                let weights: [__m256; 2] = bytemuck::cast(weights.0);
                for p in 0..BLOCK {
                    let value = _mm256_set1_ps(values[p][k]);
                    sums[p][0] = _mm256_fmadd_ps(value, weights[0], sums[p][0]);
                    sums[p][1] = _mm256_fmadd_ps(value, weights[1], sums[p][1]);
                }
            }
        }
        *out = sums.map(|sums| Lanes(bytemuck::cast(sums)));
    }
}

/// [`multiply`] with one register for all output channels of a tile; there are whole blocks of tiles. Each sum adds the same products in the same order
/// as with AVX2, so the results are equal.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512<const GROUPS: usize>(
    rows: [&[f32]; 3],
    weights: [&[Lanes]; GROUPS],
    mut sums: [&mut [Lanes]; GROUPS],
) {
    // Two blocks hide the latency of the additions.
    const PAIR: usize = 2 * BLOCK;
    let tiles = sums[0].len();
    for first in (0..tiles).step_by(PAIR) {
        if first + PAIR <= tiles {
            multiply_tiles_avx512::<PAIR, GROUPS>(rows, first, weights, &mut sums);
        } else {
            multiply_tiles_avx512::<BLOCK, GROUPS>(rows, first, weights, &mut sums);
        }
    }
}

/// Writes the sums of `N` tiles from the tile `first` on.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn multiply_tiles_avx512<const N: usize, const GROUPS: usize>(
    rows: [&[f32]; 3],
    first: usize,
    weights: [&[Lanes]; GROUPS],
    out: &mut [&mut [Lanes]; GROUPS],
) {
    use std::arch::x86_64::{__m512, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps};
    // Within a group of channels, addresses are constant offsets. To compute an address for each channel takes longer than
    // the sums.
    const CHANNELS: usize = 4;
    let channels = weights[0].len() / 3;
    let count = channels / CHANNELS;
    let mut sums = [[_mm512_setzero_ps(); N]; GROUPS];
    for (n, row) in rows.iter().enumerate() {
        let row = &row[first * channels..][..N * channels];
        // Slices of one length need only one bounds check.
        let mut weight_chunks = [weights[0].as_chunks::<CHANNELS>().0; GROUPS];
        let mut last_weights = [weights[0]; GROUPS];
        for g in 0..GROUPS {
            let (chunks, last) = weights[g][n * channels..][..channels].as_chunks::<CHANNELS>();
            (weight_chunks[g], last_weights[g]) = (&chunks[..count], &last[..channels % CHANNELS]);
        }
        let mut value_chunks = [row.as_chunks::<CHANNELS>().0; N];
        let mut last_values = [row; N];
        for p in 0..N {
            let (chunks, last) = row[p * channels..][..channels].as_chunks::<CHANNELS>();
            (value_chunks[p], last_values[p]) = (&chunks[..count], &last[..channels % CHANNELS]);
        }
        for at in 0..count {
            for k in 0..CHANNELS {
                for p in 0..N {
                    let value = _mm512_set1_ps(value_chunks[p][at][k]);
                    for g in 0..GROUPS {
                        let weights: __m512 = bytemuck::cast(weight_chunks[g][at][k].0);
                        sums[g][p] = _mm512_fmadd_ps(value, weights, sums[g][p]);
                    }
                }
            }
        }
        for k in 0..channels % CHANNELS {
            for p in 0..N {
                let value = _mm512_set1_ps(last_values[p][k]);
                for g in 0..GROUPS {
                    let weights: __m512 = bytemuck::cast(last_weights[g][k].0);
                    sums[g][p] = _mm512_fmadd_ps(value, weights, sums[g][p]);
                }
            }
        }
    }
    for g in 0..GROUPS {
        for (out, sums) in out[g][first..][..N].iter_mut().zip(sums[g]) {
            *out = Lanes(bytemuck::cast(sums));
        }
    }
}

impl ConvChain {
    /// A chain of layers, each with a weight [out, in, 3, 3] and a bias \[out\].
    ///
    /// # Errors
    /// If a weight does not have four dimensions, or is not a float tensor.
    pub fn new(layers: &[(Tensor, Tensor)]) -> Result<Self> {
        let last = layers.len().saturating_sub(1);
        let layers = layers.iter().enumerate();
        let layers = layers.map(|(n, (weight, bias))| Layer::new(weight, bias, n < last));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// Folds constant input channels into the bias: the last channels have these `values` in every pixel. The input of the
    /// returned chain is the other channels.
    ///
    /// # Panics
    /// If no other channel is left.
    pub fn with_constants(&self, values: &[f32]) -> Self {
        let mut chain = self.clone();
        let layer = &mut chain.layers[0];
        let inputs = layer.in_channels;
        assert!(values.len() < inputs, "{} constants for {inputs} input channels", values.len());
        layer.in_channels -= values.len();
        for group in &mut layer.groups {
            // Point 1 of the transform is the sum of a kernel row, divided by −6.
            let rows = group.weights[3 * inputs..6 * inputs].chunks_exact(inputs);
            for (Lanes(weights), value) in
                rows.flat_map(|row| row[layer.in_channels..].iter().zip(values))
            {
                let lanes = group.bias.0.iter_mut().zip(weights);
                lanes.for_each(|(bias, weight)| *bias -= 6.0 * weight * value);
            }
            let rows = group.weights.chunks_exact(inputs);
            group.weights = rows.flat_map(|row| &row[..layer.in_channels]).copied().collect();
        }
        chain
    }

    /// Computes `rows` of the output for an image of `size` (w, h), in order. `input` is called to write row y
    /// of the input, [w, in]; `output` gets row y of the output, [w, out].
    ///
    /// # Errors
    /// The first error of `output`, which ends the computation.
    pub fn run<E>(
        &self,
        scratch: &mut Scratch,
        (width, height): (usize, usize),
        rows: std::ops::Range<usize>,
        mut input: impl FnMut(usize, &mut [f32]),
        mut output: impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let depth = self.layers.len();
        let Scratch { inputs, products, output: last } = scratch;
        inputs.resize_with(depth, RowRing::default);
        for (ring, layer) in inputs.iter_mut().zip(&self.layers) {
            ring.resize(width, layer.in_channels);
        }
        for products in products.iter_mut() {
            products.resize(POINTS * tiles(width), Lanes::ZERO);
        }
        last.resize(width * self.layers[depth - 1].out_channels, 0.0);
        for layer in &self.layers {
            super::count(rows.len() * width, layer.out_channels, 9 * layer.in_channels);
        }
        // Layer n needs one row more on either side than layer n + 1.
        let needed =
            |n: usize| rows.start.saturating_sub(depth - n)..(rows.end + depth - n).min(height);
        // A pipeline: layer n computes row y one step after its input row y + 1 is there.
        for step in needed(0).start..rows.end + depth {
            if needed(0).contains(&step) {
                input(step, inputs[0].line_mut());
                inputs[0].commit(step);
            }
            for (n, layer) in self.layers.iter().enumerate() {
                let Some(y) = step.checked_sub(n + 1).filter(|y| needed(n + 1).contains(y)) else {
                    continue;
                };
                let (before, after) = inputs.split_at_mut(n + 1);
                let source = before[n].neighbourhood(y, height);
                match after.first_mut() {
                    Some(next) => {
                        layer.run_row(source, products, next.line_mut());
                        next.commit(y);
                    }
                    None => {
                        layer.run_row(source, products, last);
                        output(y, last)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn any_number_of_output_channels_is_computed() {
        let (w, h, inputs) = (11, 5, 6);
        let value = |n: usize| (n * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let image: Vec<f32> = (0..w * h * inputs).map(value).collect();
        for outputs in [1, 8, 16, 24, 32, 40, 48] {
            let weights: Vec<f32> = (0..outputs * inputs * 9).map(|n| value(n + 5)).collect();
            let biases: Vec<f32> = (0..outputs).map(|n| value(n + 77)).collect();
            let weight = Tensor::from_slice(&weights, (outputs, inputs, 3, 3), &Device::Cpu);
            let bias = Tensor::from_slice(&biases, outputs, &Device::Cpu);
            let chain = ConvChain::new(&[(weight.unwrap(), bias.unwrap())]).unwrap();
            let read = |y: usize, row: &mut [f32]| {
                row.copy_from_slice(&image[y * w * inputs..][..w * inputs]);
            };
            let check = |y: usize, row: &[f32]| {
                for (n, got) in row.iter().enumerate() {
                    let (x, out) = (n / outputs, n % outputs);
                    let mut expected = biases[out];
                    for (k, channel) in (0..9).flat_map(|k| (0..inputs).map(move |c| (k, c))) {
                        let x = (x + k % 3).saturating_sub(1).min(w - 1);
                        let y = (y + k / 3).saturating_sub(1).min(h - 1);
                        let weight = weights[(out * inputs + channel) * 9 + k];
                        expected += image[(y * w + x) * inputs + channel] * weight;
                    }
                    assert!(
                        (got - expected).abs() < 1e-4,
                        "{outputs} channels, ({x}, {y}): {got}, {expected}"
                    );
                }
                Ok::<_, ()>(())
            };
            chain.run(&mut Scratch::default(), (w, h), 0..h, read, check).unwrap();
        }
    }

    #[test]
    fn constants_equal_channels_of_one_value() {
        let (w, h) = (9, 6);
        let value = |n: usize| (n * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let layer = |inputs: usize, outputs: usize| {
            let weights: Vec<_> = (0..outputs * inputs * 9).map(|n| value(n + inputs)).collect();
            let weight = Tensor::from_slice(&weights, (outputs, inputs, 3, 3), &Device::Cpu);
            let biases: Vec<_> = (0..outputs).map(value).collect();
            (weight.unwrap(), Tensor::new(biases, &Device::Cpu).unwrap())
        };
        let chain = ConvChain::new(&[layer(5, 20), layer(20, 3)]).unwrap();
        let constants = [0.3, -0.8];
        let output = |chain: &ConvChain, constants: &[f32]| {
            let input = |y: usize, row: &mut [f32]| {
                for (x, pixel) in row.chunks_exact_mut(3 + constants.len()).enumerate() {
                    pixel[..3].iter_mut().zip(y * w + x..).for_each(|(c, n)| *c = value(n));
                    pixel[3..].copy_from_slice(constants);
                }
            };
            let mut rows = Vec::new();
            let write = |_: usize, row: &[f32]| {
                rows.extend_from_slice(row);
                Ok::<_, ()>(())
            };
            chain.run(&mut Scratch::default(), (w, h), 0..h, input, write).unwrap();
            rows
        };
        let expected = output(&chain, &constants);
        let found = output(&chain.with_constants(&constants), &[]);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx512_and_avx2_give_equal_sums() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let value = |n: usize| (n * 7919 % 1009) as f32 / 1009.0 - 0.5;
        for (channels, tiles) in [(1, 6), (3, 6), (4, 12), (6, 12), (27, 18), (32, 30)] {
            let row = |n: usize| (0..tiles * channels).map(|at| value(at + 97 * n)).collect();
            let rows: [Vec<f32>; 3] = std::array::from_fn(row);
            let rows = rows.each_ref().map(|row| &row[..]);
            let weights = [0, 400].map(|start| -> Vec<_> {
                let lanes = |at| Lanes(std::array::from_fn(|lane| value(start + 31 * at + lane)));
                (0..3 * channels).map(lanes).collect()
            });
            let weights = weights.each_ref().map(|weights| &weights[..]);
            let zeros = || vec![Lanes::ZERO; tiles];
            let (mut pair, mut single) = ([zeros(), zeros()], [zeros()]);
            // SAFETY: the CPU supports AVX-512.
            unsafe {
                multiply_avx512(rows, weights, pair.each_mut().map(|sums| &mut sums[..]));
                multiply_avx512(rows, [weights[1]], single.each_mut().map(|sums| &mut sums[..]));
            }
            for (weights, sums) in
                [weights[0], weights[1], weights[1]].into_iter().zip(pair.iter().chain(&single))
            {
                let mut expected = zeros();
                // SAFETY: AVX-512 includes AVX2 and FMA.
                unsafe { multiply_avx2(rows, weights, &mut expected) };
                let equal = sums.iter().zip(&expected).all(|(a, b)| a.0 == b.0);
                assert!(equal, "{channels} channels, {tiles} tiles");
            }
        }
    }
}
