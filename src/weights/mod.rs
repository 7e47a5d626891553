// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the numbers of a network come from: files of the hub or of a folder, or their names.
//!
//! [`locate`] finds the files of a model, downloading what is not there; [`Checkpoint::open`] maps one of
//! them, when it holds what a network needs. No file gets its name before it is known to be right.

mod checkpoint;
mod folder;
mod hub;
pub mod keys;
mod locate;
mod lock;
mod meter;
mod pickle;
mod published;
pub mod store;
pub mod synth;
mod torch;

pub use checkpoint::Checkpoint;
pub use folder::{Config, synthesize};
pub use hub::Hub;
pub use locate::{Files, Source, locate, sizes};
pub use published::Version;

use std::{io, path::Path};

/// How far downloads, or the copy of a file, have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file at work: with its repository before it, or the path of a copy.
    pub file: String,
    /// Bytes that are here, of all files at work.
    pub done: u64,
    /// Bytes of all files at work.
    pub total: u64,
}

/// Bytes that a folder's disk has room for.
///
/// # Errors
/// If the folder does not exist or cannot be asked.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What an error says, without where it was made: that is for developers.
fn reason(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => reason(inner),
        // The path is told with what was tried.
        candle_core::Error::WithPath { inner, .. } => reason(inner),
        error => error.to_string(),
    }
}
