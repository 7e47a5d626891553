// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens CUDA devices, once per process, and reports their memory.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, cuda::WrapErr};
use cudarc::driver::{CudaContext, result, sys};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::{architectures::PORTABLE, kernel_set::portable_forced};
use crate::ops::DeviceMemory;

static DEVICES: Lazy<Mutex<HashMap<usize, Device>>> = Lazy::new(Mutex::default);

/// Returns the CUDA device with an ordinal. All callers get the same `Device`, because candle does
/// not mix tensors of two instances.
///
/// # Errors
/// If there is no such device or no driver, if the build has no kernels for the device, or if the
/// environment variable VENHANCE_KERNELS has an unknown value.
pub fn open(ordinal: usize) -> Result<Device> {
    let mut devices = DEVICES.lock();
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    portable_forced()?;
    let context = CudaContext::new(ordinal).w()?;
    check_supported(&context)?;
    // An explicit stream: the default stream differs between threads.
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: all uses of the device's tensors are in one stream, so they need no events for
    // ordering.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda.cuda_stream().context()).w()?;
    devices.insert(ordinal, device.clone());
    Ok(device)
}

/// Number of CUDA devices. 0 without a driver.
pub fn count() -> usize {
    CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

/// Returns an error that names the device if the build has no kernels for it.
fn check_supported(context: &CudaContext) -> Result<()> {
    let (major, minor) = context.compute_capability().w()?;
    let runs = |image: u32| image / 10 == major as u32 && image % 10 <= minor as u32;
    if PORTABLE.into_iter().any(runs) {
        return Ok(());
    }
    let images = PORTABLE.map(|image| format!("{}.{}", image / 10, image % 10)).join(", ");
    candle_core::bail!(
        "{} has compute capability {major}.{minor}; this plugin supports {images}; use another GPU or model=lite",
        context.name().w()?
    )
}

/// Keeps freed memory in the process's pool. By default, every synchronisation would return it to
/// the driver, and allocating it again is slow.
fn keep_memory(context: &CudaContext) -> std::result::Result<(), cudarc::driver::DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut unlimited = u64::MAX;
    // SAFETY: the device of the context has a default pool, and this attribute is a 64-bit
    // integer.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut unlimited).cast())
    }
}

/// Copies a tensor to another CUDA device. The streams wait for each other, not the host.
pub(crate) fn copy_between(x: &Tensor, device: &Device) -> Result<Tensor> {
    let from = x.device().as_cuda_device()?.cuda_stream();
    let to = device.as_cuda_device()?.cuda_stream();
    // The copy runs in the stream of `to`. It must wait for pending writes of x in the stream of
    // `from`.
    to.join(&from).w()?;
    let copy = x.to_device(device)?;
    // x is freed in the stream of `from`. Later work there, which may reuse its memory, must wait
    // for the copy.
    from.join(&to).w()?;
    Ok(copy)
}

/// Bytes that [`has_room`] leaves free: the peak of an evaluation of the longest window at full
/// size.
const EVALUATION: usize = 12 << 30;

/// Whether a device has memory for an optional cache of `bytes`. Does not wait for pending work, whose memory
/// counts as used.
pub(crate) fn has_room(device: &Device, bytes: usize) -> Result<bool> {
    let stream = device.as_cuda_device()?.cuda_stream();
    Ok(memory_of(stream.context())?.available >= EVALUATION + bytes)
}

/// Memory of a device, in bytes.
#[cfg(feature = "bench")]
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Memory that the tensors of this process occupy now.
    pub used: u64,
    /// The maximum of `used` since the last call of [`memory`].
    pub most: u64,
    /// Free memory of the device. Unused memory in the process's pool does not count.
    pub free: u64,
}

/// A counter of the device's default memory pool, in bytes.
fn pool_bytes(context: &CudaContext, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the device of the context has a default pool, and these attributes are 64-bit
    // integers.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).w()?;
    }
    Ok(bytes)
}

/// Returns the memory of a device, and resets the maximum.
///
/// # Errors
/// If the device is not a CUDA device, or the driver reports an error.
#[cfg(feature = "bench")]
pub fn memory(device: &Device) -> Result<Memory> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    let (free, _) = context.mem_get_info().w()?;
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH as HIGH,
    };
    let used = pool_bytes(context, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let most = pool_bytes(context, HIGH)?;
    let mut zero = 0_u64;
    // SAFETY: the device of the context has a default pool, and this attribute may be set to 0.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, HIGH, (&raw mut zero).cast()).w()?;
    }
    Ok(Memory { used, most, free: free as u64 })
}

/// See [`crate::ops::device_memory`].
pub(crate) fn device_memory(device: &Device) -> Result<DeviceMemory> {
    // Memory is freed in stream order, so pending work has to end first.
    device.synchronize()?;
    let stream = device.as_cuda_device()?.cuda_stream();
    memory_of(stream.context())
}

fn memory_of(context: &CudaContext) -> Result<DeviceMemory> {
    let (free, _) = context.mem_get_info().w()?;
    if !context.has_async_alloc() {
        return Ok(DeviceMemory { available: free, used: 0 });
    }
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    };
    let used = pool_bytes(context, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let reserved = pool_bytes(context, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let unused = reserved.saturating_sub(used) as usize;
    Ok(DeviceMemory { available: free + unused, used: used as usize })
}
