// SPDX-License-Identifier: MIT OR Apache-2.0
//! The networks of VEnhancer, each from a config and the weights of its checkpoint, whose keys the code
//! follows. Published as arXiv 2407.07667.
//!
//! Inside, frames are slices [n, h, w, c] of a few frames each: spatial layers take one slice at a time
//! and free the one before, so that no more than the slice comes on top of what must be kept.

mod frame_batch;
mod layers;
mod residual;
pub mod text;
pub mod unet;
pub mod vae;
mod walk;

pub use crate::sampler::Check;
