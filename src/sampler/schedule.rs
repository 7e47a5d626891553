// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the noise schedule of the published models and the timesteps of each solver.
//!
//! The numbers must match the reference bit for bit: a timestep halfway between two integers would
//! otherwise round to the other one.

use candle_core::{Result, Tensor};

use crate::engine::Solver;

/// Number of timesteps of the diffusion process.
const TIMESTEPS: usize = 1000;

/// The timestep to which the latents are diffused before sampling.
pub const START: usize = 899;

/// The timestep at which [`Solver::Fast`] changes from long steps to short steps.
const FAST_SPLIT: usize = 500;

/// The noise schedule: σ and α = √(1 − σ²) at every timestep.
///
/// It is the shifted cosine schedule with a log-SNR from 15 to −15 (arXiv 2301.11093). The shift is
/// interpolated linearly from scale 4 at the first timestep to scale 2 at the last.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    sigmas: Vec<f32>,
    alphas: Vec<f32>,
    /// log(σ/α), ascending.
    log_s: Vec<f32>,
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        // Computed in f32, because the model was trained with this rounding: the last σ is exactly 1, and
        // the first differs from the f64 value by 8e-5.
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

/// Returns the correctly rounded logarithm. The f32 functions of math libraries differ in the last bit.
/// Then a timestep halfway between two integers rounds differently on different machines.
fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// Returns value `n` of a linear sequence from 1 to 0, computed from both ends as in `torch.linspace`.
fn descending(n: usize) -> f32 {
    let step = -1.0 / (TIMESTEPS - 1) as f32;
    match n < TIMESTEPS / 2 {
        true => step.mul_add(n as f32, 1.0),
        false => -step * (TIMESTEPS - 1 - n) as f32,
    }
}

impl NoiseSchedule {
    /// Returns σ at timesteps 0 to 999.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns α and σ at timestep `t`, 0 to 999.
    pub(super) fn at(&self, t: usize) -> (f64, f64) {
        (f64::from(self.alphas[t]), f64::from(self.sigmas[t]))
    }

    /// Diffuses `x` to timestep `t`: returns α·x + σ·noise. `noise` has the shape of `x`.
    ///
    /// # Errors
    /// Mismatched shapes.
    pub fn diffuse(&self, x: &Tensor, t: usize, noise: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = self.at(t);
        (x * alpha)? + (noise * sigma)?
    }

    /// Returns s = σ/α at timestep `t`, interpolated linearly in log s between two integer timesteps. In
    /// f32, with the operations in the order of the reference.
    pub fn s(&self, t: f32) -> f32 {
        let (low, high, w) = (t.floor() as usize, t.ceil() as usize, t.fract());
        let log_s = (1.0 - w) * self.log_s[low] + w * self.log_s[high];
        f64::from(log_s).exp() as f32
    }

    /// Returns the integer timestep that the network is conditioned on at `s`: the inverse of
    /// [`s`](Self::s), rounded with ties to even. In f32, so that ties fall as in the reference.
    pub fn nearest_timestep(&self, s: f32) -> usize {
        let log_s = ln(s);
        let above = self.log_s.partition_point(|&entry| entry <= log_s);
        let low = above.saturating_sub(1).min(TIMESTEPS - 2);
        let w = (self.log_s[low] - log_s) / (self.log_s[low] - self.log_s[low + 1]);
        let w = w.clamp(0.0, 1.0);
        ((1.0 - w) * low as f32 + w * (low + 1) as f32).round_ties_even() as usize
    }
}

/// Returns the fractional timesteps of a solver in order. After the last step, the sample has no noise.
pub fn timesteps(solver: Solver, steps: u32) -> Vec<f32> {
    let steps = steps.max(1);
    let mut timesteps = match solver {
        Solver::Normal => trailing(START, 0, steps + 1),
        Solver::Heun => return trailing(START, 0, steps),
        Solver::Fast => [trailing(START, FAST_SPLIT, 4), trailing(FAST_SPLIT, 0, 11)].concat(),
    };
    // DPM-Solver++ skips the last timestep.
    timesteps.pop();
    timesteps
}

/// Returns timesteps from `last` down to `first` in steps of (last − first + 1)/n, clamped to that range.
/// There are n of them, or n + 1 if the step is rounded down.
fn trailing(last: usize, first: usize, n: u32) -> Vec<f32> {
    let (last, first) = (last as f64, first as f64);
    let step = (last - first + 1.0) / f64::from(n);
    let count = ((last - first + 1.0) / step).ceil() as usize;
    (0..count).map(|i| (last - i as f64 * step).clamp(first, last) as f32).collect()
}
