// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations on NVIDIA GPUs.
//!
//! Kernels are ours, compiled for the device at hand when the first of a file is needed. All work of a
//! device is on one stream, in the order in which it was asked for: memory may be given back while kernels
//! that use it still wait, and nothing here waits for them.

mod attention;
mod device;
mod gate;
mod launch;
mod norm;
mod product;
mod product_hopper;
mod record;
mod tiles;

pub(super) use attention::{attention, has_kernel};
pub(super) use device::device_memory;
pub use device::{Memory, memory, open};
pub(super) use device::{copy_between, has_room};
pub(super) use gate::geglu;
pub use launch::use_portable_kernels;
pub(super) use norm::{affine, group_affine, layer_norm, moments};
pub(super) use product::{conv, linear, time_conv};
pub use record::{Record, record};

/// All files of kernels.
#[cfg(test)]
const SOURCES: [&launch::Source; 6] = [
    &attention::SOURCE,
    &attention::HOPPER,
    &gate::SOURCE,
    &norm::SOURCE,
    &product::SOURCE,
    &product_hopper::SOURCE,
];
