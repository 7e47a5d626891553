// SPDX-License-Identifier: MIT OR Apache-2.0
//! Toy networks for fast sampler tests. Their output depends on everything that the real networks use.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this module")]

#[path = "../common/sink.rs"]
mod sink;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{self, ColourFix, Format, Options, Solver},
    sampler::{
        Autoencoder, Check, Conditions, Denoiser, Encoded, Guidance, LATENT, Mode, Models,
        SamplerParams, Velocities,
    },
};

pub use sink::{Discard, Record, clip};

/// A denoiser whose output depends on neighbouring frames, the mean of the window, the hint, the timestep and
/// the prompt.
pub struct ToyDenoiser;

impl Denoiser for ToyDenoiser {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        _: Mode,
        check: Check,
    ) -> Result<Velocities> {
        check()?;
        let frames = x.dim(2)?;
        assert_eq!(conditions.mask.len(), frames);
        let shifted = match frames {
            1 => x.clone(),
            _ => Tensor::cat(&[x.narrow(2, 1, frames - 1)?, x.narrow(2, 0, 1)?], 2)?,
        };
        let mean = (x.mean_keepdim(2)? * (conditions.t / 1000.0).cos())?;
        let hints: Vec<_> = conditions
            .mask
            .iter()
            .map(|input| match input {
                Some(input) => conditions.hint.narrow(2, *input, 1)? * (conditions.t_hint / 300.0),
                None => conditions.hint.narrow(2, 0, 1)?.zeros_like(),
            })
            .collect::<Result<_>>()?;
        let hints = (Tensor::cat(&hints, 2)? * (0.1 * conditions.s_cond))?;
        let base = ((x + (shifted.tanh()? * 0.3)?)?.broadcast_sub(&mean)? + hints)?;
        Ok(Velocities {
            conditional: (&base + 0.1)?,
            unconditional: guided.then(|| base * 0.9).transpose()?,
        })
    }
}

/// An autoencoder that averages 8×8 pixels and upsamples them again. Decoding adds the mean of the window, so
/// that frames depend on each other.
pub struct ToyAutoencoder;

impl Autoencoder for ToyAutoencoder {
    fn encode(&self, frames: &Tensor, _: Mode, check: Check) -> Result<Encoded> {
        check()?;
        let colours = frames.avg_pool2d(LATENT)?;
        let mean = Tensor::cat(&[&colours, &colours.mean_keepdim(1)?], 1)?;
        let std = ((mean.sqr()? + 0.1)? * 0.2)?;
        Ok(Encoded { mean, std })
    }

    fn decode(&self, latents: &Tensor, _: Mode, check: Check) -> Result<Tensor> {
        check()?;
        let (_, _, h, w) = latents.dims4()?;
        let window = (latents.mean_keepdim(0)? * 0.2)?;
        let colours = latents.broadcast_add(&window)?.narrow(1, 0, 3)?.tanh()?;
        colours.upsample_nearest2d(h * LATENT, w * LATENT)
    }
}

/// Toy networks for `devices` devices.
pub fn models(devices: usize) -> Models {
    let vae = Arc::new(ToyAutoencoder);
    let denoiser: Arc<dyn Denoiser> = Arc::new(ToyDenoiser);
    Models { encoder: vae.clone(), denoisers: vec![denoiser; devices], decoder: vae }
}

/// SamplerParams with the smallest canvas that the toy networks support.
pub fn params(solver: Solver, steps: u32) -> SamplerParams {
    let guidance = Guidance { scale: 4.0, rescale: Guidance::RESCALE };
    // 2×8 latents.
    let smallest = (16, 64);
    SamplerParams {
        solver,
        steps,
        guidance,
        smallest,
        colour_fix: ColourFix::None,
        ..SamplerParams::from(&Options::default())
    }
}

/// A format of small frames, upscaled by about 2.5.
pub fn format(interpolated: usize, alpha: bool) -> Format {
    Format { input: (12, 5), output: (30, 12), interpolated, exact: false, alpha }
}

/// Gives the model input frame `n` of a clip, and asks for the frames that the format interpolates.
pub fn push(
    enhancer: &mut dyn engine::Enhancer,
    n: usize,
    frame: engine::Frame,
    format: Format,
) -> std::result::Result<(), engine::Error> {
    let (time, outputs) = engine::multiple_times(n as u64, n == 0, format.interpolated);
    enhancer.push(frame, time, &outputs)
}

/// A frame with pseudo-random pixels that differ for every `number`.
pub fn picture(number: usize, (width, height): (usize, usize)) -> engine::Frame {
    let mut frame = engine::Frame::new(width, height).unwrap();
    for (n, value) in frame.pixels_mut().iter_mut().enumerate() {
        *value = (n * 7919 + number * 104_729 + n * n * (number + 3) * 31) as u16;
    }
    frame
}
