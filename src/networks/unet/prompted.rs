// SPDX-License-Identifier: MIT OR Apache-2.0
//! The denoiser as the sampler asks for it: with the two prompts of a run.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::{Context, Denoiser};
use crate::wavefront::{self, Check, Conditions, Precision, Velocities};

/// A denoiser, and what its prompts come to.
#[derive(Debug)]
pub struct Prompted {
    denoiser: Arc<Denoiser>,
    prompt: Context,
    negative: Context,
}

impl Prompted {
    /// With the tokens of prompt and negative prompt, [2, 77, context].
    ///
    /// # Errors
    /// On other tokens.
    pub fn new(denoiser: Arc<Denoiser>, tokens: &Tensor) -> Result<Self> {
        let context = |n| denoiser.context(&tokens.narrow(0, n, 1)?);
        Ok(Self { prompt: context(0)?, negative: context(1)?, denoiser })
    }
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
