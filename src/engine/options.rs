// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the options of the models, without the GStreamer properties that set them.

use std::{fmt, path::PathBuf};

use super::{
    Error,
    rules::{limited_size, target_size},
    sizing::Sizing,
};

/// Text that the reference appends to every prompt, without a separator.
pub const POSITIVE_PROMPT: &str = "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R \
    camera,   hyper detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme \
    meticulous detailing,  skin pore detailing, hyper sharpness, perfect without deformations.";

/// The negative prompt of the reference.
pub const NEGATIVE_PROMPT: &str = "painting, oil painting, illustration, drawing, art, sketch, \
    oil painting, cartoon, CG Style, 3D render, unreal engine, blurring, dirty, messy, worst quality, \
    low quality, frames, watermark, signature, jpeg artifacts, deformed, lowres, over-smooth";

/// A published version of VEnhancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Published with the paper: generates more new detail.
    V1,
    /// The second version: preserves texture and identity better.
    V2,
}

/// A model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// VEnhancer.
    Diffusion(Version),
    /// The small model that is embedded in the plugin.
    Lite,
}

impl Model {
    /// Whether the model takes frames of Y'CbCr as well as of R'G'B', and passes frames where it has nothing to change.
    pub fn takes_ycbcr(self) -> bool {
        self == Self::Lite
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Diffusion(Version::V1) => "v1",
            Self::Diffusion(Version::V2) => "v2",
            Self::Lite => "lite",
        })
    }
}

/// The solver of the diffusion models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// DPM-Solver++(2M) SDE on a fixed schedule of 14 evaluations.
    Fast,
    /// DPM-Solver++(2M) SDE with a configurable number of steps.
    Normal,
    /// Heun's method: two evaluations per step.
    Heun,
}

/// How the diffusion models keep the colours of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColourFix {
    /// Leaves the colours as the model makes them, like the reference implementation.
    None,
    /// Takes the low frequencies from the input: keeps colours and brightness everywhere in the frame.
    Wavelet,
    /// Takes the mean of each colour from the input.
    Mean,
}

/// The options of a model, besides the [`Format`](super::Format) of a clip.
///
/// They have the names of the element's properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The requested model, or `None` for the best one that this machine can run.
    pub model: Option<Model>,
    /// Noise augmentation of the hint, 0–300. More noise lets the model change the input more. 0 acts as 1.
    pub noise_aug: u32,
    /// Solver.
    pub solver: Solver,
    /// Number of steps, 1–1000. [`Solver::Fast`] ignores it.
    pub steps: u32,
    /// Guidance scale, −100 to 100. 1 disables guidance.
    pub guidance_scale: f64,
    /// The downscale factor that the network is conditioned on, 1–8.
    pub downscale_cond: u32,
    /// Prompt: what the video shows.
    pub prompt: String,
    /// Negative prompt: what the video must not look like.
    pub negative_prompt: String,
    /// How the colours of the input are kept.
    pub colour_fix: ColourFix,
    /// Seed of all noise.
    pub seed: u64,
    /// Minimum output height of the diffusion models, in pixels.
    pub min_height: u32,
    /// Maximum output area of the diffusion models, in pixels. 0 means no limit.
    pub max_pixels: u32,
    /// Folder of weights to use instead of the hub.
    pub model_dir: Option<PathBuf>,
    /// Devices: "auto", or a comma-separated list of "cpu" and "cuda:N".
    pub device: String,
}

impl Options {
    /// Returns the output size (w, h) of a model for frames of size `input`. The limits of the diffusion models,
    /// [`min_height`](Self::min_height) and [`max_pixels`](Self::max_pixels), have precedence over the requested
    /// size.
    ///
    /// # Errors
    /// As [`Sizing::size`].
    pub fn output_size(
        &self,
        model: Model,
        input: (usize, usize),
        sizing: Sizing,
    ) -> Result<(usize, usize), Error> {
        let (least, most) = (self.min_height, self.max_pixels);
        let requested = sizing.size(input)?;
        Ok(match (model, sizing) {
            (Model::Lite, _) => requested,
            (Model::Diffusion(_), Sizing::Scale(scale)) => target_size(input, scale, least, most),
            (Model::Diffusion(_), Sizing::Fit(..)) => limited_size(input, requested, least, most),
        })
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
            colour_fix: ColourFix::Wavelet,
            seed: 666,
            min_height: 720,
            max_pixels: 2_621_440,
            model_dir: None,
            device: "auto".into(),
        }
    }
}
