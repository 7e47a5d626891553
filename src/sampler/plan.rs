// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes what a run does and needs before any weights are loaded: lookahead, resume point, windows.

use std::{fmt, ops::Range};

use super::{
    decode::FRAMES,
    geometry::Canvas,
    model::COLOURS,
    params::SamplerParams,
    tiles::{COLUMNS, ROWS},
    windows::Windows,
};
use crate::engine::{Format, count, output_frames};

/// The most windows of which a plan lists every one.
const LISTED: usize = 10;

/// Returns how many items must arrive before item `index` leaves the last of `stages` stages.
fn needed(windows: Windows, stages: usize, index: usize) -> usize {
    let number = windows.final_with(index) + stages - 1;
    number * windows.stride() + windows.longest() + 1
}

/// Returns how many output frames must be encoded before output frame `index` is sampled and decoded.
fn needed_to_decode(windows: Windows, stages: usize, index: usize) -> usize {
    needed(windows, stages, needed(FRAMES, 1, index) - 1)
}

/// Returns the largest number of input frames whose hints are held at the same time.
pub(super) fn hints_in_flight(windows: Windows, evaluations: usize, interpolated: usize) -> usize {
    needed(windows, evaluations, 0).div_ceil(interpolated + 1)
}

/// Returns the lookahead: how many input frames after a given one must be pushed before all output frames
/// up to and including that input frame are delivered.
pub fn lookahead(params: &SamplerParams, interpolated: usize) -> usize {
    let windows = Windows::of_clip(interpolated);
    let stages = params.evaluations();
    let after = |input: usize| {
        let needed = needed_to_decode(windows, stages, input * (interpolated + 1));
        (needed - 1).div_ceil(interpolated + 1) - input
    };
    // After one period, both kinds of windows are aligned with the frames as at the start.
    let period = windows.stride() * FRAMES.stride();
    (0..=period).map(after).max().unwrap_or(0)
}

/// For a run that starts in the middle of a clip: returns the first item from which on the results of a
/// stage equal those of a run over the whole clip, if its inputs are equal from item `equal` on.
fn first_equal(windows: Windows, equal: usize) -> usize {
    // The first window whose inputs are all equal, without the items cross-faded with the previous window.
    equal.next_multiple_of(windows.stride()) + windows.overlap
}

/// As [`first_equal`], for the last stage of a clip that may end anywhere.
fn first_equal_at_last(windows: Windows, equal: usize) -> usize {
    // The window before may be the final one, which is longer.
    equal.next_multiple_of(windows.stride()) + windows.longest() - windows.stride()
}

/// Returns the input frame from which a run must start so that its output from input frame `resume_point` on
/// equals the output of a run over the whole clip. Returns the latest such input frame that is known without
/// the length of the clip.
pub fn resume_from(params: &SamplerParams, interpolated: usize, resume_point: usize) -> usize {
    let windows = Windows::of_clip(interpolated);
    let stages = params.evaluations();
    let sampled = (1..stages).fold(0, |equal, _| first_equal(windows, equal));
    let equal = first_equal_at_last(FRAMES, first_equal_at_last(windows, sampled));
    // At multiples of the period, a window of a stage and a window of the decoder begin with an input frame.
    let period = match windows.stride().is_multiple_of(FRAMES.stride()) {
        true => windows.stride(),
        // The decoder's stride, 3, is prime: the least common multiple is the product.
        false => windows.stride() * FRAMES.stride(),
    };
    let first = (resume_point * (interpolated + 1)).saturating_sub(equal) / period * period;
    first / (interpolated + 1)
}

/// A summary of a run. [`Display`](fmt::Display) formats it for users.
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
    /// Creates the plan of a clip of `inputs` input frames.
    pub fn new(params: &SamplerParams, format: Format, inputs: usize) -> Self {
        let (width, height) = format.output;
        Self {
            format,
            canvas: Canvas::new((height, width), params.smallest),
            frames: output_frames(inputs, format.interpolated),
            windows: Windows::of_clip(format.interpolated),
            evaluations: params.evaluations(),
            lookahead: lookahead(params, format.interpolated),
        }
    }

    /// Returns the number of output frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the largest number of frames of latents in flight, for any clip length: see
    /// [`Sampler::latents`](super::Sampler::latents).
    pub fn latents(&self) -> usize {
        frames_in_flight(self.windows, 0..self.evaluations)
    }

    /// Returns how many output frames must be encoded before the first one is sampled.
    pub fn sampled_after(&self) -> usize {
        needed(self.windows, self.evaluations, 0)
    }

    /// Returns the bytes of decoded frames in host memory.
    fn decoded(&self) -> usize {
        let (height, width) = self.canvas.padded;
        // A window, the copy of each of its frames, the results kept for the overlap, and the frames that wait for the
        // next input frame.
        let frames = 2 * FRAMES.longest() + FRAMES.overlap + self.format.interpolated;
        frames * COLOURS * height * width * size_of::<f32>()
    }
}

/// Returns the largest number of frames of latents that `stages` hold between two input frames.
pub(super) fn frames_in_flight(windows: Windows, stages: Range<usize>) -> usize {
    // Stage 0 queues frames until it knows that a window is not the final one. Every later stage holds the
    // frames of its next window up to the first frame of the window after it, the solver history of all of
    // them but the first, and the results of the previous window in the overlap.
    let behind = windows.stride() + 1 + windows.overlap;
    let first = windows.longest() + windows.overlap;
    let stage = |stage| if stage == 0 { first } else { behind + windows.stride() };
    stages.map(stage).sum()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (height, width) = self.canvas.padded;
        let (h, w) = self.canvas.latent();
        writeln!(f, "padded: {width}×{height}, latents {w}×{h}")?;
        let windows = self.windows.all(self.frames);
        let mut shown: Vec<_> =
            windows.iter().map(|window| format!("{}–{}", window.start, window.end - 1)).collect();
        if shown.len() > LISTED {
            shown.splice(2..windows.len() - 1, ["…".to_owned()]);
        }
        writeln!(f, "windows: {} of frames {}", windows.len(), shown.join(", "))?;
        writeln!(
            f,
            "evaluations: {} per window, {} in total",
            self.evaluations,
            self.evaluations * windows.len()
        )?;
        writeln!(
            f,
            "lookahead: {} input frames; sampling the first output frame needs {}",
            self.lookahead,
            self.sampled_after()
        )?;
        let tiles = count((ROWS.all(h).len() * COLUMNS.all(w).len()) as u64, "tile");
        let gib = self.decoded() as f64 / f64::from(1 << 30);
        write!(
            f,
            "decoding: windows of {} frames in {tiles}, {gib:.2} GiB of host memory",
            FRAMES.length
        )
    }
}
