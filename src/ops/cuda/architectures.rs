// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GPUs that kernels are compiled for. build.rs reads this file, too.

/// Compute capabilities of the portable kernels' images, as 10·major + minor. An image runs on its own capability and
/// on later minor versions of the same major version.
pub const PORTABLE: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// The one that has kernels of its own, which run on nothing else.
pub const HOPPER: u32 = 90;
