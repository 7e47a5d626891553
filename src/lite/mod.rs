// SPDX-License-Identifier: MIT OR Apache-2.0
//! `model=lite`: small networks, embedded in the plugin, that run on any CPU.
//!
//! Upscaling is a Lanczos resize plus a residual that a network predicts ([`network`]). Frame interpolation
//! estimates the optical flow between two neighbours ([`flow`]), warps both, and blends them.
//! `examples/train_lite` trains the networks.

#[doc(hidden)]
pub mod flow;
#[doc(hidden)]
pub mod network;
mod overlay;
#[doc(hidden)]
pub mod plane;
mod pool;
mod resize;
mod retimed;
#[doc(hidden)]
pub mod statistics;
mod synthesis;
mod tone;
mod upscale;
mod weights;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::{ClipContext, Enhancer, Error, Format, Frame, Progress, check_times};
use flow::{Motion, Pyramid};
use plane::Plane;
use pool::FramePool;
pub use retimed::Retimed;
use weights::Networks;

/// An input frame after processing.
struct InputFrame {
    time: u64,
    /// Luma pyramid of the input, if frames are interpolated.
    pyramid: Option<Pyramid>,
    /// The frame at the output size.
    output: Arc<Frame>,
}

/// The enhancer of `model=lite`. It uses all cores of the CPU.
pub struct Lite {
    networks: &'static Networks,
    pool: FramePool,
    /// The current clip; `None` before `start` and after `finish`.
    clip: Option<(Format, ClipContext)>,
    /// The last input frame of the clip.
    previous: Option<InputFrame>,
}

impl Lite {
    /// Creates the enhancer. The first call in a process loads the weights.
    ///
    /// # Errors
    /// [`Error::Weights`] if the weights embedded in the plugin are damaged.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            networks: Networks::get()?,
            pool: FramePool::default(),
            clip: None,
            previous: None,
        })
    }

    fn clip(&self) -> Result<&(Format, ClipContext), Error> {
        self.clip.as_ref().ok_or_else(Error::without_start)
    }

    /// Resizes `frame` to the output size and, concurrently, estimates the motion from the previous frame at each
    /// of the `fractions`.
    fn process(
        &self,
        frame: Frame,
        pyramid: &Pyramid,
        fractions: &[f32],
        (format, clip): &(Format, ClipContext),
    ) -> Result<(Frame, Vec<Motion>), Error> {
        let upscale = || match format.input == format.output {
            true => Ok(frame),
            false => {
                let luma = pyramid.full_size();
                upscale::upscale(self.networks, &self.pool, &frame, luma, format, &clip.cancel)
            }
        };
        let previous = self.previous.as_ref().and_then(|previous| previous.pyramid.as_ref());
        let estimate = || match previous {
            Some(previous) => {
                let pyramids = [previous, pyramid];
                let motion = |fraction: &f32| {
                    flow::estimate(self.networks, &self.pool, pyramids, *fraction, &clip.cancel)
                };
                fractions.iter().map(motion).collect()
            }
            None => Ok(Vec::new()),
        };
        let (output, motions): (_, Result<Vec<_>, Error>) = rayon::join(upscale, estimate);
        Ok((output?, motions?))
    }

    /// Delivers the frames between `previous` and `next`: one per motion, at its fraction of the way. Returns the
    /// time spent on computing them, without the time that the sink blocked.
    fn interpolate(
        &self,
        [previous, next]: [&Arc<Frame>; 2],
        motions: impl Iterator<Item = (f32, Motion)>,
        (format, clip): &(Format, ClipContext),
    ) -> Result<Duration, Error> {
        let mut took = Duration::ZERO;
        for (fraction, motion) in motions {
            let start = Instant::now();
            let mut frame = self.pool.frame(format.output)?;
            let neighbours = [&**previous, &**next];
            synthesis::interpolate(
                neighbours,
                &motion,
                fraction,
                format,
                &mut frame,
                &clip.cancel,
            )?;
            let frame = self.pool.share(frame);
            took += start.elapsed();
            clip.sink.frame(frame)?;
        }
        Ok(took)
    }
}

/// Whether a model must be ready to interpolate frames of this format.
fn interpolates(format: &Format) -> bool {
    format.interpolated > 0 || format.exact
}

/// Delivers a frame once for each of the `times`.
fn repeat(frame: &Arc<Frame>, times: &[u64], clip: &ClipContext) -> Result<(), Error> {
    times.iter().try_for_each(|_| clip.sink.frame(frame.clone()))
}

/// The part of the way from an input frame at `previous` to the next one at `next` at which `time` lies.
fn fraction(previous: u64, next: u64, time: u64) -> f32 {
    // In f64, so that equal fractions of any unit are equal.
    ((time - previous) as f64 / (next - previous) as f64) as f32
}

impl Enhancer for Lite {
    fn lookahead(&self, format: &Format) -> usize {
        usize::from(interpolates(format))
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.previous = None;
        self.clip = Some((format, clip));
        Ok(())
    }

    fn push(&mut self, frame: Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        let context = self.clip()?.clone();
        let (format, clip) = &context;
        let start = Instant::now();
        clip.cancel.check()?;
        let before = self.previous.as_ref().map(|previous| previous.time);
        check_times(before, time, outputs)?;
        // Before the first frame there is nothing to interpolate from: it is repeated.
        let between = match before {
            Some(_) => outputs.partition_point(|output| *output < time),
            None => 0,
        };
        let (between, repeats) = outputs.split_at(between);
        if !between.is_empty() && !interpolates(format) {
            return Err(Error::Internal {
                what: format!("output frames at {between:?} in a format without interpolation"),
            });
        }

        let fractions: Vec<f32> = match before {
            Some(before) => between.iter().map(|at| fraction(before, time, *at)).collect(),
            None => Vec::new(),
        };
        let (pyramid, output, motions) = match interpolates(format) || format.input != format.output
        {
            true => {
                let pyramid = Pyramid::new(Plane::luma(&frame, &clip.cancel)?);
                let (output, motions) = self.process(frame, &pyramid, &fractions, &context)?;
                (interpolates(format).then_some(pyramid), self.pool.share(output), motions)
            }
            false => (None, Arc::new(frame), Vec::new()),
        };
        let mut took = start.elapsed();
        if let Some(previous) = &self.previous {
            let motions = fractions.into_iter().zip(motions);
            took += self.interpolate([&previous.output, &output], motions, &context)?;
        }
        self.previous = Some(InputFrame { time, pyramid, output: output.clone() });
        repeat(&output, repeats, clip)?;
        clip.sink.progress(Progress { unit: "frame".into(), took });
        Ok(())
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        let (_, clip) = self.clip()?;
        match &self.previous {
            Some(last) => {
                check_times(Some(last.time), u64::MAX, outputs)?;
                repeat(&last.output, outputs, clip)?;
            }
            None if outputs.is_empty() => {}
            None => {
                let what = "output frames in a clip without input frames".into();
                return Err(Error::Internal { what });
            }
        }
        self.reset();
        Ok(())
    }

    fn reset(&mut self) {
        self.clip = None;
        self.previous = None;
        self.pool = FramePool::default();
    }
}

#[cfg(test)]
mod tests;
