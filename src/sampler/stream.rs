// SPDX-License-Identifier: MIT OR Apache-2.0
//! A clip on its way through encoder and sampler, to whatever comes after.

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

/// What the sampler is told, beside the frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The sampler.
    pub solver: Solver,
    /// Its steps.
    pub steps: u32,
    /// Weight of the prompt.
    pub guidance: Guidance,
    /// Strength of the refinement: the hint has the noise of the time before this one.
    pub noise_aug: u32,
    /// The downscale factor told to the network.
    pub downscale_cond: f64,
    /// The smallest canvas, (h, w) in pixels.
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
    /// Encodes, on the caller's thread.
    pub encoder: Arc<dyn Autoencoder>,
    /// One for each device; each gets a share of the evaluations.
    pub denoisers: Vec<Arc<dyn Denoiser>>,
    /// Decodes, after the last denoiser and on its thread.
    pub decoder: Arc<dyn Autoencoder>,
}

impl Models {
    /// What each denoiser works on at a time, by the memory of its device.
    fn slices(&self, settings: &Settings, canvas: &Canvas, interpolated: usize) -> Vec<Slices> {
        let parts = self.denoisers.len();
        let guided = settings.guidance.guided();
        let choose = |(part, denoiser): (usize, &Arc<dyn Denoiser>)| {
            let work = Work::new(settings, canvas, interpolated, (part, parts));
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

/// Key frames in, latents of all output frames to a [`LatentSink`].
pub struct Stream<T: LatentSink> {
    encode: Encode,
    sampler: Sampler<T>,
    windows: Windows,
}

impl<T: LatentSink> Stream<T> {
    /// For frames on a canvas, with `interpolated` frames between two.
    ///
    /// # Errors
    /// [`Error::Setting`] without a denoiser.
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
        // No noise at all is none of the schedule's times.
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

    /// Takes the next key frame: planes [3, h, w] in \[−1, 1\], f32, and perhaps its alpha plane.
    ///
    /// # Errors
    /// Those of any part of the run, which is lost then.
    pub fn push(&mut self, planes: &Tensor, alpha: Option<Tensor>) -> Result<(), Error> {
        let frames = self.encode.push(planes, alpha)?;
        let non_final_windows = self.windows.non_final_windows(self.encode.output_frames());
        self.sampler.push(Batch { frames, non_final_windows, ended: false })
    }

    /// Ends the clip, and returns when the tail has taken everything.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<(), Error> {
        let non_final_windows = self.windows.non_final_windows(self.encode.output_frames());
        self.sampler.push(Batch { frames: Vec::new(), non_final_windows, ended: true })?;
        self.sampler.wait()
    }

    /// The sampler.
    pub fn sampler(&mut self) -> &mut Sampler<T> {
        &mut self.sampler
    }
}
