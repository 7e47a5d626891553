// SPDX-License-Identifier: MIT OR Apache-2.0
//! The video ControlNet: an encoder that is conditioned on the input frames; its outputs are added
//! to the UNet's skip connections.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    config::Config,
    encoder::Encoder,
    resnet::Embedding,
    time_embedding::TimeEmbedding,
    transformer::{Context, SpatialTransformer},
};
use crate::{
    networks::{Check, frame_batch::FrameBatch, layers},
    ops::{Conv2d, ConvConfig, Linear},
    sampler::{Conditions, Slices},
};

/// Follows the UNet's encoder, with the latents of the input frames as hints.
#[derive(Debug)]
pub(super) struct ControlNet {
    time: TimeEmbedding,
    hint_time: Linear,
    scale: TimeEmbedding,
    hint: Conv2d,
    encoder: Encoder,
    /// One 1×1 convolution per skip connection; its output is added to the skip.
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
        let (dim, vb_f32) = (config.dim, vb.clone().to_dtype(DType::F32));
        Ok(Self {
            time: TimeEmbedding::new(vb.pp("time_embed"), dim)?,
            hint_time: layers::linear(vb_f32.pp("hint_time_zero_linear"), 4 * dim, 4 * dim)?,
            scale: TimeEmbedding::new(vb.pp("scale_cond"), dim)?,
            hint: layers::conv(vb.pp("input_hint_block"), config.latents, dim, ConvConfig::SAME)?,
            zero_convs,
            middle_out: layers::pointwise(vb.pp("middle_block_out").pp("0"), width, width, 2)?,
            encoder,
        })
    }

    /// The cross-attention layers in the order of [`Context`].
    pub(super) fn prompted(&self) -> impl Iterator<Item = &SpatialTransformer> {
        self.encoder.prompted()
    }

    /// Embeddings of two kinds of frames: those without a hint (index 0) and those with one (index
    /// 1).
    pub(super) fn embedding(
        &self,
        conditions: &Conditions,
        dtype: DType,
        device: &Device,
    ) -> Result<Embedding> {
        let plain = self.time.forward(conditions.t, device)?;
        let hint = self.time.forward(conditions.t_hint, device)?;
        let hinted = self.hint_time.forward(&[&hint], Some(&plain))?;
        let hinted = (hinted + self.scale.forward(conditions.s_cond, device)?)?;
        let frames = conditions.mask.iter().map(|input| u32::from(input.is_some()));
        Embedding::new(&Tensor::cat(&[plain, hinted], 0)?, frames.collect(), dtype)
    }

    /// Like [`Encoder::begin`]. `hint` holds the latents of the input frames, [inputs, h, w, c];
    /// `mask` gives for each frame its index in `hint`, if it is an input frame.
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
            let latent = mask[frame].map(|input| hint.narrow(0, input, 1));
            latent.map(|latent| self.hint.forward(&[&latent?], None, None)).transpose()
        };
        self.encoder.begin(x, slices, hints, embedding, contexts, check)
    }

    /// Adds the output of this network's first block, `own`, to the UNet's first skip connection.
    pub(super) fn add_first(&self, skip: FrameBatch, own: &FrameBatch) -> Result<FrameBatch> {
        add(skip, own, &self.zero_convs[0])
    }

    /// Adds this network's outputs to the skip connections from the second one on. Returns
    /// `middle`, the output of the UNet's middle block, plus this network's.
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
        None => candle_core::bail!("the slices of the UNet and the ControlNet differ in number"),
    })
}
