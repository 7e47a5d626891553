// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches the Hopper kernels for convolutions and linear layers. They fetch whole tiles with
//! TMA, which suits nearly all layers.

use candle_core::{Result, Tensor};
use cudarc::driver::DeviceRepr;

use super::{
    kernel_set::{Family, uses_hopper},
    launch::{Address, Source, fatbin, int, suffix, unwritten},
    operands::{Operands, Product},
    tiles::{TensorMap, Tile},
};

pub(super) const SOURCE: Source =
    Source { name: "product_hopper", fatbin: fatbin!("product_hopper") };

/// Pixels per thread block.
const PIXELS: usize = 128;
/// Channels per stage, and their bytes.
const STEP: usize = 64;
const ROW: usize = STEP * 2;
const STAGES: usize = 4;
/// Maximum of rows in the box of a TMA copy.
const MAX_BOX_ROWS: usize = 256;

/// Kernel arguments; the layout matches product_hopper.cu.
#[repr(C)]
struct Tiles {
    bias: Address,
    add: Address,
    out: Address,
    frames: i32,
    height: i32,
    width: i32,
    outputs: i32,
    tile_width: i32,
    tile_height: i32,
    across: i32,
    down: i32,
    taps: i32,
    steps: [i32; 2],
    second: i32,
    bias_frames: i32,
    has_before: i32,
    has_after: i32,
    scale: f32,
}

// SAFETY: plain values in the order of the kernels' struct.
unsafe impl DeviceRepr for Tiles {}

/// Outputs per thread block, if there is a kernel for this number of outputs.
fn outputs_of_block(outputs: usize) -> Option<usize> {
    [320, 256, 128].into_iter().find(|count| outputs.is_multiple_of(*count))
}

/// The tile shape of 128 pixels that covers a frame with the fewest tiles.
fn tile(height: usize, width: usize) -> Tile {
    let tiles = (0..=PIXELS.ilog2()).rev().map(|n| Tile { width: 1 << n, height: PIXELS >> n });
    let count = |tile: &Tile| width.div_ceil(tile.width) * height.div_ceil(tile.height);
    tiles.min_by_key(count).unwrap_or(Tile { width: PIXELS, height: 1 })
}

/// Whether this kernel supports the product.
pub(super) fn serves(operands: &Operands, product: &Product, outputs: usize) -> Result<bool> {
    let x = operands.parts[0];
    let channels = |x: &&Tensor| x.dim(candle_core::D::Minus1).is_ok_and(|c| c.is_multiple_of(8));
    Ok(x.dtype().size_in_bytes() == 2
        && operands.parts.iter().all(channels)
        && outputs_of_block(outputs).is_some()
        && product.is_of_same_size()
        && uses_hopper(x.device().as_cuda_device()?, Family::Product)?)
}

/// Like [`super::product::run`], with contiguous tensors of one type. `around` holds the frames
/// before and after the input, for convolutions along the frames.
pub(super) fn run(
    operands: &Operands,
    around: [Option<&Tensor>; 2],
    product: &Product,
    shape: Vec<usize>,
) -> Result<Tensor> {
    let Operands { parts, weight, bias, add, .. } = *operands;
    let outputs = shape[shape.len() - 1];
    let Some(block) = outputs_of_block(outputs) else {
        candle_core::bail!("the Hopper kernels do not support {outputs} outputs");
    };
    let (frames, height, width) =
        (product.frames as usize, product.height as usize, product.width as usize);
    let tile = tile(height, width);
    let (across, down) = (width.div_ceil(tile.width), height.div_ceil(tile.height));
    let channels = |part: usize| parts.get(part).map_or(Ok(0), |x| x.dim(x.rank() - 1));
    let (first, second) = (channels(0)?, channels(1)?);
    let pixels =
        |x: &Tensor, frames| TensorMap::new(x, [x.dim(x.rank() - 1)?, width, height, frames], tile);
    let frame = |frame: Option<&Tensor>| pixels(frame.unwrap_or(parts[0]), 1);
    let rows = if block > MAX_BOX_ROWS { block / 2 } else { block };
    let sizes = [first + second, product.taps as usize, outputs, 1];
    let maps = [
        pixels(parts[0], frames)?,
        pixels(parts.get(1).copied().unwrap_or(parts[0]), frames)?,
        frame(around[0])?,
        frame(around[1])?,
        TensorMap::new(weight, sizes, Tile { width: 1, height: rows })?,
    ];
    let shared = STAGES * (PIXELS + block) * ROW + 1024 + 2 * STAGES * size_of::<u64>();
    let name = format!("product_hopper_{block}_{}", suffix(weight.dtype())?);
    let kernel = SOURCE.kernel(parts[0].device().as_cuda_device()?, name, shared as u32)?;
    // SAFETY: the kernel writes all of `out`, and the arguments have the sizes that the kernel
    // expects.
    unsafe {
        let out = unwritten(shape, parts[0])?;
        let tiles = Tiles {
            bias: Address::of_some(bias)?,
            add: Address::of_some(add)?,
            out: Address::of(&out)?,
            frames: product.frames,
            height: product.height,
            width: product.width,
            outputs: int(outputs)?,
            tile_width: int(tile.width)?,
            tile_height: int(tile.height)?,
            across: int(across)?,
            down: int(down)?,
            taps: product.taps,
            steps: [int(first.div_ceil(STEP))?, int(second.div_ceil(STEP))?],
            second: int(first)?,
            bias_frames: product.bias_frames,
            has_before: i32::from(around[0].is_some()),
            has_after: i32::from(around[1].is_some()),
            scale: product.scale,
        };
        let grid = (outputs / block * across * down * frames, 1, 1);
        let [a, b, c, d, e] = &maps;
        kernel.launch(operands.work(product), grid, 384, [&tiles, a, b, c, d, e])?;
        Ok(out)
    }
}
