// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connects the encoder to the sampler for one clip and derives their parameters from the settings.

use std::sync::Arc;

use candle_core::Tensor;

use super::{
    budget::Work,
    control::Control,
    encode::{Encode, EncodeParams},
    geometry::Canvas,
    guidance::Guidance,
    model::{Autoencoder, Denoiser},
    noise::Noise,
    schedule::NoiseSchedule,
    slices::Slices,
    solver::evaluations,
    stage::{Batch, SamplerParams},
    wavefront::{LatentSink, Sampler},
    windows::Windows,
};
use crate::engine::{ClipContext, Error, Options, Solver};

/// User settings of the sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Solver.
    pub solver: Solver,
    /// Number of solver steps.
    pub steps: u32,
    /// Scale and rescale factor of classifier-free guidance.
    pub guidance: Guidance,
    /// Noise augmentation of the hint, 0–300: the hint has the noise of timestep `noise_aug` − 1.
    pub noise_aug: u32,
    /// The downscale factor that the network is conditioned on.
    pub downscale_cond: f64,
    /// The smallest padded size, (h, w) in pixels.
    pub smallest: (usize, usize),
}

impl From<&Options> for Settings {
    fn from(options: &Options) -> Self {
        Self {
            solver: options.solver,
            steps: options.steps,
            guidance: Guidance { scale: options.guidance_scale, rescale: Guidance::RESCALE },
            noise_aug: options.noise_aug,
            downscale_cond: f64::from(options.downscale_cond),
            smallest: Canvas::SMALLEST,
        }
    }
}

/// The networks of a run.
#[derive(Clone)]
pub struct Models {
    /// Encodes input frames on the caller's thread.
    pub encoder: Arc<dyn Autoencoder>,
    /// One denoiser per device. Each runs a contiguous share of the evaluations.
    pub denoisers: Vec<Arc<dyn Denoiser>>,
    /// Decodes frames on the thread of the last denoiser.
    pub decoder: Arc<dyn Autoencoder>,
}

impl Models {
    /// Returns the slices of each denoiser, chosen by the memory of its device.
    fn slices(&self, settings: &Settings, canvas: &Canvas, interpolated: usize) -> Vec<Slices> {
        let devices = self.denoisers.len();
        let guided = settings.guidance.guided();
        let choose = |(device, denoiser): (usize, &Arc<dyn Denoiser>)| {
            let work = Work::new(settings, canvas, interpolated, (device, devices));
            let Some(budget) = denoiser.budget(work.frames(), canvas.latent(), guided) else {
                return Slices::default();
            };
            let encode = match work.encodes_concurrently() {
                true => self.encoder.encode_bytes(canvas.latent()),
                false => 0,
            };
            budget.slices(work.latents() + encode)
        };
        self.denoisers.iter().enumerate().map(choose).collect()
    }
}

/// Takes input frames and passes the sampled latents of all output frames to a [`LatentSink`].
pub struct Stream<T: LatentSink> {
    encode: Encode,
    sampler: Sampler<T>,
    windows: Windows,
}

impl<T: LatentSink> Stream<T> {
    /// Creates the stream for frames on `canvas` with `interpolated` frames between two input frames.
    ///
    /// # Errors
    /// [`Error::Setting`] if `models` has no denoiser.
    pub fn new(
        models: &Models,
        settings: &Settings,
        noise: Arc<dyn Noise>,
        (canvas, interpolated): (Canvas, usize),
        clip: ClipContext,
        output: T,
    ) -> Result<Self, Error> {
        Self::with_control(
            models,
            settings,
            noise,
            (canvas, interpolated),
            Control::new(clip),
            output,
        )
    }

    /// As [`new`](Self::new), within a run.
    pub(super) fn with_control(
        models: &Models,
        settings: &Settings,
        noise: Arc<dyn Noise>,
        (canvas, interpolated): (Canvas, usize),
        control: Control,
        output: T,
    ) -> Result<Self, Error> {
        let schedule = NoiseSchedule::default();
        let (start, evaluations) = evaluations(&schedule, settings.solver, settings.steps);
        // noise-aug counts timesteps: 1 is timestep 0. The schedule has no timestep without noise, so 0 is
        // timestep 0 as well.
        let t_hint = settings.noise_aug.saturating_sub(1) as usize;
        let windows = Windows::of_clip(interpolated);
        let params = SamplerParams {
            guidance: settings.guidance,
            t_hint,
            s_cond: settings.downscale_cond,
            interpolated,
            noise: noise.clone(),
        };
        let slices = models.slices(settings, &canvas, interpolated);
        let devices = (&*models.denoisers, &*slices);
        let sampler = Sampler::build(devices, &evaluations, params, control.clone(), output)?;
        let encode_params = EncodeParams { canvas, interpolated, schedule, start, t_hint, noise };
        let encode = Encode::new(models.encoder.clone(), encode_params, control);
        Ok(Self { encode, sampler, windows })
    }

    /// Takes the next input frame: planes [3, h, w] in \[−1, 1\], f32, and optionally its alpha plane.
    ///
    /// # Errors
    /// Any error of the run. The run cannot continue after an error.
    pub fn push(&mut self, planes: &Tensor, alpha: Option<Tensor>) -> Result<(), Error> {
        let frames = self.encode.push(planes, alpha)?;
        let non_final_windows = self.windows.non_final_windows(self.encode.output_frames());
        self.sampler.push(Batch { frames, non_final_windows, ended: false })
    }

    /// Ends the clip. Returns when the output has taken all frames.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<(), Error> {
        let non_final_windows = self.windows.non_final_windows(self.encode.output_frames());
        self.sampler.push(Batch { frames: Vec::new(), non_final_windows, ended: true })?;
        self.sampler.wait()
    }

    /// Returns the sampler.
    pub fn sampler(&mut self) -> &mut Sampler<T> {
        &mut self.sampler
    }
}
