// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far the host may be ahead of a device: far enough to keep it busy, and no further, for what is queued
//! cannot be cancelled.

use candle_core::{Device, Result};
#[cfg(feature = "cuda")]
use {
    candle_core::cuda::WrapErr,
    cudarc::driver::CudaEvent,
    std::{cell::RefCell, collections::VecDeque},
};

/// Blocks that may wait for a device.
#[cfg(feature = "cuda")]
const AHEAD: usize = 2;

/// The blocks of a network that wait for their device. On a CPU none does.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    /// The ends of the blocks.
    #[cfg(feature = "cuda")]
    ends: RefCell<VecDeque<CudaEvent>>,
}

impl Queue {
    /// An empty one.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            ends: RefCell::default(),
        }
    }

    /// Ends a block, and waits until the device has come to the one before it.
    ///
    /// # Errors
    /// What has gone wrong on the device meanwhile.
    pub fn step(&self) -> Result<()> {
        if self.device.is_cpu() {
            return Ok(());
        }
        #[cfg(feature = "cuda")]
        {
            let device = self.device.as_cuda_device()?;
            let mut ends = self.ends.borrow_mut();
            ends.push_back(device.cuda_stream().record_event(None).w()?);
            if ends.len() > AHEAD
                && let Some(end) = ends.pop_front()
            {
                end.synchronize().w()?;
            }
        }
        Ok(())
    }
}
