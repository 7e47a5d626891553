// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipelines: [`Work`] enhances into the partial file, [`Finish`] writes the finished file, [`scan()`] plans pieces.
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

mod colour;
mod conform;
mod edit_list;
mod finish;
mod losses;
mod packets;
mod parts;
mod scan;
mod shots;
mod state;
mod streams;
mod times;
mod work;

pub use finish::Finish;
pub use packets::{Contents, Packets};
pub use parts::{
    Form, add, add_in_front, bin, chain, decoder, fed_by, link, link_to_muxer, read, static_pad,
};
pub use scan::{ScannedFrame, scan};
pub use shots::Shots;
pub use work::{Work, add_encoder};
