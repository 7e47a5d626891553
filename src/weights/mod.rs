// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights: downloads and caches the files of a model, and maps them into memory.
//!
//! [`Source::locate`] finds the files of a model and downloads missing ones; [`Checkpoint::open`] maps one file and
//! checks that it contains the tensors of a network. A file gets its final name only after its contents are verified.

mod archive;
mod checkpoint;
mod disk;
mod hub;
pub mod keys;
mod locate;
mod lock;
mod pickle;
mod progress;
mod published;
mod store;
#[doc(hidden)]
pub mod synth;
mod torch;

pub use checkpoint::Checkpoint;
#[doc(hidden)]
pub use disk::{create_new, free_space, open_or_create};
pub use hub::Hub;
pub use locate::Source;
pub use progress::Progress;
pub(crate) use store::write;

/// The message of a candle error without its backtrace and path. The path is part of what was tried.
pub(crate) fn reason(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::WithPath { inner, .. } => reason(inner),
        error => error.to_string(),
    }
}
