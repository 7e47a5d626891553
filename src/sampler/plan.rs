// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a run will do and need, before any weight is there.

use std::{fmt, ops::Range};

use super::{
    decode::FRAMES,
    geometry::Canvas,
    model::COLOURS,
    schedule::NoiseSchedule,
    solver::evaluations,
    stream::Settings,
    tiles::{COLUMNS, ROWS},
    windows::Windows,
};
use crate::engine::Format;

/// Items that must be there before item `index` leaves the last of some stages over windows.
fn needed(windows: Windows, stages: usize, index: usize) -> usize {
    let number = windows.final_with(index) + stages - 1;
    number * windows.stride() + windows.longest() + 1
}

/// Output frames that must be there before the given one has been sampled and decoded.
fn needed_to_decode(windows: Windows, stages: usize, index: usize) -> usize {
    needed(windows, stages, needed(FRAMES, 1, index) - 1)
}

/// Input frames whose hints_in_flight are in flight, at most.
pub(super) fn hints_in_flight(windows: Windows, evaluations: usize, interpolated: usize) -> usize {
    needed(windows, evaluations, 0).div_ceil(interpolated + 1)
}

/// Key frames after any one that must be there before all output up to it has left.
pub fn lookahead(settings: &Settings, interpolated: usize) -> usize {
    let windows = Windows::of_clip(interpolated);
    let stages = evaluations(&NoiseSchedule::default(), settings.solver, settings.steps).1.len();
    let after = |key: usize| {
        let needed = needed_to_decode(windows, stages, key * (interpolated + 1));
        (needed - 1).div_ceil(interpolated + 1) - key
    };
    // Then the windows lie over the frames as at the beginning.
    let period = windows.stride() * FRAMES.stride();
    (0..=period).map(after).max().unwrap_or(0)
}

/// The first item from which on a stage over windows gives what it gives in the whole, in a run that begins
/// in the middle, if that is so of what comes in from item `right` on.
fn first_right(windows: Windows, right: usize) -> usize {
    // From the first window on that sees nothing else, but for what it fades in from the one before.
    right.next_multiple_of(windows.stride()) + windows.overlap
}

/// As [`first_right`], of the last stage, wherever the whole ends.
fn first_right_of_last(windows: Windows, right: usize) -> usize {
    // That window may not be there: the one before may be the last, and longer.
    right.next_multiple_of(windows.stride()) + windows.longest() - windows.stride()
}

/// The key frame that a run in the middle of a clip must begin with so that, from key frame `key` on, it gives
/// what a run from the beginning gives: the last for which that is sure.
pub fn resume_from(settings: &Settings, interpolated: usize, key: usize) -> usize {
    let windows = Windows::of_clip(interpolated);
    let stages = evaluations(&NoiseSchedule::default(), settings.solver, settings.steps).1.len();
    let sampled = (1..stages).fold(0, |right, _| first_right(windows, right));
    let right = first_right_of_last(FRAMES, first_right_of_last(windows, sampled));
    // At these output frames a window of each kind begins, with a key frame.
    let period = match windows.stride().is_multiple_of(FRAMES.stride()) {
        true => windows.stride(),
        // Which is a prime number.
        false => windows.stride() * FRAMES.stride(),
    };
    let first = (key * (interpolated + 1)).saturating_sub(right) / period * period;
    first / (interpolated + 1)
}

/// A run in numbers. Its text is for people.
#[derive(Debug, Clone)]
pub struct Plan {
    format: Format,
    canvas: Canvas,
    frames: usize,
    windows: Windows,
    evaluations: usize,
    lookahead: usize,
}

impl Plan {
    /// Of a clip of `keys` frames.
    pub fn new(settings: &Settings, format: Format, keys: usize) -> Self {
        let (width, height) = format.output;
        Self {
            format,
            canvas: Canvas::new((height, width), settings.smallest),
            frames: keys + format.interpolated * keys.saturating_sub(1),
            windows: Windows::of_clip(format.interpolated),
            evaluations: evaluations(&NoiseSchedule::default(), settings.solver, settings.steps)
                .1
                .len(),
            lookahead: lookahead(settings, format.interpolated),
        }
    }

    /// Output frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// The most frames of latents in flight, whatever the clip's length: see
    /// [`Sampler::latents`](super::Sampler::latents).
    pub fn latents(&self) -> usize {
        frames_in_flight(self.windows, 0..self.evaluations)
    }

    /// Output frames that must be there before the first has been sampled.
    pub fn sampled_after(&self) -> usize {
        needed(self.windows, self.evaluations, 0)
    }

    /// Bytes of the frames that are decoded together, which are in the computer's memory.
    fn decoded(&self) -> usize {
        let (height, width) = self.canvas.padded;
        // A window, its copies by frame, and those that wait for the next.
        let frames = 2 * FRAMES.longest() + FRAMES.overlap;
        frames * COLOURS * height * width * size_of::<f32>()
    }
}

/// Frames of latents that these stages hold between two frames, at most.
pub(super) fn frames_in_flight(windows: Windows, stages: Range<usize>) -> usize {
    // The first waits for frames until it is sure of a window. Behind its next window, each holds its
    // frames up to the first of the window after; what the solver remembers of all but the first; and
    // what the window before has given for its overlap.
    let behind = windows.stride() + 1 + windows.overlap;
    let first = windows.longest() + windows.overlap;
    let stage = |stage| if stage == 0 { first } else { behind + windows.stride() };
    stages.map(stage).sum()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Format { input, output, interpolated, .. } = self.format;
        let (height, width) = self.canvas.padded;
        let (h, w) = self.canvas.latent();
        writeln!(f, "output: {} frames, {} for each before", self.frames, interpolated + 1)?;
        writeln!(
            f,
            "size: {}×{} to {}×{}, padded to {width}×{height}, latents {w}×{h}",
            input.0, input.1, output.0, output.1
        )?;
        let windows: Vec<_> = self.windows.all(self.frames);
        let shown: Vec<_> =
            windows.iter().map(|window| format!("{}–{}", window.start, window.end - 1)).collect();
        writeln!(f, "windows: {} of frames {}", windows.len(), shown.join(", "))?;
        writeln!(
            f,
            "evaluations: {} a window, {} in all",
            self.evaluations,
            self.evaluations * windows.len()
        )?;
        writeln!(
            f,
            "lookahead: {} input frames; sampling the first output frame needs {}",
            self.lookahead,
            self.sampled_after()
        )?;
        let tiles = (ROWS.all(h).len(), COLUMNS.all(w).len());
        writeln!(
            f,
            "decoding: windows of {} frames in {} tiles",
            FRAMES.length,
            tiles.0 * tiles.1
        )?;
        let gib = self.decoded() as f64 / f64::from(1 << 30);
        write!(f, "decoded frames: {gib:.2} GiB of the computer's memory")
    }
}
