// SPDX-License-Identifier: MIT OR Apache-2.0
//! `model=lite`: small networks, embedded in the plugin, that run on any CPU.
//!
//! Upscaling is a Lanczos resize plus a residual that a network predicts ([`network`]). Frame interpolation
//! estimates the optical flow between two neighbours ([`flow`]), warps both, and blends them; across a scene
//! change the nearer neighbour is repeated. `examples/train_lite` trains the networks.

#[doc(hidden)]
pub mod flow;
#[doc(hidden)]
pub mod network;
#[doc(hidden)]
pub mod plane;
mod pool;
mod resize;
mod synthesis;
mod upscale;
mod weights;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::{ClipContext, Enhancer, Error, Format, Frame, Progress};
use flow::{Motion, Pyramid};
use plane::Plane;
use pool::FramePool;
use weights::Networks;

/// An input frame after processing.
struct InputFrame {
    /// Luma pyramid of the input.
    pyramid: Pyramid,
    /// The frame at the output size.
    output: Arc<Frame>,
}

/// The enhancer of `model=lite`. It uses all cores of the CPU.
pub struct Lite {
    networks: &'static Networks,
    pool: FramePool,
    /// The current clip; `None` before `start` and after `finish`.
    clip: Option<(Format, ClipContext)>,
    /// The last input frame, if frames are interpolated.
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

    /// The times of `count` frames interpolated between time 0 and 1.
    fn times(count: usize) -> impl Iterator<Item = f32> {
        (1..=count).map(move |step| step as f32 / (count + 1) as f32)
    }

    fn clip(&self) -> Result<&(Format, ClipContext), Error> {
        self.clip.as_ref().ok_or_else(|| Error::Internal {
            what: "a frame or the end of a clip without a start".into(),
        })
    }

    /// Resizes `frame` to the output size and, concurrently, estimates the motion from the previous frame for
    /// each frame to interpolate.
    fn process(
        &self,
        frame: Frame,
        pyramid: &Pyramid,
        format: &Format,
        clip: &ClipContext,
    ) -> Result<(Frame, Vec<Motion>), Error> {
        let upscale = || match format.input == format.output {
            true => Ok(frame),
            false => {
                let luma = pyramid.full_size();
                upscale::upscale(self.networks, &self.pool, frame, luma, format, &clip.cancel)
            }
        };
        let estimate = || match &self.previous {
            Some(previous) => Self::times(format.interpolated)
                .map(|time| {
                    let pyramids = [&previous.pyramid, pyramid];
                    flow::estimate(self.networks, &self.pool, pyramids, time, &clip.cancel)
                })
                .collect(),
            None => Ok(Vec::new()),
        };
        let (output, motions): (_, Result<Vec<_>, Error>) = rayon::join(upscale, estimate);
        Ok((output?, motions?))
    }

    /// Delivers the frames between `previous` and `next`, one per motion. Returns the time spent on computing
    /// them, without the time that the sink blocked.
    fn interpolate(
        &self,
        [previous, next]: [&Arc<Frame>; 2],
        motions: &[Motion],
        format: &Format,
        clip: &ClipContext,
    ) -> Result<Duration, Error> {
        let mut took = Duration::ZERO;
        for (motion, time) in motions.iter().zip(Self::times(format.interpolated)) {
            let start = Instant::now();
            let frame = match motion.is_cut {
                true => if time <= 0.5 { previous } else { next }.clone(),
                false => {
                    let mut frame = self.pool.frame(format.output)?;
                    let neighbours = [&**previous, &**next];
                    let at = (time, format.alpha);
                    synthesis::interpolate(neighbours, motion, at, &mut frame, &clip.cancel)?;
                    self.pool.share(frame)
                }
            };
            took += start.elapsed();
            clip.sink.frame(frame)?;
        }
        Ok(took)
    }
}

impl Enhancer for Lite {
    fn lookahead(&self, format: &Format) -> usize {
        usize::from(format.interpolated > 0)
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.previous = None;
        self.clip = Some((format, clip));
        Ok(())
    }

    fn push(&mut self, frame: Frame) -> Result<(), Error> {
        let (format, clip) = self.clip()?.clone();
        let start = Instant::now();
        clip.cancel.check()?;
        let report = |took| clip.sink.progress(Progress { unit: "frame".into(), took });
        if format.interpolated == 0 && format.input == format.output {
            clip.sink.frame(Arc::new(frame))?;
            report(start.elapsed());
            return Ok(());
        }
        let pyramid = Pyramid::new(Plane::luma(&frame, &clip.cancel)?);
        let (output, motions) = self.process(frame, &pyramid, &format, &clip)?;
        let output = self.pool.share(output);
        let mut took = start.elapsed();
        if let Some(previous) = &self.previous {
            took += self.interpolate([&previous.output, &output], &motions, &format, &clip)?;
        }
        if format.interpolated > 0 {
            self.previous = Some(InputFrame { pyramid, output: output.clone() });
        }
        clip.sink.frame(output)?;
        report(took);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
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
