// SPDX-License-Identifier: MIT OR Apache-2.0
//! The operations on NVIDIA GPUs.
//!
//! nvcc compiles the kernels when the crate is built (see `launch`). There are two sets (see
//! `kernel_set`): portable kernels for every supported GPU, and faster ones for Hopper, which a
//! device uses once they agree with the portable ones there (see `self_test`).
//!
//! All work on a device is in one stream, in program order. Memory can thus be freed while kernels
//! that use it are still pending, and nothing here waits for them.

mod architectures;
mod attention;
#[cfg(feature = "bench")]
mod cublaslt;
mod device;
mod gate;
mod kernel_set;
mod launch;
mod norm;
mod operands;
mod pixels;
mod product;
mod product_hopper;
mod record;
mod self_test;
mod tiles;

pub(super) use attention::{attention, has_kernel};
#[cfg(feature = "bench")]
pub use device::{Memory, memory};
pub(super) use device::{copy_between, device_memory, has_room};
pub use device::{count, open};
pub(super) use gate::geglu;
#[cfg(feature = "bench")]
pub use kernel_set::use_portable_kernels;
pub(super) use norm::{affine, group_affine, layer_norm, moments};
pub(super) use pixels::{gather_pixels, scatter_pixels};
#[cfg(feature = "bench")]
pub use product::{ProductBackend, use_products};
pub(super) use product::{conv, linear, time_conv};
#[cfg(feature = "bench")]
pub use record::{Record, record};
pub use self_test::check_kernels;

/// All kernel files.
#[cfg(test)]
const SOURCES: [&launch::Source; 7] = [
    &attention::SOURCE,
    &attention::HOPPER,
    &gate::SOURCE,
    &norm::SOURCE,
    &pixels::SOURCE,
    &product::SOURCE,
    &product_hopper::SOURCE,
];
