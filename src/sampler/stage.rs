// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs one evaluation of the network over the windows of a clip, the unit of work of the wavefront.
//!
//! Frames enter a stage before its evaluation and leave it after the solver's update. Between the two, the
//! stage cross-fades the network's results of overlapping windows.

use std::cell::Cell;

use candle_core::{Device, Tensor};

use super::{
    control::Control,
    geometry::mask,
    model::{Conditions, Denoiser, Precision},
    noise::Purpose,
    params::ClipParams,
    solver::Evaluation,
    windows::{Sliding, Windows},
};
use crate::{
    engine::{
        Error,
        log::{self, Area},
    },
    ops,
};

/// An output frame that is being sampled.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Noisy latents in the solver's variables, [1, 4, 1, h, w] in f32.
    pub x: Tensor,
    /// The solver's history, shaped like `x`.
    pub(super) history: Option<Tensor>,
    /// For an input frame: its latents diffused to the timestep `t_hint`, shaped like `x`. `None` for an
    /// interpolated frame.
    pub hint: Option<Tensor>,
}

impl Frame {
    /// Creates a frame before its first evaluation.
    pub fn new(x: Tensor, hint: Option<Tensor>) -> Self {
        Self { x, history: None, hint }
    }

    /// Returns the memory of `x` and the history, in frames of latents.
    fn latents(&self) -> usize {
        1 + usize::from(self.history.is_some())
    }

    fn to_device(&self, device: &Device) -> candle_core::Result<Self> {
        let moved = |tensor: &Option<Tensor>| {
            tensor.as_ref().map(|tensor| ops::to_device(tensor, device)).transpose()
        };
        Ok(Self {
            x: ops::to_device(&self.x, device)?,
            history: moved(&self.history)?,
            hint: moved(&self.hint)?,
        })
    }
}

/// Consecutive frames of a clip.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The frames.
    pub frames: Vec<Frame>,
    /// How many windows are known not to be the final one of the clip.
    pub non_final_windows: usize,
    /// Whether no more frames follow.
    pub ended: bool,
}

/// One evaluation of the network for all windows of a clip.
#[derive(Debug)]
pub(super) struct Stage {
    evaluation: Evaluation,
    /// [`Precision::Bf16`] once a window overflowed in this stage.
    precision: Cell<Precision>,
    frames: Sliding<Frame>,
    non_final_windows: usize,
    ended: bool,
}

impl Stage {
    pub(super) fn new(evaluation: Evaluation, windows: Windows) -> Self {
        let frames = Sliding::new(windows);
        Self { evaluation, precision: Cell::default(), frames, non_final_windows: 0, ended: false }
    }

    /// Returns the frames of latents that the stage holds: queued frames, their history, and results that
    /// are kept for the overlap.
    pub(super) fn latents(&self) -> usize {
        let frames = self.frames.items().iter().map(Frame::latents).sum::<usize>();
        frames + self.frames.overlap_results().len()
    }

    /// Queues frames and moves them to `device`.
    pub(super) fn push(&mut self, batch: Batch, device: &Device) -> candle_core::Result<()> {
        let frames: Result<Vec<_>, _> =
            batch.frames.iter().map(|frame| frame.to_device(device)).collect();
        self.frames.extend(frames?);
        self.non_final_windows = self.non_final_windows.max(batch.non_final_windows);
        self.ended |= batch.ended;
        Ok(())
    }

    /// Evaluates the next window if all of its frames are queued. Returns the frames that are final.
    pub(super) fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        params: &ClipParams,
        control: &Control,
    ) -> Result<Option<Batch>, Error> {
        let Some(window) = self.frames.window(self.non_final_windows, self.ended) else {
            return Ok(None);
        };
        let number = self.frames.number();
        let last = number >= self.non_final_windows;
        let what = format!("window {number}, step {}", self.evaluation.step);
        let (begin, end) = (self.frames.first(), self.frames.first() + window.len());
        let suffix = if last { ", final window" } else { "" };
        log::log(Area::Sampler, format_args!("{what}: frames {begin} to {end}{suffix}"));
        let results = self.evaluate(&what, window.len(), denoiser, params, control)?;
        let first = self.frames.first() + usize::from(number > 0);
        let frames = self.advance(results, last, first, denoiser.device(), params);
        let frames = control.attempt(&what, frames)?;
        Ok(Some(Batch { frames, non_final_windows: number + usize::from(!last), ended: last }))
    }

    /// Evaluates the network on the next window of `count` frames. Returns d of each frame,
    /// [1, 4, 1, h, w].
    fn evaluate(
        &self,
        what: &str,
        count: usize,
        denoiser: &dyn Denoiser,
        params: &ClipParams,
        control: &Control,
    ) -> Result<Vec<Tensor>, Error> {
        let frames = || self.frames.items().iter().take(count);
        let mut mask = mask(self.frames.first(), count, params.interpolated);
        // The hint holds the input frames of this window only.
        let first_input = mask.iter().flatten().next().copied().unwrap_or(0);
        mask.iter_mut().flatten().for_each(|index| *index -= first_input);
        let [d] = control.evaluate(what, &self.precision, |mode, check| {
            let x = Tensor::cat(&frames().map(|frame| &frame.x).collect::<Vec<_>>(), 2)?;
            let hint: Vec<_> = frames().filter_map(|frame| frame.hint.as_ref()).collect();
            let conditions = Conditions {
                t: self.evaluation.timestep as f64,
                hint: &Tensor::cat(&hint, 2)?,
                t_hint: params.sampler.t_hint() as f64,
                s_cond: params.sampler.downscale_cond,
                mask: &mask,
            };
            let input = self.evaluation.input(&x)?;
            let guidance = &params.sampler.guidance;
            let guided = guidance.guided();
            let velocities = denoiser.velocities(&input, &conditions, guided, mode, check)?;
            let velocity = guidance.apply(velocities)?;
            Ok([self.evaluation.denoised(&input, &velocity)?])
        })?;
        // Copy, so that a frame does not keep the storage of the whole window alive.
        let split = (0..count).map(|n| d.narrow(2, n, 1)?.force_contiguous());
        control.attempt(what, split.collect())
    }

    /// Cross-fades the results of the window and applies the solver's update to the frames whose d is now
    /// final. `first` is the output index of the first of them.
    fn advance(
        &mut self,
        results: Vec<Tensor>,
        last: bool,
        first: usize,
        device: &Device,
        params: &ClipParams,
    ) -> candle_core::Result<Vec<Frame>> {
        let mut done = Vec::new();
        let evaluation = &self.evaluation;
        self.frames.finish_window(results, last, |frame, d| {
            let noise = match evaluation.needs_noise() {
                true => {
                    let (_, _, _, h, w) = frame.x.dims5()?;
                    let purpose = Purpose::Step(evaluation.step);
                    let noise = params.noise.normal(purpose, first + done.len(), (h, w))?;
                    Some(noise.unsqueeze(2)?.to_device(device)?)
                }
                false => None,
            };
            let history = frame.history.take();
            let (x, history) =
                evaluation.advance(&frame.x, &d, history.as_ref(), noise.as_ref())?;
            done.push(Frame { x, history, hint: frame.hint.clone() });
            Ok(())
        })?;
        Ok(done)
    }
}
