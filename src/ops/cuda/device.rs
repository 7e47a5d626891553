// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device, opened once for all.

use std::{collections::HashMap, sync::Mutex};

use candle_core::{Device, Result, Tensor, cuda::WrapErr};
use cudarc::driver::{CudaContext, result, sys};
use once_cell::sync::Lazy;

use super::{architectures::PORTABLE, kernel_set::portable_forced};
use crate::ops::DeviceMemory;

static DEVICES: Lazy<Mutex<HashMap<usize, Device>>> = Lazy::new(Mutex::default);

/// The CUDA device of this number, the same one for all who ask: tensors of two would not meet.
///
/// # Errors
/// If there is no such device, or no driver; if the crate has no kernels for the device; and if the environment variable
/// VENHANCE_KERNELS has a value that is not known.
pub fn open(ordinal: usize) -> Result<Device> {
    let mut devices = DEVICES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(device) = devices.get(&ordinal) {
        return Ok(device.clone());
    }
    portable_forced()?;
    let context = CudaContext::new(ordinal).w()?;
    check_supported(&context)?;
    // A stream of its own: the default one is another for every thread.
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: no other stream ever sees the device's tensors, so their uses need no events to be told apart.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda.cuda_stream().context()).w()?;
    devices.insert(ordinal, device.clone());
    Ok(device)
}

/// CUDA devices that the driver knows; 0 without a driver.
pub fn count() -> usize {
    CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

/// An error that names the device if there are no kernels for it.
fn check_supported(context: &CudaContext) -> Result<()> {
    let (major, minor) = context.compute_capability().w()?;
    let runs = |image: u32| image / 10 == major as u32 && image % 10 <= minor as u32;
    if PORTABLE.into_iter().any(runs) {
        return Ok(());
    }
    let images = PORTABLE.map(|image| format!("{}.{}", image / 10, image % 10)).join(", ");
    candle_core::bail!(
        "{} has compute capability {major}.{minor}, and this build has kernels for {images}; use another GPU, \
         model=lite, or a build for this one",
        context.name().w()?
    )
}

/// What is given back stays with this process: else every wait for the device would give it to the driver,
/// which takes long to give it out again.
fn keep_memory(context: &CudaContext) -> std::result::Result<(), cudarc::driver::DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut most = u64::MAX;
    // SAFETY: the context's own device has a default pool, and this attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut most).cast())
    }
}

/// Copies a tensor to another CUDA device.
pub(crate) fn copy_between(x: &Tensor, device: &Device) -> Result<Tensor> {
    let from = x.device().as_cuda_device()?.cuda_stream();
    let to = device.as_cuda_device()?.cuda_stream();
    // The copy is on the stream of `to`: it waits for the kernels that write x on that of `from`.
    to.join(&from).w()?;
    let copy = x.to_device(device)?;
    // x is freed on the stream of `from`: later work there, which may get its memory, waits for the copy.
    from.join(&to).w()?;
    Ok(copy)
}

/// Memory that [`has_room`] leaves free: the peak of the longest window's evaluation at full size.
const EVALUATION: u64 = 12 << 30;

/// Whether a device has memory for something that only saves time.
pub(crate) fn has_room(device: &Device, bytes: usize) -> Result<bool> {
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let (free, _) = context.mem_get_info().w()?;
    Ok(free as u64 >= EVALUATION + bytes as u64)
}

/// Bytes that this process's tensors take on a device.
#[cfg(feature = "bench")]
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Now.
    pub used: u64,
    /// At most, since this was last asked.
    pub most: u64,
    /// What the device has left, what this process keeps for itself not counted.
    pub free: u64,
}

/// A number of bytes that the pool of a device's tensors knows.
fn pool_bytes(context: &CudaContext, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the context's own device has a default pool, and these attributes are numbers of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).w()?;
    }
    Ok(bytes)
}

/// What a device's memory holds; begins to look for the most anew.
///
/// # Errors
/// If the device is no CUDA device, or its driver refuses.
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
    // SAFETY: the context's own device has a default pool, and this attribute may be set to 0.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, HIGH, (&raw mut zero).cast()).w()?;
    }
    Ok(Memory { used, most, free: free as u64 })
}

/// See [`crate::ops::device_memory`].
pub(crate) fn device_memory(device: &Device) -> Result<DeviceMemory> {
    // What was given back counts when the work that was asked for before is done.
    device.synchronize()?;
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    let (free, _) = context.mem_get_info().w()?;
    if !context.has_async_alloc() {
        return Ok(DeviceMemory { available: free, used: 0 });
    }
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    };
    let used = pool_bytes(context, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let kept = pool_bytes(context, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let unused = kept.saturating_sub(used) as usize;
    Ok(DeviceMemory { available: free + unused, used: used as usize })
}
