// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device, opened once for all.

use std::{collections::HashMap, sync::Mutex};

use candle_core::{Device, Result, cuda::WrapErr};
use cudarc::driver::{CudaContext, result, sys};
use once_cell::sync::Lazy;

use super::{architectures::PORTABLE, kernel_set::portable_forced};

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
    check_supported(&*CudaContext::new(ordinal).w()?)?;
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

/// Bytes that this process's tensors take on a device.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Now.
    pub used: u64,
    /// At most, since this was last asked.
    pub most: u64,
    /// What the device has left, what this process keeps for itself not counted.
    pub free: u64,
}

/// What a device's memory holds; begins to look for the most anew.
///
/// # Errors
/// If the device is no CUDA device, or its driver refuses.
pub fn memory(device: &Device) -> Result<Memory> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let context = stream.context();
    let (free, _) = context.mem_get_info().w()?;
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH,
    };
    // SAFETY: the context's own device has a default pool, and these attributes are numbers of 64 bits; the
    // second may be set to 0 alone.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        let get = |attribute| {
            let mut value = 0_u64;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()).w()?;
            Ok::<_, candle_core::Error>(value)
        };
        let used = get(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let most = get(CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        let mut zero = 0_u64;
        let high = CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        result::mem_pool::set_attribute(pool, high, (&raw mut zero).cast()).w()?;
        Ok(Memory { used, most, free: free as u64 })
    }
}
