// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches the norm kernels. They are bound by memory bandwidth: each tensor is read once for the
//! moments and once for the transform.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Address, Source, fatbin, int, suffix, threads, unwritten, vector_width},
    record::Work,
};

pub(super) const SOURCE: Source = Source { name: "norm", fatbin: fatbin!("norm") };

const KIND: &str = "norm";
const THREADS: u32 = 256;

/// Minimum of pixels per thread block, and maximum of thread blocks per frame. One thread per
/// channel adds the blocks' sums, so there are not many.
const PIXELS: usize = 256;
const BLOCKS: usize = 512;

/// Groups of a group norm, one warp each.
const GROUPS: usize = 32;

/// Total size of tensors in bytes.
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
    // Two sums per element of a thread's vector.
    let shared = threads as usize * vector_width(c, x.dtype()) * 2 * size_of::<f32>();
    let measure = SOURCE.kernel(device, format!("moments_{suffix}"), shared as u32)?;
    let end = SOURCE.kernel(device, format!("moments_end_{suffix}"), 0)?;
    let (pixels, channels, count) = (int(h * w)?, int(c)?, int(blocks)?);
    // SAFETY: the kernels write both tensors completely, and the arguments have the sizes that the
    // kernels expect.
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

/// Scale and offset of a group norm, [n, c] each, for moments [n, 2, c]. `weight` and `bias` are
/// \[c\]. All are f32.
pub(crate) fn group_affine(
    moments: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
) -> Result<(Tensor, Tensor)> {
    let (n, _, c) = moments.dims3()?;
    if (weight.dims1()?, bias.dims1()?) != (c, c) || !c.is_multiple_of(GROUPS) {
        candle_core::bail!("group norm of {c} channels got a weight of shape {:?}", weight.shape());
    }
    let kernel = SOURCE.kernel(moments.device().as_cuda_device()?, "group_affine".into(), 0)?;
    let moments = moments.contiguous()?;
    // SAFETY: the kernel writes both tensors completely, and the arguments have the sizes that the
    // kernel expects.
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

/// x·scale + offset, then SiLU if `silu`. x is [n, h, w, c]; `scale` and `offset` are [n or 1, c],
/// f32.
pub(crate) fn affine(x: &Tensor, scale: &Tensor, offset: &Tensor, silu: bool) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let kernel = SOURCE.kernel(device, format!("affine_{}", suffix(x.dtype())?), 0)?;
    // SAFETY: the kernel writes all of y. The caller has checked that the sizes match.
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

/// Elements per thread block of `affine`.
const AFFINE: usize = 1 << 13;

/// Layer norm over the last dimension of x. `weight` and `bias` are as long, f32.
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    if (weight.dims1()?, bias.dims1()?) != (width, width) {
        candle_core::bail!(
            "layer norm over {width} elements got a weight of shape {:?}",
            weight.shape()
        );
    }
    let (device, x) = (x.device().as_cuda_device()?, x.contiguous()?);
    let kernel = SOURCE.kernel(device, format!("layer_norm_{}", suffix(x.dtype())?), 0)?;
    let rows = x.elem_count() / width;
    // SAFETY: the kernel writes all of y, and the arguments have the sizes that the kernel
    // expects.
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
