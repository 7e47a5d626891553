// SPDX-License-Identifier: MIT OR Apache-2.0
//! Samples the diffusion models over clips of any length in constant memory.
//!
//! ```text
//! input frames ─► encode ─► stage 0 ─► stage 1 ─► … ─► decode ─► output frames
//!                 each      one evaluation of the       windows of
//!                 once      network, window by window   5 frames
//! ```
//!
//! A *stage* is one evaluation of the network. The *wavefront* is the order in which the stages run: a
//! stage evaluates a window as soon as the frames of that window arrive, so window n is at stage 0 while
//! window n − 1 is at stage 1. The module `wavefront` implements it: see [`Sampler`]. A short clip is a
//! single window.
//!
//! The latents of each frame are a separate tensor [1, 4, 1, h, w] in f32. A stage concatenates them only
//! for the duration of an evaluation. Therefore only the frames that are still needed take memory, and
//! frames move between devices without splitting.
//!
//! Where to look:
//!
//! | question | code |
//! |---|---|
//! | Where are windows cross-faded? | [`cross_fade`], called by `Sliding::finish_window` in `windows` |
//! | How does `noise-aug` reach the network? | `Stream::with_control` turns it into the timestep `t_hint`; `encode` diffuses the hint to that timestep; `stage` passes both in [`Conditions`] |
//! | What is the wavefront? | `wavefront` |
//! | How many frames does a run hold? | `plan` (lookahead, resume point), `budget` (bytes) |

mod budget;
mod control;
mod decode;
mod encode;
mod geometry;
mod guidance;
mod model;
mod noise;
mod picture;
mod plan;
mod schedule;
mod slices;
mod solver;
mod stage;
mod stream;
mod tiles;
mod wavefront;
mod windows;

use std::sync::Arc;

pub use budget::{Footprint, Need, Work};
pub use control::failed;
pub use decode::{Decode, FRAMES};
pub use geometry::{Canvas, mask};
pub use guidance::Guidance;
pub use model::{
    Autoencoder, Check, Conditions, Denoiser, Encoded, LATENT, Mode, Precision, Velocities,
};
pub use noise::{Noise, Purpose, Seeded};
pub use picture::{fit, frame, planes};
pub use plan::{Plan, lookahead, resume_from};
pub use schedule::{NoiseSchedule, START, timesteps};
pub use slices::{Budget, RESERVE, Slices};
pub use solver::{Evaluation, evaluations};
pub use stage::{Batch, Frame, SamplerParams};
pub use stream::{Models, Settings, Stream};
pub use tiles::{COLUMNS, ROWS, tile_weights};
pub use wavefront::{LatentSink, Sampler};
pub use windows::{Windows, cross_fade};

use self::{control::Control, noise::OffsetNoise};
use crate::engine::{self, ClipContext, Enhancer, Error, Format};

/// Decodes sampled latents, crops and rounds the frames, and passes them to the sink.
struct FrameOutput {
    decode: Decode,
    canvas: Canvas,
    control: Control,
}

impl LatentSink for FrameOutput {
    fn take(&mut self, batch: Batch) -> Result<(), Error> {
        let Self { decode, canvas, control } = self;
        let latents = batch.frames.into_iter().map(|frame| (frame.x, frame.alpha));
        decode.push(latents, batch.ended, |planes, alpha| {
            let frame = picture::frame(&planes, alpha.as_ref(), canvas)?;
            control.sink.frame(Arc::new(frame))
        })
    }
}

/// The clip in progress.
struct Run {
    format: Format,
    stream: Stream<FrameOutput>,
}

/// A diffusion model as an [`Enhancer`]: networks, sampler settings and noise source.
pub struct Wavefront {
    models: Models,
    settings: Settings,
    noise: Arc<dyn Noise>,
    run: Option<Run>,
}

impl Wavefront {
    /// Creates the enhancer. The denoisers of `models` already contain the encoded prompts.
    pub fn new(models: Models, settings: Settings, noise: Arc<dyn Noise>) -> Self {
        Self { models, settings, noise, run: None }
    }

    /// Returns the number of frames of latents in flight: see [`Sampler::latents`].
    ///
    /// # Errors
    /// Any error of the run.
    pub fn latents(&mut self) -> Result<usize, Error> {
        let Some(Run { stream, .. }) = &mut self.run else {
            return Ok(0);
        };
        stream.sampler().wait()?;
        Ok(stream.sampler().latents())
    }

    /// Starts a clip whose first frame is input frame `first` of the whole clip.
    fn begin(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.run = None;
        let (width, height) = format.output;
        let canvas = Canvas::new((height, width), self.settings.smallest);
        let control = Control::new(clip);
        let decoder = self.models.decoder.clone();
        let last = self.models.denoisers.len().saturating_sub(1);
        let devices = self.models.denoisers.len().max(1);
        let latents =
            Work::new(&self.settings, &canvas, format.interpolated, (last, devices)).latents();
        let decode = Decode::with_control(decoder, canvas.latent(), control.clone(), latents);
        let output = FrameOutput { decode, canvas, control: control.clone() };
        let noise = Arc::new(OffsetNoise {
            inner: self.noise.clone(),
            first: first * (format.interpolated + 1),
        });
        let sizes = (canvas, format.interpolated);
        let stream =
            Stream::with_control(&self.models, &self.settings, noise, sizes, control, output)?;
        self.run = Some(Run { format, stream });
        Ok(())
    }

    /// Calls `work` with the run. An error ends the run.
    fn with_run(
        &mut self,
        work: impl FnOnce(&Format, &mut Stream<FrameOutput>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Run { format, stream } = self.run.as_mut().ok_or(Error::Cancelled)?;
        let result = work(format, stream);
        if result.is_err() {
            self.run = None;
        }
        result
    }
}

impl Enhancer for Wavefront {
    fn lookahead(&self, format: &Format) -> usize {
        lookahead(&self.settings, format.interpolated)
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.begin(0, format, clip)
    }

    fn start_at(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.begin(first, format, clip)
    }

    fn push(&mut self, frame: engine::Frame) -> Result<(), Error> {
        self.with_run(|format, stream| {
            let failed = |error: candle_core::Error| Error::Compute {
                what: "reading a frame".into(),
                why: error.to_string(),
            };
            let planes = picture::planes(&frame).map_err(failed)?;
            let alpha = format.alpha.then(|| picture::alpha(&frame)).transpose();
            stream.push(&planes, alpha.map_err(failed)?)
        })
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.with_run(|_, stream| stream.finish())?;
        self.run = None;
        Ok(())
    }

    fn reset(&mut self) {
        self.run = None;
    }
}
