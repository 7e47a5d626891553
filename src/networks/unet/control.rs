// SPDX-License-Identifier: MIT OR Apache-2.0
//! The video ControlNet: an encoder that sees the key frames, and adds what it makes of them to the
//! UNet's skips.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    Config, TimeEmbedding,
    encoder::Encoder,
    resnet::Embedding,
    transformer::{Context, SpatialTransformer},
};
use crate::{
    networks::{Check, frame_batch::FrameBatch, layers},
    ops::{Conv2d, Linear, Shape},
    sampler::{Conditions, Slices},
};

#[derive(Debug)]
pub(super) struct ControlNet {
    time: TimeEmbedding,
    hint_time: Linear,
    scale: TimeEmbedding,
    hint: Conv2d,
    encoder: Encoder,
    /// For each skip what is added to it.
    zero_convs: Vec<Linear>,
    middle_out: Linear,
}

impl ControlNet {
    pub(super) fn new(vb: VarBuilder, config: &Config, attentions: &mut usize) -> Result<Self> {
        let encoder = Encoder::new(&vb, config, attentions)?;
        let zero_convs = encoder.widths.iter().enumerate().map(|(n, &width)| {
            layers::pointwise(vb.pp("zero_convs").pp(n).pp("0"), width, width, 2)
        });
        let zero_convs = zero_convs.collect::<Result<Vec<_>>>()?;
        let width = encoder.widths[encoder.widths.len() - 1];
        let (dim, wide) = (config.dim, vb.clone().to_dtype(DType::F32));
        Ok(Self {
            time: TimeEmbedding::new(vb.pp("time_embed"), dim)?,
            hint_time: layers::linear(wide.pp("hint_time_zero_linear"), 4 * dim, 4 * dim)?,
            scale: TimeEmbedding::new(vb.pp("scale_cond"), dim)?,
            hint: layers::conv(vb.pp("input_hint_block"), config.latents, dim, Shape::SAME)?,
            zero_convs,
            middle_out: layers::pointwise(vb.pp("middle_block_out").pp("0"), width, width, 2)?,
            encoder,
        })
    }

    pub(super) fn prompted(&self) -> impl Iterator<Item = &SpatialTransformer> {
        self.encoder.prompted()
    }

    /// Two kinds of frames: those without a hint, and those with one.
    pub(super) fn embedding(
        &self,
        conditions: &Conditions,
        dtype: DType,
        device: &Device,
    ) -> Result<Embedding> {
        let plain = self.time.forward(conditions.t, device)?;
        let hint = self.time.forward(conditions.t_hint, device)?;
        let key = self.hint_time.forward(&[&hint], Some(&plain))?;
        let key = (key + self.scale.forward(conditions.s_cond, device)?)?;
        let frames = conditions.mask.iter().map(|key| u32::from(key.is_some()));
        Embedding::new(&Tensor::cat(&[plain, key], 0)?, frames.collect(), dtype)
    }

    /// As [`Encoder::begin`]; `hint` holds the key frames that `mask` names.
    pub(super) fn begin(
        &self,
        x: &Tensor,
        slices: Slices,
        (hint, mask): (&Tensor, &[Option<usize>]),
        embedding: &Embedding,
        contexts: &[&Context],
        check: Check,
    ) -> Result<(FrameBatch, Vec<FrameBatch>)> {
        let hints = |frame: usize| {
            let key = mask[frame].map(|key| hint.narrow(0, key, 1));
            key.map(|key| self.hint.forward(&[&key?], None, None)).transpose()
        };
        self.encoder.begin(x, slices, hints, embedding, contexts, check)
    }

    /// Adds to the UNet's first skip what this network's first block has given.
    pub(super) fn add_first(&self, skip: FrameBatch, own: &FrameBatch) -> Result<FrameBatch> {
        add(skip, own, &self.zero_convs[0])
    }

    /// Adds to the skips from the second on, and to what leaves the middle.
    pub(super) fn forward(
        &self,
        x: FrameBatch,
        embedding: &Embedding,
        context: &Context,
        skips: &mut [FrameBatch],
        middle: FrameBatch,
        check: Check,
    ) -> Result<FrameBatch> {
        let own = self.encoder.forward(x, embedding, context, check, |n, x| {
            let skip = std::mem::take(&mut skips[n]);
            skips[n] = add(skip, x, &self.zero_convs[n])?;
            Ok(())
        })?;
        add(middle, &own, &self.middle_out)
    }
}

/// `x + layer(own)`, slice by slice.
fn add(x: FrameBatch, own: &FrameBatch, layer: &Linear) -> Result<FrameBatch> {
    let mut own = own.slices().iter();
    x.map(|x| match own.next() {
        Some(own) => layer.forward(&[own], Some(&x)),
        None => candle_core::bail!("the networks' slices differ"),
    })
}
