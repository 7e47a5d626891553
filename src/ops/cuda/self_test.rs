// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares the kernels for Hopper with the portable ones on a device, before a model is loaded there.
//!
//! The shapes are small and odd: they leave parts of tiles empty, go around the rings of stages more than once, and
//! between them need every kernel. Inputs are made on the host and results compared there, so that nothing but
//! these kernels takes part.

use std::{
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Error, Result, Tensor, cuda::WrapErr};
use parking_lot::Mutex;

use super::{
    attention::attention,
    kernel_set::{Family, KernelSet, is_hopper, portable_forced, reject, with_kernels},
    product::{conv, linear, time_conv},
};
use crate::ops::{Failure, attention::Order, conv::ConvConfig, failure};

/// Makes the inputs of an operation, and runs it.
type Operation = fn(&Inputs) -> Result<Tensor>;

const FAMILIES: [(Family, &[(&str, Operation)]); 2] =
    [(Family::Attention, &ATTENTION), (Family::Product, &PRODUCTS)];

const ATTENTION: [(&str, Operation); 4] = [
    ("300 keys for 70 tokens", |x| x.attention([1, 70, 1], [1, 300])),
    ("129 keys for 200 tokens", |x| x.attention([2, 200, 2], [2, 129])),
    ("77 keys for all batches", |x| x.attention([2, 50, 2], [1, 77])),
    ("49 keys for 193 tokens", |x| x.attention([1, 193, 1], [1, 49])),
];

/// Each of the three numbers of outputs that a block may have, for each kind of product.
const PRODUCTS: [(&str, Operation); 9] = [
    ("a linear layer of 320 outputs, of two parts", |x| x.linear(150, &[320, 128], 320, true)),
    ("a linear layer of 256 outputs", |x| x.linear(130, &[72], 256, false)),
    ("a linear layer of 384 outputs", |x| x.linear(128, &[64], 384, true)),
    ("a convolution of 320 outputs", |x| x.conv([1, 8, 16], &[64], 320, false)),
    ("a convolution of 256 outputs, of two parts", |x| x.conv([2, 9, 11], &[72, 40], 256, true)),
    ("a convolution of 128 outputs", |x| x.conv([2, 7, 19], &[72], 128, true)),
    ("a convolution along time of 320 outputs", |x| x.time_conv([3, 9, 15], 64, 320, [true; 2])),
    ("a convolution along time of 256 outputs", |x| {
        x.time_conv([2, 1, 130], 72, 256, [true, false])
    }),
    ("a convolution along time of 128 outputs", |x| x.time_conv([3, 5, 7], 64, 128, [false; 2])),
];

/// Creates the inputs of one operation.
struct Inputs<'a> {
    device: &'a Device,
    dtype: DType,
}

impl Inputs<'_> {
    /// Pseudo-random numbers in [−size, size).
    fn numbers(&self, shape: &[usize], seed: u32, size: f32) -> Result<Tensor> {
        let mut state = seed;
        // The linear congruential generator of Numerical Recipes; its high bits are random enough.
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
        };
        let values = (0..shape.iter().product::<usize>()).map(number).collect::<Vec<f32>>();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(self.device)
    }

    /// [batch, tokens, heads] and [batch of the keys, keys].
    fn attention(&self, [b, t, heads]: [usize; 3], [kb, s]: [usize; 2]) -> Result<Tensor> {
        // Scores are large enough that each token takes most from a few keys.
        let (q, k) = (self.numbers(&[b, t, 64 * heads], 1, 4.0)?, &[kb, s, 64 * heads]);
        let (k, v) = (self.numbers(k, 2, 4.0)?, self.numbers(k, 3, 1.0)?);
        attention(&q, &k, &v, Order::Consecutive)
    }

    fn linear(
        &self,
        rows: usize,
        channels: &[usize],
        outputs: usize,
        more: bool,
    ) -> Result<Tensor> {
        let parts = self.parts(&[rows], channels)?;
        let weight = self.numbers(&[outputs, channels.iter().sum()], 4, 1.0)?;
        let bias = more.then(|| self.numbers(&[outputs], 5, 5.0)).transpose()?;
        let add = more.then(|| self.numbers(&[rows, outputs], 6, 5.0)).transpose()?;
        linear(&parts.iter().collect::<Vec<_>>(), &weight, bias.as_ref(), add.as_ref())
    }

    /// Frames of [n, h, w]; with a bias of each frame and something to add if `more`.
    fn conv(
        &self,
        frames: [usize; 3],
        channels: &[usize],
        outputs: usize,
        more: bool,
    ) -> Result<Tensor> {
        let parts = self.parts(&frames, channels)?;
        let weight = self.numbers(&[outputs, 3, 3, channels.iter().sum()], 7, 1.0)?;
        let bias = self.numbers(&[if more { frames[0] } else { 1 }, outputs], 8, 5.0)?;
        let add = more.then(|| self.parts(&frames, &[outputs])).transpose()?;
        let (parts, add) = (parts.iter().collect::<Vec<_>>(), add.as_ref().map(|add| &add[0]));
        conv(&parts, &weight, &bias, add, &ConvConfig::SAME)
    }

    /// Frames of [n, h, w], with one before and one after them where `around` says so.
    fn time_conv(
        &self,
        frames: [usize; 3],
        channels: usize,
        outputs: usize,
        around: [bool; 2],
    ) -> Result<Tensor> {
        let [n, h, w] = frames;
        let frame = |seed| self.numbers(&[1, h, w, channels], seed, 1.0);
        let before = around[0].then(|| frame(9)).transpose()?;
        let after = around[1].then(|| frame(10)).transpose()?;
        let x = self.numbers(&[n, h, w, channels], 11, 1.0)?;
        let weight = self.numbers(&[outputs, 3, channels], 12, 1.0)?;
        let bias = self.numbers(&[outputs], 13, 5.0)?;
        let add = around[0].then(|| self.numbers(&[n, h, w, outputs], 14, 5.0)).transpose()?;
        time_conv([before.as_ref(), after.as_ref()], &x, &weight, &bias, add.as_ref(), 0.3)
    }

    fn parts(&self, rows: &[usize], channels: &[usize]) -> Result<Vec<Tensor>> {
        let part = |(seed, c): (u32, &usize)| self.numbers(&[rows, &[*c][..]].concat(), seed, 1.0);
        (20..).zip(channels).map(part).collect()
    }

    /// Largest relative rounding error: half the distance from 1 to the next number.
    fn rounding(&self) -> f32 {
        match self.dtype {
            DType::BF16 => 1.0 / (1 << 8) as f32,
            _ => 1.0 / (1 << 11) as f32,
        }
    }

    /// Allowed difference of two results, relative to the largest value. Both results are rounded once. In
    /// attention, so are the weights of the average. The rest is for sums in f32, and for averages that are
    /// smaller than the largest value.
    fn allowed(&self, family: Family) -> f32 {
        self.rounding()
            * match family {
                Family::Attention => 6.0,
                Family::Product => 3.0,
            }
    }

    /// Waits for pending work. A kernel that hangs is an error after [`LONGEST`].
    fn wait(&self) -> Result<()> {
        let end = self.device.as_cuda_device()?.cuda_stream().record_event(None).w()?;
        let start = Instant::now();
        while !end.try_is_complete().w()? {
            if start.elapsed() > LONGEST {
                // The driver's name for this error where it has a watchdog.
                return Err(Error::wrap(
                    "CUDA_ERROR_LAUNCH_TIMEOUT: a kernel did not finish within 10 s",
                ));
            }
            sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Runs an operation on a set of kernels.
    fn run(&self, operation: Operation, set: KernelSet) -> Result<Vec<f32>> {
        let result = with_kernels(set, || operation(self))?;
        self.wait()?;
        result.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }
}

/// Time limit of one kernel. All kernels together normally take milliseconds.
const LONGEST: Duration = Duration::from_secs(10);

/// Returns the largest difference, relative to the largest value of `b`.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    // Keeps NaN.
    let largest = |x: f32, y: f32| if x >= y || x.is_nan() { x } else { y };
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, largest);
    apart / b.iter().map(|b| b.abs()).fold(0.0, largest)
}

/// Returns the first fault of a family, or `None`.
fn fault(
    device: &Device,
    family: Family,
    operations: &[(&str, Operation)],
) -> Result<Option<String>> {
    for (what, operation) in operations {
        for dtype in [DType::F16, DType::BF16] {
            let inputs = Inputs { device, dtype };
            let portable = inputs.run(*operation, KernelSet::Portable)?;
            let hopper = match inputs.run(*operation, KernelSet::Hopper) {
                Ok(hopper) => hopper,
                Err(error) if failure(&error) == Failure::Other => {
                    return Ok(Some(format!("{what} in {dtype:?} failed: {error}")));
                }
                Err(error) => return Err(error),
            };
            let (difference, allowed) = (difference(&hopper, &portable), inputs.allowed(family));
            if difference.is_nan() || difference > allowed {
                return Ok(Some(format!(
                    "{what} in {dtype:?}: relative error {difference:.1e}, allowed {allowed:.1e}"
                )));
            }
        }
    }
    Ok(None)
}

/// See [`crate::ops::check_kernels`].
pub fn check_kernels(device: &Device) -> Result<Vec<String>> {
    /// Ordinals of checked devices. The lock is held during a check, so other callers wait.
    static CHECKED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    let cuda = device.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    let context = stream.context();
    let mut checked = CHECKED.lock();
    if portable_forced()? || !is_hopper(cuda)? || checked.contains(&context.ordinal()) {
        return Ok(Vec::new());
    }
    let mut warnings = Vec::new();
    for (family, operations) in FAMILIES {
        if let Some(reason) = fault(device, family, operations)? {
            reject(context.ordinal(), family);
            warnings.push(format!(
                "cuda:{} ({}): the Hopper kernels for {family} failed their self-test ({reason}); slower portable \
                 kernels run instead; please report this",
                context.ordinal(),
                context.name().w()?
            ));
        }
    }
    checked.insert(context.ordinal());
    Ok(warnings)
}
