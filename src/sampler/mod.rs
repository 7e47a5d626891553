// SPDX-License-Identifier: MIT OR Apache-2.0
//! Samples the diffusion models over clips of any length in constant memory.
//!
//! ```text
//! input frames ─► encode ─► stage 0 ─► stage 1 ─► … ─► decode ─► output frames
//!                 each      one evaluation of the       windows of
//!                 once      network, window by window   5 frames
//! ```
//!
//! A *stage* is one evaluation of the network. The *wavefront* is the order in which the stages run: a
//! stage evaluates a window as soon as the frames of that window arrive, so window n is at stage 0 while
//! window n − 1 is at stage 1. The module `wavefront` implements it: see [`Sampler`]. A short clip is a
//! single window.
//!
//! The latents of each frame are a separate tensor [1, 4, 1, h, w] in f32. A stage concatenates them only
//! for the duration of an evaluation. Therefore only the frames that are still needed take memory, and
//! frames move between devices without splitting.

mod alpha;
mod budget;
mod colour;
mod control;
mod decode;
mod encode;
mod enhancer;
mod finish;
mod geometry;
mod guidance;
mod model;
mod noise;
mod params;
mod picture;
mod plan;
mod schedule;
mod slices;
mod solver;
mod stage;
mod stream;
mod tiles;
mod wavefront;
mod windows;

pub use budget::{Footprint, Need, Work};
pub use control::failed;
pub use decode::{Decode, FRAMES};
pub use enhancer::DiffusionEnhancer;
pub use geometry::{Canvas, mask};
pub use guidance::Guidance;
pub use model::{
    Autoencoder, Check, Conditions, Denoiser, Encoded, LATENT, Mode, Precision, Velocities,
};
pub use noise::{Noise, Purpose, Seeded};
pub use params::{ClipParams, SamplerParams};
pub use picture::{fit, planes};
pub use plan::{Plan, lookahead, resume_from};
pub use schedule::{NoiseSchedule, START, timesteps};
pub use slices::{Budget, RESERVE, Slices};
pub use solver::{Evaluation, evaluations};
pub use stage::{Batch, Frame};
pub use stream::{Models, Stream};
pub use tiles::{COLUMNS, ROWS, tile_weights};
pub use wavefront::{LatentSink, Sampler};
pub use windows::{Windows, cross_fade};
