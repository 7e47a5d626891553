// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much noise there is at which time, and the times at which a sampler stops.

use candle_core::{Result, Tensor};

use crate::engine::Solver;

/// Times of the diffusion process.
const TIMESTEPS: usize = 1000;

/// The time of the noise that sampling starts from.
pub const START: usize = 899;

/// Where [`Solver::Fast`] changes from long steps to short ones.
const FAST_SPLIT: usize = 500;

/// σ and α = √(1 − σ²) at every time: the cosine schedule of logsnr between 15 and −15 (arXiv 2301.11093),
/// shifted for scale 2 at the last time and for scale 4 at the first, blended linearly between.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    sigmas: Vec<f32>,
    alphas: Vec<f32>,
    /// log(σ/α), from small to large.
    log_s: Vec<f32>,
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        // In f32 throughout, since the model was trained on the table's rounding: σ is exactly 1 at the
        // end, and the first entry is 8e-5 off.
        let (first, last) = (7.5_f64.exp().atan(), (-7.5_f64).exp().atan());
        let shift = |scale: f64| (2.0 * (1.0 / scale).ln()) as f32;
        let sigmas = (0..TIMESTEPS).map(|n| {
            let t = descending(n);
            let logsnr = -2.0 * (first as f32 + t * (last - first) as f32).tan().ln();
            let logsnr = t * (logsnr + shift(2.0)) + (1.0 - t) * (logsnr + shift(4.0));
            (1.0 / (1.0 + logsnr.exp())).sqrt()
        });
        let sigmas: Vec<f32> = sigmas.collect();
        let alphas = sigmas.iter().map(|sigma| (1.0 - sigma * sigma).sqrt()).collect();
        let log_s = |sigma: &f32| ln((sigma * sigma / (1.0 - sigma * sigma)).sqrt());
        let log_s = sigmas.iter().map(log_s).collect();
        Self { sigmas, alphas, log_s }
    }
}

/// The logarithm, rounded correctly. f32 functions of libraries differ in the last place, by which a time half-way
/// between two whole ones falls to either.
fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// From 1 down to 0, from both ends.
fn descending(n: usize) -> f32 {
    let step = -1.0 / (TIMESTEPS - 1) as f32;
    match n < TIMESTEPS / 2 {
        true => step.mul_add(n as f32, 1.0),
        false => -step * (TIMESTEPS - 1 - n) as f32,
    }
}

impl NoiseSchedule {
    /// σ at times 0 to 999.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// α and σ at a time up to 999.
    pub(super) fn at(&self, t: usize) -> (f64, f64) {
        (f64::from(self.alphas[t]), f64::from(self.sigmas[t]))
    }

    /// `x` with noise of its shape: α·x + σ·noise.
    ///
    /// # Errors
    /// On noise of another shape.
    pub fn diffuse(&self, x: &Tensor, t: usize, noise: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = self.at(t);
        (x * alpha)? + (noise * sigma)?
    }

    /// s = σ/α at a time, interpolated linearly in log s between two whole times. In f32, operation for operation as in
    /// the reference.
    pub fn s(&self, t: f32) -> f32 {
        let (low, high, w) = (t.floor() as usize, t.ceil() as usize, t.fract());
        let log_s = (1.0 - w) * self.log_s[low] + w * self.log_s[high];
        f64::from(log_s).exp() as f32
    }

    /// The whole time that the network is given at s: the inverse of [`s`](Self::s), rounded to the nearest, ties to
    /// even. In f32 as in the reference, so that a time half-way between two whole ones falls to the same side.
    pub fn nearest_timestep(&self, s: f32) -> usize {
        let log_s = ln(s);
        let above = self.log_s.partition_point(|&entry| entry <= log_s);
        let low = above.saturating_sub(1).min(TIMESTEPS - 2);
        let w = (self.log_s[low] - log_s) / (self.log_s[low] - self.log_s[low + 1]);
        let w = w.clamp(0.0, 1.0);
        ((1.0 - w) * low as f32 + w * (low + 1) as f32).round_ties_even() as usize
    }
}

/// The times of the steps, in order, with fractions; after the last, the sample has no noise.
pub fn timesteps(solver: Solver, steps: u32) -> Vec<f32> {
    let steps = steps.max(1);
    let mut timesteps = match solver {
        Solver::Normal => trailing(START, 0, steps + 1),
        Solver::Heun => return trailing(START, 0, steps),
        Solver::Fast => [trailing(START, FAST_SPLIT, 4), trailing(FAST_SPLIT, 0, 11)].concat(),
    };
    // DPM-Solver++ leaves out the last step before the end.
    timesteps.pop();
    timesteps
}

/// Times from `most` down to `least` in steps of (most − least + 1)/n: n of them, or one more where the step is rounded
/// down.
fn trailing(most: usize, least: usize, n: u32) -> Vec<f32> {
    let (most, least) = (most as f64, least as f64);
    let step = (most - least + 1.0) / f64::from(n);
    let count = ((most - least + 1.0) / step).ceil() as usize;
    (0..count).map(|i| (most - i as f64 * step).clamp(least, most) as f32).collect()
}
