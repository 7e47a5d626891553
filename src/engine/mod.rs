// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contract between the element and every model, in plain data.
//!
//! A model turns the N frames of a *clip* into N + k·(N−1) larger ones: every input frame (a *key
//! frame*) in its turn, with k *made* frames between two neighbours. It gets one frame at a time,
//! hands over output whenever it has some, from whatever thread, and may hold frames back for as
//! long as its [lookahead](Enhancer::lookahead) says. Nothing here knows of GStreamer or tensors.

mod error;
mod frame;
pub mod log;
mod options;
mod rules;

pub use error::{Cancel, Error};
pub use frame::Frame;
pub use options::{Model, NEGATIVE_PROMPT, Options, POSITIVE_PROMPT, Solver};
pub use rules::{MAX_MADE_FRAMES, interpolated_frames, scaled_side, target_size, unscaled_sides};

use std::{sync::Arc, time::Duration};

/// What every frame of a clip has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Width and height of the input in pixels.
    pub input: (usize, usize),
    /// Width and height of the output in pixels.
    pub output: (usize, usize),
    /// Frames to make between two neighbours: k of the module's text.
    pub interpolated: usize,
    /// Whether the fourth component of the frames means something.
    pub alpha: bool,
}

/// How far the work has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is counted, for people: "frame", "window 3, step 5".
    pub unit: String,
    /// Time that the unit of work just finished took.
    pub took: Duration,
}

/// Where an [`Enhancer`] delivers, from whatever threads; frames come from one at a time.
pub trait Sink: Send + Sync {
    /// Takes the next output frame: key 0, the frames made after it, key 1, …
    ///
    /// Blocks while the consumer is behind. Fails with [`Error::Cancelled`] when nobody wants the
    /// frame any more; the clip is lost then.
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error>;

    /// Takes note of a finished unit of work.
    fn progress(&self, progress: Progress);

    /// Takes note of something that the user may not have wanted; the work goes on.
    fn warning(&self, _text: String) {}
}

/// Where the output of one clip goes, and how its computation is stopped.
#[derive(Clone)]
pub struct ClipContext {
    /// Takes the output.
    pub sink: Arc<dyn Sink>,
    /// Asks for an early end. Checked at least once a network block, or every few million pixels.
    pub cancel: Cancel,
}

/// A model at work on one clip after another.
///
/// The calls of a clip are [`start`](Self::start) or [`start_at`](Self::start_at),
/// [`push`](Self::push) for each frame, then [`finish`](Self::finish), or [`reset`](Self::reset) at any
/// time. After an error only `reset` and `start` may follow.
pub trait Enhancer: Send {
    /// The number of input frames, after a given one, that must be pushed before all output up to
    /// and including that frame has left.
    ///
    /// Made frames count with the key frame after them: a model that makes frames has at least 1.
    fn lookahead(&self, format: &Format) -> usize;

    /// Begins a clip; its frames have the size `format.input`.
    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error>;

    /// As [`start`](Self::start), for a clip's frames from key frame `first` on: a model to which a frame's
    /// place in its clip makes a difference works as if those before had come.
    fn start_at(&mut self, _first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.start(format, clip)
    }

    /// Takes the clip's next frame. May return before the frame has been worked on.
    fn push(&mut self, frame: Frame) -> Result<(), Error>;

    /// Ends the clip and returns when all its output has been handed over.
    ///
    /// A clip of N frames gives N + k·(N−1), for any N, zero included.
    fn finish(&mut self) -> Result<(), Error>;

    /// Drops the clip with all that is held of it, and keeps the model loaded.
    fn reset(&mut self);
}
