// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chains of small 3×3 convolutions on the CPU. They run on a few rows at a time and keep only eight rows of
//! each layer's input, so that intermediate results stay in the cache. Borders are replicated.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod winograd;

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::host::Host;
use winograd::{CHUNK, DEPTH, Group, LANES, Pixel, Products, SIDE, TILE, Values};

/// Negative slope of the leaky ReLU.
pub const LEAKY_SLOPE: f32 = 0.1;

/// Rows per band for an image of `height`, so that every thread gets about two bands of whole rows of tiles.
/// Smaller bands compute more rows twice at their borders; larger ones take longer to cancel. The result does not depend on
/// it.
pub fn band_rows(height: usize) -> usize {
    height.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(TILE).clamp(8, 64)
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

/// Buffers of a chain. Reuse them across calls to avoid allocations.
#[derive(Default)]
pub struct Scratch {
    /// The rows of each layer's input, and those of the output.
    rings: Vec<RowRing>,
    /// A row of the input or the output, [w, channels], and what blocks of channels have beyond it.
    row: Vec<f32>,
    chunk: Chunk,
}

/// Tiles in the transformed domain.
#[derive(Default)]
struct Chunk {
    /// A block of input channels each.
    values: Vec<Values>,
    /// A group of output channels each.
    products: Vec<Products>,
}

/// The last eight rows of an image: two rows of tiles.
///
/// The tiles of the output begin at row 0. Those of each earlier image begin one row above those of the next one, so
/// that row n of tiles reads the rows n and n + 1 of tiles of the image before.
#[derive(Default)]
struct RowRing {
    width: usize,
    height: usize,
    channels: usize,
    /// The number of rows that the first tiles begin above the image.
    above: usize,
    /// [blocks of channels, 4·tiles + 2] each: a pixel of left border, the pixels, and the right border. Row y is at
    /// (y + above) mod 8.
    lines: [Vec<Pixel>; 2 * TILE],
}

/// Number of tiles of a row: even, for the products.
fn tiles(width: usize) -> usize {
    width.div_ceil(TILE).next_multiple_of(2)
}

/// Lets a buffer have at least `len` elements.
fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

impl RowRing {
    /// Sets the size and the place of the tiles. The contents are undefined.
    fn reset(&mut self, (width, height): (usize, usize), channels: usize, above: usize) {
        (self.width, self.height, self.channels, self.above) = (width, height, channels, above);
        let len = self.blocks() * self.span();
        self.lines.iter_mut().for_each(|line| grow(line, len, [0.0; DEPTH]));
    }

    fn blocks(&self) -> usize {
        self.channels.div_ceil(DEPTH)
    }

    /// Pixels of a block.
    fn span(&self) -> usize {
        winograd::span(tiles(self.width))
    }

    /// The rows of the image in a row of tiles.
    fn rows(&self, tile_row: usize) -> Range<usize> {
        let row = |at: usize| at.saturating_sub(self.above).min(self.height);
        row(TILE * tile_row)..row(TILE * (tile_row + 1))
    }

    /// The lines of a row of tiles.
    fn lines_mut(&mut self, tile_row: usize) -> &mut [Vec<Pixel>] {
        &mut self.lines[tile_row % 2 * TILE..][..TILE]
    }

    /// The lines of the six rows that a row of tiles of the next image reads, clamped to the image.
    fn neighbourhood(&self, tile_row: usize) -> [&[Pixel]; SIDE] {
        std::array::from_fn(|n| {
            let at = (TILE * tile_row + n).clamp(self.above, self.above + self.height - 1);
            &self.lines[at % (2 * TILE)][..self.blocks() * self.span()]
        })
    }

    /// The blocks of row y.
    fn blocks_mut(&mut self, y: usize) -> impl Iterator<Item = &mut [Pixel]> {
        let (blocks, span) = (self.blocks(), self.span());
        let line = &mut self.lines[(y + self.above) % (2 * TILE)];
        line.chunks_exact_mut(span).take(blocks)
    }

    /// Replicates the left and right border of row y.
    fn replicate(&mut self, y: usize) {
        let width = self.width;
        for pixels in self.blocks_mut(y) {
            pixels[0] = pixels[1];
            let last = pixels[width];
            pixels[width + 1..].fill(last);
        }
    }

    /// Sets row y to `row`, [w, channels].
    fn write(&mut self, y: usize, row: &[f32]) {
        let (width, channels) = (self.width, self.channels);
        for (block, pixels) in self.blocks_mut(y).enumerate() {
            for (x, pixel) in pixels[1..][..width].iter_mut().enumerate() {
                *pixel = row[x * channels + block * DEPTH..].as_chunks().0[0];
            }
        }
        self.replicate(y);
    }

    /// Copies row y to `row`, [w, channels]. What a block has beyond a pixel is overwritten by the next one.
    fn read(&self, y: usize, row: &mut [f32]) {
        let line = &self.lines[(y + self.above) % (2 * TILE)];
        for x in 0..self.width {
            for block in 0..self.blocks() {
                let pixel = &mut row[x * self.channels + block * DEPTH..];
                pixel.as_chunks_mut().0[0] = line[block * self.span() + 1 + x];
            }
        }
    }
}

impl Layer {
    /// Transforms the weights. `weight` is [out, in, 3, 3], `bias` \[out\].
    fn new(weight: &Tensor, bias: &Tensor, activation: bool) -> Result<Self> {
        let (out_channels, in_channels, height, width) = weight.dims4()?;
        if (height, width, bias.dims()) != (3, 3, &[out_channels]) {
            candle_core::bail!("weight {:?} with bias {:?}", weight.dims(), bias.dims());
        }
        let (weight, bias) = (Host::new(weight)?, Host::new(bias)?);
        let (weight, bias) = (weight.values()?, bias.values()?);
        let kernels = weight.chunks(LANES * in_channels * 9).zip(bias.chunks(LANES));
        let groups = kernels.map(|(kernels, bias)| Group::new(kernels, in_channels, bias));
        Ok(Self { in_channels, out_channels, groups: groups.collect(), activation })
    }

    /// Computes a row of tiles of the output, four lines, from six lines of the input.
    fn run(&self, rows: [&[Pixel]; SIDE], width: usize, chunk: &mut Chunk, out: &mut [Vec<Pixel>]) {
        // A slope of 1 is the identity.
        let slope = if self.activation { LEAKY_SLOPE } else { 1.0 };
        let values = &mut chunk.values[..self.in_channels.div_ceil(DEPTH)];
        let count = tiles(width);
        for first in (0..count).step_by(CHUNK) {
            let tiles = first..(first + CHUNK).min(count);
            winograd::transform_input(rows, tiles.clone(), values);
            // Pairs, for AVX-512.
            for (pair, groups) in self.groups.chunks(2).enumerate() {
                let products = &mut chunk.products[..groups.len()];
                winograd::multiply(values, groups, tiles.len(), products);
                for (n, (group, products)) in groups.iter().zip(products).enumerate() {
                    let first = (2 * pair + n) * LANES / DEPTH;
                    let end = (first + LANES / DEPTH).min(self.out_channels.div_ceil(DEPTH));
                    let blocks = (first..end, winograd::span(count));
                    winograd::transform_output(products, group, slope, tiles.clone(), blocks, out);
                }
            }
        }
    }
}

impl ConvChain {
    /// A chain of layers, each with a weight [out, in, 3, 3] and a bias \[out\].
    ///
    /// # Errors
    /// If a weight or a bias has another shape, or is not a float tensor.
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
            group.fold_constants(values);
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
        rows: Range<usize>,
        mut input: impl FnMut(usize, &mut [f32]),
        mut output: impl FnMut(usize, &[f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let depth = self.layers.len();
        let Scratch { rings, row, chunk } = scratch;
        let inputs = self.layers.iter().map(|layer| layer.in_channels);
        let channels = inputs.chain(self.layers.last().map(|layer| layer.out_channels));
        rings.resize_with(rings.len().max(depth + 1), RowRing::default);
        for (n, (ring, channels)) in rings.iter_mut().zip(channels).enumerate() {
            ring.reset((width, height), channels, depth - n);
            grow(&mut chunk.values, channels.div_ceil(DEPTH), winograd::NO_VALUES);
            grow(row, width * channels + DEPTH, 0.0);
        }
        grow(&mut chunk.products, 2, winograd::NO_PRODUCTS);
        for layer in &self.layers {
            super::count(rows.len() * width, layer.out_channels, 9 * layer.in_channels);
        }
        // The rows of tiles of the output. Each earlier image needs one more below, although few rows of it are read: in a
        // row of tiles, all six input rows are part of every sum and cancel only up to rounding.
        let needed = rows.start / TILE..rows.end.div_ceil(TILE);
        // Of the last row of tiles of the input, two rows are read.
        let input_end = (TILE * (needed.end + depth - 1) + 2).saturating_sub(depth);
        // A pipeline: each layer is one row of tiles behind its input.
        for step in needed.start..needed.end + depth {
            for y in rings[0].rows(step).filter(|y| *y < input_end) {
                input(y, &mut row[..width * rings[0].channels]);
                rings[0].write(y, row);
            }
            for (n, layer) in self.layers.iter().enumerate() {
                let Some(tile_row) = step.checked_sub(n + 1).filter(|row| *row >= needed.start)
                else {
                    break;
                };
                let (before, after) = rings.split_at_mut(n + 1);
                let (source, target) = (&before[n], &mut after[0]);
                let target_rows = target.rows(tile_row);
                if target_rows.is_empty() {
                    continue;
                }
                let lines = target.lines_mut(tile_row);
                layer.run(source.neighbourhood(tile_row), width, chunk, lines);
                for y in target_rows {
                    if n + 1 < depth {
                        target.replicate(y);
                    } else if rows.contains(&y) {
                        target.read(y, row);
                        output(y, &row[..width * target.channels])?;
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

    fn value(n: usize) -> f32 {
        (n * 7919 % 1009) as f32 / 1009.0 - 0.5
    }

    fn tensors(inputs: usize, outputs: usize) -> (Tensor, Tensor) {
        let scale = 2.0 / (inputs as f32).sqrt();
        let weights: Vec<_> =
            (0..outputs * inputs * 9).map(|n| scale * value(n + inputs)).collect();
        let biases: Vec<_> = (0..outputs).map(|n| value(n + 77)).collect();
        let weight = Tensor::from_slice(&weights, (outputs, inputs, 3, 3), &Device::Cpu);
        (weight.unwrap(), Tensor::new(biases, &Device::Cpu).unwrap())
    }

    /// The output of a chain, [h, w, out], of an image, [h, w, in].
    fn direct(layers: &[(Tensor, Tensor)], (w, h): (usize, usize), image: &[f32]) -> Vec<f32> {
        let mut image = image.to_vec();
        for (n, (weight, bias)) in layers.iter().enumerate() {
            let (outputs, inputs, ..) = weight.dims4().unwrap();
            let weight = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bias = bias.to_vec1::<f32>().unwrap();
            let convolve = |at: usize| {
                let (x, y, out) = (at / outputs % w, at / outputs / w, at % outputs);
                let mut sum = bias[out];
                for k in 0..9 {
                    let x = (x + k % 3).saturating_sub(1).min(w - 1);
                    let y = (y + k / 3).saturating_sub(1).min(h - 1);
                    for channel in 0..inputs {
                        let weight = weight[(out * inputs + channel) * 9 + k];
                        sum += image[(y * w + x) * inputs + channel] * weight;
                    }
                }
                let last = n + 1 == layers.len();
                if sum < 0.0 && !last { sum * LEAKY_SLOPE } else { sum }
            };
            image = (0..w * h * outputs).map(convolve).collect();
        }
        image
    }

    /// Rows of the output of a chain, computed with `scratch`.
    fn run(
        chain: &ConvChain,
        scratch: &mut Scratch,
        (w, h): (usize, usize),
        rows: Range<usize>,
        image: &[f32],
    ) -> Vec<f32> {
        let stride = image.len() / h;
        let read = |y: usize, row: &mut [f32]| row.copy_from_slice(&image[y * stride..][..stride]);
        let mut out = Vec::new();
        let write = |_: usize, row: &[f32]| {
            out.extend_from_slice(row);
            Ok::<_, ()>(())
        };
        chain.run(scratch, (w, h), rows, read, write).unwrap();
        out
    }

    /// What an earlier run may have left in the buffers.
    fn poison(scratch: &mut Scratch) {
        scratch.row.fill(f32::NAN);
        let lines = scratch.rings.iter_mut().flat_map(|ring| &mut ring.lines);
        lines.for_each(|line| line.fill([f32::NAN; DEPTH]));
        scratch.chunk.values.as_flattened_mut().as_flattened_mut().fill([f32::NAN; DEPTH]);
        let products = scratch.chunk.products.as_flattened_mut().as_flattened_mut();
        products.fill(winograd::Lanes([f32::NAN; LANES]));
    }

    #[test]
    fn a_chain_equals_convolutions_in_any_bands() {
        let mut scratch = Scratch::default();
        let sizes = [(1, 1), (2, 1), (1, 5), (3, 2), (5, 3), (8, 8), (9, 4), (49, 13), (101, 6)];
        for channels in [&[3, 1][..], &[9, 17, 5], &[4, 40, 33, 3], &[27, 16, 8, 24, 16]] {
            let layers: Vec<_> = channels
                .array_windows()
                .map(|[inputs, outputs]| tensors(*inputs, *outputs))
                .collect();
            let chain = ConvChain::new(&layers).unwrap();
            for (w, h) in sizes {
                let image: Vec<f32> = (0..w * h * channels[0]).map(value).collect();
                let expected = direct(&layers, (w, h), &image);
                let found = run(&chain, &mut scratch, (w, h), 0..h, &image);
                assert_eq!(found.len(), expected.len());
                for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let error = (found - expected).abs();
                    assert!(error < 1e-4, "{channels:?}, {w}×{h}: {n}: {found}, {expected}");
                }
                for band in [1, 3, 4, 7] {
                    let bands = (0..h).step_by(band).map(|first| first..(first + band).min(h));
                    let rows = bands.flat_map(|rows| {
                        poison(&mut scratch);
                        run(&chain, &mut scratch, (w, h), rows, &image)
                    });
                    assert!(rows.eq(found.iter().copied()), "{channels:?}, {w}×{h}: {band}");
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_match_are_an_error() {
        let (weight, bias) = tensors(4, 8);
        for (weight, bias) in [
            (weight.narrow(2, 0, 2).unwrap(), bias.clone()),
            (weight.clone(), bias.narrow(0, 0, 7).unwrap()),
            (weight.flatten_all().unwrap(), bias),
        ] {
            assert!(ConvChain::new(&[(weight, bias)]).is_err());
        }
    }

    #[test]
    fn constants_equal_channels_of_one_value() {
        let (w, h) = (9, 6);
        let chain = ConvChain::new(&[tensors(5, 20), tensors(20, 3)]).unwrap();
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
}
