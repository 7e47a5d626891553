// SPDX-License-Identifier: MIT OR Apache-2.0
//! The canvas that frames are worked on: theirs, made larger until the networks can halve it.

use super::model::LATENT;

/// Sizes of a clip's frames in pixels, (h, w).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Of a frame that leaves.
    pub target: (usize, usize),
    /// With the padding.
    pub padded: (usize, usize),
    /// Where in it the frame begins.
    pub origin: (usize, usize),
}

impl Canvas {
    /// The smallest canvas of the published model.
    pub const SMALLEST: (usize, usize) = (720, 1280);

    /// The canvas of at least `smallest` for frames of size `target`. Small frames are in its middle,
    /// others in its upper left corner. Source: the reference's own rule.
    pub fn new(target: (usize, usize), smallest: (usize, usize)) -> Self {
        // Latents' heights are 2 more than a multiple of 8, widths such a multiple.
        let height = pad(target.0, smallest.0, 16);
        let width = pad(target.1, smallest.1, 0);
        Self { target, padded: (height.0, width.0), origin: (height.1, width.1) }
    }

    /// Size of the padded canvas in latents, (h, w).
    pub fn latent(&self) -> (usize, usize) {
        (self.padded.0 / LATENT, self.padded.1 / LATENT)
    }
}

/// A side of the canvas, and where in it a side of a frame begins. The canvas's is `rest` more than a
/// multiple of 64.
fn pad(side: usize, smallest: usize, rest: usize) -> (usize, usize) {
    match side.cmp(&smallest) {
        std::cmp::Ordering::Less => (smallest, (smallest - side) / 2),
        std::cmp::Ordering::Equal => (side, 0),
        // One that fits already grows by 64.
        std::cmp::Ordering::Greater => ((side + 64 - rest) / 64 * 64 + rest, 0),
    }
}

/// Key frames at output positions `first` to `first + count`: for each position the number of its key
/// frame, if it is one, with `interpolated` frames between two.
pub fn mask(first: usize, count: usize, interpolated: usize) -> Vec<Option<usize>> {
    let key = |n: usize| n.is_multiple_of(interpolated + 1).then_some(n / (interpolated + 1));
    (first..first + count).map(key).collect()
}
