// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the errors of all models, because the element reports them to users, and the cancellation token.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::text::{escaped, printable};

/// An error of a model. Each message states what was tried, why it failed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Somebody cancelled: the [`Cancel`] token is set, or the [`Sink`](super::Sink) takes no more frames.
    #[error("cancelled")]
    Cancelled,
    /// An unusable setting.
    #[error("{setting}={} cannot be used: {}; {instead}", printable(value), escaped(why))]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The reason.
        why: String,
        /// What the user can do.
        instead: String,
    },
    /// Missing or unusable weights.
    #[error("{} failed: {}; {}", escaped(tried), escaped(why), escaped(instead))]
    Weights {
        /// The operation and its object.
        tried: String,
        /// The reason.
        why: String,
        /// What the user can do.
        instead: String,
    },
    /// Host memory is too small for a frame.
    #[error(
        "cannot allocate a frame of {width}×{height} pixels ({gib} GiB): out of memory; use a smaller \
         up-scale or target-height, a smaller input, or a machine with more memory"
    )]
    OutOfMemory {
        /// Width of the frame in pixels.
        width: usize,
        /// Height of the frame in pixels.
        height: usize,
        /// Size of the frame in GiB, or of what is computed with it.
        gib: String,
    },
    /// A device is out of memory, even in the smallest slices.
    #[error(
        "{what} failed: the device is out of memory ({why}); use a smaller up-scale, target-height or \
         max-pixels or another device, or close other programs that use this device"
    )]
    DeviceMemory {
        /// The operation and its slices.
        what: String,
        /// Message of the device or library.
        why: String,
    },
    /// A device has less memory than a model needs. Detected before anything is loaded.
    #[error("{what} needs {needed} of memory on {device}, which has {available}; {instead}")]
    TooLittleMemory {
        /// The model and the requested output.
        what: String,
        /// Name of the device.
        device: String,
        /// Needed memory with its unit.
        needed: String,
        /// Available memory with its unit.
        available: String,
        /// What the user can do.
        instead: String,
    },
    /// A GPU error after which this process cannot use the GPU.
    #[error(
        "{what} failed: the GPU reported an error after which this process cannot use it any more ({why}); \
         restart the process, and if it happens again, set the environment variable VENHANCE_KERNELS=portable"
    )]
    DeviceLost {
        /// The operation.
        what: String,
        /// Message of the device or library.
        why: String,
    },
    /// A failed computation.
    #[error("{what} failed: {why}; use another device or another model, or report this")]
    Compute {
        /// The operation.
        what: String,
        /// Message of the device or library.
        why: String,
    },
    /// A network produced NaN or infinity, also in bf16.
    #[error(
        "{what} produced NaN or infinity, even in bf16; check the files in model-dir, set the environment variable \
         VENHANCE_KERNELS=portable, or use model=lite"
    )]
    NotFinite {
        /// The operation.
        what: String,
    },
    /// A broken invariant of this crate, such as a clip with an extra frame.
    #[error("internal error: {what}; this is a bug in venhance: please report it")]
    Internal {
        /// The invariant and how it is broken.
        what: String,
    },
}

impl Error {
    /// Creates the [`Internal`](Self::Internal) error for a frame, or the end of a clip, without a start of the clip.
    pub(crate) fn without_start() -> Self {
        Self::Internal { what: "a frame or the end of a clip without a start".into() }
    }

    /// Creates an [`OutOfMemory`](Self::OutOfMemory) error for a frame that takes `bytes`.
    pub(crate) fn out_of_memory((width, height): (usize, usize), bytes: f64) -> Self {
        Self::OutOfMemory { width, height, gib: format!("{:.1}", bytes / f64::from(1 << 30)) }
    }
}

/// A cancellation token. Clones share one flag. Setting it takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Checks the flag.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after a call of [`cancel`](Self::cancel).
    pub fn check(&self) -> Result<(), Error> {
        match self.0.load(Ordering::Acquire) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}
