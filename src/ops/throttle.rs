// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits how far the host runs ahead of a device: far enough to keep the device busy, but no
//! further, because queued work cannot be cancelled.

use candle_core::{Device, Result};
#[cfg(feature = "cuda")]
use {
    candle_core::cuda::WrapErr,
    cudarc::driver::CudaEvent,
    std::{cell::RefCell, collections::VecDeque},
};

/// Blocks that may be pending on a device.
#[cfg(feature = "cuda")]
const MAX_PENDING: usize = 2;

/// Limits the pending blocks of a network. Does nothing on a CPU.
#[derive(Debug)]
pub struct Throttle {
    device: Device,
    /// Events at the end of each pending block.
    #[cfg(feature = "cuda")]
    ends: RefCell<VecDeque<CudaEvent>>,
}

impl Throttle {
    /// Creates a throttle without pending blocks.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            ends: RefCell::default(),
        }
    }

    /// Ends a block. Waits until at most two blocks are pending.
    ///
    /// # Errors
    /// An error that the device has reported meanwhile.
    pub fn step(&self) -> Result<()> {
        if self.device.is_cpu() {
            return Ok(());
        }
        #[cfg(feature = "cuda")]
        {
            let device = self.device.as_cuda_device()?;
            let mut ends = self.ends.borrow_mut();
            ends.push_back(device.cuda_stream().record_event(None).w()?);
            if ends.len() > MAX_PENDING
                && let Some(end) = ends.pop_front()
            {
                end.synchronize().w()?;
            }
        }
        Ok(())
    }
}
