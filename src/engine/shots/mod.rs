// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shots: finds the hard cuts of a video, so that no model sees two shots in one clip.

mod detector;
mod enhancer;
mod picture;

pub use detector::ShotDetector;
pub use enhancer::ShotEnhancer;

#[cfg(test)]
mod tests;
