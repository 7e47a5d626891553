// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parameters of the sampler: those that the user sets, and those of one clip.

use std::sync::Arc;

use super::{
    geometry::Canvas, guidance::Guidance, noise::Noise, schedule::NoiseSchedule,
    solver::evaluations,
};
use crate::engine::{ColourFix, Options, Solver};

/// User settings of the sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Solver.
    pub solver: Solver,
    /// Number of solver steps.
    pub steps: u32,
    /// Scale and rescale factor of classifier-free guidance.
    pub guidance: Guidance,
    /// Noise augmentation of the hint, 0–300, see [`t_hint`](Self::t_hint).
    pub noise_aug: u32,
    /// The downscale factor that the network is conditioned on.
    pub downscale_cond: f64,
    /// How the colours of the input are kept.
    pub colour_fix: ColourFix,
    /// The smallest padded size, (h, w) in pixels.
    pub smallest: (usize, usize),
}

impl SamplerParams {
    /// Returns the timestep whose noise the hint has: `noise_aug` − 1.
    ///
    /// The schedule has no timestep without noise, so 0 and 1 are both timestep 0.
    pub fn t_hint(&self) -> usize {
        self.noise_aug.saturating_sub(1) as usize
    }

    /// Returns the number of evaluations of the network per window.
    pub fn evaluations(&self) -> usize {
        evaluations(&NoiseSchedule::default(), self.solver, self.steps).1.len()
    }
}

impl From<&Options> for SamplerParams {
    fn from(options: &Options) -> Self {
        Self {
            solver: options.solver,
            steps: options.steps,
            guidance: Guidance { scale: options.guidance_scale, rescale: Guidance::RESCALE },
            noise_aug: options.noise_aug,
            downscale_cond: f64::from(options.downscale_cond),
            colour_fix: options.colour_fix,
            smallest: Canvas::SMALLEST,
        }
    }
}

/// Parameters of one clip, which all parts of its run share.
#[derive(Debug, Clone)]
pub struct ClipParams {
    /// User settings.
    pub sampler: SamplerParams,
    /// Interpolated frames between two input frames.
    pub interpolated: usize,
    /// Noise of the hint, the start and the solver steps.
    pub noise: Arc<dyn Noise>,
}
