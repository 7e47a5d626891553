// SPDX-License-Identifier: MIT OR Apache-2.0
//! The alpha planes of input frames, which the networks do not process.

use rayon::prelude::*;

use super::{model::COLOURS, picture::resize};
use crate::engine::Frame;

/// The alpha channel of a frame.
#[derive(Debug, Clone)]
pub(super) struct AlphaPlane {
    /// Rows of values.
    values: Vec<u16>,
    /// (height, width) in pixels.
    size: (usize, usize),
}

impl AlphaPlane {
    /// Copies the alpha channel of a frame.
    pub(super) fn of(frame: &Frame) -> Self {
        let values = frame.pixels().chunks_exact(Frame::COMPONENTS).map(|pixel| pixel[COLOURS]);
        Self { values: values.collect(), size: (frame.height(), frame.width()) }
    }

    /// Returns (1 − weight)·self + weight·other, rounded to the nearest value. Both have the same size.
    pub(super) fn blend(&self, other: &Self, weight: f64) -> Self {
        let mix = |(a, b): (&u16, &u16)| {
            (f64::from(*a) * (1.0 - weight) + f64::from(*b) * weight).round() as u16
        };
        Self { values: self.values.iter().zip(&other.values).map(mix).collect(), size: self.size }
    }

    /// Sets the alpha channel of a frame of any size.
    pub(super) fn apply(&self, frame: &mut Frame) {
        let plane: Vec<f32> = self.values.iter().copied().map(f32::from).collect();
        let to = (frame.height(), frame.width());
        let mut values = vec![0.0; to.0 * to.1];
        resize(&plane, self.size, &mut values, to, to.1);
        let pixels = frame.pixels_mut().par_chunks_exact_mut(Frame::COMPONENTS);
        pixels.zip(values).for_each(|(pixel, value)| pixel[COLOURS] = value.round() as u16);
    }
}
