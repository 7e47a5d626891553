// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong in a model, and how it is told to stop.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Why a model did not deliver. Each text says what was tried and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The [`Cancel`] token was set. The [`Sink`](super::Sink) returns it only after that.
    #[error("cancelled")]
    Cancelled,
    /// A setting that cannot be used.
    #[error("{setting}={value} cannot be used: {why}; {instead}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
        /// What to do.
        instead: String,
    },
    /// Weights that cannot be had, or that cannot be used.
    #[error("{tried} failed: {why}; {instead}")]
    Weights {
        /// What was tried, and on what.
        tried: String,
        /// What went wrong.
        why: String,
        /// What to do.
        instead: String,
    },
    /// The system has no memory for a frame.
    #[error(
        "no memory for a frame of {width}×{height} ({bytes} bytes); use a smaller up-scale, a smaller \
         input, or a machine with more memory"
    )]
    OutOfMemory {
        /// Width of the frame in pixels.
        width: usize,
        /// Height of the frame in pixels.
        height: usize,
        /// What was asked for.
        bytes: usize,
    },
    /// A device has no memory for a part of the computation, in however small pieces.
    #[error(
        "{what} failed: the device has no memory left ({why}); use a smaller up-scale or max-pixels, \
         another device, or close other programs that use this one"
    )]
    DeviceMemory {
        /// What was computed, and in what pieces.
        what: String,
        /// What the device or library said.
        why: String,
    },
    /// A device has less memory than a model needs; nothing was loaded or computed.
    #[error("{what} needs {needed} of memory on {device}, which has {available}; {instead}")]
    TooLittleMemory {
        /// The model, and what it was asked for.
        what: String,
        /// The device's name.
        device: String,
        /// With its unit.
        needed: String,
        /// With its unit.
        available: String,
        /// What to do.
        instead: String,
    },
    /// An error on a GPU after which this process cannot use it any more.
    #[error(
        "{what} failed: the GPU reported an error after which this process cannot use it any more ({why}); \
         restart the process, and if it happens again, set the environment variable VENHANCE_KERNELS=portable"
    )]
    DeviceLost {
        /// What was computed.
        what: String,
        /// What the device or library said.
        why: String,
    },
    /// A part of the computation failed.
    #[error("{what} failed: {why}; use another device or another model, or report this")]
    Compute {
        /// What was computed.
        what: String,
        /// What the device or library said.
        why: String,
    },
    /// A network gave infinite values or none at all, and again with a wider type.
    #[error(
        "{what} gave values that are not finite, in bf16 too; check that the weights are whole, or use \
         another model"
    )]
    NotFinite {
        /// What was computed.
        what: String,
    },
    /// A broken invariant of this crate, such as a clip with a frame too many.
    #[error("internal error: {what}; this is a bug in venhance: please report it")]
    Internal {
        /// Which invariant, and how.
        what: String,
    },
    /// A frame could not be resized.
    #[error("resizing a frame from {from:?} to {to:?} failed: {why}; please report this")]
    Resize {
        /// Width and height before.
        from: (usize, usize),
        /// Width and height after.
        to: (usize, usize),
        /// What the resizer said.
        why: String,
    },
}

/// Asks a computation to stop; clones share one flag, and setting it takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks all holders of this token to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// [`Error::Cancelled`] once [`cancel`](Self::cancel) was called.
    pub fn check(&self) -> Result<(), Error> {
        match self.0.load(Ordering::Acquire) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}
