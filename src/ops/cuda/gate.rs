// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches the GEGLU kernel of feed-forward networks.

use candle_core::{D, Result, Tensor};

use super::{
    launch::{Address, Source, fatbin, int, suffix, threads, unwritten},
    record::Work,
};

pub(super) const SOURCE: Source = Source { name: "gate", fatbin: fatbin!("gate") };

/// Output elements per thread block.
const BLOCK: usize = 1 << 12;

/// value·GELU(gate), with exact GELU. The input [.., 2n] holds the value, then the gate; the
/// result is [.., n].
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)? / 2;
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let kernel = SOURCE.kernel(device, format!("geglu_{}", suffix(x.dtype())?), 0)?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    // SAFETY: the kernel writes all of y, and the arguments have the sizes that the kernel
    // expects.
    unsafe {
        let y = unwritten(shape, &x)?;
        let (from, to) = (Address::of(&x)?, Address::of(&y)?);
        let (rows, columns) = ((y.elem_count() / width) as i64, int(width)?);
        let work = Work::memory("gate", 3 * y.elem_count() * y.dtype().size_in_bytes());
        let grid = (y.elem_count().div_ceil(BLOCK), 1, 1);
        let threads = threads(width, x.dtype());
        kernel.launch(work, grid, threads, [&from, &to, &rows, &columns])?;
        Ok(y)
    }
}
