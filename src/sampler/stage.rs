// SPDX-License-Identifier: MIT OR Apache-2.0
//! One evaluation of the network, for window after window: the frames that wait for it go in, and leave
//! one evaluation further.

use std::{cell::Cell, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    control::Control,
    geometry::mask,
    guidance::Guidance,
    model::{Conditions, Denoiser, Precision},
    noise::{Noise, Purpose},
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

/// A frame on its way through the evaluations.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its latents with noise, in the solver's variable: [1, 4, 1, h, w], f32.
    pub x: Tensor,
    /// What the solver remembers of it.
    pub(super) history: Option<Tensor>,
    /// Of a key frame: its latents with the hint's noise, like x.
    pub hint: Option<Tensor>,
    /// The alpha plane, [h, w] at input size, u16 in pairs of bytes: [h, 2w].
    pub alpha: Option<Tensor>,
}

impl Frame {
    /// A frame before the first evaluation.
    pub fn new(x: Tensor, hint: Option<Tensor>, alpha: Option<Tensor>) -> Self {
        Self { x, history: None, hint, alpha }
    }

    /// What its x and the solver's history take, in frames of latents.
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
            alpha: self.alpha.clone(),
        })
    }
}

/// Frames that follow each other.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The frames.
    pub frames: Vec<Frame>,
    /// How many windows are sure not to be the clip's last.
    pub non_final_windows: usize,
    /// Whether the last frame of the clip is among these, or has come before.
    pub ended: bool,
}

/// What all evaluations of a clip have in common.
#[derive(Debug, Clone)]
pub struct SamplerParams {
    /// Weight of the prompt.
    pub guidance: Guidance,
    /// The time of the noise in the hint.
    pub t_hint: usize,
    /// How much smaller the input is said to be.
    pub s_cond: f64,
    /// Frames to make between two key frames.
    pub interpolated: usize,
    /// The solver's noise.
    pub noise: Arc<dyn Noise>,
}

#[derive(Debug)]
pub(super) struct Stage {
    evaluation: Evaluation,
    /// In which the step's values have a range, as far as is known.
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

    /// Frames of latents that it holds, with what the solver remembers and what waits for the next
    /// window.
    pub(super) fn latents(&self) -> usize {
        let frames = self.frames.items().iter().map(Frame::latents).sum::<usize>();
        frames + self.frames.waiting().len()
    }

    pub(super) fn take(&mut self, batch: Batch, device: &Device) -> candle_core::Result<()> {
        let frames: Result<Vec<_>, _> =
            batch.frames.iter().map(|frame| frame.to_device(device)).collect();
        self.frames.extend(frames?);
        self.non_final_windows = self.non_final_windows.max(batch.non_final_windows);
        self.ended |= batch.ended;
        Ok(())
    }

    /// Evaluates the next window, if all that it needs is there.
    pub(super) fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        params: &SamplerParams,
        control: &Control,
    ) -> Result<Option<Batch>, Error> {
        let Some(window) = self.frames.window(self.non_final_windows, self.ended) else {
            return Ok(None);
        };
        let number = self.frames.number();
        let last = number >= self.non_final_windows;
        let what = format!("window {number}, step {}", self.evaluation.step);
        let (begin, end) = (self.frames.first(), self.frames.first() + window.len());
        let end_of_clip = if last { ", the last of the clip" } else { "" };
        log::log(Area::Sampler, format_args!("{what}: frames {begin} to {end}{end_of_clip}"));
        let results = self.evaluate(&what, window.len(), denoiser, params, control)?;
        let first = self.frames.first() + usize::from(number > 0);
        let frames = self.advance(results, last, first, denoiser.device(), params);
        let frames = control.attempt(&what, frames)?;
        Ok(Some(Batch { frames, non_final_windows: number + usize::from(!last), ended: last }))
    }

    /// The network's d of each of the next window's frames.
    fn evaluate(
        &self,
        what: &str,
        count: usize,
        denoiser: &dyn Denoiser,
        params: &SamplerParams,
        control: &Control,
    ) -> Result<Vec<Tensor>, Error> {
        let frames = || self.frames.items().iter().take(count);
        let mut mask = mask(self.frames.first(), count, params.interpolated);
        let skipped = mask.iter().flatten().next().copied().unwrap_or(0);
        mask.iter_mut().flatten().for_each(|key| *key -= skipped);
        let [d] = control.evaluate(what, &self.precision, |mode, check| {
            let x = Tensor::cat(&frames().map(|frame| &frame.x).collect::<Vec<_>>(), 2)?;
            let hint: Vec<_> = frames().filter_map(|frame| frame.hint.as_ref()).collect();
            let conditions = Conditions {
                t: self.evaluation.timestep as f64,
                hint: &Tensor::cat(&hint, 2)?,
                t_hint: params.t_hint as f64,
                s_cond: params.s_cond,
                mask: &mask,
            };
            let input = self.evaluation.input(&x)?;
            let guided = params.guidance.guided();
            let velocities = denoiser.velocities(&input, &conditions, guided, mode, check)?;
            let velocity = params.guidance.apply(velocities)?;
            Ok([self.evaluation.denoised(&input, &velocity)?])
        })?;
        // Copies, so that no frame holds on to the window.
        let split = (0..count).map(|n| d.narrow(2, n, 1)?.force_contiguous());
        control.attempt(what, split.collect())
    }

    /// The frames from `first` on whose d is final now, one evaluation further.
    fn advance(
        &mut self,
        results: Vec<Tensor>,
        last: bool,
        first: usize,
        device: &Device,
        params: &SamplerParams,
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
            done.push(Frame { x, history, hint: frame.hint.clone(), alpha: frame.alpha.take() });
            Ok(())
        })?;
        Ok(done)
    }
}
