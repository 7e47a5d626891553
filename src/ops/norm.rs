// SPDX-License-Identifier: MIT OR Apache-2.0
//! Group norm in two steps: moments of each channel, then an affine transform. Groups may thus
//! span several tensors: all frames of a clip, or channels that are never concatenated.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::math;

/// Groups of channels.
const GROUPS: usize = 32;

/// Pixels whose sums are accumulated in f32 before they are added in f64.
const BLOCK: usize = 256;

/// Mean and variance of each channel and frame: [n, 2, c], f32.
#[derive(Debug, Clone)]
pub struct Moments(Tensor);

impl Moments {
    /// Moments of each of the frames [n, h, w, c].
    ///
    /// # Errors
    /// If x has another rank.
    pub fn of(x: &Tensor) -> Result<Self> {
        let (n, h, w, c) = x.dims4()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::moments(x).map(Self);
        }
        let host = Host::new(x)?;
        let values = host.values()?;
        let moments: Vec<f32> =
            values.chunks_exact(h * w * c).flat_map(|frame| moments(frame, c)).collect();
        Ok(Self(Tensor::from_vec(moments, (n, 2, c), x.device())?))
    }

    /// Pools the moments over all frames: [1, 2, c]. All frames must have the same number of
    /// pixels.
    ///
    /// # Errors
    /// If the numbers of channels differ.
    pub fn pool(slices: &[Self]) -> Result<Self> {
        let all = Tensor::cat(&slices.iter().map(|slice| &slice.0).collect::<Vec<_>>(), 0)?;
        let (means, variances) = (all.narrow(1, 0, 1)?, all.narrow(1, 1, 1)?);
        let mean = means.mean_keepdim(0)?;
        let between = means.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
        Ok(Self(Tensor::cat(&[mean, (variances.mean_keepdim(0)? + between)?], 1)?))
    }

    /// Concatenates the moments of consecutive channels.
    ///
    /// # Errors
    /// If the numbers of frames differ.
    pub fn join(parts: &[Self]) -> Result<Self> {
        Ok(Self(Tensor::cat(&parts.iter().map(|part| &part.0).collect::<Vec<_>>(), 2)?))
    }
}

/// Mean, then variance of each channel of pixels [p, c].
fn moments(frame: &[f32], c: usize) -> Vec<f32> {
    // Relative to the first pixel, to avoid cancellation.
    let centre = &frame[..c];
    let zero = || (vec![0.0_f64; c], vec![0.0_f64; c]);
    let (sums, squares) = frame
        .par_chunks(BLOCK * c)
        .map(|rows| {
            let (mut sums, mut squares) = (vec![0.0; c], vec![0.0; c]);
            math::moments(rows, centre, &mut sums, &mut squares);
            (sums, squares)
        })
        // In order, so that the sums do not depend on the scheduling of threads.
        .collect::<Vec<_>>()
        .into_iter()
        .fold(zero(), |(mut sums, mut squares), (block_sums, block_squares)| {
            sums.iter_mut().zip(block_sums).for_each(|(sum, block)| *sum += f64::from(block));
            squares.iter_mut().zip(block_squares).for_each(|(sum, block)| *sum += f64::from(block));
            (sums, squares)
        });
    let pixels = (frame.len() / c) as f64;
    let mean =
        sums.iter().zip(centre).map(|(sum, centre)| (f64::from(*centre) + sum / pixels) as f32);
    let variance = squares
        .iter()
        .zip(&sums)
        .map(|(square, sum)| (square / pixels - (sum / pixels).powi(2)).max(0.0) as f32);
    mean.chain(variance).collect()
}

/// A norm as an affine transform of each channel: scale and offset, [n, c] each, for n frames, or
/// for all frames if n is 1.
#[derive(Debug, Clone)]
pub struct Affine {
    scale: Tensor,
    offset: Tensor,
}

/// A group norm with 32 groups.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl GroupNorm {
    /// `weight` and `bias` are \[c\].
    ///
    /// # Errors
    /// If c is not a multiple of 32.
    pub fn new(weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Self> {
        if !weight.dim(0)?.is_multiple_of(GROUPS) {
            candle_core::bail!(
                "group norm needs a multiple of {GROUPS} channels, got {}",
                weight.dim(0)?
            );
        }
        Ok(Self { weight: weight.to_dtype(DType::F32)?, bias: bias.to_dtype(DType::F32)?, epsilon })
    }

    /// Scale and offset of the norm for channels with these moments.
    ///
    /// # Errors
    /// If the number of channels differs from the norm's.
    pub fn affine(&self, moments: &Moments) -> Result<Affine> {
        #[cfg(feature = "cuda")]
        if moments.0.device().is_cuda() {
            let (weight, bias) = (&self.weight, &self.bias);
            let (scale, offset) = cuda::group_affine(&moments.0, weight, bias, self.epsilon)?;
            return Ok(Affine { scale, offset });
        }
        let (n, _, c) = moments.0.dims3()?;
        let groups = |n: usize| (n, GROUPS, c / GROUPS);
        let means = moments.0.narrow(1, 0, 1)?.reshape(groups(n))?;
        let variances = moments.0.narrow(1, 1, 1)?.reshape(groups(n))?;
        let mean = means.mean_keepdim(2)?;
        let between = means.broadcast_sub(&mean)?.sqr()?.mean_keepdim(2)?;
        let std = ((variances.mean_keepdim(2)? + between)? + self.epsilon)?.sqrt()?;
        let scale = self.weight.reshape(groups(1))?.broadcast_div(&std)?;
        let offset = self.bias.reshape(groups(1))?.broadcast_sub(&scale.broadcast_mul(&mean)?)?;
        Ok(Affine { scale: scale.reshape((n, c))?, offset: offset.reshape((n, c))? })
    }
}

impl Affine {
    /// The transform of channels `first..first + count`.
    ///
    /// # Errors
    /// If there are fewer channels.
    pub fn channels(&self, first: usize, count: usize) -> Result<Self> {
        let narrow = |all: &Tensor| all.narrow(1, first, count)?.contiguous();
        Ok(Self { scale: narrow(&self.scale)?, offset: narrow(&self.offset)? })
    }

    /// Transforms frames [n, h, w, c], then applies SiLU if `silu`.
    ///
    /// # Errors
    /// If shapes do not match.
    pub fn apply(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        let (frames, channels) = self.scale.dims2()?;
        if channels != c || (frames != 1 && frames != n) {
            candle_core::bail!(
                "a norm of {frames} frames and {channels} channels got {n} frames of {c} channels"
            );
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::affine(x, &self.scale, &self.offset, silu);
        }
        let (scale, offset) = (Host::new(&self.scale)?, Host::new(&self.offset)?);
        let (scale, offset) = (scale.values()?, offset.values()?);
        let mut values = Host::new(x)?.values()?.to_vec();
        values.par_chunks_mut(h * w * c).enumerate().for_each(|(frame, values)| {
            let first = if frames == 1 { 0 } else { frame * c };
            let (scale, offset) = (&scale[first..][..c], &offset[first..][..c]);
            values
                .par_chunks_mut(BLOCK * c)
                .for_each(|rows| math::affine(rows, scale, offset, silu));
        });
        tensor(values, &[n, h, w, c], x)
    }
}
