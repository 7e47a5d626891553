// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns decoded images into output frames: fixes the colours, crops, rounds, and sets the alpha channel.
//!
//! What this needs of an input frame bypasses the sampler, as [`SideData`] in a channel.

use std::sync::mpsc::Receiver;

use candle_core::Tensor;

use super::{alpha::AlphaPlane, colour::LowFrequencies, geometry::Canvas, picture};
use crate::engine::{ColourFix, Error, Frame};

/// Data of an input frame that bypasses the sampler.
pub(super) struct SideData {
    pub(super) alpha: Option<AlphaPlane>,
    /// Low frequencies of the resized frame.
    pub(super) colours: Option<LowFrequencies>,
}

/// The last input frame.
struct Previous {
    alpha: Option<AlphaPlane>,
    /// What was added to its colours.
    correction: Option<LowFrequencies>,
}

/// Finishes the decoded images of a clip in order.
pub(super) struct Finish {
    canvas: Canvas,
    colour_fix: ColourFix,
    interpolated: usize,
    inputs: Receiver<SideData>,
    previous: Option<Previous>,
    /// The decoded interpolated frames since the last input frame, planes [3, H, W]. Their colours and alpha also
    /// depend on the next input frame.
    pending: Vec<Vec<f32>>,
}

impl Finish {
    pub(super) fn new(
        canvas: Canvas,
        colour_fix: ColourFix,
        interpolated: usize,
        inputs: Receiver<SideData>,
    ) -> Self {
        Self { canvas, colour_fix, interpolated, inputs, previous: None, pending: Vec::new() }
    }

    /// Takes the next decoded image [1, 3, H, W] of the padded size. Calls `out` in order with every frame that is
    /// finished.
    ///
    /// # Errors
    /// Errors of `out`, [`Error::OutOfMemory`], and [`Error::Compute`] if the image cannot be read.
    pub(super) fn push(
        &mut self,
        image: &Tensor,
        mut out: impl FnMut(Frame) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let planes = image.flatten_all().and_then(|image| image.to_vec1::<f32>());
        let planes = planes.map_err(|error| Error::Compute {
            what: "reading a decoded image".into(),
            why: error.to_string(),
        })?;
        if self.previous.is_some() && self.pending.len() < self.interpolated {
            self.pending.push(planes);
            return Ok(());
        }
        let SideData { alpha, colours } = self.inputs.try_recv().map_err(|_| Error::Internal {
            what: "a decoded image without an input frame".into(),
        })?;
        let decoded = LowFrequencies::of(self.colour_fix, &planes, &self.canvas);
        let correction = colours.zip(decoded).map(|(input, decoded)| input.minus(&decoded));
        let next = Previous { alpha, correction };
        if let Some(previous) = &self.previous {
            for (n, planes) in (1..).zip(std::mem::take(&mut self.pending)) {
                let weight = n as f64 / (self.interpolated + 1) as f64;
                out(self.frame(&planes, &previous.between(&next, weight))?)?;
            }
        }
        out(self.frame(&planes, &next)?)?;
        self.previous = Some(next);
        Ok(())
    }

    fn frame(&self, planes: &[f32], input: &Previous) -> Result<Frame, Error> {
        let mut frame = picture::frame(planes, input.correction.as_ref(), &self.canvas)?;
        if let Some(alpha) = &input.alpha {
            alpha.apply(&mut frame);
        }
        Ok(frame)
    }
}

impl Previous {
    /// Returns alpha and correction of an interpolated frame.
    fn between(&self, next: &Self, weight: f64) -> Self {
        let alpha = self.alpha.as_ref().zip(next.alpha.as_ref());
        let correction = self.correction.as_ref().zip(next.correction.as_ref());
        Self {
            alpha: alpha.map(|(a, b)| a.blend(b, weight)),
            correction: correction.map(|(a, b)| a.blend(b, weight as f32)),
        }
    }
}
