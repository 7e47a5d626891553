// SPDX-License-Identifier: MIT OR Apache-2.0
//! The weights inside the plugin.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use once_cell::sync::OnceCell;

use super::network::{COARSE, FINE, Network, SHARPENERS, Sharpener};
use crate::{engine::Error, ops::Chain};

/// Half precision; the recipe is in the metadata.
static FILE: &[u8] = include_bytes!("weights.safetensors");

/// All networks, ready for the CPU.
#[derive(Debug)]
pub(super) struct Networks {
    sharpeners: Vec<(Sharpener, Chain)>,
    pub coarse: Chain,
    pub fine: Chain,
}

impl Networks {
    /// The same for all: read once.
    pub(super) fn get() -> Result<&'static Self, Error> {
        static NETWORKS: OnceCell<Networks> = OnceCell::new();
        NETWORKS.get_or_try_init(|| {
            Self::read().map_err(|error| Error::Weights {
                tried: "reading the weights inside the plugin".into(),
                why: error.to_string(),
                instead: "build or install the plugin again".into(),
            })
        })
    }

    fn read() -> candle_core::Result<Self> {
        let dtype = candle_core::DType::F32;
        let vb = VarBuilder::from_slice_safetensors(FILE, dtype, &Device::Cpu)?;
        let sharpener = |sharpener: &Sharpener| Ok((*sharpener, chain(&vb, sharpener.network)?));
        Ok(Self {
            sharpeners: SHARPENERS.iter().map(sharpener).collect::<candle_core::Result<_>>()?,
            coarse: chain(&vb, COARSE.network)?,
            fine: chain(&vb, FINE.network)?,
        })
    }

    /// The one of the smallest factor that reaches `scale`, else of the largest.
    pub(super) fn sharpener(&self, scale: f64) -> Option<&(Sharpener, Chain)> {
        let reaches = |(sharpener, _): &&(Sharpener, Chain)| sharpener.factor as f64 >= scale;
        self.sharpeners.iter().find(reaches).or(self.sharpeners.last())
    }
}

fn chain(vb: &VarBuilder, network: Network) -> candle_core::Result<Chain> {
    let vb = vb.pp(network.name);
    let layer = |(n, widths): (usize, &[usize])| -> candle_core::Result<(Tensor, Tensor)> {
        let vb = vb.pp(n);
        Ok((vb.get((widths[1], widths[0], 3, 3), "weight")?, vb.get(widths[1], "bias")?))
    };
    let layers = network.widths.windows(2).enumerate().map(layer);
    Chain::new(&layers.collect::<candle_core::Result<Vec<_>>>()?)
}
