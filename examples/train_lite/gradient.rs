// SPDX-License-Identifier: MIT OR Apache-2.0
//! A [`ConvChain`] with its gradient.
//!
//! On the CPU the forward pass is the one that the plugin runs, so the weights are trained for its rounding; the
//! backward pass uses the same convolution. On a GPU both are candle's.

use std::convert::Infallible;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use gstvenhance::ops::{ConvChain, LEAKY_SLOPE, Scratch};
use rayon::prelude::*;

/// Runs a chain on images `x`, [n, h, w, in], in f32: the result is [n, h, w, out]. `channels` lists the
/// channels of the input, of each hidden layer and of the output. `parameters` holds the weight [out, in, 3, 3]
/// and the bias of each layer, one after the other.
///
/// # Errors
/// If the shapes do not match.
pub fn conv_chain(x: &Tensor, parameters: &Tensor, channels: &[usize]) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(parameters, Chain { channels: channels.to_vec() });
    }
    reference(x, parameters, channels)
}

/// The same with candle's own operations.
fn reference(x: &Tensor, parameters: &Tensor, channels: &[usize]) -> Result<Tensor> {
    let layers = split_layers(parameters, channels)?;
    let mut x = x.permute((0, 3, 1, 2))?;
    for (n, (weight, bias)) in layers.iter().enumerate() {
        let padded = x.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?.contiguous()?;
        x = padded.conv2d(weight, 0, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
        if n + 1 < layers.len() {
            x = x.maximum(&(&x * f64::from(LEAKY_SLOPE))?)?;
        }
    }
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// Splits the parameters of a chain into the weight [out, in, 3, 3] and the bias \[out\] of each layer.
///
/// # Errors
/// If there are too few parameters.
pub fn split_layers(parameters: &Tensor, channels: &[usize]) -> Result<Vec<(Tensor, Tensor)>> {
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        parameters.narrow(0, at - count, count)
    };
    channels
        .windows(2)
        .map(|channels| {
            let (input, out) = (channels[0], channels[1]);
            Ok((take(out * input * 9)?.reshape((out, input, 3, 3))?, take(out)?))
        })
        .collect()
}

/// The operation that candle differentiates.
struct Chain {
    channels: Vec<usize>,
}

/// Runs `chain` on an image [h, w, c]; the result is [h, w, out].
fn convolve(
    chain: &ConvChain,
    x: &[f32],
    (h, w): (usize, usize),
    (c, out): (usize, usize),
) -> Vec<f32> {
    let mut y = vec![0.0; h * w * out];
    let input = |row: usize, target: &mut [f32]| target.copy_from_slice(&x[row * w * c..][..w * c]);
    let output = |row: usize, values: &[f32]| {
        y[row * w * out..][..w * out].copy_from_slice(values);
        Ok::<_, Infallible>(())
    };
    let Ok(()) = chain.run(&mut Scratch::default(), (w, h), 0..h, input, output);
    y
}

fn leaky_relu(values: &mut [f32]) {
    values.iter_mut().for_each(|y| *y = y.max(*y * LEAKY_SLOPE));
}

impl CustomOp2 for Chain {
    fn name(&self) -> &'static str {
        "conv-chain"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = x_layout.shape().dims4()?;
        let x = contiguous(x, x_layout)?;
        let parameters = Tensor::new(contiguous(parameters, parameters_layout)?, &Device::Cpu)?;
        let chain = ConvChain::new(&split_layers(&parameters, &self.channels)?)?;
        let out = self.channels[self.channels.len() - 1];
        let mut y = vec![0.0; n * h * w * out];
        y.par_chunks_mut(h * w * out).zip(x.par_chunks(h * w * c)).for_each(|(y, x)| {
            y.copy_from_slice(&convolve(&chain, x, (h, w), (c, out)));
        });
        Ok((CpuStorage::F32(y), (n, h, w, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, h, w, c) = x.dims4()?;
        let device = x.device();
        let backward = Backward::new(&self.channels, &split_layers(parameters, &self.channels)?)?;
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        let grad = grad.flatten_all()?.to_vec1::<f32>()?;
        let out = self.channels[self.channels.len() - 1];
        let images = x.par_chunks(h * w * c).zip(grad.par_chunks(h * w * out));
        let gradients: Vec<_> =
            images.map(|(x, grad)| backward.run(x, grad, (h, w))).collect::<Result<_>>()?;
        let (x_grads, parameter_grads): (Vec<_>, Vec<_>) = gradients.into_iter().unzip();
        let mut sum = vec![0.0; parameters.elem_count()];
        for gradient in parameter_grads {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        Ok((
            Some(Tensor::from_vec(x_grads.concat(), (n, h, w, c), device)?),
            Some(Tensor::from_vec(sum, parameters.dims(), device)?),
        ))
    }
}

/// The layers of a chain, prepared for its backward pass.
struct Backward<'a> {
    channels: &'a [usize],
    /// The layers one by one.
    forward: Vec<ConvChain>,
    /// The transposed convolution of each layer: a convolution with the mirrored kernel, in and out swapped.
    transposed: Vec<ConvChain>,
}

impl<'a> Backward<'a> {
    fn new(channels: &'a [usize], layers: &[(Tensor, Tensor)]) -> Result<Self> {
        let forward = layers.iter().map(|layer| ConvChain::new(std::slice::from_ref(layer)));
        let transposed = layers.iter().map(|(weight, _)| {
            let mirrored = weight.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?;
            let zeros = Tensor::zeros(weight.dim(1)?, DType::F32, weight.device())?;
            ConvChain::new(&[(mirrored, zeros)])
        });
        Ok(Self {
            channels,
            forward: forward.collect::<Result<_>>()?,
            transposed: transposed.collect::<Result<_>>()?,
        })
    }

    /// The gradients of one image [h, w, in] and of the parameters, given that of the output.
    fn run(&self, x: &[f32], grad: &[f32], (h, w): (usize, usize)) -> Result<(Vec<f32>, Vec<f32>)> {
        let inputs = self.layer_inputs(x, (h, w));
        let mut grad = grad.to_vec();
        // The gradients of the layers' parameters, the last layer first.
        let mut parts = Vec::new();
        let layers = inputs.iter().zip(&self.transposed).zip(self.channels.windows(2));
        for ((input, transposed), channels) in layers.rev() {
            let (c, out) = (channels[0], channels[1]);
            let mut bias = vec![0.0; out];
            for pixel in grad.chunks_exact(out) {
                bias.iter_mut().zip(pixel).for_each(|(sum, g)| *sum += g);
            }
            let mut part = weight_gradient(input, &grad, (h, w, c, out))?;
            part.extend(bias);
            parts.push(part);
            let padded = pad_zeros(&grad, (h, w, out));
            let full = convolve(transposed, &padded, (h + 4, w + 4), (out, c));
            grad = fold_border(&full, (h, w, c));
            if parts.len() < self.forward.len() {
                let negative = grad.iter_mut().zip(input).filter(|(_, y)| **y < 0.0);
                negative.for_each(|(g, _)| *g *= LEAKY_SLOPE);
            }
        }
        parts.reverse();
        Ok((grad, parts.concat()))
    }

    /// Runs the chain and keeps the input of each layer.
    fn layer_inputs(&self, x: &[f32], (h, w): (usize, usize)) -> Vec<Vec<f32>> {
        let mut inputs = vec![x.to_vec()];
        let hidden = self.forward.iter().zip(self.channels.windows(2)).take(self.forward.len() - 1);
        for (chain, channels) in hidden {
            let before = &inputs[inputs.len() - 1];
            let mut y = convolve(chain, before, (h, w), (channels[0], channels[1]));
            leaky_relu(&mut y);
            inputs.push(y);
        }
        inputs
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("conv-chain needs contiguous f32 tensors"),
    }
}

/// The gradient of a weight [out, in, 3, 3] for one image: `x` is [h, w, in], `grad` is [h, w, out].
fn weight_gradient(
    x: &[f32],
    grad: &[f32],
    (h, w, c, out): (usize, usize, usize, usize),
) -> Result<Vec<f32>> {
    // The image as a matrix of 3×3 patches (im2col), with replicated borders.
    let mut patches = vec![0.0; h * w * 9 * c];
    for (pixel, patch) in patches.chunks_exact_mut(9 * c).enumerate() {
        let (y, x0) = (pixel / w, pixel % w);
        for (tap, target) in patch.chunks_exact_mut(c).enumerate() {
            let row = (y + tap / 3).saturating_sub(1).min(h - 1);
            let column = (x0 + tap % 3).saturating_sub(1).min(w - 1);
            target.copy_from_slice(&x[(row * w + column) * c..][..c]);
        }
    }
    let patches = Tensor::from_vec(patches, (h * w, 9 * c), &Device::Cpu)?;
    let grad = Tensor::from_slice(grad, (h * w, out), &Device::Cpu)?;
    // [out, 9·in], the taps before the channels.
    let product = grad.t()?.matmul(&patches)?;
    product.reshape((out, 9, c))?.transpose(1, 2)?.flatten_all()?.to_vec1()
}

/// Pads an image [h, w, c] with two pixels of zeros on each side.
fn pad_zeros(values: &[f32], (h, w, c): (usize, usize, usize)) -> Vec<f32> {
    let mut padded = vec![0.0; (h + 4) * (w + 4) * c];
    for (y, row) in values.chunks_exact(w * c).enumerate() {
        let at = ((y + 2) * (w + 4) + 2) * c;
        padded[at..at + w * c].copy_from_slice(row);
    }
    padded
}

/// The gradient of border replication: [h + 4, w + 4, c] to [h, w, c]. The outermost pixels are dropped, and the
/// gradient of each replicated pixel is added to that of its source.
fn fold_border(padded: &[f32], (h, w, c): (usize, usize, usize)) -> Vec<f32> {
    let mut values = vec![0.0; h * w * c];
    for y in 0..h + 2 {
        for x in 0..w + 2 {
            let from = ((y + 1) * (w + 4) + x + 1) * c;
            let (y, x) = (y.saturating_sub(1).min(h - 1), x.saturating_sub(1).min(w - 1));
            let target = &mut values[(y * w + x) * c..][..c];
            target.iter_mut().zip(&padded[from..from + c]).for_each(|(sum, g)| *sum += g);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    /// Values in −1..1 that depend on the shape only.
    fn test_tensor(shape: &[usize]) -> Result<Tensor> {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|n| ((n * 7919 + count) % 1009) as f32 / 504.0 - 1.0);
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)
    }

    /// Compares by the relative error of the L2 norm.
    fn assert_close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (norm(&(a - b).unwrap()) / norm(b)).sqrt();
        assert!(error < 1e-5, "relative error {error}");
    }

    #[test]
    fn output_and_gradients_equal_those_of_candle() -> Result<()> {
        for (size, channels) in
            [([2, 9, 11, 3], vec![3, 18, 5]), ([1, 4, 5, 20], vec![20, 7, 16, 1])]
        {
            let count = channels.windows(2).map(|c| 9 * c[0] * c[1] + c[1]).sum();
            let x = Var::from_tensor(&test_tensor(&size)?)?;
            let parameters = Var::from_tensor(&(test_tensor(&[count])? * 0.3)?)?;
            let expected = reference(&x, &parameters, &channels)?;
            let found = conv_chain(&x, &parameters, &channels)?;
            assert_close(&found, &expected);
            // A loss whose gradient differs from pixel to pixel.
            let (found, expected) = (found.sqr()?.backward()?, expected.sqr()?.backward()?);
            for var in [&x, &parameters] {
                assert_close(found.get(var).unwrap(), expected.get(var).unwrap());
            }
        }
        Ok(())
    }
}
