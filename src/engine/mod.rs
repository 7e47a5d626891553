// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the interface between the element and every model, independent of GStreamer and tensors.
//!
//! # Clips
//!
//! A *clip* is a run of consecutive *input frames*: nothing is interpolated across its ends. It may contain
//! scene cuts. A model takes one frame at a time and delivers output from any thread. It may hold output back
//! for as many input frames as its [lookahead](Enhancer::lookahead).
//!
//! # Times
//!
//! The caller decides when output frames are shown. Each input frame has a time, and with it come the times of
//! the output frames to deliver. Times are integers in a unit that the caller chooses for each clip; the first
//! frame may be at any time. The model delivers exactly one frame for each output time, in order:
//!
//! | output time | output frame |
//! |---|---|
//! | that of an input frame | that frame, upscaled |
//! | between two input frames at a and b | an *interpolated frame* at the fraction (time − a) / (b − a) of the way |
//! | before the first input frame, or after the last one | that frame again: nothing is extrapolated |
//!
//! With k interpolated frames between two input frames ([`multiple_times`]), input frame n is at n·(k+1) and
//! there is an output frame at every integer from the first to the last input frame: N + k·(N−1) for N input
//! frames. A model that makes a fixed number of frames accepts only these times, in any unit; `lite::Retimed` is
//! such a model for any times. With [`Format::exact`] the output times are free: an input frame may have no
//! output frame at its own time, and an interval between two may have none at all.
//!
//! An `Enhancer` can wrap another one and change the clip through the times:
//! - To drop an input frame, push its output times with the next frame, before that one's.
//! - To end the clip of the inner model early, [`finish`](Enhancer::finish) it with the output times that repeat
//!   its last frame, and start it again with those that repeat the next frame.

mod blank;
pub mod duplicates;
mod error;
mod frame;
pub mod log;
mod options;
mod rules;
pub mod shots;
mod sizing;
mod text;
mod times;

pub use blank::Blank;
pub use error::{Cancel, Error};
pub(crate) use frame::zeroed;
pub use frame::{Components, Frame};
pub use options::{ColourFix, Model, NEGATIVE_PROMPT, Options, POSITIVE_PROMPT, Solver, Version};
pub use rules::{
    MAX_INTERPOLATED_FRAMES, covering_frames, interpolated_frames, output_frames, scaled_side,
    target_size, unscaled_sides,
};
pub use sizing::{MAX_SCALE, Sizing};
pub use text::{count, printable};
pub use times::{check_times, multiple_times};

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
    /// Whether output times may lie anywhere. Otherwise they are those of `interpolated` frames.
    pub exact: bool,
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
    /// Takes the frame for the next output time.
    ///
    /// Blocks while the consumer is behind.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the consumer has stopped. The clip ends then.
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error>;

    /// Reports that the next frame is of the shot that begins with input frame `first` of the clip.
    fn shot(&self, _first: usize) {}

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

    /// Takes a frame of the next clip that comes before those that are pushed: `first` of
    /// [`start_at`](Self::start_at) counts it. It gives no output, but it may decide where shots begin.
    fn skip(&mut self, _frame: &Frame) {}

    /// Takes the next frame of the clip, which is shown at `time`. May return before the frame is processed.
    ///
    /// `outputs` are the times of the output frames after the previous input frame (or before the first one),
    /// up to and including `time`, in ascending order.
    ///
    /// # Errors
    /// Any error of the clip, also from earlier frames. [`Error::Internal`] if [`check_times`] refuses the
    /// times, or the model cannot make frames for them.
    fn push(&mut self, frame: Frame, time: u64, outputs: &[u64]) -> Result<(), Error>;

    /// Ends the clip. `outputs` are the times of the output frames after the last input frame: it is repeated.
    /// Returns when all output is delivered.
    ///
    /// # Errors
    /// As [`push`](Self::push); also if there are `outputs` and no input frame.
    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error>;

    /// Drops the clip and its state. The model stays loaded.
    fn reset(&mut self);
}
