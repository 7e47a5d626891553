// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the traits that a network implements, so that the sampler runs on toy networks in tests.

use candle_core::{Device, Result, Tensor};

use super::slices::{Budget, Slices};

/// Pixels per latent along each side: the autoencoder downsamples by 8.
pub const LATENT: usize = 8;

/// Colour planes of an image: red, green and blue.
pub(super) const COLOURS: usize = 3;

/// Cancellation check, called before every block of a network. An error ends the evaluation.
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

/// The data type of a network's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The data type of the weights.
    #[default]
    Native,
    /// bf16, which has the range of f32. Used after an evaluation overflowed in that type.
    Bf16,
}

/// Precision and slice size of one evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// The data type of the activations.
    pub precision: Precision,
    /// The slices in which the network processes its input.
    pub slices: Slices,
}

/// The conditioning of one window.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// The timestep of the latents, 0 to 999.
    pub t: f64,
    /// The hint for the ControlNet: latents of the window's input frames, [1, 4, inputs, h, w], diffused
    /// to the timestep `t_hint`.
    pub hint: &'a Tensor,
    /// The timestep of the noise in `hint`: `noise-aug` − 1. The network embeds it like `t`.
    pub t_hint: f64,
    /// The downscale factor of the input that the network is conditioned on.
    pub s_cond: f64,
    /// For each frame of the window: its index in `hint` if it is an input frame, `None` if it is an
    /// interpolated frame.
    pub mask: &'a [Option<usize>],
}

/// The output of a denoiser for a window, [1, 4, f, h, w] in f32.
#[derive(Debug, Clone)]
pub struct Velocities {
    /// Predicted with the prompt.
    pub conditional: Tensor,
    /// Predicted with the negative prompt, if guidance was requested.
    pub unconditional: Option<Tensor>,
}

/// Predicts the velocity v = α·noise − σ·x₀ of x = α·x₀ + σ·noise (v-prediction, arXiv 2202.00512).
pub trait Denoiser: Send + Sync {
    /// The device of the input and output tensors.
    fn device(&self) -> &Device;

    /// Returns the available memory of the device and the peak memory of an evaluation of a window of
    /// `frames` latents of size (h, w). Returns `None` if memory does not limit the slices: on a CPU they
    /// are sized for the caches.
    fn budget(&self, _frames: usize, _latent: (usize, usize), _guided: bool) -> Option<Budget<'_>> {
        None
    }

    /// Predicts the velocities of a window x, [1, 4, f, h, w] in f32. With `guided`, returns both branches
    /// of classifier-free guidance; otherwise only the conditional one.
    ///
    /// # Errors
    /// Mismatched shapes, no memory left on the device, or a failed `check`.
    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities>;
}

/// The latent distribution of encoded frames: mean and standard deviation, each [f, 4, h, w] in f32,
/// scaled to about unit variance.
///
/// All output frames that start from the same input frame share it; each draws its own sample.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Mean, [f, 4, h, w].
    pub mean: Tensor,
    /// Standard deviation, [f, 4, h, w].
    pub std: Tensor,
}

impl Encoded {
    /// Returns mean + std·noise, [f, 4, h, w]. `noise` has the shape of the mean.
    ///
    /// # Errors
    /// Mismatched shapes.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (&self.std * noise)?
    }
}

/// Encodes frames to latents and decodes latents to frames.
pub trait Autoencoder: Send + Sync {
    /// Encodes frames [f, 3, 8h, 8w] in \[−1, 1\], f32. Each frame is encoded independently.
    ///
    /// # Errors
    /// Mismatched shapes, no memory left on the device, or a failed `check`.
    fn encode(&self, frames: &Tensor, mode: Mode, check: Check) -> Result<Encoded>;

    /// Decodes latents [f, 4, h, w], scaled as in [`Encoded`], to frames [f, 3, 8h, 8w] in f32. The
    /// decoder mixes the frames along time.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn decode(&self, latents: &Tensor, mode: Mode, check: Check) -> Result<Tensor>;

    /// Returns the peak memory in bytes, without the weights, of encoding one frame to latents of size
    /// (h, w). Returns 0 if memory is not limited.
    fn encode_bytes(&self, _latent: (usize, usize)) -> usize {
        0
    }

    /// As [`Denoiser::budget`], for decoding `frames` latents of size (h, w) in one call.
    fn decode_budget(&self, _frames: usize, _latent: (usize, usize)) -> Option<Budget<'_>> {
        None
    }
}
