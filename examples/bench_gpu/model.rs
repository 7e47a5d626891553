// SPDX-License-Identifier: MIT OR Apache-2.0
//! The full-size networks, with synthetic weights.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    networks::{
        unet::{self, Prompted, UNet},
        vae::{self, Vae},
    },
    weights::synth,
};

pub fn denoiser(device: &Device) -> Result<Prompted> {
    let config = unet::Config::full();
    let denoiser = UNet::new(&config, synth::weights("", DType::F16, device))?;
    let tokens = synth::noise("tokens", &[2, 77, config.context_dim], device)?;
    Prompted::new(Arc::new(denoiser), &tokens)
}

pub fn autoencoder(device: &Device) -> Result<Vae> {
    Vae::new(&vae::Config::full(), synth::weights("", DType::F16, device))
}

/// A window of latents, the latents of its input frames, and the mask: every third frame is an input frame.
pub struct Window {
    pub x: Tensor,
    pub hint: Tensor,
    pub mask: Vec<Option<usize>>,
}

impl Window {
    pub fn new(frames: usize, (h, w): (usize, usize), device: &Device) -> Result<Self> {
        Ok(Self {
            x: synth::noise("x", &[1, 4, frames, h, w], device)?,
            hint: synth::noise("hint", &[1, 4, frames.div_ceil(3), h, w], device)?,
            mask: (0..frames).map(|n| n.is_multiple_of(3).then_some(n / 3)).collect(),
        })
    }
}
