// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the sampler asks of networks, so that it runs on toy ones as well as on the real ones.

use candle_core::{Device, Result, Tensor};

use super::slices::{Budget, Slices};

/// Pixels on a side of what one latent stands for.
pub const LATENT: usize = 8;

/// Planes of a picture.
pub(super) const COLOURS: usize = 3;

/// Asked before every block of a network; an error from it ends the evaluation.
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

/// The type of a network's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// That of its weights.
    #[default]
    Usual,
    /// bf16, whose range is that of f32: for an evaluation that has left the usual one's.
    Wide,
}

/// How an evaluation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// The type of activations.
    pub precision: Precision,
    /// How much is worked on at a time.
    pub slices: Slices,
}

/// What a window is denoised with.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// The time of the latents, 0 to 999.
    pub t: f64,
    /// The key frames' latents, with noise: [1, 4, keys, h, w].
    pub hint: &'a Tensor,
    /// The time of that noise.
    pub t_hint: f64,
    /// How much smaller the input is said to be.
    pub s_cond: f64,
    /// For each frame the number of its key frame in `hint`, if it is one.
    pub mask: &'a [Option<usize>],
}

/// What a denoiser makes of a window, [1, 4, f, h, w] in f32.
#[derive(Debug, Clone)]
pub struct Velocities {
    /// With the prompt.
    pub conditional: Tensor,
    /// With the negative prompt, where it was asked for.
    pub unconditional: Option<Tensor>,
}

/// Predicts velocities: of x = α·x₀ + σ·noise it gives v = α·noise − σ·x₀.
pub trait Denoiser: Send + Sync {
    /// Where it takes its input, and leaves its output.
    fn device(&self) -> &Device;

    /// The memory that the device has, and that an evaluation of a window of `frames` latents of size (h, w)
    /// takes; `None` where slices are not chosen by memory: on a CPU, where they fit its caches.
    fn budget(&self, _frames: usize, _latent: (usize, usize), _guided: bool) -> Option<Budget<'_>> {
        None
    }

    /// Both branches of guidance, or, not `guided`, the first, for a window x [1, 4, f, h, w] in f32.
    ///
    /// # Errors
    /// On shapes that do not fit, if the device has no memory, or if `check` fails.
    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities>;
}

/// Mean and standard std of the latents of frames, [f, 4, h, w] each, f32, scaled to about unit
/// variance. They are the same for every output frame that shows a key frame; each takes a sample of
/// its own.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// See the type.
    pub mean: Tensor,
    /// See the type.
    pub std: Tensor,
}

impl Encoded {
    /// Latents, with noise of the mean's shape.
    ///
    /// # Errors
    /// On noise of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (&self.std * noise)?
    }
}

/// Frames to latents and back.
pub trait Autoencoder: Send + Sync {
    /// Encodes frames [f, 3, 8h, 8w] in \[−1, 1\], f32, each for itself.
    ///
    /// # Errors
    /// On shapes that do not fit, if the device has no memory, or if `check` fails.
    fn encode(&self, frames: &Tensor, mode: Mode, check: Check) -> Result<Encoded>;

    /// Decodes latents [f, 4, h, w] as [`Encoded`] has them, together, to frames [f, 3, 8h, 8w], f32.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn decode(&self, latents: &Tensor, mode: Mode, check: Check) -> Result<Tensor>;

    /// Bytes that encoding a frame of latents of size (h, w) takes at its peak, beyond the weights, where
    /// memory matters.
    fn encode_bytes(&self, _latent: (usize, usize)) -> usize {
        0
    }

    /// As [`Denoiser::budget`], for decoding `frames` latents of size (h, w) together.
    fn decode_budget(&self, _frames: usize, _latent: (usize, usize)) -> Option<Budget<'_>> {
        None
    }
}
