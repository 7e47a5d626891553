// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connects the encoder to the sampler for one clip and chooses their slices.

use std::sync::Arc;

use candle_core::Tensor;

use super::{
    budget::Work,
    control::Control,
    encode::{Encode, EncodeParams},
    geometry::Canvas,
    model::{Autoencoder, Denoiser},
    params::ClipParams,
    schedule::NoiseSchedule,
    slices::Slices,
    solver::evaluations,
    stage::Batch,
    wavefront::{LatentSink, Sampler},
    windows::Windows,
};
use crate::engine::{ClipContext, Error};

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
    fn slices(&self, params: &ClipParams, canvas: &Canvas) -> Vec<Slices> {
        let ClipParams { sampler, interpolated, .. } = params;
        let devices = self.denoisers.len();
        let guided = sampler.guidance.guided();
        let choose = |(device, denoiser): (usize, &Arc<dyn Denoiser>)| {
            let work = Work::new(sampler, canvas, *interpolated, (device, devices));
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
    /// Creates the stream for frames on `canvas`.
    ///
    /// # Errors
    /// [`Error::Setting`] if `models` has no denoiser.
    pub fn new(
        models: &Models,
        params: ClipParams,
        canvas: Canvas,
        clip: ClipContext,
        output: T,
    ) -> Result<Self, Error> {
        Self::with_control(models, params, canvas, Control::new(clip), output)
    }

    /// As [`new`](Self::new), within a run.
    pub(super) fn with_control(
        models: &Models,
        params: ClipParams,
        canvas: Canvas,
        control: Control,
        output: T,
    ) -> Result<Self, Error> {
        let params = Arc::new(params);
        let schedule = NoiseSchedule::default();
        let (start, evaluations) =
            evaluations(&schedule, params.sampler.solver, params.sampler.steps);
        let windows = Windows::of_clip(params.interpolated);
        let slices = models.slices(&params, &canvas);
        let devices = (&*models.denoisers, &*slices);
        let sampler =
            Sampler::build(devices, &evaluations, params.clone(), control.clone(), output)?;
        let encode_params = EncodeParams { clip: params, canvas, schedule, start };
        let encode = Encode::new(models.encoder.clone(), encode_params, control);
        Ok(Self { encode, sampler, windows })
    }

    /// Takes the next input frame, resized and padded as by [`fit`](super::fit): [1, 3, H, W] in \[−1, 1\], f32.
    ///
    /// # Errors
    /// Any error of the run. The run cannot continue after an error.
    pub fn push(&mut self, image: &Tensor) -> Result<(), Error> {
        let frames = self.encode.push(image)?;
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
