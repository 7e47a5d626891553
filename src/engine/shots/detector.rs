// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds hard cuts.

use std::collections::VecDeque;

use super::picture::Picture;
use crate::engine::Frame;

/// The changes between frames of a shot that a change is compared with, before it.
const HISTORY: usize = 5;

/// The smallest changes at a cut: of the luma, of the shape, and the motion-compensated residual. Below them are
/// noise, captions, small objects, and changes of brightness.
const MIN_LUMA_CHANGE: f32 = 0.012;
const MIN_SHAPE_CHANGE: f32 = 0.2;
const MIN_RESIDUAL: f32 = 0.12;

/// Added to the luma changes and residuals of the shot, so that no change in a static shot is large.
const LUMA_FLOOR: f32 = 0.01;
const RESIDUAL_FLOOR: f32 = 0.03;

/// The smallest excess of a cut over the changes around it: the sum of the logarithms of the ratios of luma changes and
/// of residuals.
const MIN_EXCESS: f32 = 0.5;
/// The same at the beginning of a shot, where at most [`MIN_HISTORY`] changes are known.
const MIN_EARLY_EXCESS: f32 = 1.2;
const MIN_HISTORY: usize = 2;

/// The residual at a cut before a shot of one frame, which the change after it does not tell from sudden motion.
const MIN_SINGLE_RESIDUAL: f32 = 0.3;
const MIN_SINGLE_EXCESS: f32 = 1.5;

/// The part of a change that more light does not explain, at most, in a flash.
const MAX_FLASH_CHANGE: f32 = 0.5;
/// The smallest decrease of the mean luma after a flash, more than noise makes.
const MIN_DARKENING: f32 = 0.002;

/// Finds hard cuts: changes of the picture that motion and brightness do not explain, and that are larger than the
/// changes around them.
///
/// It decides with one frame of lookahead: after a flash the picture returns, after a cut it does not. Dissolves and
/// fades are not cuts.
#[derive(Debug, Default)]
pub struct ShotDetector {
    /// The last frames of the shot, except the newest one; the newest is last.
    shot: VecDeque<Picture>,
    /// The newest frame, which awaits the next one.
    held: Option<Picture>,
}

impl ShotDetector {
    /// Takes the next frame. Returns whether the frame before it, if there is one, begins a shot: the first frame
    /// does not.
    pub fn push(&mut self, frame: &Frame) -> Option<bool> {
        let picture = Picture::new(frame);
        let held = self.held.take();
        let decision = held.map(|held| self.settle(held, Some(&picture)));
        self.held = Some(picture);
        decision
    }

    /// Ends the video. Returns whether the last frame, if there is one, begins a shot.
    pub fn finish(&mut self) -> Option<bool> {
        let decision = self.held.take().map(|held| self.settle(held, None));
        *self = Self::default();
        decision
    }

    fn settle(&mut self, frame: Picture, next: Option<&Picture>) -> bool {
        let is_cut = self.is_cut(&frame, next);
        if is_cut {
            self.shot.clear();
        }
        if self.shot.len() > HISTORY {
            self.shot.pop_front();
        }
        self.shot.push_back(frame);
        is_cut
    }

    /// Whether `frame`, which follows the shot, begins another one.
    fn is_cut(&self, frame: &Picture, next: Option<&Picture>) -> bool {
        let Some(last) = self.shot.back() else { return false };
        // What a cut shows was not in the shot before, as after a flash, and it stays.
        let smallest = |change: fn(&Picture, &Picture) -> f32| {
            let before = self.shot.iter().map(|before| change(before, frame));
            let across = next.map(|next| change(last, next));
            before.chain(across).fold(f32::INFINITY, f32::min)
        };
        // In the order of the effort: most frames need only the first.
        let luma = smallest(Picture::luma_change);
        if luma < MIN_LUMA_CHANGE || smallest(Picture::shape_change) < MIN_SHAPE_CHANGE {
            return false;
        }
        let luma_excess =
            |next| (luma / (self.activity(frame, next, Picture::luma_change) + LUMA_FLOOR)).ln();
        if luma_excess(None) < 0.0 {
            return false;
        }
        let residual = smallest(Picture::residual);
        if residual < MIN_RESIDUAL || next.is_some_and(|next| is_flash(last, frame, next)) {
            return false;
        }
        let excess = |next| {
            let activity = self.activity(frame, next, Picture::residual);
            luma_excess(next) + (residual / (activity + RESIDUAL_FLOOR)).ln()
        };
        let limit = if self.shot.len() > MIN_HISTORY { MIN_EXCESS } else { MIN_EARLY_EXCESS };
        luma_excess(next) > 0.0 && excess(next) > limit
            || residual > MIN_SINGLE_RESIDUAL
                && self.shot.len() > MIN_HISTORY
                && excess(None) > MIN_SINGLE_EXCESS
    }

    /// The largest change around `frame` except that at its start: in the shot before it, and to the next frame.
    fn activity(
        &self,
        frame: &Picture,
        next: Option<&Picture>,
        change: fn(&Picture, &Picture) -> f32,
    ) -> f32 {
        let before = self.shot.iter().zip(self.shot.iter().skip(1));
        let after = next.map(|next| (frame, next));
        before.chain(after).map(|(a, b)| change(a, b)).fold(0.0, f32::max)
    }
}

/// Whether `frame` is `last` in more light, which fades in `next`.
fn is_flash(last: &Picture, frame: &Picture, next: &Picture) -> bool {
    frame.mean() > last.mean()
        && next.mean() < frame.mean() - MIN_DARKENING
        && last.lit(frame) < MAX_FLASH_CHANGE
        && last.lit(next) < MAX_FLASH_CHANGE
}
