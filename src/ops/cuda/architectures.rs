// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GPU architectures that kernels are compiled for. build.rs includes this file.

/// Compute capabilities of the portable images, as 10·major + minor. An image runs on its own
/// compute capability and on later minor versions of the same major version.
pub const PORTABLE: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// The architecture with kernels of its own, which run on no other.
pub const HOPPER: u32 = 90;
