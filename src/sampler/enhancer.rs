// SPDX-License-Identifier: MIT OR Apache-2.0
//! The diffusion models as an [`Enhancer`]: frames in, frames out, one clip after another.

use std::sync::{
    Arc,
    mpsc::{Sender, channel},
};

use super::{
    alpha::AlphaPlane,
    budget::Work,
    colour::LowFrequencies,
    control::Control,
    decode::Decode,
    finish::{Finish, SideData},
    geometry::Canvas,
    noise::{Noise, OffsetNoise},
    params::{ClipParams, SamplerParams},
    picture,
    plan::lookahead,
    stage::Batch,
    stream::{Models, Stream},
    wavefront::LatentSink,
};
use crate::engine::{self, ClipContext, ColourFix, Enhancer, Error, Format, check_times};

/// Decodes sampled latents and passes finished frames to the sink.
struct FrameOutput {
    decode: Decode,
    finish: Finish,
    control: Control,
}

impl LatentSink for FrameOutput {
    fn take(&mut self, batch: Batch) -> Result<(), Error> {
        let Self { decode, finish, control } = self;
        let latents = batch.frames.into_iter().map(|frame| frame.x);
        decode.push(latents, batch.ended, |image| {
            finish.push(&image, |frame| control.sink.frame(Arc::new(frame)))
        })
    }
}

/// The clip in progress.
struct Run {
    format: Format,
    canvas: Canvas,
    stream: Stream<FrameOutput>,
    /// To [`Finish`].
    side_data: Sender<SideData>,
    /// The time of the last input frame.
    previous: Option<u64>,
}

impl Run {
    /// Checks that the output times are those of the frames that the model makes.
    fn check(&mut self, time: u64, outputs: &[u64]) -> Result<(), Error> {
        check_times(self.previous, time, outputs)?;
        let made = match self.previous.replace(time) {
            None => outputs == [time],
            Some(previous) => {
                let steps = self.format.interpolated as u128 + 1;
                let evenly = |(n, output): (u128, &u64)| {
                    u128::from(output - previous) * steps == u128::from(time - previous) * n
                };
                outputs.len() as u128 == steps && (1..).zip(outputs).all(evenly)
            }
        };
        match made {
            true => Ok(()),
            false => Err(self.unavailable(outputs)),
        }
    }

    fn unavailable(&self, outputs: &[u64]) -> Error {
        Error::Internal {
            what: format!(
                "output frames at {outputs:?}; the model makes {} at equal intervals between two input frames",
                self.format.interpolated
            ),
        }
    }

    fn push(&mut self, frame: &engine::Frame, colour_fix: ColourFix) -> Result<(), Error> {
        let failed = |error: candle_core::Error| Error::Compute {
            what: "reading an input frame".into(),
            why: error.to_string(),
        };
        let image = picture::planes(frame).and_then(|planes| picture::fit(&planes, &self.canvas));
        let image = image.map_err(failed)?;
        let colours = match colour_fix {
            ColourFix::None => None,
            _ => {
                let planes = image.flatten_all().and_then(|image| image.to_vec1::<f32>());
                LowFrequencies::of(colour_fix, &planes.map_err(failed)?, &self.canvas)
            }
        };
        let alpha = self.format.alpha.then(|| AlphaPlane::of(frame));
        // Nobody receives after an error, which `push` returns.
        let _ = self.side_data.send(SideData { alpha, colours });
        self.stream.push(&image)
    }
}

/// A diffusion model as an [`Enhancer`]: networks, sampler params and noise source.
pub struct DiffusionEnhancer {
    models: Models,
    params: SamplerParams,
    noise: Arc<dyn Noise>,
    run: Option<Run>,
}

impl DiffusionEnhancer {
    /// Creates the enhancer. The denoisers of `models` already contain the encoded prompts.
    pub fn new(models: Models, params: SamplerParams, noise: Arc<dyn Noise>) -> Self {
        Self { models, params, noise, run: None }
    }

    /// Returns the number of frames of latents in flight: see [`Sampler::latents`](super::Sampler::latents).
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
        let canvas = Canvas::new((height, width), self.params.smallest);
        let control = Control::new(clip);
        let decoder = self.models.decoder.clone();
        let last = self.models.denoisers.len().saturating_sub(1);
        let devices = self.models.denoisers.len().max(1);
        let latents =
            Work::new(&self.params, &canvas, format.interpolated, (last, devices)).latents();
        let decode = Decode::with_control(decoder, canvas.latent(), control.clone(), latents);
        let (side_data, inputs) = channel();
        let finish = Finish::new(canvas, self.params.colour_fix, format.interpolated, inputs);
        let output = FrameOutput { decode, finish, control: control.clone() };
        let noise = Arc::new(OffsetNoise {
            inner: self.noise.clone(),
            first: first * (format.interpolated + 1),
        });
        let params =
            ClipParams { sampler: self.params.clone(), interpolated: format.interpolated, noise };
        let stream = Stream::with_control(&self.models, params, canvas, control, output)?;
        self.run = Some(Run { format, canvas, stream, side_data, previous: None });
        Ok(())
    }

    /// Calls `work` with the run. An error ends the run.
    fn with_run(&mut self, work: impl FnOnce(&mut Run) -> Result<(), Error>) -> Result<(), Error> {
        let run = self.run.as_mut().ok_or_else(Error::without_start)?;
        let result = work(run);
        if result.is_err() {
            self.run = None;
        }
        result
    }
}

impl Enhancer for DiffusionEnhancer {
    fn lookahead(&self, format: &Format) -> usize {
        lookahead(&self.params, format.interpolated)
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.begin(0, format, clip)
    }

    fn start_at(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.begin(first, format, clip)
    }

    fn push(&mut self, frame: engine::Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        let colour_fix = self.params.colour_fix;
        self.with_run(|run| {
            run.check(time, outputs)?;
            run.push(&frame, colour_fix)
        })
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        self.with_run(|run| match outputs {
            [] => run.stream.finish(),
            _ => Err(run.unavailable(outputs)),
        })?;
        self.run = None;
        Ok(())
    }

    fn reset(&mut self) {
        self.run = None;
    }
}
