// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the layers of `ops` from the tensors of a checkpoint.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops::{Conv2d, ConvConfig, GroupNorm, LayerNorm, Linear, TimeConv};

/// A linear layer with bias; the weight is [outputs, inputs].
pub(super) fn linear(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Linear> {
    Linear::new(vb.get((outputs, inputs), "weight")?, Some(vb.get(outputs, "bias")?))
}

/// A linear layer without bias; the weight is [outputs, inputs].
pub(super) fn linear_no_bias(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Linear> {
    Linear::new(vb.get((outputs, inputs), "weight")?, None)
}

/// A convolution with kernel size 1 over `dimensions` dimensions, as a linear layer over the
/// channels.
pub(super) fn pointwise(
    vb: VarBuilder,
    inputs: usize,
    outputs: usize,
    dimensions: usize,
) -> Result<Linear> {
    let mut shape = vec![1; 2 + dimensions];
    (shape[0], shape[1]) = (outputs, inputs);
    Linear::new(vb.get(shape, "weight")?, Some(vb.get(outputs, "bias")?))
}

/// A 3×3 convolution with bias; the weight is [outputs, inputs, 3, 3].
pub(super) fn conv(
    vb: VarBuilder,
    inputs: usize,
    outputs: usize,
    config: ConvConfig,
) -> Result<Conv2d> {
    let weight = vb.get((outputs, inputs, 3, 3), "weight")?;
    Conv2d::new(weight, vb.get(outputs, "bias")?, config)
}

/// A convolution over three frames; the weight is [outputs, inputs, 3, 1, 1]. The output is
/// multiplied by `scale`.
pub(super) fn time_conv(
    vb: VarBuilder,
    inputs: usize,
    outputs: usize,
    scale: f64,
) -> Result<TimeConv> {
    let weight = vb.get((outputs, inputs, 3, 1, 1), "weight")?;
    TimeConv::new(weight, &vb.get(outputs, "bias")?, scale)
}

/// A group norm over 32 groups of `channels`.
pub(super) fn group_norm(vb: VarBuilder, channels: usize, epsilon: f64) -> Result<GroupNorm> {
    let (weight, bias) = affine(vb, channels)?;
    GroupNorm::new(&weight, &bias, epsilon)
}

/// A layer norm over the last dimension.
pub(super) fn layer_norm(vb: VarBuilder, channels: usize) -> Result<LayerNorm> {
    let (weight, bias) = affine(vb, channels)?;
    LayerNorm::new(&weight, &bias)
}

/// Weight and bias of a norm, \[channels\] each.
fn affine(vb: VarBuilder, channels: usize) -> Result<(Tensor, Tensor)> {
    Ok((vb.get(channels, "weight")?, vb.get(channels, "bias")?))
}
