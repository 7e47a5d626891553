// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much noise there is at which time, and the times at which a sampler stops.

use candle_core::{Result, Tensor};

use crate::engine::Solver;

/// Times of the diffusion process.
const TIMES: usize = 1000;

/// The time of the noise that sampling starts from.
pub const START: usize = 899;

/// Where [`Solver::Fast`] changes from long steps to short ones.
const FAST_CHANGE: usize = 500;

/// σ and α = √(1 − σ²) at every time: the cosine schedule of logsnr between 15 and −15 (arXiv 2301.11093),
/// shifted for scale 2 at the last time and for scale 4 at the first, blended linearly between.
#[derive(Debug, Clone)]
pub struct Table {
    sigmas: Vec<f32>,
    alphas: Vec<f32>,
}

impl Default for Table {
    fn default() -> Self {
        // In f32 throughout, since the model was trained on the table's rounding: σ is exactly 1 at the
        // end, and the first entry is 8e-5 off.
        let (first, last) = (7.5_f64.exp().atan(), (-7.5_f64).exp().atan());
        let shift = |scale: f64| (2.0 * (1.0 / scale).ln()) as f32;
        let sigmas = (0..TIMES).map(|n| {
            let t = falling(n);
            let logsnr = -2.0 * (first as f32 + t * (last - first) as f32).tan().ln();
            let logsnr = t * (logsnr + shift(2.0)) + (1.0 - t) * (logsnr + shift(4.0));
            (1.0 / (1.0 + logsnr.exp())).sqrt()
        });
        let sigmas: Vec<f32> = sigmas.collect();
        let alphas = sigmas.iter().map(|sigma| (1.0 - sigma * sigma).sqrt()).collect();
        Self { sigmas, alphas }
    }
}

/// From 1 down to 0, from both ends.
fn falling(n: usize) -> f32 {
    let step = -1.0 / (TIMES - 1) as f32;
    match n < TIMES / 2 {
        true => step.mul_add(n as f32, 1.0),
        false => -step * (TIMES - 1 - n) as f32,
    }
}

impl Table {
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

    /// s = σ/α at a time between two entries: linear in its logarithm.
    pub fn s(&self, t: f64) -> f64 {
        let log = |t: usize| {
            let square = self.sigmas[t] * self.sigmas[t];
            f64::from((square / (1.0 - square)).sqrt().ln())
        };
        let (low, share) = (t.floor(), t.fract());
        let (low, high) = (low as usize, t.ceil() as usize);
        ((1.0 - share) * log(low) + share * log(high)).exp()
    }
}

/// The times at which the network is asked, in order; then comes the end, without noise. They are
/// fractions: the network is told [`model_time`].
pub fn times(solver: Solver, steps: u32) -> Vec<f64> {
    let steps = steps.max(1) as usize;
    match solver {
        // From each, the last time above 0 is left out.
        Solver::Normal => trailing(START, 0, steps + 1, steps),
        Solver::Heun => trailing(START, 0, steps, steps),
        Solver::Fast => {
            let long = trailing(START, FAST_CHANGE, 4, 4);
            long.into_iter().chain(trailing(FAST_CHANGE, 0, 11, 10)).collect()
        }
    }
}

/// The first `count` of `n` times from `most` down, spaced so that one more would be below `least`.
fn trailing(most: usize, least: usize, n: usize, count: usize) -> Vec<f64> {
    // Multiplied first: times halfway between two whole ones must come out exact.
    (0..count).map(|i| most as f64 - (i * (most - least + 1)) as f64 / n as f64).collect()
}

/// What the network is told of a time: the nearest whole one, ties to even.
pub fn model_time(t: f64) -> usize {
    t.round_ties_even() as usize
}
