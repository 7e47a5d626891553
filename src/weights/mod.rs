// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the numbers of a network come from.

pub mod keys;
pub mod synth;
