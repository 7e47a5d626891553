// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sampler of the diffusion models, for clips of any length in memory of one size.
//!
//! ```text
//! key frames ─► intake ─► stage 0 ─► stage 1 ─► … ─► decode ─► frames
//!              encodes    one evaluation of the       windows of
//!              each once  network, window by window   5 frames
//! ```
//!
//! A window goes into a stage as soon as its frames are there, so window n is at stage 0 when n − 1 is at
//! stage 1: see [`Sampler`]. A short clip is the case of one window. Latents of a frame are tensors of
//! their own, [1, 4, 1, h, w] in f32, which are put together for as long as a network looks at them: so
//! what is in flight is exactly what the rules need, and moves between devices as it is.

mod budget;
mod control;
mod decode;
mod geometry;
mod guidance;
mod intake;
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
pub use stage::{Batch, Frame, Recipe};
pub use stream::{Models, Settings, Stream};
pub use tiles::{COLUMNS, ROWS, tile_weights};
pub use wavefront::{Sampler, Tail};
pub use windows::{Windows, cross_fade};

use self::{control::Control, noise::Part};
use crate::engine::{self, ClipContext, Enhancer, Error, Format};

/// Frames that leave: decoded, cropped, rounded.
struct Exit {
    decode: Decode,
    canvas: Canvas,
    control: Control,
}

impl Tail for Exit {
    fn take(&mut self, batch: Batch) -> Result<(), Error> {
        let Self { decode, canvas, control } = self;
        let latents = batch.frames.into_iter().map(|frame| (frame.x, frame.alpha));
        decode.push(latents, batch.ended, |planes, alpha| {
            let frame = picture::frame(&planes, alpha.as_ref(), canvas)?;
            control.sink.frame(Arc::new(frame))
        })
    }
}

/// A clip at work.
struct Run {
    format: Format,
    stream: Stream<Exit>,
}

/// The diffusion models at work: networks, settings and noise, put together.
pub struct Wavefront {
    models: Models,
    settings: Settings,
    noise: Arc<dyn Noise>,
    run: Option<Run>,
}

impl Wavefront {
    /// With networks whose prompt is settled.
    pub fn new(models: Models, settings: Settings, noise: Arc<dyn Noise>) -> Self {
        Self { models, settings, noise, run: None }
    }

    /// Frames of latents in flight: see [`Sampler::latents`].
    ///
    /// # Errors
    /// Those of the run.
    pub fn latents(&mut self) -> Result<usize, Error> {
        let Some(Run { stream, .. }) = &mut self.run else {
            return Ok(0);
        };
        stream.sampler().rest()?;
        Ok(stream.sampler().latents())
    }

    /// Begins a clip, or a part of one that begins with key frame `first` of it.
    fn begin(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.run = None;
        let (width, height) = format.output;
        let canvas = Canvas::new((height, width), self.settings.smallest);
        let control = Control::new(clip);
        let decoder = self.models.decoder.clone();
        let last = self.models.denoisers.len().saturating_sub(1);
        let parts = self.models.denoisers.len().max(1);
        let latents =
            Work::new(&self.settings, &canvas, format.interpolated, (last, parts)).latents();
        let decode = Decode::with_control(decoder, canvas.latent(), control.clone(), latents);
        let exit = Exit { decode, canvas, control: control.clone() };
        let noise =
            Arc::new(Part { whole: self.noise.clone(), first: first * (format.interpolated + 1) });
        let sizes = (canvas, format.interpolated);
        let stream =
            Stream::with_control(&self.models, &self.settings, noise, sizes, control, exit)?;
        self.run = Some(Run { format, stream });
        Ok(())
    }

    /// Does something with the run, which an error ends.
    fn with(
        &mut self,
        work: impl FnOnce(&Format, &mut Stream<Exit>) -> Result<(), Error>,
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
        self.with(|format, stream| {
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
        self.with(|_, stream| stream.finish())?;
        self.run = None;
        Ok(())
    }

    fn reset(&mut self) {
        self.run = None;
    }
}
