// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations that candle lacks, or is slow at, on channels-last tensors: frames [n, h, w, c] and
//! tokens [b, t, c].
//!
//! Each function has a CPU implementation and, with the feature `cuda`, one for NVIDIA GPUs.
//! [`ConvChain`] runs on the CPU only.
//!
//! The CPU computes in f32 for every type. GPUs multiply in the tensors' type and accumulate in
//! f32; norms and softmax are in f32.

mod attention;
mod chain;
mod conv;
#[cfg(feature = "cuda")]
mod cuda;
mod failure;
mod host;
mod linear;
mod math;
mod matrix;
mod norm;
mod throttle;
mod tokens;
mod weight;

use std::sync::atomic::{AtomicU64, Ordering};

/// Counter behind [`operations`].
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// Number of floating-point operations in matrix products of this process so far, on all devices.
/// A multiplication and an addition count as two.
#[cfg(feature = "bench")]
pub fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Counts the product of matrices [m, k] and [k, n].
fn count(m: usize, n: usize, k: usize) {
    if cfg!(feature = "bench") {
        OPERATIONS.fetch_add(2 * (m * n * k) as u64, Ordering::Relaxed);
    }
}

pub use attention::{attention, attention_along_first};
pub use chain::{ConvChain, LEAKY_SLOPE, Scratch, band_rows};
pub use conv::{Conv2d, ConvConfig, TimeConv};
#[cfg(all(feature = "cuda", feature = "bench"))]
pub use cuda::{
    Memory, ProductBackend, Record, memory, record, use_portable_kernels, use_products,
};
pub use failure::{Failure, failure};
pub use linear::{LayerNorm, Linear, geglu, gelu};
pub use norm::{Affine, GroupNorm, Moments};
pub use throttle::Throttle;
pub use tokens::{gather_pixels, scatter_pixels};

/// Copies a tensor to a device. A tensor that is already there is shared, not copied.
///
/// Between two CUDA devices, the copy waits for pending writes of the tensor, and the tensor's
/// memory is not reused before the copy ends. `Tensor::to_device` guarantees neither, because each
/// device has its own stream.
///
/// # Errors
/// If the device runs out of memory, or the driver reports an error.
pub fn to_device(
    x: &candle_core::Tensor,
    device: &candle_core::Device,
) -> candle_core::Result<candle_core::Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && device.is_cuda() && !x.device().same_device(device) {
        return cuda::copy_between(x, device);
    }
    x.to_device(device)
}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Memory available to new tensors of this process: free memory, and unused memory in the
    /// process's own pool.
    pub available: usize,
    /// Memory that the tensors of this process occupy.
    pub used: usize,
}

/// Waits for pending work and returns the memory of a device. `None` for a CPU, or if the driver
/// does not tell.
pub fn device_memory(device: &candle_core::Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::device_memory(device).ok();
    }
    let _ = device;
    None
}

/// Returns the CUDA device with an ordinal. All callers get the same `Device`, because candle does
/// not mix tensors of two instances.
///
/// # Errors
/// If there is no such device or no driver, if the build has no kernels for the device, if the
/// environment variable VENHANCE_KERNELS has an unknown value, or without the feature `cuda`.
pub fn cuda_device(ordinal: usize) -> candle_core::Result<candle_core::Device> {
    #[cfg(feature = "cuda")]
    return cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    candle_core::Device::new_cuda(ordinal)
}

/// Number of CUDA devices. 0 without a driver, or without the feature `cuda`.
pub fn cuda_devices() -> usize {
    #[cfg(feature = "cuda")]
    return cuda::count();
    #[cfg(not(feature = "cuda"))]
    0
}

/// Compares the device-specific kernels with the portable ones, once per device and process.
///
/// Kernels that fail or compute something else are not used on the device from then on. Returns
/// one warning for each family of such kernels, on the first call only; none for a device without
/// kernels of its own.
///
/// # Errors
/// If the device runs out of memory, or is lost to this process by an error.
pub fn check_kernels(device: &candle_core::Device) -> candle_core::Result<Vec<String>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::check_kernels(device);
    }
    let _ = device;
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    /// Deterministic values in \[−1, 1\] for a shape.
    pub(super) fn numbers(shape: &[usize]) -> Result<Tensor> {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|n| ((n * 7919 + count) % 1009) as f32 / 504.0 - 1.0);
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)
    }

    /// Asserts that the relative error of `a` is below 1e-5.
    pub(super) fn assert_same(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (norm(&(a - b).unwrap()) / norm(b)).sqrt();
        assert!(error < 1e-5, "relative error {error}");
    }
}
