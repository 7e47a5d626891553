// SPDX-License-Identifier: MIT OR Apache-2.0
//! The minimal filtering algorithm F(4×4, 3×3) of Winograd ("Arithmetic Complexity of Computations", 1980), with the
//! transforms of Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", 2015): 36 multiplications
//! instead of 144 for a tile of 4×4 outputs.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Output channels per group.
pub const LANES: usize = 16;
/// A value for each output channel of a group: two AVX registers or one of AVX-512, and a line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Lanes(pub [f32; LANES]);

/// Side of a tile of the output: m of F(m×m, r×r).
pub const TILE: usize = 4;
/// Side of a transformed tile: m + r − 1 for a kernel of r = 3.
pub const SIDE: usize = 6;
/// Values of a transformed tile.
pub const POINTS: usize = SIDE * SIDE;
/// The most tiles that are transformed and multiplied at a time: with the weights of a group, they fit in the level 2
/// cache.
pub const CHUNK: usize = 12;
/// One more, so that the points of a tile are in different sets of the level 1 cache.
const STRIDE: usize = CHUNK + 1;
/// Input channels per block: an AVX register.
pub const DEPTH: usize = 8;

/// Eight channels of a pixel.
pub type Pixel = [f32; DEPTH];
/// Eight input channels of transformed tiles, [36, tiles, 8].
pub type Values = [[Pixel; STRIDE]; POINTS];
/// The initial contents of a buffer.
pub static NO_VALUES: Values = [[[0.0; DEPTH]; STRIDE]; POINTS];
/// Sixteen output channels of transformed tiles, [36, tiles].
pub type Products = [[Lanes; STRIDE]; POINTS];
/// The initial contents of a buffer.
pub static NO_PRODUCTS: Products = [[Lanes::ZERO; STRIDE]; POINTS];

/// 16 output channels of a convolution, padded with zeros.
#[derive(Debug, Clone)]
pub struct Group {
    /// Transformed weights [36, in].
    weights: Vec<Lanes>,
    pub bias: Lanes,
}

impl Lanes {
    pub const ZERO: Self = Self([0.0; LANES]);
}

impl Group {
    /// Transforms the weights of up to 16 `kernels`, [out, in, 3, 3]. `bias` is \[out\].
    pub fn new(kernels: &[f32], in_channels: usize, bias: &[f32]) -> Self {
        let mut weights = vec![Lanes::ZERO; POINTS * in_channels];
        for (n, kernel) in kernels.as_chunks::<9>().0.iter().enumerate() {
            let (lane, channel) = (n / in_channels, n % in_channels);
            let rows = kernel.as_chunks::<3>().0;
            let rows: [_; 3] = std::array::from_fn(|y| transform_weights(rows[y]));
            for x in 0..SIDE {
                let column = transform_weights(rows.map(|row| row[x]));
                for (y, weight) in column.into_iter().enumerate() {
                    weights[(y * SIDE + x) * in_channels + channel].0[lane] = weight;
                }
            }
        }
        let mut padded = Lanes::ZERO;
        padded.0.iter_mut().zip(bias).for_each(|(lane, bias)| *lane = *bias);
        Self { weights, bias: padded }
    }

    fn in_channels(&self) -> usize {
        self.weights.len() / POINTS
    }

    /// The weights of a point, \[in\].
    pub fn point(&self, point: usize) -> &[Lanes] {
        &self.weights[point * self.in_channels()..][..self.in_channels()]
    }

    /// Adds the last input channels to the bias: they have these `values` in every pixel.
    pub fn fold_constants(&mut self, values: &[f32]) {
        let rest = self.in_channels() - values.len();
        // This point of the transform is the sum of the kernel, divided by 6².
        let constants = self.weights[(SIDE + 1) * self.in_channels() + rest..].iter().zip(values);
        for (Lanes(weights), value) in constants {
            for (bias, weight) in self.bias.0.iter_mut().zip(weights) {
                *bias += 36.0 * weight * value;
            }
        }
        let points = self.weights.chunks_exact(self.in_channels());
        self.weights = points.flat_map(|point| &point[..rest]).copied().collect();
    }
}

/// The transform of three weights (Gg of Lavin and Gray).
fn transform_weights(g: [f32; 3]) -> [f32; SIDE] {
    [
        g[0] / 4.0,
        (g[0] + g[1] + g[2]) / -6.0,
        (g[0] - g[1] + g[2]) / -6.0,
        (g[0] + 2.0 * g[1] + 4.0 * g[2]) / 24.0,
        (g[0] - 2.0 * g[1] + 4.0 * g[2]) / 24.0,
        g[2],
    ]
}

/// A value for each of eight channels.
#[inline(always)]
fn pixel(value: impl Fn(usize) -> f32) -> Pixel {
    std::array::from_fn(value)
}

/// The transform of six input values (Bᵀd of Lavin and Gray).
#[inline(always)]
fn transform_values(d: &[Pixel; SIDE]) -> [Pixel; SIDE] {
    let a = pixel(|k| d[4][k] - 4.0 * d[2][k]);
    let b = pixel(|k| d[3][k] - 4.0 * d[1][k]);
    let e = pixel(|k| d[4][k] - d[2][k]);
    let f = pixel(|k| 2.0 * (d[3][k] - d[1][k]));
    [
        pixel(|k| 4.0 * d[0][k] - 5.0 * d[2][k] + d[4][k]),
        pixel(|k| a[k] + b[k]),
        pixel(|k| a[k] - b[k]),
        pixel(|k| e[k] + f[k]),
        pixel(|k| e[k] - f[k]),
        pixel(|k| 4.0 * d[1][k] - 5.0 * d[3][k] + d[5][k]),
    ]
}

/// The transform of six products to four outputs (Aᵀm of Lavin and Gray).
#[inline(always)]
fn transform_products(m: &[Pixel; SIDE]) -> [Pixel; TILE] {
    let a = pixel(|k| m[1][k] + m[2][k]);
    let b = pixel(|k| m[3][k] + m[4][k]);
    let e = pixel(|k| m[1][k] - m[2][k]);
    let f = pixel(|k| m[3][k] - m[4][k]);
    [
        pixel(|k| m[0][k] + a[k] + b[k]),
        pixel(|k| e[k] + 2.0 * f[k]),
        pixel(|k| a[k] + 4.0 * b[k]),
        pixel(|k| e[k] + 8.0 * f[k] + m[5][k]),
    ]
}

/// Whether the CPU supports AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Number of pixels of a row of tiles with one pixel of border on either side.
pub const fn span(tiles: usize) -> usize {
    TILE * tiles + 2
}

/// Input transform of `tiles` from six rows, [blocks of channels, [`span`]].
pub fn transform_input(rows: [&[Pixel]; SIDE], tiles: Range<usize>, out: &mut [Values]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { avx2::transform_input(rows, tiles, out) };
    }
    transform_input_portable(rows, tiles, out);
}

fn transform_input_portable(rows: [&[Pixel]; SIDE], tiles: Range<usize>, out: &mut [Values]) {
    let span = rows[0].len() / out.len();
    for (block, out) in out.iter_mut().enumerate() {
        for (n, tile) in tiles.clone().enumerate() {
            let at = block * span + TILE * tile;
            let rows: [_; SIDE] =
                std::array::from_fn(|y| transform_values(&rows[y][at..].as_chunks::<SIDE>().0[0]));
            for x in 0..SIDE {
                let column = transform_values(&std::array::from_fn(|y| rows[y][x]));
                for (y, point) in column.iter().enumerate() {
                    out[y * SIDE + x][n] = *point;
                }
            }
        }
    }
}

/// Multiplies the first `tiles` with the weights of up to two groups, and sums over channels.
pub fn multiply(values: &[Values], groups: &[Group], tiles: usize, out: &mut [Products]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU supports AVX-512.
        return unsafe { avx512::multiply(values, groups, tiles, out) };
    }
    for (group, out) in groups.iter().zip(out) {
        multiply_group(values, group, tiles, out);
    }
}

fn multiply_group(values: &[Values], group: &Group, tiles: usize, out: &mut Products) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { avx2::multiply(values, group, tiles, out) };
    }
    multiply_portable(values, group, tiles, out);
}

fn multiply_portable(values: &[Values], group: &Group, tiles: usize, out: &mut Products) {
    for (point, out) in out.iter_mut().enumerate() {
        for (tile, out) in out[..tiles].iter_mut().enumerate() {
            let mut sums = Lanes::ZERO;
            for (values, weights) in values.iter().zip(group.point(point).chunks(DEPTH)) {
                for (value, Lanes(weights)) in values[point][tile].iter().zip(weights) {
                    sums.0.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * weight);
                }
            }
            *out = sums;
        }
    }
}

/// Output transform of `tiles`, bias and leaky ReLU. Writes these `blocks` of channels, of [`span`] pixels each, to four
/// lines.
pub fn transform_output(
    products: &Products,
    group: &Group,
    slope: f32,
    tiles: Range<usize>,
    blocks: (Range<usize>, usize),
    lines: &mut [Vec<Pixel>],
) {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { avx2::transform_output(products, group, slope, tiles, blocks, lines) };
    }
    transform_output_portable(products, group, slope, tiles, blocks, lines);
}

fn transform_output_portable(
    products: &Products,
    group: &Group,
    slope: f32,
    tiles: Range<usize>,
    (blocks, span): (Range<usize>, usize),
    lines: &mut [Vec<Pixel>],
) {
    for (half, block) in blocks.enumerate() {
        let part = |lanes: &Lanes| lanes.0.as_chunks::<DEPTH>().0[half];
        let bias = part(&group.bias);
        for (n, tile) in tiles.clone().enumerate() {
            let columns: [_; SIDE] = std::array::from_fn(|x| {
                transform_products(&std::array::from_fn(|y| part(&products[y * SIDE + x][n])))
            });
            for (y, line) in lines.iter_mut().enumerate() {
                let outputs = transform_products(&std::array::from_fn(|x| columns[x][y]));
                let pixels = &mut line[block * span + TILE * tile + 1..];
                for (out, output) in pixels.iter_mut().zip(outputs) {
                    let sum = pixel(|k| output[k] + bias[k]);
                    *out = pixel(|k| sum[k].max(sum[k] * slope));
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    fn value(n: usize) -> f32 {
        (n * 7919 % 1009) as f32 / 1009.0 - 0.5
    }

    fn values(channels: usize, tiles: usize) -> Vec<Values> {
        let blocks = channels.div_ceil(DEPTH);
        let points = (0..blocks * POINTS).map(|n| {
            let mut point = [[0.0; DEPTH]; STRIDE];
            for (tile, pixel) in point[..tiles].iter_mut().enumerate() {
                *pixel = std::array::from_fn(|k| value(331 * n + DEPTH * tile + k));
            }
            point
        });
        points.collect::<Vec<_>>().as_chunks::<POINTS>().0.to_vec()
    }

    fn group(channels: usize, seed: usize) -> Group {
        let kernels: Vec<_> = (0..LANES * channels * 9).map(|n| value(n + seed)).collect();
        let bias: Vec<_> = (0..LANES).map(|n| value(n + 7 * seed)).collect();
        Group::new(&kernels, channels, &bias)
    }

    fn assert_near(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (n, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{n}: {a}, {b}");
        }
    }

    #[test]
    fn avx2_equals_the_portable_code() {
        if !has_avx2() {
            return;
        }
        for (channels, tiles) in [(3_usize, 2), (8, 4), (27, 8), (32, 10), (43, 12)] {
            let blocks = channels.div_ceil(DEPTH);
            let span = span(tiles);
            let line = |y: usize| -> Vec<Pixel> {
                let pixel = |x: usize| std::array::from_fn(|k| value(x * 97 + y * 53 + k));
                (0..blocks * span).map(pixel).collect()
            };
            let lines: [_; SIDE] = std::array::from_fn(line);
            let rows = lines.each_ref().map(Vec::as_slice);
            let mut expected = vec![NO_VALUES; blocks];
            let mut found = expected.clone();
            transform_input_portable(rows, 0..tiles, &mut expected);
            // SAFETY: the CPU supports AVX2 and FMA.
            unsafe { avx2::transform_input(rows, 0..tiles, &mut found) };
            assert_near(
                found.as_flattened().as_flattened().as_flattened(),
                expected.as_flattened().as_flattened().as_flattened(),
            );

            let (values, group) = (found, group(channels, 3));
            let (mut expected, mut found) = (Box::new(NO_PRODUCTS), Box::new(NO_PRODUCTS));
            multiply_portable(&values, &group, tiles, &mut expected);
            // SAFETY: the CPU supports AVX2 and FMA.
            unsafe { avx2::multiply(&values, &group, tiles, &mut found) };
            for (found, expected) in found.as_flattened().iter().zip(expected.as_flattened()) {
                assert_near(&found.0, &expected.0);
            }

            // One block of channels, and both.
            for blocks in [0..1, 1..3] {
                let mut expected = vec![vec![[0.0; DEPTH]; 3 * span]; TILE];
                let mut out = expected.clone();
                let layout = (blocks, span);
                transform_output_portable(
                    &found,
                    &group,
                    0.1,
                    0..tiles,
                    layout.clone(),
                    &mut expected,
                );
                // SAFETY: the CPU supports AVX2 and FMA.
                unsafe { avx2::transform_output(&found, &group, 0.1, 0..tiles, layout, &mut out) };
                for (out, expected) in out.iter().zip(&expected) {
                    assert_near(out.as_flattened(), expected.as_flattened());
                }
            }
        }
    }

    #[test]
    fn avx512_and_avx2_give_equal_products() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        for (channels, tiles) in [(1, 2), (3, 4), (8, 6), (27, 8), (32, 10), (43, CHUNK)] {
            let values = values(channels, tiles);
            let groups = [group(channels, 0), group(channels, 400)];
            let mut expected = vec![NO_PRODUCTS; 2];
            let (mut pair, mut single) = (expected.clone(), vec![NO_PRODUCTS]);
            // SAFETY: the CPU supports AVX-512, which includes AVX2 and FMA.
            unsafe {
                avx512::multiply(&values, &groups, tiles, &mut pair);
                avx512::multiply(&values, &groups[1..], tiles, &mut single);
                for (group, expected) in groups.iter().zip(&mut expected) {
                    avx2::multiply(&values, group, tiles, expected);
                }
            }
            let sums = |products: &Products| products.map(|point| point.map(|lanes| lanes.0));
            for (found, expected) in
                pair.iter().chain(&single).zip([&expected[0], &expected[1], &expected[1]])
            {
                assert!(sums(found) == sums(expected), "{channels} channels, {tiles} tiles");
            }
        }
    }
}
