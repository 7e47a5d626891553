// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights: downloads and caches the files of a model, and maps them into memory.
//!
//! [`locate`] finds the files of a model and downloads missing ones; [`Checkpoint::open`] maps one file and checks
//! that it contains the tensors of a network. A file gets its final name only after its contents are verified.

mod checkpoint;
mod disk;
mod error;
mod folder;
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
pub use disk::free_space;
pub use folder::{Config, synthesize};
pub use hub::Hub;
pub use locate::{Files, Source, locate, sizes};
pub use progress::Progress;
pub use published::Version;
