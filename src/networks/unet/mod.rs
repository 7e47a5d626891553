// SPDX-License-Identifier: MIT OR Apache-2.0
//! The denoiser: a UNet over space and time, and the ControlNet that conditions it on the input
//! frames.

mod budget;
mod config;
mod control_net;
mod encoder;
mod prompted;
mod resnet;
mod time_embedding;
mod transformer;

use std::iter::repeat_n;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

pub use budget::peak_bytes;
pub use config::Config;
pub use prompted::Prompted;
pub use transformer::Context;

use self::{
    control_net::ControlNet,
    encoder::{Encoder, Stage},
    resnet::Embedding,
    time_embedding::TimeEmbedding,
};
use super::{Check, frame_batch::FrameBatch, layers};
use crate::{
    ops::{self, Conv2d, ConvConfig, GroupNorm, Throttle},
    sampler::{Conditions, Mode, Precision},
};

/// The UNet with its ControlNet.
#[derive(Debug)]
pub struct UNet {
    config: Config,
    time: TimeEmbedding,
    encoder: Encoder,
    /// Decoder stages, each with an optional upsampling convolution to the next level and that
    /// level's channel multiplier.
    decoder: Vec<(Stage, Option<(Conv2d, usize)>)>,
    norm: GroupNorm,
    out: Conv2d,
    control: ControlNet,
    dtype: DType,
    device: Device,
}

impl UNet {
    /// Loads a checkpoint; the published model has 2180 tensors.
    ///
    /// # Errors
    /// If a tensor is missing or has an unexpected shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        /// Upsamples by 2, then crops the first and the last row, which [`encoder::DOWN`] adds.
        const UP: ConvConfig = ConvConfig { crop: 1, ..ConvConfig::UPSAMPLE };
        let mut attentions = 0;
        let encoder = Encoder::new(&vb, config, &mut attentions)?;
        let mut widths = encoder.widths.clone();
        let mut width = widths[widths.len() - 1];
        let mut decoder = Vec::new();
        for (level, multiplier) in config.dim_mult.iter().enumerate().rev() {
            for n in 0..=config.num_res_blocks {
                let vb = vb.pp("output_blocks").pp(decoder.len());
                let Some(skip) = widths.pop() else {
                    candle_core::bail!("the UNet's decoder has more blocks than skip connections")
                };
                let out = config.dim * multiplier;
                let attends = config.attends(level);
                let inputs = width + skip;
                let stage = Stage::new(vb.clone(), config, inputs, out, attends, &mut attentions)?;
                width = out;
                let up = match n == config.num_res_blocks && level > 0 {
                    true => {
                        let item = if attends { "3" } else { "1" };
                        let conv = layers::conv(vb.pp(item).pp("conv"), width, width, UP)?;
                        Some((conv, config.dim_mult[level - 1]))
                    }
                    false => None,
                };
                decoder.push((stage, up));
            }
        }
        Ok(Self {
            config: config.clone(),
            time: TimeEmbedding::new(vb.pp("time_embed"), config.dim)?,
            encoder,
            decoder,
            norm: layers::group_norm(vb.pp("out").pp("0"), width, 1e-5)?,
            out: layers::conv(vb.pp("out").pp("2"), width, config.latents, ConvConfig::SAME)?,
            control: ControlNet::new(vb.pp("VideoControlNet"), config, &mut attentions)?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// Precomputes the keys and values of each cross-attention layer for prompt tokens [1, 77,
    /// context]. All evaluations with that prompt share the result.
    ///
    /// # Errors
    /// If the tokens have another width.
    pub fn context(&self, tokens: &Tensor) -> Result<Context> {
        let tokens = ops::to_device(tokens, &self.device)?.to_dtype(self.dtype)?;
        let decoder = self.decoder.iter().filter_map(|(stage, _)| stage.prompted());
        let layers = self.encoder.prompted().chain(decoder).chain(self.control.prompted());
        Ok(Context(layers.map(|layer| layer.context(&tokens)).collect::<Result<_>>()?))
    }

    /// Predicts the velocity of a window x [1, 4, f, h, w] for each of `contexts`, in order, f32.
    /// Layers before the first cross-attention run once for all contexts.
    ///
    /// With s = 2^(levels − 1), which is 8 for the published model, h is a multiple of s plus 2
    /// and w is a multiple of s.
    ///
    /// # Errors
    /// If shapes do not match, if the device runs out of memory, or if `check` fails.
    pub fn forward(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        contexts: &[&Context],
        check: Check,
    ) -> Result<Vec<Tensor>> {
        self.forward_in(Mode::default(), x, conditions, contexts, check)
    }

    /// Like [`forward`](Self::forward), with the activation type and the slice size of a [`Mode`].
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn forward_in(
        &self,
        Mode { precision, slices }: Mode,
        x: &Tensor,
        conditions: &Conditions,
        contexts: &[&Context],
        check: Check,
    ) -> Result<Vec<Tensor>> {
        let dtype = match precision {
            Precision::Native => self.dtype,
            Precision::Bf16 => DType::BF16,
        };
        let (_, _, frames, _, _) = x.dims5()?;
        if conditions.mask.len() != frames {
            candle_core::bail!(
                "the window has {frames} frames, but the mask has {}",
                conditions.mask.len()
            );
        }
        let throttle = Throttle::new(&self.device);
        let check: Check = &|| throttle.step().and_then(|()| check());
        let x = self.channels_last(x, dtype)?;
        let time = self.time.forward(conditions.t, &self.device)?;
        let embedding = Embedding::new(&time, vec![0; frames], dtype)?;
        let hint = self.channels_last(conditions.hint, dtype)?;
        let hint_embedding = self.control.embedding(conditions, dtype, &self.device)?;

        let no_hints = |_| Ok(None);
        let (first, starts) =
            self.encoder.begin(&x, slices, no_hints, &embedding, contexts, check)?;
        let hints = (&hint, conditions.mask);
        let (own, controls) =
            self.control.begin(&x, slices, hints, &hint_embedding, contexts, check)?;
        let first = self.control.add_first(first, &own)?;
        drop(own);
        let starts = starts.into_iter().zip(controls).zip(repeat_n(first, contexts.len()));
        let mut outputs = Vec::new();
        for (context, ((start, control), first)) in contexts.iter().zip(starts) {
            let mut skips = vec![first];
            let keep = |_, x: &FrameBatch| {
                skips.push(x.clone());
                Ok(())
            };
            let middle = self.encoder.forward(start, &embedding, context, check, keep)?;
            let x = self.control.forward(
                control,
                &hint_embedding,
                context,
                &mut skips,
                middle,
                check,
            )?;
            outputs.push(self.decode(x, skips, &embedding, context, check)?);
        }
        Ok(outputs)
    }

    /// Runs the decoder and the output layers; returns [1, 4, f, h, w], f32.
    fn decode(
        &self,
        mut x: FrameBatch,
        mut skips: Vec<FrameBatch>,
        embedding: &Embedding,
        context: &Context,
        check: Check,
    ) -> Result<Tensor> {
        for (stage, up) in &self.decoder {
            x = stage.forward(x, skips.pop(), embedding, context, check)?;
            if let Some((up, times)) = up {
                check()?;
                x = x.rescale(up, *times)?;
            }
        }
        check()?;
        let x = x.map(|x| {
            let normed = self.norm.affine(&crate::ops::Moments::of(&x)?)?.apply(&x, true)?;
            self.out.forward(&[&normed], None, None)
        })?;
        x.frames()?.permute((3, 0, 1, 2))?.unsqueeze(0)?.contiguous()?.to_dtype(DType::F32)
    }

    /// [1, c, f, h, w] → [f, h, w, c], on the denoiser's device, as `dtype`.
    fn channels_last(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let x = x.squeeze(0)?.permute((1, 2, 3, 0))?.contiguous()?;
        ops::to_device(&x, &self.device)?.to_dtype(dtype)
    }
}
