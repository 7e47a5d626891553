// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events that the caller gets while a model is loaded.

use crate::weights;

/// An event while a model is loaded.
#[derive(Debug)]
pub enum LoadEvent {
    /// Progress of the downloads.
    Download(weights::Progress),
    /// Progress of the conversion of a file: see [`weights::Checkpoint::open`].
    Conversion(weights::Progress),
    /// A problem that does not stop loading.
    Warning(String),
}
