// SPDX-License-Identifier: MIT OR Apache-2.0
//! What candle lacks or does badly, for tensors whose channels are last: frames [n, h, w, c] and tokens
//! [b, t, c]. Behind each function are a side for the CPU and, with the feature `cuda`, one for NVIDIA GPUs;
//! only a [`ConvChain`] is for the CPU alone.
//!
//! On the CPU all is computed in f32, whatever the type; on a GPU products are of the tensors' own type with
//! sums in f32, norms and softmax in f32.

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
mod queue;
mod tokens;
mod weight;

use std::sync::atomic::{AtomicU64, Ordering};

/// See [`operations`].
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// The number of multiplications and additions in matrix products of this process so far, on all devices.
#[cfg(feature = "bench")]
pub fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

/// Counts the operations of a product of [m, k] and [k, n].
fn count(m: usize, n: usize, k: usize) {
    if cfg!(feature = "bench") {
        OPERATIONS.fetch_add(2 * (m * n * k) as u64, Ordering::Relaxed);
    }
}

pub use attention::{attention, attention_along_first};
pub use chain::{ConvChain, LEAKY_SLOPE, Scratch, band_rows};
pub use conv::{Conv2d, Shape, TimeConv};
#[cfg(all(feature = "cuda", feature = "bench"))]
pub use cuda::{
    Memory, ProductBackend, Record, memory, record, use_portable_kernels, use_products,
};
pub use failure::{Failure, failure};
pub use linear::{LayerNorm, Linear, geglu, gelu};
pub use norm::{Affine, GroupNorm, Moments};
pub use queue::Queue;
pub use tokens::{gather_pixels, scatter_pixels};

/// Copies a tensor to a device; a tensor that is there already is shared.
///
/// Between two CUDA devices the copy waits for what writes the tensor, and memory of the tensor is not used again before
/// the copy has ended: `Tensor::to_device` alone promises neither, since each device has a stream of its own.
///
/// # Errors
/// If the device has no memory, or a driver refuses.
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
    /// What new tensors of this process can have: what is free, and what the process has kept for itself and
    /// does not use.
    pub available: usize,
    /// What the tensors of this process take.
    pub used: usize,
}

/// The memory of a device now, when all its work is done; `None` for a CPU, and where the driver does not say.
pub fn device_memory(device: &candle_core::Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::device_memory(device).ok();
    }
    let _ = device;
    None
}

/// The CUDA device of this number, the same one for all who ask: tensors of two would not meet.
///
/// # Errors
/// If there is no such device or driver, if there are no kernels for the device, if the environment variable
/// VENHANCE_KERNELS has a value that is not known, or without the feature `cuda`.
pub fn cuda_device(ordinal: usize) -> candle_core::Result<candle_core::Device> {
    #[cfg(feature = "cuda")]
    return cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    candle_core::Device::new_cuda(ordinal)
}

/// CUDA devices that the driver knows: 0 without a driver, or without the feature `cuda`.
pub fn cuda_devices() -> usize {
    #[cfg(feature = "cuda")]
    return cuda::count();
    #[cfg(not(feature = "cuda"))]
    0
}

/// Compares the kernels that are for the kind of a device only with those for every device, once for each device in a
/// process. Kernels that fail or compute something else are not used on the device from then on. Returns a warning for
/// each family of such kernels: none on the next call, and none for a device without kernels of its own.
///
/// # Errors
/// If the device has no memory, or an error on it ends all use of it in this process.
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

    /// Numbers about 0, the same for every call with this shape.
    pub(super) fn numbers(shape: &[usize]) -> Result<Tensor> {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|n| ((n * 7919 + count) % 1009) as f32 / 504.0 - 1.0);
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)
    }

    pub(super) fn assert_same(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (norm(&(a - b).unwrap()) / norm(b)).sqrt();
        assert!(error < 1e-5, "they differ by {error}");
    }
}
