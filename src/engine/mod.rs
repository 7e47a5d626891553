// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the interface between the element and every model, independent of GStreamer and tensors.
//!
//! A model turns the N *input frames* of a *clip* into N + k·(N−1) output frames: every input frame,
//! upscaled, with k *interpolated frames* between two of them. A clip is a run of
//! consecutive frames: nothing is interpolated across its ends. It may contain scene cuts. The model takes one frame at a time and delivers output from any thread. It may hold output back
//! for as many input frames as its [lookahead](Enhancer::lookahead).

mod error;
mod frame;
pub mod log;
mod options;
mod rules;
mod text;

pub use error::{Cancel, Error};
pub use frame::Frame;
pub(crate) use frame::zeroed;
pub use options::{ColourFix, Model, NEGATIVE_PROMPT, Options, POSITIVE_PROMPT, Solver, Version};
pub use rules::{
    MAX_INTERPOLATED_FRAMES, interpolated_frames, output_frames, scaled_side, target_size,
    unscaled_sides,
};
pub use text::printable;

use std::{sync::Arc, time::Duration};

/// Properties that all frames of a clip share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Width and height of the input in pixels.
    pub input: (usize, usize),
    /// Width and height of the output in pixels.
    pub output: (usize, usize),
    /// Interpolated frames between two input frames: k in the [module documentation](self).
    pub interpolated: usize,
    /// Whether the input has an alpha channel. Without one, output frames are opaque.
    pub alpha: bool,
}

/// Progress report: a finished unit of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Name of the unit for users, such as "frame" or "window 3, step 5".
    pub unit: String,
    /// Time that the unit took.
    pub took: Duration,
}

/// Receives the output of an [`Enhancer`]. Any thread may call it; only one at a time delivers frames.
pub trait Sink: Send + Sync {
    /// Takes the next output frame: input frame 0, the interpolated frames after it, input frame 1, …
    ///
    /// Blocks while the consumer is behind.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the consumer has stopped. The clip ends then.
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error>;

    /// Reports a finished unit of work.
    fn progress(&self, progress: Progress);

    /// Reports a problem that does not stop the clip.
    fn warning(&self, _text: String) {}
}

/// Output and cancellation of one clip.
#[derive(Clone)]
pub struct ClipContext {
    /// Receives the output.
    pub sink: Arc<dyn Sink>,
    /// Stops the clip early. Models check it at least once per network block, or every few million pixels.
    pub cancel: Cancel,
}

/// A loaded model that processes one clip after another.
///
/// For each clip, call [`start`](Self::start) or [`start_at`](Self::start_at), then
/// [`push`](Self::push) for each frame, then [`finish`](Self::finish). [`reset`](Self::reset) is allowed at
/// any time. After an error, only `reset`, `start` and `start_at` are allowed.
pub trait Enhancer: Send {
    /// Returns how many input frames after a given one must be pushed before all output up to and including
    /// that input frame is delivered.
    ///
    /// The lookahead of a model that only needs the next input frame to interpolate is 1.
    fn lookahead(&self, format: &Format) -> usize;

    /// Starts a clip with frames of size `format.input`.
    ///
    /// # Errors
    /// The model cannot start with `format`.
    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error>;

    /// As [`start`](Self::start), for a clip of which only the input frames from `first` on are pushed. A
    /// model whose noise depends on the frame index uses the indices of the whole clip.
    fn start_at(&mut self, _first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.start(format, clip)
    }

    /// Takes the next frame of the clip. May return before the frame is processed.
    ///
    /// # Errors
    /// Any error of the clip, also from earlier frames.
    fn push(&mut self, frame: Frame) -> Result<(), Error>;

    /// Ends the clip. Returns when all output is delivered: N + k·(N−1) frames for N input frames, none
    /// for N = 0.
    ///
    /// # Errors
    /// Any error of the clip.
    fn finish(&mut self) -> Result<(), Error>;

    /// Drops the clip and its state. The model stays loaded.
    fn reset(&mut self);
}
