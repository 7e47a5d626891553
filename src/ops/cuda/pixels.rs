// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches the copies between tokens and frames. One launch covers up to 64 frames.

use candle_core::{Result, Tensor};
use cudarc::driver::DeviceRepr;

use super::{
    launch::{Address, Source, fatbin, unwritten},
    record::Work,
};

pub(super) const SOURCE: Source = Source { name: "pixels", fatbin: fatbin!("pixels") };

/// Maximum of runs per launch.
const RUNS: usize = 64;
/// Threads per block, and bytes that a block copies per iteration: four times 16 per thread.
const THREADS: u32 = 256;
const BLOCK_BYTES: usize = THREADS as usize * 64;

/// Kernel arguments; the layout matches pixels.cu.
#[repr(C)]
struct Runs {
    from: [Address; RUNS],
    to: [Address; RUNS],
    bytes: i64,
}

// SAFETY: plain values in the order of the kernel's struct.
unsafe impl DeviceRepr for Runs {}

/// Copies pixels `first..first + count` of slices [n, p, c] to a new tensor [f, count, c] of all
/// frames f.
pub(crate) fn gather_pixels(slices: &[Tensor], first: usize, count: usize) -> Result<Tensor> {
    let Some(slice) = slices.first() else {
        candle_core::bail!("gather_pixels needs at least one slice")
    };
    let frames = slices.iter().map(|slice| slice.dim(0)).sum::<Result<usize>>()?;
    // SAFETY: `copy` writes all of it.
    let tokens = unsafe { unwritten((frames, count, slice.dim(2)?), slice)? };
    copy(&tokens, slices, first, |tokens, frame| (frame, tokens))?;
    Ok(tokens)
}

/// Writes tokens [f, count, c] to pixels `first..first + count` of slices [n, p, c], in place.
pub(crate) fn scatter_pixels(tokens: &Tensor, slices: &[Tensor], first: usize) -> Result<()> {
    copy(&tokens.contiguous()?, slices, first, |tokens, frame| (tokens, frame))
}

/// Copies the pixels of each frame. `direction` gets their addresses in `tokens` and in the slice,
/// and returns source and target.
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
                "pixels {first}..{} of a slice {:?} do not match tokens {:?}",
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
        candle_core::bail!("the tokens have {frames} frames, but the slices have {}", runs.len());
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
        // SAFETY: each run is inside its tensors, as checked above. The grid has a row for each
        // run and none for unused entries of the table.
        unsafe { kernel.launch(work, grid, THREADS, [&table])? };
    }
    Ok(())
}
