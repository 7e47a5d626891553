// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be asked of a model.

use std::{fmt, path::PathBuf};

use super::rules::{scaled_side, target_size};

/// What the reference tells the diffusion models beside the prompt, with nothing between.
pub const POSITIVE_PROMPT: &str = "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R \
    camera,   hyper detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme \
    meticulous detailing,  skin pore detailing, hyper sharpness, perfect without deformations.";

/// What the reference tells the diffusion models to stay away from.
pub const NEGATIVE_PROMPT: &str = "painting, oil painting, illustration, drawing, art, sketch, \
    oil painting, cartoon, CG Style, 3D render, unreal engine, blurring, dirty, messy, worst quality, \
    low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, over-smooth";

/// The models there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// VEnhancer as published with its paper: creative.
    V1,
    /// VEnhancer's second version: keeps texture and identity.
    V2,
    /// The small enhancer inside the plugin.
    Lite,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Lite => "lite",
        })
    }
}

/// How the diffusion models step from noise to picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// 14 evaluations on a fixed schedule.
    Fast,
    /// DPM-Solver++ with a free number of steps.
    Normal,
    /// Heun's method: two evaluations a step.
    Heun,
}

/// Everything a model can be told, beyond the [`Format`](super::Format) of a clip.
///
/// The names are those of the element's properties, whose texts say more.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The model asked for; `None`: the best one that this machine can run.
    pub model: Option<Model>,
    /// Strength of the refinement, 0–300.
    pub noise_aug: u32,
    /// The sampler.
    pub solver: Solver,
    /// Its steps, 1–100; [`Solver::Fast`] has its own number.
    pub steps: u32,
    /// Weight of the prompt, 1–20.
    pub guidance_scale: f64,
    /// The downscale factor told to the network, 1–8.
    pub downscale_cond: u32,
    /// What the video shows.
    pub prompt: String,
    /// What it must not look like.
    pub negative_prompt: String,
    /// Start of all randomness.
    pub seed: u64,
    /// The smallest output height in pixels of the diffusion models.
    pub min_height: u32,
    /// The largest output area in pixels of the diffusion models; 0: no limit.
    pub max_pixels: u32,
    /// A folder of weights instead of the hub.
    pub model_dir: Option<PathBuf>,
    /// Where to compute: "auto", "cpu", "cuda:N" or several, separated by commas.
    pub device: String,
}

impl Options {
    /// The size (w, h) that a model gives frames of size `input` for a scale.
    pub fn output_size(&self, model: Model, input: (usize, usize), scale: f64) -> (usize, usize) {
        match model {
            Model::Lite => (scaled_side(input.0, scale), scaled_side(input.1, scale)),
            Model::V1 | Model::V2 => target_size(input, scale, self.min_height, self.max_pixels),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            noise_aug: 200,
            solver: Solver::Fast,
            steps: 15,
            guidance_scale: 7.5,
            downscale_cond: 8,
            prompt: "a good video".into(),
            negative_prompt: NEGATIVE_PROMPT.into(),
            seed: 666,
            min_height: 720,
            max_pixels: 2_621_440,
            model_dir: None,
            device: "auto".into(),
        }
    }
}
