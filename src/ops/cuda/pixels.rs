// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies between tokens and the frames that they belong to, all frames in one launch.

use candle_core::{Result, Tensor};
use cudarc::driver::DeviceRepr;

use super::{
    launch::{Address, Source, fatbin, unwritten},
    record::Work,
};

pub(super) const SOURCE: Source = Source { name: "pixels", fatbin: fatbin!("pixels") };

/// Runs of a launch.
const RUNS: usize = 64;
/// Threads of a block, and the bytes that it copies at a time: four times 16 for each thread.
const THREADS: u32 = 256;
const BLOCK_BYTES: usize = THREADS as usize * 64;

/// What the kernel takes: as in pixels.cu.
#[repr(C)]
struct Runs {
    from: [Address; RUNS],
    to: [Address; RUNS],
    bytes: i64,
}

// SAFETY: plain numbers in the kernel's order.
unsafe impl DeviceRepr for Runs {}

/// Pixels from `first` on of slices [n, p, c], to a new tensor [f, count, c] of all frames f.
pub(crate) fn gather_pixels(slices: &[Tensor], first: usize, count: usize) -> Result<Tensor> {
    let Some(slice) = slices.first() else { candle_core::bail!("no frames to gather pixels of") };
    let frames = slices.iter().map(|slice| slice.dim(0)).sum::<Result<usize>>()?;
    // SAFETY: all of it is written.
    let tokens = unsafe { unwritten((frames, count, slice.dim(2)?), slice)? };
    copy(&tokens, slices, first, |tokens, frame| (frame, tokens))?;
    Ok(tokens)
}

/// Tokens [f, count, c] to the pixels from `first` on of slices [n, p, c].
pub(crate) fn scatter_pixels(tokens: &Tensor, slices: &[Tensor], first: usize) -> Result<()> {
    copy(&tokens.contiguous()?, slices, first, |tokens, frame| (tokens, frame))
}

/// Copies each frame's pixels; `direction` tells source from target, given where they are in `tokens` and in
/// their slice.
fn copy(
    tokens: &Tensor,
    slices: &[Tensor],
    first: usize,
    direction: impl Fn(Address, Address) -> (Address, Address),
) -> Result<()> {
    let (frames, count, c) = tokens.dims3()?;
    let size = tokens.dtype().size_in_bytes();
    let bytes = count * c * size;
    let start = Address::of(tokens)?;
    let mut runs = Vec::with_capacity(frames);
    for slice in slices {
        let (n, pixels, channels) = slice.dims3()?;
        let fits = channels == c && first + count <= pixels && slice.dtype() == tokens.dtype();
        if !fits || runs.len() + n > frames {
            candle_core::bail!(
                "pixels {first} to {} of {:?} are not those of {:?}",
                first + count,
                slice.shape(),
                tokens.shape()
            );
        }
        let slice = Address::of(slice)?;
        for frame in 0..n {
            let pixel = slice.plus((frame * pixels + first) * c * size);
            runs.push(direction(start.plus(runs.len() * bytes), pixel));
        }
    }
    if runs.len() != frames {
        candle_core::bail!("tokens of {frames} frames, slices of {}", runs.len());
    }
    let kernel = SOURCE.kernel(tokens.device().as_cuda_device()?, "copy_runs".into(), 0)?;
    for runs in runs.chunks(RUNS) {
        let mut table =
            Runs { from: [Address::NULL; RUNS], to: [Address::NULL; RUNS], bytes: bytes as i64 };
        for (n, run) in runs.iter().enumerate() {
            (table.from[n], table.to[n]) = *run;
        }
        let work = Work::memory("copy", 2 * runs.len() * bytes);
        let grid = (bytes.div_ceil(BLOCK_BYTES), runs.len(), 1);
        // SAFETY: each run is inside its tensors, as checked above; the grid has a row for each, none for the
        // rest of the table.
        unsafe { kernel.launch(work, grid, THREADS, [&table])? };
    }
    Ok(())
}
