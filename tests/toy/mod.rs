// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks that cost nothing and yet depend on all that the real ones depend on.
#![allow(dead_code, unused_imports, reason = "every test file uses a part of this")]

#[path = "../common/sink.rs"]
mod sink;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{self, Format, Options, Solver},
    sampler::{
        Autoencoder, Check, Conditions, Denoiser, Encoded, Guidance, LATENT, Mode, Models,
        Settings, Velocities,
    },
};

pub use sink::{Discard, Record, clip};

/// Mixes neighbours in the window, the window as a whole, the hint, the time and the prompt.
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
        let rolled = match frames {
            1 => x.clone(),
            _ => Tensor::cat(&[x.narrow(2, 1, frames - 1)?, x.narrow(2, 0, 1)?], 2)?,
        };
        let mean = (x.mean_keepdim(2)? * (conditions.t / 1000.0).cos())?;
        let hints: Vec<_> = conditions
            .mask
            .iter()
            .map(|key| match key {
                Some(key) => conditions.hint.narrow(2, *key, 1)? * (conditions.t_hint / 300.0),
                None => conditions.hint.narrow(2, 0, 1)?.zeros_like(),
            })
            .collect::<Result<_>>()?;
        let hints = (Tensor::cat(&hints, 2)? * (0.1 * conditions.s_cond))?;
        let same = ((x + (rolled.tanh()? * 0.3)?)?.broadcast_sub(&mean)? + hints)?;
        Ok(Velocities {
            conditional: (&same + 0.1)?,
            unconditional: guided.then(|| same * 0.9).transpose()?,
        })
    }
}

/// Means of 8×8 pixels, and back; frames that are decoded together see each other.
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

/// Toys for so many devices.
pub fn models(devices: usize) -> Models {
    let vae = Arc::new(ToyAutoencoder);
    let denoiser: Arc<dyn Denoiser> = Arc::new(ToyDenoiser);
    Models { encoder: vae.clone(), denoisers: vec![denoiser; devices], decoder: vae }
}

pub fn settings(solver: Solver, steps: u32) -> Settings {
    let guidance = Guidance { scale: 4.0, rescale: Guidance::RESCALE };
    // Latents of 2×8.
    let smallest = (16, 64);
    Settings { solver, steps, guidance, smallest, ..Settings::from(&Options::default()) }
}

/// Small frames, a little larger when they leave.
pub fn format(interpolated: usize, alpha: bool) -> Format {
    Format { input: (12, 5), output: (30, 12), interpolated, alpha }
}

/// A frame whose pixels differ, and from those of any other.
pub fn picture(number: usize, (width, height): (usize, usize)) -> engine::Frame {
    let mut frame = engine::Frame::new(width, height).unwrap();
    for (n, value) in frame.pixels_mut().iter_mut().enumerate() {
        *value = (n * 7919 + number * 104_729 + n * n * (number + 3) * 31) as u16;
    }
    frame
}
