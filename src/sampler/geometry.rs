// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes the padded canvas, because the networks need sides that they can halve several times.

use super::model::LATENT;

/// Sizes of a clip's frames in pixels, (h, w).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Size of an output frame.
    pub target: (usize, usize),
    /// Size with padding.
    pub padded: (usize, usize),
    /// Position of the frame in the padded canvas, (top, left).
    pub origin: (usize, usize),
}

impl Canvas {
    /// The smallest padded size of the published model, (h, w) in pixels.
    pub const SMALLEST: (usize, usize) = (720, 1280);

    /// Returns the canvas for frames of size `target`, padded to at least `smallest`. A side that is
    /// shorter than `smallest` is centred; a longer side starts at 0. Source: the reference
    /// implementation.
    pub fn new(target: (usize, usize), smallest: (usize, usize)) -> Self {
        // The latent height is 2 more than a multiple of 8, the latent width a multiple of 8.
        let height = pad(target.0, smallest.0, 16);
        let width = pad(target.1, smallest.1, 0);
        Self { target, padded: (height.0, width.0), origin: (height.1, width.1) }
    }

    /// Returns the size of the padded canvas in latents, (h, w).
    pub fn latent(&self) -> (usize, usize) {
        (self.padded.0 / LATENT, self.padded.1 / LATENT)
    }
}

/// Returns the length of a padded side and the offset of the frame in it. A side that grows becomes
/// `rest` more than a multiple of 64.
fn pad(side: usize, smallest: usize, rest: usize) -> (usize, usize) {
    match side.cmp(&smallest) {
        std::cmp::Ordering::Less => (smallest, (smallest - side) / 2),
        std::cmp::Ordering::Equal => (side, 0),
        // A side that already is a multiple of 64 plus `rest` still grows by 64, as in the reference.
        std::cmp::Ordering::Greater => ((side + 64 - rest) / 64 * 64 + rest, 0),
    }
}

/// Returns for each of the output frames `first` to `first + count` the index of its input frame, or
/// `None` for an interpolated frame. There are `interpolated` frames between two input frames.
pub fn mask(first: usize, count: usize, interpolated: usize) -> Vec<Option<usize>> {
    let input = |n: usize| n.is_multiple_of(interpolated + 1).then_some(n / (interpolated + 1));
    (first..first + count).map(input).collect()
}
