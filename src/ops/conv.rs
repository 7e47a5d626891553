// SPDX-License-Identifier: MIT OR Apache-2.0
//! Convolutions of channels-last frames as sums of matrix products: one product per kernel tap,
//! over shifted views of the input.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::linear::initial_sums;
use super::matrix::{Matrix, Threads, add_product, add_scaled_product};
use super::weight::Weight;

/// Matrix rows in a thread's block: enough to amortise packing the weights, few enough for the
/// cache.
const BLOCK: usize = 768;

/// Padding, stride and resampling of a 3×3 convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvConfig {
    /// Rows of zeros above the input.
    pub top: usize,
    /// Rows of zeros below the input.
    pub bottom: usize,
    /// Columns of zeros to the left of the input.
    pub left: usize,
    /// Columns of zeros to the right of the input.
    pub right: usize,
    /// 1 or 2, in both directions.
    pub stride: usize,
    /// Upsamples the input by 2 in both directions, nearest neighbour, before the convolution.
    pub upsample: bool,
    /// Rows to crop at the top and at the bottom, after upsampling.
    pub crop: usize,
}

impl ConvConfig {
    /// Keeps the size of the input.
    pub const SAME: Self =
        Self { top: 1, bottom: 1, left: 1, right: 1, stride: 1, upsample: false, crop: 0 };
    /// Doubles the size of the input.
    pub const UPSAMPLE: Self = Self { upsample: true, ..Self::SAME };

    /// Output height and width for an input of size (h, w).
    pub fn output(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let (h, w) = self.source((h, w));
        let size = |size: usize, zeros: usize| (size + zeros - 3) / self.stride + 1;
        (size(h, self.top + self.bottom), size(w, self.left + self.right))
    }

    /// Height and width of the input after upsampling and cropping, without padding.
    pub(super) fn source(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let times = if self.upsample { 2 } else { 1 };
        ((h * times).saturating_sub(2 * self.crop), w * times)
    }

    /// Gathers the pixels that `rows` output rows from `first` on depend on. For each phase (y, x)
    /// modulo the stride, the result holds the pixels of that phase as [rows, width, c].
    fn patch(
        &self,
        input: &[f32],
        (h, w, c): (usize, usize, usize),
        first: usize,
        (rows, width): (usize, usize),
    ) -> Vec<f32> {
        let times = if self.upsample { 2 } else { 1 };
        let (source_h, source_w) = self.source((h, w));
        let mut patch = vec![0.0; self.stride * self.stride * rows * width * c];
        for (n, row) in patch.chunks_exact_mut(width * c).enumerate() {
            let (phase, y) = (n / rows, n % rows);
            let y = (first + y) * self.stride + phase / self.stride;
            let Some(y) = y.checked_sub(self.top).filter(|y| *y < source_h) else { continue };
            let input = &input[(y + self.crop) / times * w * c..][..w * c];
            for (x, pixel) in row.chunks_exact_mut(c).enumerate() {
                let x = x * self.stride + phase % self.stride;
                if let Some(x) = x.checked_sub(self.left).filter(|x| *x < source_w) {
                    pixel.copy_from_slice(&input[x / times * c..][..c]);
                }
            }
        }
        patch
    }

    /// Index in a patch of the first pixel that a kernel tap multiplies.
    fn tap(&self, tap: usize, rows: usize, width: usize) -> usize {
        let (y, x) = (tap / 3, tap % 3);
        let phase = y % self.stride * self.stride + x % self.stride;
        (phase * rows + y / self.stride) * width + x / self.stride
    }
}

/// A 3×3 convolution.
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// [out, in, 3, 3]; on a GPU [out, 3, 3, in].
    weight: Weight,
    /// \[out\].
    bias: Tensor,
    inputs: usize,
    outputs: usize,
    config: ConvConfig,
}

/// Converts the weight [out, in, ..] of a convolution to the layout of its device. GPU kernels
/// read it with the input channels last.
fn for_device(weight: Tensor) -> Result<Tensor> {
    if weight.device().is_cpu() {
        return Ok(weight);
    }
    let (outputs, inputs) = (weight.dim(0)?, weight.dim(1)?);
    let mut dims = weight.dims().to_vec();
    dims.remove(1);
    dims.push(inputs);
    weight.reshape((outputs, inputs, ()))?.transpose(1, 2)?.contiguous()?.reshape(dims)
}

impl Conv2d {
    /// `weight` is [out, in, 3, 3], `bias` is \[out\].
    ///
    /// # Errors
    /// If the weight has another shape.
    pub fn new(weight: Tensor, bias: Tensor, config: ConvConfig) -> Result<Self> {
        let (outputs, inputs, _, _) = weight.dims4()?;
        Ok(Self { weight: Weight::new(for_device(weight)?), bias, inputs, outputs, config })
    }

    /// Output height and width for an input of size (h, w).
    pub fn output(&self, size: (usize, usize)) -> (usize, usize) {
        self.config.output(size)
    }

    /// Convolves frames [n, h, w, c]. The channels may be split over several tensors, `parts`.
    /// Adds `shift` [n, out] to all pixels of a frame, and `add` [n, h', w', out] to the output.
    ///
    /// # Errors
    /// If shapes do not match.
    pub fn forward(
        &self,
        parts: &[&Tensor],
        shift: Option<&Tensor>,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let bias = match shift {
            Some(shift) => shift.broadcast_add(&self.bias.to_dtype(shift.dtype())?)?,
            None => self.bias.to_dtype(parts[0].dtype())?,
        };
        let (n, h, w, _) = parts[0].dims4()?;
        let (out_h, out_w) = self.config.output((h, w));
        super::count(n * out_h * out_w, self.outputs, 9 * self.inputs);
        #[cfg(feature = "cuda")]
        if parts[0].device().is_cuda() {
            let weight = self.weight.to_dtype(parts[0].dtype())?;
            return cuda::conv(parts, &weight, &bias, add, &self.config);
        }
        self.on_cpu(parts, &bias, add)
    }

    fn on_cpu(&self, parts: &[&Tensor], bias: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let (n, h, w, _) = parts[0].dims4()?;
        let (out, total) = (self.outputs, self.inputs);
        let (out_h, out_w) = self.config.output((h, w));
        let weight = Host::new(&self.weight.tensor)?;
        let weight = weight.values()?;
        let hosts = parts.iter().map(|part| Host::new(part)).collect::<Result<Vec<_>>>()?;
        let inputs = hosts.iter().map(Host::values).collect::<Result<Vec<_>>>()?;
        let widths: Vec<_> = inputs.iter().map(|input| input.len() / (n * h * w)).collect();
        if widths.iter().sum::<usize>() != total {
            candle_core::bail!("a convolution has {total} input channels, got {widths:?}");
        }

        // Extra rows and columns that the kernel reads beyond the output, in output pixels.
        let margin = 2 / self.config.stride;
        let width = out_w + margin;
        let rows =
            (BLOCK / width).min((n * out_h).div_ceil(2 * rayon::current_num_threads())).max(1);
        let mut values = initial_sums(n * out_h * out_w, out, Some(bias), add)?;
        values.par_chunks_mut(out_h * out_w * out).enumerate().for_each(|(frame, values)| {
            values.par_chunks_mut(rows * out_w * out).enumerate().for_each(|(block, values)| {
                let y = block * rows;
                let rows = values.len() / (out_w * out);
                // Output rows are `width` apart in `sums`. The values between them are not used.
                let m = (rows - 1) * width + out_w;
                let mut sums = vec![0.0; m * out];
                let mut first = 0;
                for (input, &c) in inputs.iter().zip(&widths) {
                    let input = &input[frame * h * w * c..][..h * w * c];
                    let patch = self.config.patch(input, (h, w, c), y, (rows + margin, width));
                    for tap in 0..9 {
                        let a = Matrix {
                            values: &patch[self.config.tap(tap, rows + margin, width) * c..],
                            row: c,
                            column: 1,
                        };
                        let b = Matrix {
                            values: &weight[first * 9 + tap..],
                            row: 9,
                            column: total * 9,
                        };
                        add_product(&mut sums, out, [m, out, c], a, b, Threads::One);
                    }
                    first += c;
                }
                for (row, sums) in
                    values.chunks_exact_mut(out_w * out).zip(sums.chunks(width * out))
                {
                    row.iter_mut().zip(sums).for_each(|(value, sum)| *value += sum);
                }
            });
        });
        tensor(values, &[n, out_h, out_w, out], parts[0])
    }
}

/// A convolution along the frames with kernel size 3. Zeros pad the first and the last frame.
#[derive(Debug, Clone)]
pub struct TimeConv {
    /// [out, in, 3]; on a GPU [out, 3, in].
    weight: Weight,
    /// \[out\].
    bias: Tensor,
    inputs: usize,
    outputs: usize,
    scale: f64,
}

impl TimeConv {
    /// `weight` is [out, in, 3, 1, 1], `bias` is \[out\]. The output is multiplied by `scale`.
    ///
    /// # Errors
    /// If the weight has another shape.
    pub fn new(weight: Tensor, bias: &Tensor, scale: f64) -> Result<Self> {
        let (outputs, inputs, ..) = weight.dims5()?;
        let weight = Weight::new(for_device(weight.squeeze(4)?.squeeze(3)?)?);
        Ok(Self { weight, bias: (bias * scale)?, inputs, outputs, scale })
    }

    /// Convolves frames [n, h, w, c] and adds `add` [n, h, w, out]. `before` and `after` are the
    /// adjacent slices, of which the nearest frame is used; `None` at the ends of the clip.
    ///
    /// # Errors
    /// If shapes do not match.
    pub fn forward(
        &self,
        before: Option<&Tensor>,
        x: &Tensor,
        after: Option<&Tensor>,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let before = before.map(|before| before.narrow(0, before.dim(0)? - 1, 1)).transpose()?;
        let after = after.map(|after| after.narrow(0, 0, 1)).transpose()?;
        let (n, h, w, _) = x.dims4()?;
        let taps = 3 * n - usize::from(before.is_none()) - usize::from(after.is_none());
        super::count(taps * h * w, self.outputs, self.inputs);
        let around = [before.as_ref(), after.as_ref()];
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let weight = self.weight.to_dtype(x.dtype())?;
            return cuda::time_conv(around, x, &weight, &self.bias, add, self.scale);
        }
        self.on_cpu(around, x, add)
    }

    fn on_cpu(
        &self,
        [before, after]: [Option<&Tensor>; 2],
        x: &Tensor,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        let (out, total) = (self.outputs, self.inputs);
        if c != total {
            candle_core::bail!("a convolution has {total} input channels, got {c}");
        }
        let weight = Host::new(&self.weight.tensor)?;
        let weight = weight.values()?;
        let mut values = initial_sums(n * h * w, out, Some(&self.bias), add)?;
        let mut tap = |tap: usize, frames: &Tensor, first: usize, count: usize| {
            let host = Host::new(frames)?;
            let frames = host.values()?;
            let a = Matrix { values: &frames, row: c, column: 1 };
            let b = Matrix { values: &weight[tap..], row: 3, column: 3 * c };
            let size = [count * h * w, out, c];
            let out_values = &mut values[first * h * w * out..];
            add_scaled_product(out_values, out, size, a, b, self.scale as f32, Threads::All);
            Ok::<_, candle_core::Error>(())
        };
        tap(1, x, 0, n)?;
        if n > 1 {
            tap(0, x, 1, n - 1)?;
            tap(2, &x.narrow(0, 1, n - 1)?, 0, n - 1)?;
        }
        if let Some(before) = before {
            tap(0, before, 0, 1)?;
        }
        if let Some(after) = after {
            tap(2, after, n - 1, 1)?;
        }
        tensor(values, &[n, h, w, out], x)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;
    use crate::ops::tests::{assert_same, numbers};

    /// Reference implementation of [`Conv2d`] with candle's operations.
    fn reference_conv(
        conv: &Conv2d,
        parts: &[&Tensor],
        bias: &Tensor,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let ConvConfig { top, bottom, left, right, stride, upsample, crop } = conv.config;
        let mut x = Tensor::cat(parts, D::Minus1)?.permute((0, 3, 1, 2))?.contiguous()?;
        let (_, _, h, w) = x.dims4()?;
        if upsample {
            x = x.upsample_nearest2d(2 * h, 2 * w)?;
        }
        x = x.narrow(2, crop, x.dim(2)? - 2 * crop)?;
        x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        let y = x.conv2d(&conv.weight.tensor, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?;
        let y = y.broadcast_add(&bias.reshape(((), 1, 1, conv.outputs))?)?;
        add.map_or(Ok(y.clone()), |add| y + add)
    }

    /// Reference implementation of [`TimeConv`] with candle's operations.
    fn reference_time_conv(
        conv: &TimeConv,
        [before, after]: [Option<&Tensor>; 2],
        x: &Tensor,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        let zeros = Tensor::zeros((1, h, w, c), x.dtype(), x.device())?;
        let around = [before.unwrap_or(&zeros), x, after.unwrap_or(&zeros)];
        let around = Tensor::cat(&around, 0)?;
        let bias = conv.bias.broadcast_as((n, h, w, conv.outputs))?.contiguous()?;
        let mut sum = add.map_or(Ok(bias.clone()), |add| bias + add)?;
        for tap in 0..3 {
            let weight = conv.weight.tensor.narrow(D::Minus1, tap, 1)?.squeeze(D::Minus1)?.t()?;
            let frames = around.narrow(0, tap, n)?.reshape((n * h * w, c))?;
            let product = (frames.matmul(&weight.contiguous()?)? * conv.scale)?;
            sum = (sum + product.reshape((n, h, w, conv.outputs))?)?;
        }
        Ok(sum)
    }

    #[test]
    fn conv2d_matches_candle() -> Result<()> {
        let down = ConvConfig {
            top: 2,
            bottom: 2,
            left: 1,
            right: 1,
            stride: 2,
            upsample: false,
            crop: 0,
        };
        let uneven = ConvConfig { top: 0, left: 0, ..down };
        let up = ConvConfig { crop: 1, ..ConvConfig::UPSAMPLE };
        for config in [ConvConfig::SAME, ConvConfig::UPSAMPLE, down, uneven, up] {
            let conv = Conv2d::new(numbers(&[8, 5, 3, 3])?, numbers(&[8])?, config)?;
            let (x, skip) = (numbers(&[2, 10, 12, 3])?, numbers(&[2, 10, 12, 2])?);
            let (h, w) = config.output((10, 12));
            let (bias, add) = (numbers(&[2, 8])?, numbers(&[2, h, w, 8])?);
            for add in [None, Some(&add)] {
                let parts = [&x, &skip];
                let ours = conv.on_cpu(&parts, &bias, add)?;
                assert_same(&ours, &reference_conv(&conv, &parts, &bias, add)?);
            }
        }
        Ok(())
    }

    #[test]
    fn time_conv_matches_three_products() -> Result<()> {
        let conv = TimeConv::new(numbers(&[8, 6, 3, 1, 1])?, &numbers(&[8])?, 0.3)?;
        let (near, add) = (numbers(&[1, 4, 5, 6])?, numbers(&[3, 4, 5, 8])?);
        let x = numbers(&[3, 4, 5, 6])?;
        for before in [None, Some(&near)] {
            for after in [None, Some(&near)] {
                for add in [None, Some(&add)] {
                    let ours = conv.on_cpu([before, after], &x, add)?;
                    assert_same(&ours, &reference_time_conv(&conv, [before, after], &x, add)?);
                }
            }
        }
        Ok(())
    }
}
