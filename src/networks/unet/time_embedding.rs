// SPDX-License-Identifier: MIT OR Apache-2.0
//! Embeds a timestep or a scale factor as a vector.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{networks::layers, ops::Linear};

/// Time embedding: a sinusoidal embedding [1, d] and a two-layer network, to [1, 4d].
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    linear1: Linear,
    linear2: Linear,
    dim: usize,
}

impl TimeEmbedding {
    pub(super) fn new(vb: VarBuilder, dim: usize) -> Result<Self> {
        // Always f32: the layers are small, and every residual block depends on their output.
        let vb = vb.to_dtype(DType::F32);
        Ok(Self {
            linear1: layers::linear(vb.pp("0"), dim, 4 * dim)?,
            linear2: layers::linear(vb.pp("2"), 4 * dim, 4 * dim)?,
            dim,
        })
    }

    pub(super) fn forward(&self, t: f64, device: &Device) -> Result<Tensor> {
        let x = self.linear1.forward(&[&sinusoid(t, self.dim, device)?], None)?;
        self.linear2.forward(&[&x.silu()?], None)
    }
}

/// Sinusoidal embedding of `t`, [1, d], f32: angles tᵢ = t·10000^(−i/half) with half = d/2; all
/// cosines, then all sines.
fn sinusoid(t: f64, d: usize, device: &Device) -> Result<Tensor> {
    let half = d / 2;
    let angles: Vec<f32> =
        (0..half).map(|i| t as f32 * 10_000_f64.powf(-(i as f64) / half as f64) as f32).collect();
    let values: Vec<f32> =
        angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
    Tensor::from_vec(values, (1, d), device)?.to_dtype(DType::F32)
}
