// SPDX-License-Identifier: MIT OR Apache-2.0
//! The denoiser as the sampler asks for it: with the two prompts of a run.

use candle_core::{DType, Device, Result, Tensor};

use super::{Context, Denoiser};
use crate::wavefront::{self, Check, Conditions, Precision, Velocities};

/// A denoiser, and what its prompts come to.
#[derive(Debug)]
pub struct Prompted {
    /// The network.
    pub denoiser: Denoiser,
    /// Of the prompt.
    pub prompt: Context,
    /// Of the negative prompt.
    pub negative: Context,
}

impl wavefront::Denoiser for Prompted {
    fn device(&self) -> &Device {
        &self.denoiser.device
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        precision: Precision,
        check: Check,
    ) -> Result<Velocities> {
        let dtype = match precision {
            Precision::Usual => self.denoiser.dtype,
            Precision::Wide => DType::BF16,
        };
        let contexts = [&self.prompt, &self.negative];
        let contexts = &contexts[..if guided { 2 } else { 1 }];
        let mut velocities =
            self.denoiser.forward_in(dtype, x, conditions, contexts, check)?.into_iter();
        let Some(conditional) = velocities.next() else {
            candle_core::bail!("a denoiser gives something for every prompt");
        };
        Ok(Velocities { conditional, unconditional: velocities.next() })
    }
}
