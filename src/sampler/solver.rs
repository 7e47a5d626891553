// SPDX-License-Identifier: MIT OR Apache-2.0
//! Expresses every solver as a linear update of a single frame, which is what makes the wavefront possible:
//! frames interact only inside the network.
//!
//! The variables are those of Karras et al. (arXiv 2206.00364): x has noise of standard deviation s = σ/α,
//! and d is the network's estimate of x without noise. After each evaluation, the new x is a linear
//! combination of x, d, the history of the frame and fresh noise.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseSchedule, timesteps};
use crate::engine::Solver;

/// The tensor that a frame keeps for its next evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum History {
    /// d, for the multistep solver.
    Denoised,
    /// The slope (x − d)/s, for Heun's correction.
    Slope(f64),
    /// Nothing.
    None,
}

/// The coefficients of an update x ← a·x + b·d + c·history + e·noise.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Update {
    x: f64,
    d: f64,
    history: f64,
    noise: f64,
    keeps: History,
}

impl Update {
    /// The last step, to s = 0: x ← d.
    const LAST: Self = Self { x: 0.0, d: 1.0, history: 0.0, noise: 0.0, keeps: History::None };

    /// DPM-Solver++(2M) SDE, midpoint, η = 1 (arXiv 2211.01095), from `s` to `next`. `before` is the step
    /// size h = ln(s/next) of the previous step.
    fn dpm(s: f64, next: f64, before: Option<f64>) -> Self {
        let h = s.ln() - next.ln();
        let new = -(-2.0 * h).exp_m1();
        let change = before.map_or(0.0, |before| 0.5 * new * h / before);
        Self {
            x: (next / s) * (-h).exp(),
            d: new + change,
            history: -change,
            noise: next * new.sqrt(),
            keeps: History::Denoised,
        }
    }

    /// Euler step from `s` to `next` along the slope at `s`.
    fn euler(s: f64, next: f64) -> Self {
        let ratio = next / s;
        Self { x: ratio, d: 1.0 - ratio, history: 0.0, noise: 0.0, keeps: History::Slope(s) }
    }

    /// Heun's correction of that step: replaces half of the slope at `s` by the slope at `next`.
    fn correction(s: f64, next: f64) -> Self {
        let half = (next - s) / 2.0;
        let ratio = half / next;
        Self { x: 1.0 + ratio, d: -ratio, history: -half, noise: 0.0, keeps: History::None }
    }
}

/// One evaluation of the network and the update of each frame that follows it.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Index of the solver step, from 0.
    pub step: usize,
    /// The timestep that the network is conditioned on.
    pub timestep: usize,
    /// Scale of x at the network's input, 1/√(1 + s²).
    input: f64,
    alpha: f64,
    sigma: f64,
    update: Update,
}

impl Evaluation {
    /// Returns the network's input for `x`.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        x * self.input
    }

    /// Returns d = α·input − σ·v from the network's input and its velocity v.
    ///
    /// # Errors
    /// Mismatched shapes.
    pub fn denoised(&self, input: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        (input * self.alpha)? - (velocity * self.sigma)?
    }

    /// Returns whether [`advance`](Self::advance) needs noise.
    pub fn needs_noise(&self) -> bool {
        self.update.noise != 0.0
    }

    /// Returns x and the history of a frame after this evaluation.
    ///
    /// # Errors
    /// Mismatched shapes, or a missing `history` or `noise` that the update needs.
    pub fn advance(
        &self,
        x: &Tensor,
        d: &Tensor,
        history: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let update = &self.update;
        let mut next = ((x * update.x)? + (d * update.d)?)?;
        for (what, tensor, factor) in
            [("history", history, update.history), ("noise", noise, update.noise)]
        {
            if factor != 0.0 {
                let Some(tensor) = tensor else {
                    candle_core::bail!("the solver update needs {what}, but the frame has none")
                };
                next = (next + (tensor * factor)?)?;
            }
        }
        let history = match update.keeps {
            History::Denoised => Some(d.clone()),
            History::Slope(s) => Some(((x - d)? * (1.0 / s))?),
            History::None => None,
        };
        Ok((next, history))
    }
}

/// Returns s of the first step and all evaluations of a solver in order, at least one.
pub fn evaluations(schedule: &NoiseSchedule, solver: Solver, steps: u32) -> (f64, Vec<Evaluation>) {
    let s: Vec<f32> = timesteps(solver, steps).into_iter().map(|t| schedule.s(t)).collect();
    let sigmas: Vec<f64> = s.iter().copied().map(f64::from).collect();
    let evaluation = |step: usize, at: usize, update| {
        let timestep = schedule.nearest_timestep(s[at]);
        let (alpha, sigma) = schedule.at(timestep);
        let input = 1.0 / (1.0 + sigmas[at] * sigmas[at]).sqrt();
        Evaluation { step, timestep, input, alpha, sigma, update }
    };
    let mut before = None;
    let mut list = Vec::new();
    for (step, &s) in sigmas.iter().enumerate() {
        let Some(&next) = sigmas.get(step + 1) else {
            list.push(evaluation(step, step, Update::LAST));
            break;
        };
        match solver {
            Solver::Heun => {
                list.push(evaluation(step, step, Update::euler(s, next)));
                list.push(evaluation(step, step + 1, Update::correction(s, next)));
            }
            Solver::Fast | Solver::Normal => {
                list.push(evaluation(step, step, Update::dpm(s, next, before)));
                before = Some(s.ln() - next.ln());
            }
        }
    }
    (sigmas[0], list)
}
