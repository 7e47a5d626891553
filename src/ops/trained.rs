// SPDX-License-Identifier: MIT OR Apache-2.0
//! A [`Chain`] with its gradient: what networks are trained with.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::chain::{Chain, SLOPE};
use super::host::Host;
use super::matrix::{Matrix, Threads, add_product};

/// Pictures [n, h, w, in] through a [`Chain`] whose channels go as `widths` says, in, .., out. `values` are
/// its numbers one after the other: of each layer the weight [out, in, 3, 3], then the bias.
///
/// On the CPU in f32. The gradient is exact.
///
/// # Errors
/// On shapes that do not fit.
pub fn trained_chain(x: &Tensor, values: &Tensor, widths: &[usize]) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(values, Trained { widths: widths.to_vec() });
    }
    let layers = chain_layers(values, widths)?;
    let mut x = x.permute((0, 3, 1, 2))?;
    for (n, (weight, bias)) in layers.iter().enumerate() {
        let padded = x.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?.contiguous()?;
        x = padded.conv2d(weight, 0, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
        if n + 1 < layers.len() {
            x = x.maximum(&(&x * f64::from(SLOPE))?)?;
        }
    }
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// The layers that are one after the other in `values`: see [`trained_chain`].
///
/// # Errors
/// If there are not as many numbers.
pub fn chain_layers(values: &Tensor, widths: &[usize]) -> Result<Vec<(Tensor, Tensor)>> {
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        values.narrow(0, at - count, count)
    };
    widths
        .windows(2)
        .map(|widths| {
            let (input, out) = (widths[0], widths[1]);
            Ok((take(out * input * 9)?.reshape((out, input, 3, 3))?, take(out)?))
        })
        .collect()
}

struct Trained {
    widths: Vec<usize>,
}

/// One picture.
fn convolve(
    chain: &Chain,
    x: &[f32],
    (h, w): (usize, usize),
    (c, out): (usize, usize),
) -> Vec<f32> {
    let mut y = vec![0.0; h * w * out];
    let input = |row: usize, target: &mut [f32]| target.copy_from_slice(&x[row * w * c..][..w * c]);
    chain.rows(&mut super::Room::default(), (w, h), 0..h, input, |row, values| {
        y[row * w * out..][..w * out].copy_from_slice(values);
    });
    y
}

fn activate(values: &mut [f32]) {
    values.iter_mut().for_each(|y| *y = y.max(*y * SLOPE));
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = x_layout.shape().dims4()?;
        let x = contiguous(x, x_layout)?;
        let values = contiguous(values, values_layout)?;
        let values = Tensor::new(values, &candle_core::Device::Cpu)?;
        let chain = Chain::new(&chain_layers(&values, &self.widths)?)?;
        let out = self.widths[self.widths.len() - 1];
        let mut y = vec![0.0; n * h * w * out];
        y.par_chunks_mut(h * w * out).zip(x.par_chunks(h * w * c)).for_each(|(y, x)| {
            y.copy_from_slice(&convolve(&chain, x, (h, w), (c, out)));
        });
        Ok((CpuStorage::F32(y), (n, h, w, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        values: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, h, w, c) = x.dims4()?;
        let device = x.device();
        let layers = chain_layers(values, &self.widths)?;
        let forward = layers.iter().map(|layer| Chain::new(std::slice::from_ref(layer)));
        let forward = forward.collect::<Result<Vec<_>>>()?;
        // Every pixel of a layer's padded input gathers from all outputs that it went into.
        let backward = layers.iter().map(|(weight, _)| {
            let flipped = weight.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?;
            let zeros = Tensor::zeros(weight.dim(1)?, DType::F32, device)?;
            Chain::new(&[(flipped, zeros)])
        });
        let backward = backward.collect::<Result<Vec<_>>>()?;
        let (x, grad) = (Host::new(x)?, Host::new(grad)?);
        let (x, grad) = (x.values()?, grad.values()?);
        let out = self.widths[self.widths.len() - 1];

        let one = |(x, grad): (&[f32], &[f32])| {
            let mut inputs = vec![x.to_vec()];
            for (chain, widths) in forward.iter().zip(self.widths.windows(2)).take(layers.len() - 1)
            {
                let before = &inputs[inputs.len() - 1];
                let mut y = convolve(chain, before, (h, w), (widths[0], widths[1]));
                activate(&mut y);
                inputs.push(y);
            }
            let mut grad = grad.to_vec();
            // The last layer's first; turned around in the end.
            let mut parts = Vec::new();
            for ((input, chain), widths) in
                inputs.iter().zip(&backward).zip(self.widths.windows(2)).rev()
            {
                let (c, out) = (widths[0], widths[1]);
                let mut bias = vec![0.0; out];
                for pixel in grad.chunks_exact(out) {
                    bias.iter_mut().zip(pixel).for_each(|(sum, g)| *sum += g);
                }
                let mut weight = weight_gradient(input, &grad, (h, w, c, out));
                weight.extend(bias);
                parts.push(weight);
                let wide = extend(&grad, (h, w, out));
                grad = fold(&convolve(chain, &wide, (h + 4, w + 4), (out, c)), (h, w, c));
                if parts.len() < layers.len() {
                    let negative = grad.iter_mut().zip(input).filter(|(_, y)| **y < 0.0);
                    negative.for_each(|(g, _)| *g *= SLOPE);
                }
            }
            parts.reverse();
            (grad, parts.concat())
        };
        let pairs = x.par_chunks(h * w * c).zip(grad.par_chunks(h * w * out));
        let (x_grads, sums): (Vec<_>, Vec<_>) = pairs.map(one).unzip();
        let mut sum = vec![0.0; values.elem_count()];
        for part in sums {
            sum.iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
        }
        Ok((
            Some(Tensor::from_vec(x_grads.concat(), (n, h, w, c), device)?),
            Some(Tensor::from_vec(sum, values.dims(), device)?),
        ))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("a contiguous tensor of f32 was expected"),
    }
}

/// [out, in, 3, 3] of one picture.
fn weight_gradient(
    x: &[f32],
    grad: &[f32],
    (h, w, c, out): (usize, usize, usize, usize),
) -> Vec<f32> {
    // Rows of the padded picture one after the other: the inputs of a row of the kernel are 3·c numbers
    // from a pixel on, and those of the next pixel begin c numbers later.
    let wide = w + 2;
    let mut padded = vec![0.0; ((h + 2) * wide + 2) * c];
    for (y, row) in padded.chunks_exact_mut(wide * c).take(h + 2).enumerate() {
        let source = &x[y.saturating_sub(1).min(h - 1) * w * c..][..w * c];
        row[c..(w + 1) * c].copy_from_slice(source);
        row[..c].copy_from_slice(&source[..c]);
        row[(w + 1) * c..].copy_from_slice(&source[(w - 1) * c..]);
    }
    let mut spread = vec![0.0; h * wide * out];
    for (row, source) in spread.chunks_exact_mut(wide * out).zip(grad.chunks_exact(w * out)) {
        row[..w * out].copy_from_slice(source);
    }
    let mut sums = vec![0.0; 9 * c * out];
    for (tap, sums) in sums.chunks_exact_mut(3 * c * out).enumerate() {
        let a = Matrix { values: &padded[tap * wide * c..], row: 1, column: c };
        let b = Matrix { values: &spread, row: out, column: 1 };
        add_product(sums, out, [3 * c, out, h * wide], a, b, Threads::One);
    }
    // From [3, 3, c, out].
    let mut ordered = vec![0.0; 9 * c * out];
    for (n, sum) in sums.into_iter().enumerate() {
        let (tap, channel, output) = (n / out / c, n / out % c, n % out);
        ordered[(output * c + channel) * 9 + tap] = sum;
    }
    ordered
}

/// Two pixels of zeros around a picture.
fn extend(values: &[f32], (h, w, c): (usize, usize, usize)) -> Vec<f32> {
    let mut wide = vec![0.0; (h + 4) * (w + 4) * c];
    for (y, row) in values.chunks_exact(w * c).enumerate() {
        let at = ((y + 2) * (w + 4) + 2) * c;
        wide[at..at + w * c].copy_from_slice(row);
    }
    wide
}

/// Of [h + 4, w + 4, c], the outermost pixels left out, the next ones added to those that they repeat.
fn fold(wide: &[f32], (h, w, c): (usize, usize, usize)) -> Vec<f32> {
    let mut values = vec![0.0; h * w * c];
    for y in 0..h + 2 {
        for x in 0..w + 2 {
            let from = ((y + 1) * (w + 4) + x + 1) * c;
            let (y, x) = (y.saturating_sub(1).min(h - 1), x.saturating_sub(1).min(w - 1));
            let target = &mut values[(y * w + x) * c..][..c];
            target.iter_mut().zip(&wide[from..from + c]).for_each(|(sum, g)| *sum += g);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::tests::{assert_same, numbers};

    #[test]
    fn a_chain_and_its_gradient_are_those_of_plain_convolutions() -> Result<()> {
        for (size, widths) in [([2, 9, 11, 3], vec![3, 18, 5]), ([1, 4, 5, 20], vec![20, 7, 16, 1])]
        {
            let count = widths.windows(2).map(|w| 9 * w[0] * w[1] + w[1]).sum();
            let x = Var::from_tensor(&numbers(&size)?)?;
            let values = Var::from_tensor(&(numbers(&[count])? * 0.3)?)?;
            let mut plain = x.permute((0, 3, 1, 2))?;
            for (n, (weight, bias)) in chain_layers(&values, &widths)?.iter().enumerate() {
                let padded = plain.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?.contiguous()?;
                plain = padded.conv2d(weight, 0, 1, 1, 1)?;
                plain = plain.broadcast_add(&bias.reshape((1, (), 1, 1))?)?;
                if n + 2 < widths.len() {
                    plain = plain.maximum(&(&plain * f64::from(SLOPE))?)?;
                }
            }
            let plain = plain.permute((0, 2, 3, 1))?.contiguous()?;
            let ours = trained_chain(&x, &values, &widths)?;
            assert_same(&ours, &plain);
            // A loss whose gradient differs from pixel to pixel.
            let (ours, plain) = (ours.sqr()?.backward()?, plain.sqr()?.backward()?);
            for var in [&x, &values] {
                assert_same(ours.get(var).unwrap(), plain.get(var).unwrap());
            }
        }
        Ok(())
    }
}
