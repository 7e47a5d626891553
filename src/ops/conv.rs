// SPDX-License-Identifier: MIT OR Apache-2.0
//! Convolutions of frames whose channels are last, as sums of matrix products: one for each place of the
//! kernel, over the same numbers shifted.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::linear::start;
use super::matrix::{Matrix, Threads, add_product, add_scaled_product};
use super::weight::Weight;

/// Rows of a matrix that a thread works on at a time: enough to make up for packing the weights, few
/// enough to stay in its cache.
const BLOCK: usize = 768;

/// What a 3×3 convolution makes of its input before and while it goes over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of zeros above and below.
    pub top: usize,
    /// See `top`.
    pub bottom: usize,
    /// Columns of zeros.
    pub left: usize,
    /// See `left`.
    pub right: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Every pixel is taken twice in each direction.
    pub double: bool,
    /// Rows left out above and below, after doubling.
    pub crop: usize,
}

impl Shape {
    /// As large as the input.
    pub const SAME: Self =
        Self { top: 1, bottom: 1, left: 1, right: 1, stride: 1, double: false, crop: 0 };
    /// Twice as large.
    pub const DOUBLE: Self = Self { double: true, ..Self::SAME };

    /// Height and width of what comes of (h, w).
    pub fn output(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let (h, w) = self.source((h, w));
        let size = |size: usize, zeros: usize| (size + zeros - 3) / self.stride + 1;
        (size(h, self.top + self.bottom), size(w, self.left + self.right))
    }

    /// Height and width of what is convolved, without the zeros.
    pub(super) fn source(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let times = if self.double { 2 } else { 1 };
        ((h * times).saturating_sub(2 * self.crop), w * times)
    }

    /// What the output's rows from `first` on are made of: for each place (y, x) modulo the stride, the
    /// pixels there as [rows, width, c].
    fn patch(
        &self,
        input: &[f32],
        (h, w, c): (usize, usize, usize),
        first: usize,
        (rows, width): (usize, usize),
    ) -> Vec<f32> {
        let times = if self.double { 2 } else { 1 };
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

    /// Where in a patch a place of the kernel finds its first pixel.
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
    shape: Shape,
}

/// The weight of a convolution [out, in, ..] as its device reads it: a GPU wants the inputs last.
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
    /// `weight` is [out, in, 3, 3], `bias` \[out\].
    ///
    /// # Errors
    /// On another shape.
    pub fn new(weight: Tensor, bias: Tensor, shape: Shape) -> Result<Self> {
        let (outputs, inputs, _, _) = weight.dims4()?;
        Ok(Self { weight: Weight::new(for_device(weight)?), bias, inputs, outputs, shape })
    }

    /// Height and width of what comes of (h, w).
    pub fn output(&self, size: (usize, usize)) -> (usize, usize) {
        self.shape.output(size)
    }

    /// Convolves frames of [n, h, w, c], whose channels are given in one or more parts, and adds `shift`
    /// of [n, out] to every pixel of a frame, and `add` of the output's shape [n, h', w', out].
    ///
    /// # Errors
    /// On shapes that do not fit.
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
        let (out_h, out_w) = self.shape.output((h, w));
        super::count(n * out_h * out_w, self.outputs, 9 * self.inputs);
        #[cfg(feature = "cuda")]
        if parts[0].device().is_cuda() {
            let weight = self.weight.to_dtype(parts[0].dtype())?;
            return cuda::conv(parts, &weight, &bias, add, &self.shape);
        }
        self.on_cpu(parts, &bias, add)
    }

    fn on_cpu(&self, parts: &[&Tensor], bias: &Tensor, add: Option<&Tensor>) -> Result<Tensor> {
        let (n, h, w, _) = parts[0].dims4()?;
        let (out, total) = (self.outputs, self.inputs);
        let (out_h, out_w) = self.shape.output((h, w));
        let weight = Host::new(&self.weight.tensor)?;
        let weight = weight.values()?;
        let hosts = parts.iter().map(|part| Host::new(part)).collect::<Result<Vec<_>>>()?;
        let inputs = hosts.iter().map(Host::values).collect::<Result<Vec<_>>>()?;
        let widths: Vec<_> = inputs.iter().map(|input| input.len() / (n * h * w)).collect();
        if widths.iter().sum::<usize>() != total {
            candle_core::bail!("a convolution of {total} channels got {widths:?}");
        }

        // Zeros on each side that a kernel reaches into, at the output's scale.
        let reach = 2 / self.shape.stride;
        let width = out_w + reach;
        let rows =
            (BLOCK / width).min((n * out_h).div_ceil(2 * rayon::current_num_threads())).max(1);
        let mut values = start(n * out_h * out_w, out, Some(bias), add)?;
        values.par_chunks_mut(out_h * out_w * out).enumerate().for_each(|(frame, values)| {
            values.par_chunks_mut(rows * out_w * out).enumerate().for_each(|(block, values)| {
                let y = block * rows;
                let rows = values.len() / (out_w * out);
                // Two rows of the output are `width` apart; what lies between them is not used.
                let m = (rows - 1) * width + out_w;
                let mut sums = vec![0.0; m * out];
                let mut first = 0;
                for (input, &c) in inputs.iter().zip(&widths) {
                    let input = &input[frame * h * w * c..][..h * w * c];
                    let patch = self.shape.patch(input, (h, w, c), y, (rows + reach, width));
                    for tap in 0..9 {
                        let a = Matrix {
                            values: &patch[self.shape.tap(tap, rows + reach, width) * c..],
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

/// A convolution along the frames: kernel 3, zeros before the first frame and after the last.
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
    /// `weight` is [out, in, 3, 1, 1], `bias` \[out\]; what comes out is multiplied by `scale`.
    ///
    /// # Errors
    /// On another shape.
    pub fn new(weight: Tensor, bias: &Tensor, scale: f64) -> Result<Self> {
        let (outputs, inputs, ..) = weight.dims5()?;
        let weight = Weight::new(for_device(weight.squeeze(4)?.squeeze(3)?)?);
        Ok(Self { weight, bias: (bias * scale)?, inputs, outputs, scale })
    }

    /// Convolves frames of [n, h, w, c], and adds `add` of [n, h, w, out]. `before` and `after` are
    /// the slices of frames around it, of which the nearest frame is used; at the ends of the clip there
    /// are none.
    ///
    /// # Errors
    /// On shapes that do not fit.
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
            candle_core::bail!("a convolution of {total} channels got {c}");
        }
        let weight = Host::new(&self.weight.tensor)?;
        let weight = weight.values()?;
        let mut values = start(n * h * w, out, Some(&self.bias), add)?;
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

    /// A convolution as candle has it.
    fn plain(
        conv: &Conv2d,
        parts: &[&Tensor],
        bias: &Tensor,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Shape { top, bottom, left, right, stride, double, crop } = conv.shape;
        let mut x = Tensor::cat(parts, D::Minus1)?.permute((0, 3, 1, 2))?.contiguous()?;
        let (_, _, h, w) = x.dims4()?;
        if double {
            x = x.upsample_nearest2d(2 * h, 2 * w)?;
        }
        x = x.narrow(2, crop, x.dim(2)? - 2 * crop)?;
        x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        let y = x.conv2d(&conv.weight.tensor, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?;
        let y = y.broadcast_add(&bias.reshape(((), 1, 1, conv.outputs))?)?;
        add.map_or(Ok(y.clone()), |add| y + add)
    }

    /// The same along the frames.
    fn plain_in_time(
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
    fn a_convolution_is_that_of_candle() -> Result<()> {
        let down =
            Shape { top: 2, bottom: 2, left: 1, right: 1, stride: 2, double: false, crop: 0 };
        let uneven = Shape { top: 0, left: 0, ..down };
        let up = Shape { crop: 1, ..Shape::DOUBLE };
        for shape in [Shape::SAME, Shape::DOUBLE, down, uneven, up] {
            let conv = Conv2d::new(numbers(&[8, 5, 3, 3])?, numbers(&[8])?, shape)?;
            let (x, skip) = (numbers(&[2, 10, 12, 3])?, numbers(&[2, 10, 12, 2])?);
            let (h, w) = shape.output((10, 12));
            let (bias, add) = (numbers(&[2, 8])?, numbers(&[2, h, w, 8])?);
            for add in [None, Some(&add)] {
                let parts = [&x, &skip];
                let ours = conv.on_cpu(&parts, &bias, add)?;
                assert_same(&ours, &plain(&conv, &parts, &bias, add)?);
            }
        }
        Ok(())
    }

    #[test]
    fn a_convolution_along_the_frames_is_three_products() -> Result<()> {
        let conv = TimeConv::new(numbers(&[8, 6, 3, 1, 1])?, &numbers(&[8])?, 0.3)?;
        let (near, add) = (numbers(&[1, 4, 5, 6])?, numbers(&[3, 4, 5, 8])?);
        let x = numbers(&[3, 4, 5, 6])?;
        for before in [None, Some(&near)] {
            for after in [None, Some(&near)] {
                for add in [None, Some(&add)] {
                    let ours = conv.on_cpu([before, after], &x, add)?;
                    assert_same(&ours, &plain_in_time(&conv, [before, after], &x, add)?);
                }
            }
        }
        Ok(())
    }
}
