// SPDX-License-Identifier: MIT OR Apache-2.0
//! Norms: bound by memory, each tensor is read once to be measured and once to be changed.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Address, Source, fatbin, int, suffix, threads, together, unwritten},
    record::Work,
};

pub(super) const SOURCE: Source = Source { name: "norm", fatbin: fatbin!("norm") };

const KIND: &str = "norm";
const THREADS: u32 = 256;

/// Pixels that a block measures at least; what the blocks of a frame have measured is added up one by one, so
/// there are not many.
const PIXELS: usize = 256;
const BLOCKS: usize = 512;

/// Groups of a group norm: a warp each.
const GROUPS: usize = 32;

fn bytes(tensors: &[&Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// Mean and variance of each channel of frames [n, h, w, c]: [n, 2, c], f32.
pub(crate) fn moments(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let blocks = (h * w).div_ceil(PIXELS).min(BLOCKS);
    let suffix = suffix(x.dtype())?;
    let threads = threads(c, x.dtype());
    // Two sums for each number that a thread takes.
    let shared = threads as usize * together(c, x.dtype()) * 2 * size_of::<f32>();
    let measure = SOURCE.kernel(device, format!("moments_{suffix}"), shared as u32)?;
    let end = SOURCE.kernel(device, format!("moments_end_{suffix}"), 0)?;
    let (pixels, channels, count) = (int(h * w)?, int(c)?, int(blocks)?);
    // SAFETY: the kernels write all of these, and take what they are given here, of these sizes.
    unsafe {
        let partial = Tensor::empty((n, blocks, 2, c), DType::F32, x.device())?;
        let moments = Tensor::empty((n, 2, c), DType::F32, x.device())?;
        let work = Work::memory(KIND, bytes(&[&x, &partial]));
        let (from, sums) = (Address::of(&x)?, Address::of(&partial)?);
        measure.launch(
            work,
            (blocks, n, 1),
            threads,
            [&from, &sums, &pixels, &channels, &count],
        )?;
        let work = Work::memory(KIND, bytes(&[&partial, &moments]));
        let to = Address::of(&moments)?;
        end.launch(
            work,
            (c.div_ceil(THREADS as usize), n, 1),
            THREADS,
            [&from, &sums, &to, &pixels, &channels, &count],
        )?;
        Ok(moments)
    }
}

/// Scale and offset of a group norm, [n, c] each, of its channels' moments [n, 2, c]; weight and bias are
/// \[c\]; all f32.
pub(crate) fn group_affine(
    moments: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor)> {
    let (n, _, c) = moments.dims3()?;
    if (weight.dims1()?, bias.dims1()?) != (c, c) || !c.is_multiple_of(GROUPS) {
        candle_core::bail!("{c} channels, a norm of {:?}", weight.shape());
    }
    let kernel = SOURCE.kernel(moments.device().as_cuda_device()?, "group_affine".into(), 0)?;
    let moments = moments.contiguous()?;
    // SAFETY: the kernel writes both, and takes what it is given here, of these sizes.
    unsafe {
        let (scale, offset) = (unwritten((n, c), &moments)?, unwritten((n, c), &moments)?);
        let inputs = [&moments, weight, bias].map(Address::of);
        let [from, weight, bias] = inputs;
        let (from, weight, bias) = (from?, weight?, bias?);
        let (a, b) = (Address::of(&scale)?, Address::of(&offset)?);
        let (channels, epsilon) = (int(c)?, epsilon as f32);
        let work = Work::memory(KIND, bytes(&[&moments, &scale, &offset]));
        kernel.launch(
            work,
            (GROUPS, n, 1),
            32,
            [&from, &weight, &bias, &a, &b, &channels, &epsilon],
        )?;
        Ok((scale, offset))
    }
}

/// x [n, h, w, c] times scale plus offset, [n or 1, c] each, f32; then SiLU if `silu`.
pub(crate) fn affine(x: &Tensor, scale: &Tensor, offset: &Tensor, silu: bool) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let kernel = SOURCE.kernel(device, format!("affine_{}", suffix(x.dtype())?), 0)?;
    // SAFETY: the kernel writes all of y, and takes what it is given here; the caller has compared the sizes.
    unsafe {
        let y = unwritten(x.shape(), &x)?;
        let (from, to) = (Address::of(&x)?, Address::of(&y)?);
        let (a, b) = (Address::of(scale)?, Address::of(offset)?);
        let (pixels, channels) = (int(h * w)?, int(c)?);
        let (frames, silu) = (int(scale.dim(0)?)?, i32::from(silu));
        let grid = ((h * w * c).div_ceil(AFFINE), n, 1);
        let threads = threads(c, x.dtype());
        kernel.launch(
            Work::memory(KIND, bytes(&[&x, &y])),
            grid,
            threads,
            [&from, &a, &b, &to, &pixels, &channels, &frames, &silu],
        )?;
        Ok(y)
    }
}

/// Numbers that a block of `affine` changes.
const AFFINE: usize = 1 << 13;

/// Normalises rows, the last dimension of x; weight and bias, f32, are as long.
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    if (weight.dims1()?, bias.dims1()?) != (width, width) {
        candle_core::bail!("rows of {width}, a norm of {:?}", weight.shape());
    }
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let kernel = SOURCE.kernel(device, format!("layer_norm_{}", suffix(x.dtype())?), 0)?;
    let rows = x.elem_count() / width;
    // SAFETY: the kernel writes all of y, and takes what it is given here, of these sizes.
    unsafe {
        let y = unwritten(x.shape(), &x)?;
        let (from, to) = (Address::of(&x)?, Address::of(&y)?);
        let (a, b) = (Address::of(weight)?, Address::of(bias)?);
        let (count, columns) = (int(rows)?, int(width)?);
        let grid = (rows.div_ceil(THREADS as usize / 32), 1, 1);
        kernel.launch(
            Work::memory(KIND, bytes(&[&x, &y])),
            grid,
            THREADS,
            [&from, &a, &b, &to, &count, &columns, &epsilon],
        )?;
        Ok(y)
    }
}
