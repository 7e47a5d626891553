// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gives each shot to a model as a clip of its own.

use super::ShotDetector;
use crate::engine::{ClipContext, Enhancer, Error, Format, Frame, check_times};

/// An [`Enhancer`] that gives each shot of a clip to another one, the model, as a clip of its own. The output times
/// between two shots repeat the nearer frame; half-way, that is the earlier one.
///
/// It holds each input frame back until the next one, with which the detector decides.
pub struct ShotEnhancer<'a> {
    model: &'a mut dyn Enhancer,
    detector: ShotDetector,
    /// The frames of the clip that the detector has decided on, with the skipped ones.
    decided: usize,
    /// The index of the one that begins the shot.
    shot: usize,
    clip: Option<Clip>,
}

/// The clip in progress.
struct Clip {
    format: Format,
    context: ClipContext,
    /// The newest input frame.
    held: Option<HeldFrame>,
    /// The time of the input frame before it, which the model has.
    previous: Option<u64>,
}

/// An input frame with its time, and the output times that came with it.
struct HeldFrame {
    frame: Frame,
    time: u64,
    outputs: Vec<u64>,
}

impl<'a> ShotEnhancer<'a> {
    /// Gives the shots to `model`.
    pub fn new(model: &'a mut dyn Enhancer) -> Self {
        Self { model, detector: ShotDetector::default(), decided: 0, shot: 0, clip: None }
    }

    /// Takes the detector's decision on a frame, if there is one.
    fn decide(&mut self, decision: Option<bool>) {
        let Some(is_cut) = decision else { return };
        if is_cut {
            self.shot = self.decided;
        }
        self.decided += 1;
    }

    /// Passes the held frame to the model, after the decision on it: in a new clip if it begins a shot.
    fn pass(&mut self) -> Result<(), Error> {
        let Some(clip) = &mut self.clip else { return Ok(()) };
        let Some(HeldFrame { frame, time, outputs }) = clip.held.take() else { return Ok(()) };
        let number = self.decided - 1 - self.shot;
        let mut outputs = &outputs[..];
        let previous = clip.previous.replace(time);
        if let (Some(previous), 0) = (previous, number) {
            let nearer = |output: &u64| output - previous <= time.saturating_sub(*output);
            let (repeats, rest) = outputs.split_at(outputs.partition_point(nearer));
            self.model.finish(repeats)?;
            outputs = rest;
        }
        if previous.is_none() || number == 0 {
            clip.context.sink.shot(self.shot);
            self.model.start_at(number, clip.format, clip.context.clone())?;
        }
        self.model.push(frame, time, outputs)
    }

    /// Forgets the clip.
    fn clear(&mut self) {
        (self.detector, self.decided, self.shot, self.clip) = Default::default();
    }
}

impl Enhancer for ShotEnhancer<'_> {
    fn lookahead(&self, format: &Format) -> usize {
        self.model.lookahead(format) + 1
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.start_at(0, format, clip)
    }

    /// The model starts when the first frame is decided on. Its first frame has the index that it has in its shot.
    fn start_at(&mut self, _: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.clip = Some(Clip { format, context: clip, held: None, previous: None });
        Ok(())
    }

    fn skip(&mut self, frame: &Frame) {
        let decision = self.detector.push(frame);
        self.decide(decision);
    }

    fn push(&mut self, frame: Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        let clip = self.clip.as_ref().ok_or_else(Error::without_start)?;
        clip.context.cancel.check()?;
        check_times(clip.held.as_ref().map(|held| held.time), time, outputs)?;
        let decision = self.detector.push(&frame);
        self.decide(decision);
        self.pass()?;
        if let Some(clip) = &mut self.clip {
            clip.held = Some(HeldFrame { frame, time, outputs: outputs.to_vec() });
        }
        Ok(())
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        let decision = self.detector.finish();
        self.decide(decision);
        self.pass()?;
        let clip = self.clip.as_ref().ok_or_else(Error::without_start)?;
        if clip.previous.is_some() || !outputs.is_empty() {
            self.model.finish(outputs)?;
        }
        self.clear();
        Ok(())
    }

    fn reset(&mut self) {
        self.clear();
        self.model.reset();
    }
}
