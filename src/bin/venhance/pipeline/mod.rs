// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two pipelines: [`Work`] enhances into the partial file, [`finish()`] writes the finished file.
//!
//! ```text
//! work:    IN ─► decoder ─► venhance ─► encoder ─► matroskamux ─► partial file
//!          IN ─► audio, subtitles ─────────────────────┘
//!
//! finish:  partial file ─► video ─────► muxer ─► OUT
//!          IN ─► audio, subtitles ────────┘
//! ```
//!
//! Every stream has its own reader, so that no stream blocks another: a muxer waits for all its inputs, and
//! `venhance` holds seconds of video.

mod finish;
mod parts;
mod state;
mod streams;
mod work;

pub use finish::finish;
pub use parts::{add_in_front, static_pad};
pub use work::Work;
