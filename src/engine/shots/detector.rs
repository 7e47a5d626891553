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

/// The smallest excess of a cut over the largest changes around it: the sum of the logarithms of the ratios of luma
/// changes and of residuals.
const MIN_EXCESS: f32 = 0.5;
/// The same without the change after it, which does not tell a shot of one frame from sudden motion.
const MIN_SINGLE_EXCESS: f32 = 1.5;
/// The fewest frames of a shot that tell how large its changes are.
const MIN_HISTORY: usize = 3;

/// The smallest residual of a change that is compared with the typical change of the shot instead of the largest one, so
/// that a flash or a cut shortly before does not hide it; and its smallest excess, in the luma as well as in the
/// residual.
const MIN_CLEAR_RESIDUAL: f32 = 0.4;
const MIN_CLEAR_EXCESS: f32 = 1.0;
/// The same for unrelated pictures; the last one is without the change after it, as above.
const MIN_UNRELATED_RESIDUAL: f32 = 0.65;
const MIN_UNRELATED_EXCESS: f32 = 0.1;
const MIN_UNRELATED_SINGLE_EXCESS: f32 = 0.5;

/// The part of a change that more light does not explain, at most, in a flash.
const MAX_FLASH_CHANGE: f32 = 0.5;
/// The smallest decrease of the mean luma after a flash, more than noise makes.
const MIN_DARKENING: f32 = 0.002;
/// The mean luma of a white frame, which may stay.
const WHITE: f32 = 0.97;

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
        // In the order of the effort: most frames need only the first.
        let luma = self.smallest_change(frame, next, Picture::luma_change, MIN_LUMA_CHANGE);
        let Some(luma) = luma else { return false };
        if self.smallest_change(frame, next, Picture::shape_change, MIN_SHAPE_CHANGE).is_none() {
            return false;
        }
        let lumas = self.activity(frame, next, Picture::luma_change);
        let luma_excess = |activity: f32| (luma / (activity + LUMA_FLOOR)).ln();
        if luma_excess(lumas.typical) < 0.0 {
            return false;
        }
        let is_known = self.shot.len() >= MIN_HISTORY;
        let may_stand_out = is_known && luma_excess(lumas.largest) > 0.0;
        let min_residual = if may_stand_out { MIN_RESIDUAL } else { MIN_CLEAR_RESIDUAL };
        let residual = self.smallest_change(frame, next, Picture::residual, min_residual);
        let Some(residual) = residual else { return false };
        if next.is_some_and(|next| is_flash(last, frame, next)) {
            return false;
        }
        let residuals = self.activity(frame, next, Picture::residual);
        let residual_excess = |activity: f32| (residual / (activity + RESIDUAL_FLOOR)).ln();

        let typical = luma_excess(lumas.typical).min(residual_excess(residuals.typical));
        let with_next = typical.min(residual_excess(residuals.next));
        let is_clear = match residual {
            MIN_UNRELATED_RESIDUAL.. => {
                with_next > MIN_UNRELATED_EXCESS
                    || is_known && typical > MIN_UNRELATED_SINGLE_EXCESS
            }
            MIN_CLEAR_RESIDUAL.. => with_next > MIN_CLEAR_EXCESS,
            _ => false,
        };
        let alone = luma_excess(lumas.largest) + residual_excess(residuals.largest);
        let luma_excess = luma_excess(lumas.largest.max(lumas.next));
        let residual_excess = residual_excess(residuals.largest.max(residuals.next));
        let stands_out = luma_excess > 0.0 && luma_excess + residual_excess > MIN_EXCESS
            || residual > MIN_CLEAR_RESIDUAL && alone > MIN_SINGLE_EXCESS;
        is_clear || may_stand_out && stands_out
    }

    /// The smallest of the changes from each frame of the shot to `frame`, and of that from the last one to the next
    /// frame: what a cut shows was not in the shot before, as after a flash, and it stays. `None` if it is below `min`.
    fn smallest_change(
        &self,
        frame: &Picture,
        next: Option<&Picture>,
        change: fn(&Picture, &Picture) -> f32,
        min: f32,
    ) -> Option<f32> {
        let before = self.shot.iter().rev().map(|before| change(before, frame));
        let across = self.shot.back().zip(next).map(|(last, next)| change(last, next));
        let mut changes = before.chain(across);
        // Ends at the first one that is too small.
        changes.try_fold(f32::INFINITY, |smallest, change| {
            (change >= min).then_some(change.min(smallest))
        })
    }

    /// The changes around that at the start of `frame`.
    fn activity(
        &self,
        frame: &Picture,
        next: Option<&Picture>,
        change: fn(&Picture, &Picture) -> f32,
    ) -> Activity {
        let pairs = self.shot.iter().zip(self.shot.iter().skip(1));
        let mut before: Vec<f32> = pairs.map(|(a, b)| change(a, b)).collect();
        before.sort_by(f32::total_cmp);
        Activity {
            typical: before.get(before.len() / 2).copied().unwrap_or(0.0),
            largest: before.last().copied().unwrap_or(0.0),
            next: next.map_or(0.0, |next| change(frame, next)),
        }
    }
}

/// Changes from one frame to the next.
struct Activity {
    /// The median of those in the shot.
    typical: f32,
    /// The largest of them.
    largest: f32,
    /// That after the frame in question.
    next: f32,
}

/// Whether `frame` is `last` in more light, which fades in `next` or makes it white.
fn is_flash(last: &Picture, frame: &Picture, next: &Picture) -> bool {
    frame.mean() > last.mean()
        && (next.mean() < frame.mean() - MIN_DARKENING || frame.mean() > WHITE)
        && last.lit(frame) < MAX_FLASH_CHANGE
        && last.lit(next) < MAX_FLASH_CHANGE
}
