// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where pieces begin: near equal parts of the output, at the beginning of a shot where there is one.

use crate::pipeline::ScannedFrame;

/// A boundary can be moved by this part of a piece, to the beginning of a shot.
const NEAR: f64 = 0.25;

/// Maximum number of frames that are kept as candidates.
const MAX_CANDIDATES: usize = 1 << 16;

/// The output frames at which a piece can begin.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Those that need no input frame before their own: the first ones of shots.
    free: Thinned,
    all: Thinned,
    frames: u64,
    last: Option<ScannedFrame>,
}

impl Candidates {
    pub fn add(&mut self, frame: ScannedFrame) {
        let before = self.last.replace(frame);
        let is_first_of_input = before.is_none_or(|before| before.input < frame.input);
        if is_first_of_input && frame.input == u64::from(frame.point.skip) {
            self.free.push(frame);
        }
        self.all.push(frame);
        self.frames += 1;
    }

    /// Number of output frames.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    pub fn last(&self) -> Option<ScannedFrame> {
        self.last
    }

    /// The first frames of at most `count` pieces.
    pub fn choose(&self, count: u64) -> Vec<ScannedFrame> {
        let length = self.frames as f64 / count as f64;
        let mut starts: Vec<ScannedFrame> = self.all.frames.first().copied().into_iter().collect();
        for number in 1..count {
            let wanted = length * number as f64;
            let distance = |frame: &ScannedFrame| (frame.point.frames as f64 - wanted).abs();
            let free = self.free.nearest(wanted).filter(|frame| distance(frame) <= length * NEAR);
            let Some(start) = free.or(self.all.nearest(wanted)) else { continue };
            // A video with few frames has fewer pieces.
            if starts.last().is_some_and(|last| last.point.frames < start.point.frames) {
                starts.push(start);
            }
        }
        starts
    }
}

/// Frames at equal distances, as many as fit.
#[derive(Debug, Default)]
struct Thinned {
    frames: Vec<ScannedFrame>,
    /// The number of frames so far.
    seen: u64,
    /// The binary logarithm of the distance.
    step: u32,
}

impl Thinned {
    fn push(&mut self, frame: ScannedFrame) {
        if self.seen.is_multiple_of(1 << self.step) {
            self.frames.push(frame);
        }
        self.seen += 1;
        if self.frames.len() > MAX_CANDIDATES {
            let mut keep = true;
            self.frames.retain(|_| {
                keep = !keep;
                !keep
            });
            self.step += 1;
        }
    }

    /// The frame whose number is nearest to `wanted`.
    fn nearest(&self, wanted: f64) -> Option<ScannedFrame> {
        let number = |frame: &ScannedFrame| frame.point.frames as f64;
        let after = self.frames.partition_point(|frame| number(frame) < wanted);
        let near = self.frames.iter().skip(after.saturating_sub(1)).take(2);
        near.copied().min_by(|a, b| {
            let distance = |frame| (number(frame) - wanted).abs();
            distance(a).total_cmp(&distance(b))
        })
    }
}
