// SPDX-License-Identifier: MIT OR Apache-2.0
//! The UNet's residual block: two 3×3 convolutions within each frame, then four convolutions along
//! the frames.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    networks::{
        frame_batch::FrameBatch,
        layers,
        residual::{Residual, TemporalResidual},
    },
    ops::{ConvConfig, Linear},
};

const EPSILON: f64 = 1e-5;

/// Conditioning embedding of each frame. Frames share few distinct embeddings: one for frames with
/// a hint, one for frames without.
#[derive(Debug, Clone)]
pub(super) struct Embedding {
    /// SiLU of each distinct embedding, [kinds, 4d].
    kinds: Tensor,
    /// Index into `kinds` for each frame.
    frames: Vec<u32>,
}

impl Embedding {
    /// `kinds` is [kinds, 4d], f32; `frames` holds the index into it for each frame.
    pub(super) fn new(kinds: &Tensor, frames: Vec<u32>, dtype: DType) -> Result<Self> {
        Ok(Self { kinds: kinds.silu()?.to_dtype(dtype)?, frames })
    }

    /// Projects the embedding of each frame with `layer`: [f, out].
    fn frames(&self, layer: &Linear) -> Result<Tensor> {
        let frames = Tensor::new(self.frames.as_slice(), self.kinds.device())?;
        layer.forward(&[&self.kinds], None)?.index_select(&frames, 0)
    }
}

/// A residual block of the UNet: [n, h, w, in] → [n, h, w, out].
#[derive(Debug)]
pub(super) struct ResBlock {
    spatial: Residual,
    embedding: Linear,
    temporal: TemporalResidual,
}

impl ResBlock {
    /// `dim` is the width of the first level: the embedding has 4·`dim` channels.
    pub(super) fn new(vb: VarBuilder, dim: usize, inputs: usize, outputs: usize) -> Result<Self> {
        let (first, second) = (vb.pp("in_layers"), vb.pp("out_layers"));
        let spatial = Residual {
            norm1: layers::group_norm(first.pp("0"), inputs, EPSILON)?,
            conv1: layers::conv(first.pp("2"), inputs, outputs, ConvConfig::SAME)?,
            norm2: layers::group_norm(second.pp("0"), outputs, EPSILON)?,
            conv2: layers::conv(second.pp("3"), outputs, outputs, ConvConfig::SAME)?,
            skip: match inputs == outputs {
                true => None,
                false => Some(layers::pointwise(vb.pp("skip_connection"), inputs, outputs, 2)?),
            },
        };
        let temporal = [("conv1", "2"), ("conv2", "3"), ("conv3", "3"), ("conv4", "3")];
        let temporal = temporal.into_iter().map(|(name, conv)| {
            // The checkpoint spells it so.
            let vb = vb.pp("temopral_conv").pp(name);
            let norm = layers::group_norm(vb.pp("0"), outputs, EPSILON)?;
            Ok((norm, layers::time_conv(vb.pp(conv), outputs, outputs, 1.0)?))
        });
        Ok(Self {
            spatial,
            embedding: layers::linear(vb.pp("emb_layers").pp("1"), 4 * dim, outputs)?,
            temporal: TemporalResidual(temporal.collect::<Result<_>>()?),
        })
    }

    /// `skip` holds the channels that follow those of `x`. The two are not concatenated, which
    /// saves a copy.
    pub(super) fn forward(
        &self,
        x: FrameBatch,
        skip: Option<FrameBatch>,
        embedding: &Embedding,
    ) -> Result<FrameBatch> {
        let (shifts, mut first) = (embedding.frames(&self.embedding)?, 0);
        let mut spatial = |parts: &[&Tensor]| {
            let count = parts[0].dim(0)?;
            first += count;
            self.spatial.forward(parts, Some(&shifts.narrow(0, first - count, count)?))
        };
        let x = match skip {
            Some(skip) => x.zip(skip, |x, skip| spatial(&[&x, &skip]))?,
            None => x.map(|x| spatial(&[&x]))?,
        };
        self.temporal.forward(x)
    }
}
