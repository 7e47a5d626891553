// SPDX-License-Identifier: MIT OR Apache-2.0
//! The solvers, as what one evaluation of the network does to one frame.
//!
//! In the variables of Karras et al. (arXiv 2206.00364) x has noise of std s = σ/α. Every solver
//! here makes of a frame's x, of its d (the x without noise that the network sees), of what it has
//! remembered of the frame, and of fresh noise a sum: so it is given by coefficients, and frames do not
//! meet.

use candle_core::{Result, Tensor};

use super::schedule::{NoiseSchedule, timesteps};
use crate::engine::Solver;

/// What is kept of a frame for the next evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum History {
    /// d.
    Denoised,
    /// The slope (x − d)/s.
    Slope(f64),
    /// Nothing.
    None,
}

/// x ← a·x + b·d + c·history + e·noise.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Update {
    x: f64,
    d: f64,
    history: f64,
    noise: f64,
    keeps: History,
}

impl Update {
    /// To s = 0.
    const LAST: Self = Self { x: 0.0, d: 1.0, history: 0.0, noise: 0.0, keeps: History::None };

    /// DPM-Solver++(2M) SDE, midpoint, η = 1 (arXiv 2211.01095), from s to s', with h of the step before.
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

    /// Euler's step along the slope at s.
    fn euler(s: f64, next: f64) -> Self {
        let ratio = next / s;
        Self { x: ratio, d: 1.0 - ratio, history: 0.0, noise: 0.0, keeps: History::Slope(s) }
    }

    /// Heun's correction of it: half of the way is gone along the slope at s' instead.
    fn correction(s: f64, next: f64) -> Self {
        let half = (next - s) / 2.0;
        let share = half / next;
        Self { x: 1.0 + share, d: -share, history: -half, noise: 0.0, keeps: History::None }
    }
}

/// One evaluation of the network, and what it does to each frame.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The step that it belongs to, from 0.
    pub step: usize,
    /// The time that the network is told.
    pub timestep: usize,
    /// What x is multiplied by for the network.
    input: f64,
    alpha: f64,
    sigma: f64,
    update: Update,
}

impl Evaluation {
    /// What the network sees of x.
    ///
    /// # Errors
    /// If the device has no memory.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        x * self.input
    }

    /// d, of what the network has input and said: α·x − σ·v.
    ///
    /// # Errors
    /// On different shapes.
    pub fn denoised(&self, input: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        (input * self.alpha)? - (velocity * self.sigma)?
    }

    /// Whether [`advance`](Self::advance) needs noise.
    pub fn needs_noise(&self) -> bool {
        self.update.noise != 0.0
    }

    /// The frame after this evaluation: its x, and what to remember of it for the next.
    ///
    /// # Errors
    /// On different shapes, or if there is none of what is needed.
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
                let Some(tensor) = tensor else { candle_core::bail!("a frame without {what}") };
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

/// The s that x starts with, and all evaluations of a solver, in order: at least one.
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
