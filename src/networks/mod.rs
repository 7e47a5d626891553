// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the networks of VEnhancer (arXiv 2407.07667), each from a config and the weights of its
//! published checkpoint.
//!
//! Tensor names follow the checkpoint's keys.
//!
//! Activations are channels last, in slices [n, h, w, c] of a few frames each. Spatial layers map
//! one slice at a time and free their input slice, so peak memory exceeds the live activations by
//! about one slice.

mod frame_batch;
mod layers;
mod peak_memory;
mod residual;
pub mod text;
pub mod unet;
pub mod vae;

pub use crate::sampler::Check;
