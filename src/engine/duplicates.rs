// SPDX-License-Identifier: MIT OR Apache-2.0
//! Drops repeated frames before the model, so that motion in animation on twos is interpolated over the whole
//! length of each drawing.

use super::{ClipContext, Enhancer, Error, Format, Frame, frame::zeroed};

/// The longest run of equal frames that is merged: animation on fours. A longer one is a still picture.
const MAX_RUN: usize = 4;

/// Side of the blocks that are compared, in pixels: small, so that the motion of a small object counts.
const BLOCK: usize = 8;
/// Of the rows of a frame, every second one is compared.
const ROW_STEP: usize = 2;
/// The largest mean absolute difference of a component in a block of a repeated frame: 8 of 255. In made animation on twos
/// that x264 has compressed with crf 18 to 28, it was at most 7.1 in nine of ten repeated frames (11 in the worst), and
/// from 11.7 on where an edge or a spot of 3 pixels moved by 1 or 2 pixels.
const MAX_DIFFERENCE: u32 = 8 * 257;

/// Wraps a model and passes it only the first frame of each run of up to four equal frames.
/// The output times of the others come with the next frame, or repeat the last one at the end of the clip.
///
/// In a longer run, the further frames are given to the model: otherwise the still picture would slowly turn into the
/// next one, and there would be no bound on the delay.
///
/// The model counts the frames that it gets. The output of a model whose noise depends on their index is that of the
/// whole clip only in a run from the start of the clip.
pub struct DuplicateMerger<'a> {
    model: &'a mut dyn Enhancer,
    /// The last frame that the model got; `None` at the start of a clip.
    last: Option<Rows>,
    /// The number of equal frames so far, at most [`MAX_RUN`].
    run: usize,
    /// The output times of the frames since the last one that the model got.
    outputs: Vec<u64>,
}

impl<'a> DuplicateMerger<'a> {
    /// Gives the frames to `model`.
    pub fn new(model: &'a mut dyn Enhancer) -> Self {
        Self { model, last: None, run: 0, outputs: Vec::new() }
    }

    fn clear(&mut self) {
        (self.last, self.run, self.outputs) = Default::default();
    }

    /// The model makes frames at any part of the way between two that it gets.
    fn format(format: &Format) -> Format {
        Format { exact: true, ..*format }
    }
}

impl Enhancer for DuplicateMerger<'_> {
    /// The output between two frames that the model gets, which are at most a run apart, comes with the second one.
    fn lookahead(&self, format: &Format) -> usize {
        MAX_RUN * self.model.lookahead(&Self::format(format))
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.start_at(0, format, clip)
    }

    fn start_at(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.clear();
        self.model.start_at(first, Self::format(&format), clip)
    }

    fn push(&mut self, frame: Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        self.outputs.extend(outputs);
        let is_repeated = self.last.as_ref().is_some_and(|last| last.equal(&frame));
        if is_repeated && self.run < MAX_RUN {
            self.run += 1;
            return Ok(());
        }
        if !is_repeated {
            self.run = 1;
        }
        self.last = Some(Rows::new(&frame, self.last.take())?);
        self.model.push(frame, time, &std::mem::take(&mut self.outputs))
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        self.outputs.extend(outputs);
        let outputs = std::mem::take(&mut self.outputs);
        self.clear();
        self.model.finish(&outputs)
    }

    fn reset(&mut self) {
        self.clear();
        self.model.reset();
    }
}

/// The rows of a frame that are compared, [h / 2, w, 4].
struct Rows(Vec<u16>);

impl Rows {
    /// Copies them, into the memory of those of another frame of the clip if there is one.
    fn new(frame: &Frame, memory: Option<Self>) -> Result<Self, Error> {
        let width = frame.width();
        let mut rows = match memory {
            Some(Self(rows)) => rows,
            None => zeroed((width, frame.height().div_ceil(ROW_STEP)), Frame::COMPONENTS)?,
        };
        let length = width * Frame::COMPONENTS;
        for (to, from) in rows.chunks_exact_mut(length).zip(compared_rows(frame)) {
            to.copy_from_slice(from);
        }
        Ok(Self(rows))
    }

    /// Whether `frame` shows the same, but for compression noise.
    fn equal(&self, frame: &Frame) -> bool {
        let length = frame.width() * Frame::COMPONENTS;
        let mut pairs = self.0.chunks_exact(length).zip(compared_rows(frame));
        let mut sums = vec![[0_u32; Frame::COMPONENTS]; frame.width().div_ceil(BLOCK)];
        let rows = BLOCK / ROW_STEP;
        for _ in (0..frame.height()).step_by(BLOCK) {
            sums.fill_with(Default::default);
            let mut count = 0;
            for (before, row) in pairs.by_ref().take(rows) {
                for ((sum, a), b) in sums.iter_mut().zip(blocks(before)).zip(blocks(row)) {
                    add_differences(sum, a, b);
                }
                count += 1;
            }
            let exceeds = |(block, sums): (usize, &[u32; Frame::COMPONENTS])| {
                // Blocks at the right edge may be narrower.
                let width = BLOCK.min(frame.width() - block * BLOCK);
                sums.iter().any(|sum| *sum > MAX_DIFFERENCE * (count * width) as u32)
            };
            if sums.iter().enumerate().any(exceeds) {
                return false;
            }
        }
        true
    }
}

fn blocks(row: &[u16]) -> std::slice::Chunks<'_, u16> {
    row.chunks(BLOCK * Frame::COMPONENTS)
}

fn compared_rows(frame: &Frame) -> impl Iterator<Item = &[u16]> {
    frame.pixels().chunks_exact(frame.width() * Frame::COMPONENTS).step_by(ROW_STEP)
}

/// Adds the absolute differences of two rows of a block to those of each component.
fn add_differences<'a>(sums: &mut [u32; Frame::COMPONENTS], a: &'a [u16], b: &'a [u16]) {
    let pixels = |row: &'a [u16]| row.as_chunks::<{ Frame::COMPONENTS }>().0;
    for (a, b) in pixels(a).iter().zip(pixels(b)) {
        let pairs = a.iter().zip(b);
        sums.iter_mut().zip(pairs).for_each(|(sum, (a, b))| *sum += u32::from(a.abs_diff(*b)));
    }
}
