// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linear layers, gated activations and layer norm.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::math;
use super::matrix::{Matrix, Threads, add_product};
use super::weight::Weight;

/// A linear layer over the last dimension.
#[derive(Debug, Clone)]
pub struct Linear {
    /// [out, in].
    weight: Weight,
    /// \[out\].
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is [out, in], or [out, in, 1, ..] of a convolution with kernel size 1; `bias` is
    /// \[out\].
    ///
    /// # Errors
    /// If the weight has another shape.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        // `squeeze` returns a view; `reshape` would copy a weight that is not contiguous.
        let mut matrix = weight;
        while matrix.rank() > 2 {
            if matrix.dim(2)? != 1 {
                candle_core::bail!(
                    "expected a linear weight [out, in] or [out, in, 1, ..], got {:?}",
                    matrix.shape()
                );
            }
            matrix = matrix.squeeze(2)?;
        }
        if matrix.rank() < 2 {
            candle_core::bail!(
                "expected a linear weight [out, in] or [out, in, 1, ..], got {:?}",
                matrix.shape()
            );
        }
        Ok(Self { weight: Weight::new(matrix), bias })
    }

    /// Applies the layer to x [.., in] and adds `add` [.., out]. The last dimension of x may be
    /// split over several tensors, `parts`.
    ///
    /// # Errors
    /// If shapes do not match.
    pub fn forward(&self, parts: &[&Tensor], add: Option<&Tensor>) -> Result<Tensor> {
        let (out, total) = self.weight.tensor.dims2()?;
        super::count(parts[0].elem_count() / parts[0].dim(D::Minus1)?, out, total);
        #[cfg(feature = "cuda")]
        if parts[0].device().is_cuda() {
            let weight = self.weight.to_dtype(parts[0].dtype())?;
            return cuda::linear(parts, &weight, self.bias.as_ref(), add);
        }
        self.on_cpu(parts, add)
    }

    fn on_cpu(&self, parts: &[&Tensor], add: Option<&Tensor>) -> Result<Tensor> {
        let (out, total) = self.weight.tensor.dims2()?;
        let mut shape = parts[0].dims().to_vec();
        let rows = parts[0].elem_count() / shape[shape.len() - 1];
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        let mut values = initial_sums(rows, out, self.bias.as_ref(), add)?;
        let weight = Host::new(&self.weight.tensor)?;
        let weight = weight.values()?;
        let mut first = 0;
        for part in parts {
            let columns = part.dim(D::Minus1)?;
            let part = Host::new(part)?;
            let part = part.values()?;
            if part.len() != rows * columns || first + columns > total {
                candle_core::bail!("a linear layer has {total} inputs, got {}", first + columns);
            }
            let a = Matrix { values: &part, row: columns, column: 1 };
            let b = Matrix { values: &weight[first..], row: 1, column: total };
            add_product(&mut values, out, [rows, out, columns], a, b, Threads::All);
            first += columns;
        }
        if first != total {
            candle_core::bail!("a linear layer has {total} inputs, got {first}");
        }
        tensor(values, &shape, parts[0])
    }
}

/// Initial values of an accumulator [rows, out]: `add` plus `bias`, each 0 if absent. A bias of
/// shape [n, out] applies row i to the i-th of n equal blocks of rows.
pub(super) fn initial_sums(
    rows: usize,
    out: usize,
    bias: Option<&Tensor>,
    add: Option<&Tensor>,
) -> Result<Vec<f32>> {
    let mut values = match add {
        Some(add) if add.elem_count() != rows * out => {
            candle_core::bail!("cannot add a tensor {:?} to an output [{rows}, {out}]", add.shape())
        }
        Some(add) => Host::new(add)?.values()?.to_vec(),
        None => vec![0.0; rows * out],
    };
    if let Some(bias) = bias {
        let host = Host::new(bias)?;
        let bias = host.values()?;
        let each = (rows * out).div_ceil((bias.len() / out).max(1));
        for (values, bias) in values.chunks_mut(each.max(1)).zip(bias.chunks_exact(out)) {
            values.par_chunks_mut(out * 64).for_each(|rows| {
                for row in rows.chunks_exact_mut(out) {
                    row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
            });
        }
    }
    Ok(values)
}

/// x·GELU(gate), with exact GELU. The input [.., 2n] holds x, then the gate; the result is [..,
/// n].
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let Some(width) = shape.last_mut() else {
        candle_core::bail!("GEGLU needs a tensor with at least one dimension")
    };
    if !width.is_multiple_of(2) {
        candle_core::bail!("GEGLU needs an even last dimension, got {width}");
    }
    *width /= 2;
    let width = *width;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::geglu(x);
    }
    let host = Host::new(x)?;
    let values = host.values()?;
    let mut out = vec![0.0; values.len() / 2];
    out.par_chunks_mut(64 * width)
        .zip(values.par_chunks(128 * width))
        .for_each(|(out, rows)| math::geglu(rows, width, out));
    tensor(out, &shape, x)
}

/// Exact GELU.
///
/// # Errors
/// If the device fails.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.gelu_erf();
    }
    let mut values = Host::new(x)?.values()?.to_vec();
    values.par_chunks_mut(1 << 14).for_each(math::gelu);
    tensor(values, x.dims(), x)
}

/// Layer norm over the last dimension. Computes in f32 for every type.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    const EPSILON: f32 = 1e-5;

    /// `weight` and `bias` are \[n\].
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        Ok(Self { weight: weight.to_dtype(DType::F32)?, bias: bias.to_dtype(DType::F32)? })
    }

    /// x is [.., n].
    ///
    /// # Errors
    /// If shapes do not match.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::layer_norm(x, &self.weight, &self.bias, Self::EPSILON);
        }
        let x_f32 = x.to_dtype(DType::F32)?.contiguous()?;
        candle_nn::ops::layer_norm(&x_f32, &self.weight, &self.bias, Self::EPSILON)?
            .to_dtype(x.dtype())
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::Module;

    use super::*;
    use crate::ops::tests::{assert_same, numbers};

    #[test]
    fn a_weight_with_kernel_size_above_1_is_rejected() -> Result<()> {
        let error = Linear::new(numbers(&[8, 7, 3])?, None).unwrap_err().to_string();
        assert!(error.contains("[8, 7, 3]"), "{error}");
        Ok(())
    }

    #[test]
    fn linear_matches_candle() -> Result<()> {
        let (x, rest, add) = (numbers(&[2, 9, 5])?, numbers(&[2, 9, 2])?, numbers(&[2, 9, 8])?);
        let weight = numbers(&[8, 7, 1])?;
        for bias in [None, Some(numbers(&[8])?)] {
            let layer = Linear::new(weight.clone(), bias.clone())?;
            let plain = candle_nn::Linear::new(weight.squeeze(2)?, bias);
            let plain = plain.forward(&Tensor::cat(&[&x, &rest], D::Minus1)?)?;
            for (add, plain) in [(None, plain.clone()), (Some(&add), (&plain + &add)?)] {
                assert_same(&layer.on_cpu(&[&x, &rest], add)?, &plain);
            }
        }
        Ok(())
    }
}
