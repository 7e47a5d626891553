// SPDX-License-Identifier: MIT OR Apache-2.0
//! The weights of the networks, embedded in the plugin.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use once_cell::sync::OnceCell;

use super::network::{COARSE, FINE, NetworkShape, UPSCALERS, Upscaler};
use crate::{engine::Error, ops::ConvChain};

/// The weights in f16. The metadata records how they were trained.
static WEIGHTS: &[u8] = include_bytes!("weights.safetensors");

/// All networks with their weights, for the CPU.
#[derive(Debug)]
pub(super) struct Networks {
    upscalers: Vec<(Upscaler, ConvChain)>,
    pub coarse: ConvChain,
    pub fine: ConvChain,
}

impl Networks {
    /// The networks of the process; the first call loads them.
    pub(super) fn get() -> Result<&'static Self, Error> {
        static NETWORKS: OnceCell<Networks> = OnceCell::new();
        NETWORKS.get_or_try_init(|| {
            Self::load().map_err(|error| Error::Weights {
                tried: "loading the weights embedded in the plugin".into(),
                why: error.to_string(),
                instead: "build or install the plugin again".into(),
            })
        })
    }

    fn load() -> candle_core::Result<Self> {
        let vb = VarBuilder::from_slice_safetensors(WEIGHTS, DType::F32, &Device::Cpu)?;
        let upscaler = |upscaler: &Upscaler| Ok((*upscaler, chain(&vb, upscaler.network)?));
        Ok(Self {
            upscalers: UPSCALERS.iter().map(upscaler).collect::<candle_core::Result<_>>()?,
            coarse: chain(&vb, COARSE.network)?,
            fine: chain(&vb, FINE.network)?,
        })
    }

    /// The network of the smallest factor that is at least `scale`, or of the largest factor.
    pub(super) fn upscaler(&self, scale: f64) -> Option<&(Upscaler, ConvChain)> {
        let suffices = |(upscaler, _): &&(Upscaler, ConvChain)| upscaler.factor as f64 >= scale;
        self.upscalers.iter().find(suffices).or(self.upscalers.last())
    }
}

fn chain(vb: &VarBuilder, network: NetworkShape) -> candle_core::Result<ConvChain> {
    let vb = vb.pp(network.name);
    let layer = |(n, channels): (usize, &[usize])| -> candle_core::Result<(Tensor, Tensor)> {
        let vb = vb.pp(n);
        let weight = vb.get((channels[1], channels[0], 3, 3), "weight")?;
        Ok((weight, vb.get(channels[1], "bias")?))
    };
    let layers = network.channels.windows(2).enumerate().map(layer);
    ConvChain::new(&layers.collect::<candle_core::Result<Vec<_>>>()?)
}
