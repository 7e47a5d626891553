// SPDX-License-Identifier: MIT OR Apache-2.0
//! Implements the sampler's `Denoiser` trait: binds the UNet to the prompt and the negative prompt
//! of a run.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{Context, UNet, peak_bytes};
use crate::{
    ops,
    sampler::{self, Budget, Check, Conditions, Mode, Velocities},
};

/// A denoiser with the cross-attention keys and values of its two prompts.
#[derive(Debug)]
pub struct Prompted {
    denoiser: Arc<UNet>,
    prompt: Context,
    negative: Context,
}

impl Prompted {
    /// `tokens` holds the encoded prompt and the encoded negative prompt, [2, 77, context].
    ///
    /// # Errors
    /// If `tokens` has another shape.
    pub fn new(denoiser: Arc<UNet>, tokens: &Tensor) -> Result<Self> {
        let context = |n| denoiser.context(&tokens.narrow(0, n, 1)?);
        Ok(Self { prompt: context(0)?, negative: context(1)?, denoiser })
    }
}

impl sampler::Denoiser for Prompted {
    fn device(&self) -> &Device {
        &self.denoiser.device
    }

    fn budget(&self, frames: usize, latent: (usize, usize), guided: bool) -> Option<Budget<'_>> {
        let UNet { config, dtype, device, .. } = &*self.denoiser;
        let available = ops::device_memory(device)?.available;
        let branches = if guided { 2 } else { 1 };
        let peak = move |slices| peak_bytes(config, frames, latent, branches, *dtype, slices);
        Some(Budget { available, peak: Box::new(peak) })
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities> {
        let contexts = [&self.prompt, &self.negative];
        let contexts = &contexts[..if guided { 2 } else { 1 }];
        let mut velocities =
            self.denoiser.forward_in(mode, x, conditions, contexts, check)?.into_iter();
        let Some(conditional) = velocities.next() else {
            candle_core::bail!("the denoiser returned no velocity for the prompt");
        };
        Ok(Velocities { conditional, unconditional: velocities.next() })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::{
        networks::unet::Config,
        sampler::{Denoiser as _, Precision, Slices},
        weights::synth,
    };

    /// A small denoiser with synthetic weights and prompts.
    fn tiny() -> Prompted {
        let device = &Device::Cpu;
        let config = Config {
            dim: 32,
            head_dim: 8,
            num_heads: 4,
            context_dim: 16,
            num_res_blocks: 1,
            dim_mult: vec![1, 2],
            ..Config::full()
        };
        let denoiser = UNet::new(&config, synth::weights("", DType::F32, device)).unwrap();
        Prompted::new(Arc::new(denoiser), &noise("prompts", &[2, 77, 16])).unwrap()
    }

    fn noise(name: &str, shape: &[usize]) -> Tensor {
        synth::noise(name, shape, &Device::Cpu).unwrap()
    }

    fn norm(x: &Tensor) -> f32 {
        x.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn velocities_do_not_depend_on_the_slice_size() {
        let (x, hint) = (noise("x", &[1, 4, 9, 18, 24]), noise("hint", &[1, 4, 3, 18, 24]));
        let mask: Vec<_> = (0..9_usize).map(|n| n.is_multiple_of(4).then_some(n / 4)).collect();
        let conditions =
            Conditions { t: 500.0, hint: &hint, t_hint: 199.0, s_cond: 8.0, mask: &mask };
        let prompted = tiny();
        let run = |slices| {
            let mode = Mode { slices, ..Mode::default() };
            prompted.velocities(&x, &conditions, true, mode, &|| Ok(())).unwrap()
        };
        let native = run(Slices::default());
        // Frames have 18·24 pixels. On the first level a slice holds all frames, 4, 2 or 1; with
        // one pixel a slice holds one frame on every level.
        for pixels in [Slices::LARGEST.pixels(), 4 * 18 * 24, 2 * 18 * 24, 1] {
            let slices = Slices::of_pixels(pixels);
            let actual = run(slices);
            let pairs = [
                (actual.conditional, &native.conditional),
                (actual.unconditional.unwrap(), native.unconditional.as_ref().unwrap()),
            ];
            for (actual, native) in pairs {
                let relative = (norm(&(&actual - native).unwrap()) / norm(native)).sqrt();
                assert!(relative < 1e-5, "{slices:?}: {relative}");
            }
        }
    }

    #[test]
    fn evaluation_in_bf16_agrees_with_native_precision() {
        let (x, hint) = (noise("x", &[1, 4, 5, 4, 8]), noise("hint", &[1, 4, 2, 4, 8]));
        let mask = [Some(0), None, None, None, Some(1)];
        let conditions =
            Conditions { t: 500.0, hint: &hint, t_hint: 199.0, s_cond: 8.0, mask: &mask };
        let prompted = tiny();
        let run = |precision, guided| {
            let mode = Mode { precision, ..Mode::default() };
            prompted.velocities(&x, &conditions, guided, mode, &|| Ok(())).unwrap()
        };
        let (native, bf16) = (run(Precision::Native, true), run(Precision::Bf16, true));
        let pairs = [
            (native.conditional.clone(), bf16.conditional),
            (native.unconditional.unwrap(), bf16.unconditional.unwrap()),
        ];
        for (native, bf16) in pairs {
            assert_eq!(bf16.dtype(), DType::F32);
            let relative = (norm(&(&native - &bf16).unwrap()) / norm(&native)).sqrt();
            assert!((1e-4..0.1).contains(&relative), "{relative}");
        }
        let unguided = run(Precision::Native, false);
        assert!(unguided.unconditional.is_none());
        assert_eq!(norm(&(unguided.conditional - native.conditional).unwrap()), 0.0);
    }
}
