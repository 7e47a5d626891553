// SPDX-License-Identifier: MIT OR Apache-2.0
//! The temporal autoencoder of Stable Video Diffusion (arXiv 2311.15127): encodes frames one by
//! one to latents at 1/8 of the resolution, and decodes batches of frames jointly.

mod budget;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use budget::{decode_bytes, encode_bytes};

use super::{
    Check,
    frame_batch::FrameBatch,
    layers,
    residual::{Residual, TemporalResidual},
};
use crate::{
    ops::{self, Conv2d, ConvConfig, GroupNorm, Linear, Moments, Throttle, TimeConv, attention},
    sampler::{Autoencoder, Budget, Encoded, Mode, Precision, Slices},
};

/// Epsilon of the norms within each frame.
const EPSILON: f64 = 1e-6;
/// Epsilon of the norms over all frames.
const TIME_EPSILON: f64 = 1e-5;
const LATENTS: usize = 4;
const COLOURS: usize = 3;

/// The encoder always computes in f32, as in the reference implementation.
const ENCODER: DType = DType::F32;

/// Bytes that weights with these names and shapes occupy, in an autoencoder whose decoder has type
/// `dtype`.
pub fn weight_bytes(weights: &BTreeMap<String, Vec<usize>>, dtype: DType) -> usize {
    let bytes = |(name, shape): (&String, &Vec<usize>)| {
        let encodes = name.starts_with("encoder.") || name.starts_with("quant_conv.");
        let dtype = if encodes { ENCODER } else { dtype };
        shape.iter().product::<usize>() * dtype.size_in_bytes()
    };
    weights.iter().map(bytes).sum()
}

/// Factor that scales latents to about unit variance.
pub const SCALE: f64 = 0.18215;

/// Dimensions of an autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of each level. Each level but the last halves both sides.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each encoder level. A decoder level has one more.
    pub layers_per_block: usize,
}

impl Config {
    /// The published model.
    pub fn full() -> Self {
        Self { block_out_channels: vec![128, 256, 512, 512], layers_per_block: 2 }
    }

    fn innermost(&self) -> usize {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }
}

/// Mean and log-variance of the latents of frames, [f, 4, h/8, w/8] each, f32.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean of the latents.
    pub mean: Tensor,
    /// Log-variance of the latents, clamped to \[−30, 20\].
    pub logvar: Tensor,
}

/// Self-attention over all pixels of a frame, with one head.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl Attention {
    fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let linear = |name: &str| layers::linear(vb.pp(name), width, width);
        Ok(Self {
            norm: layers::group_norm(vb.pp("group_norm"), width, EPSILON)?,
            query: linear("to_q")?,
            key: linear("to_k")?,
            value: linear("to_v")?,
            out: layers::linear(vb.pp("to_out").pp("0"), width, width)?,
        })
    }

    /// x is [n, h, w, c], and so is the result.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        let normed = self.norm.affine(&Moments::of(x)?)?.apply(x, false)?;
        let normed = normed.reshape((n, h * w, c))?;
        let project = |layer: &Linear| layer.forward(&[&normed], None);
        let (q, k, v) = (project(&self.query)?, project(&self.key)?, project(&self.value)?);
        let attended = attention(&q, &k, &v, 1, false)?;
        self.out.forward(&[&attended], Some(&x.reshape((n, h * w, c))?))?.reshape((n, h, w, c))
    }
}

/// A residual block with the key names of diffusers.
fn residual(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Residual> {
    Ok(Residual {
        norm1: layers::group_norm(vb.pp("norm1"), inputs, EPSILON)?,
        conv1: layers::conv(vb.pp("conv1"), inputs, outputs, ConvConfig::SAME)?,
        norm2: layers::group_norm(vb.pp("norm2"), outputs, EPSILON)?,
        conv2: layers::conv(vb.pp("conv2"), outputs, outputs, ConvConfig::SAME)?,
        skip: match inputs == outputs {
            true => None,
            false => Some(layers::pointwise(vb.pp("conv_shortcut"), inputs, outputs, 2)?),
        },
    })
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<Residual>, Option<Conv2d>)>,
    middle: (Residual, Attention, Residual),
    norm: GroupNorm,
    conv_out: Conv2d,
    quant: Linear,
}

impl Encoder {
    fn new(config: &Config, vb: &VarBuilder) -> Result<Self> {
        /// Pads zeros on the right and at the bottom only.
        const DOWN: ConvConfig = ConvConfig {
            top: 0,
            bottom: 1,
            left: 0,
            right: 1,
            stride: 2,
            upsample: false,
            crop: 0,
        };
        let (quant, vb) = (vb.pp("quant_conv"), vb.pp("encoder"));
        let mut width = config.block_out_channels[0];
        let conv_in = layers::conv(vb.pp("conv_in"), COLOURS, width, ConvConfig::SAME)?;
        let count = config.block_out_channels.len();
        let levels = config.block_out_channels.iter().enumerate().map(|(level, &out)| {
            let vb = vb.pp("down_blocks").pp(level);
            let blocks = (0..config.layers_per_block).map(|n| {
                let inputs = std::mem::replace(&mut width, out);
                residual(vb.pp("resnets").pp(n), inputs, out)
            });
            let blocks = blocks.collect::<Result<_>>()?;
            let down = vb.pp("downsamplers").pp("0").pp("conv");
            let down = (level + 1 < count).then(|| layers::conv(down, out, out, DOWN));
            Ok((blocks, down.transpose()?))
        });
        let levels = levels.collect::<Result<_>>()?;
        let (middle, width) = (vb.pp("mid_block"), config.innermost());
        Ok(Self {
            conv_in,
            levels,
            middle: (
                residual(middle.pp("resnets").pp("0"), width, width)?,
                Attention::new(middle.pp("attentions").pp("0"), width)?,
                residual(middle.pp("resnets").pp("1"), width, width)?,
            ),
            norm: layers::group_norm(vb.pp("conv_norm_out"), width, EPSILON)?,
            conv_out: layers::conv(vb.pp("conv_out"), width, 2 * LATENTS, ConvConfig::SAME)?,
            quant: layers::pointwise(quant, 2 * LATENTS, 2 * LATENTS, 2)?,
        })
    }

    /// Encodes a slice of frames [n, h, w, 3] to mean and log-variance [n, h/8, w/8, 8].
    fn forward(&self, frames: &Tensor, check: Check) -> Result<Tensor> {
        let mut x = self.conv_in.forward(&[frames], None, None)?;
        for (blocks, down) in &self.levels {
            for block in blocks {
                check()?;
                x = block.forward(&[&x], None)?;
            }
            if let Some(down) = down {
                check()?;
                x = down.forward(&[&x], None, None)?;
            }
        }
        check()?;
        x = self.middle.0.forward(&[&x], None)?;
        x = self.middle.1.forward(&x)?;
        check()?;
        x = self.middle.2.forward(&[&x], None)?;
        x = self.norm.affine(&Moments::of(&x)?)?.apply(&x, true)?;
        self.quant.forward(&[&self.conv_out.forward(&[&x], None, None)?], None)
    }
}

/// A residual block within each frame, then one along the frames.
#[derive(Debug)]
struct Block {
    spatial: Residual,
    temporal: TemporalResidual,
}

impl Block {
    fn new(vb: VarBuilder, inputs: usize, outputs: usize) -> Result<Self> {
        // The two outputs are blended with a learned factor σ: (1 − σ)·x + σ·(x + h) = x + σ·h.
        let mix = vb.pp("time_mixer").get(1, "mix_factor")?.to_dtype(DType::F64)?;
        let mix = 1.0 / (1.0 + (-mix.squeeze(0)?.to_scalar::<f64>()?).exp());
        let temporal = vb.pp("temporal_res_block");
        let step = |norm: &str, conv: &str, scale| {
            let norm = layers::group_norm(temporal.pp(norm), outputs, TIME_EPSILON)?;
            Ok((norm, layers::time_conv(temporal.pp(conv), outputs, outputs, scale)?))
        };
        let steps: Result<_> = [("norm1", "conv1", 1.0), ("norm2", "conv2", mix)]
            .map(|(a, b, c)| step(a, b, c))
            .into_iter()
            .collect();
        Ok(Self {
            spatial: residual(vb.pp("spatial_res_block"), inputs, outputs)?,
            temporal: TemporalResidual(steps?),
        })
    }

    fn forward(&self, x: FrameBatch) -> Result<FrameBatch> {
        self.temporal.forward(x.map(|x| self.spatial.forward(&[&x], None))?)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    middle: Vec<Block>,
    /// Runs after the first block of `middle`, if there is a second one.
    attention: Attention,
    levels: Vec<(Vec<Block>, Option<Conv2d>)>,
    norm: GroupNorm,
    conv_out: Conv2d,
    time_conv_out: TimeConv,
}

impl Decoder {
    fn new(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let mut width = config.innermost();
        let middle = vb.pp("mid_block");
        let count = config.block_out_channels.len();
        let conv_in = layers::conv(vb.pp("conv_in"), LATENTS, width, ConvConfig::SAME)?;
        let blocks = (0..config.layers_per_block)
            .map(|n| Block::new(middle.pp("resnets").pp(n), width, width));
        let blocks = blocks.collect::<Result<_>>()?;
        let attention = Attention::new(middle.pp("attentions").pp("0"), width)?;
        let levels = config.block_out_channels.iter().rev().enumerate().map(|(level, &out)| {
            let vb = vb.pp("up_blocks").pp(level);
            let blocks = (0..=config.layers_per_block).map(|n| {
                let inputs = std::mem::replace(&mut width, out);
                Block::new(vb.pp("resnets").pp(n), inputs, out)
            });
            let blocks = blocks.collect::<Result<_>>()?;
            let up = vb.pp("upsamplers").pp("0").pp("conv");
            let up = (level + 1 < count).then(|| layers::conv(up, out, out, ConvConfig::UPSAMPLE));
            Ok((blocks, up.transpose()?))
        });
        let levels = levels.collect::<Result<_>>()?;
        let width = config.block_out_channels[0];
        Ok(Self {
            conv_in,
            middle: blocks,
            attention,
            levels,
            norm: layers::group_norm(vb.pp("conv_norm_out"), width, EPSILON)?,
            conv_out: layers::conv(vb.pp("conv_out"), width, COLOURS, ConvConfig::SAME)?,
            time_conv_out: layers::time_conv(vb.pp("time_conv_out"), COLOURS, COLOURS, 1.0)?,
        })
    }

    /// Decodes latents [f, h, w, 4] to frames [f, 8h, 8w, 3].
    fn forward(&self, latents: &Tensor, slices: Slices, check: Check) -> Result<Tensor> {
        let mut x =
            FrameBatch::new(latents, slices)?.map(|x| self.conv_in.forward(&[&x], None, None))?;
        for (n, block) in self.middle.iter().enumerate() {
            if n == 1 {
                check()?;
                x = x.map(|x| self.attention.forward(&x))?;
            }
            check()?;
            x = block.forward(x)?;
        }
        for (blocks, up) in &self.levels {
            for block in blocks {
                check()?;
                x = block.forward(x)?;
            }
            if let Some(up) = up {
                check()?;
                x = x.rescale(up, 1)?;
            }
        }
        check()?;
        let x = x.map(|x| {
            let normed = self.norm.affine(&Moments::of(&x)?)?.apply(&x, true)?;
            self.conv_out.forward(&[&normed], None, None)
        })?;
        x.time_conv(None, &self.time_conv_out, None)?.frames()
    }
}

/// The autoencoder.
#[derive(Debug)]
pub struct Vae {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
    /// Type of the decoder's weights.
    dtype: DType,
    device: Device,
}

impl Vae {
    /// Loads a checkpoint; the published model has 374 tensors.
    ///
    /// # Errors
    /// If a tensor is missing or has an unexpected shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::new(config, &vb.clone().to_dtype(ENCODER))?,
            decoder: Decoder::new(config, &vb.pp("decoder"))?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// Encodes frames [f, 3, h, w] with values in \[−1, 1\]. Each side is a multiple of 2^(levels
    /// − 1), which is 8 for the published model.
    ///
    /// # Errors
    /// If shapes do not match, if the device runs out of memory, or if `check` fails.
    pub fn encode(&self, frames: &Tensor, check: Check) -> Result<Posterior> {
        self.encode_in(Slices::default(), frames, check)
    }

    fn encode_in(&self, slices: Slices, frames: &Tensor, check: Check) -> Result<Posterior> {
        let throttle = Throttle::new(&self.device);
        let check: Check = &|| throttle.step().and_then(|()| check());
        let frames = FrameBatch::new(&self.channels_last(frames, ENCODER)?, slices)?;
        let moments = frames.map(|slice| self.encoder.forward(&slice, check))?.frames()?;
        let moments = moments.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?;
        let half = |first| moments.narrow(1, first, LATENTS)?.contiguous();
        Ok(Posterior { mean: half(0)?, logvar: half(LATENTS)?.clamp(-30f32, 20f32)? })
    }

    /// Decodes latents [f, 4, h, w], divided by [`SCALE`], jointly to frames [f, 3, 8h, 8w], f32.
    ///
    /// # Errors
    /// If shapes do not match, if the device runs out of memory, or if `check` fails.
    pub fn decode(&self, latents: &Tensor, check: Check) -> Result<Tensor> {
        self.decode_in(Mode::default(), latents, check)
    }

    fn decode_in(&self, mode: Mode, latents: &Tensor, check: Check) -> Result<Tensor> {
        let throttle = Throttle::new(&self.device);
        let check: Check = &|| throttle.step().and_then(|()| check());
        let dtype = match mode.precision {
            Precision::Native => self.dtype,
            Precision::Bf16 => DType::BF16,
        };
        let latents = self.channels_last(latents, dtype)?;
        let frames = self.decoder.forward(&latents, mode.slices, check)?;
        frames.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)
    }

    /// [f, c, h, w] → [f, h, w, c], on the autoencoder's device, as `dtype`.
    fn channels_last(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let x = ops::to_device(x, &self.device)?.to_dtype(dtype)?;
        x.permute((0, 2, 3, 1))?.contiguous()
    }
}

impl Autoencoder for Vae {
    fn encode(&self, frames: &Tensor, mode: Mode, check: Check) -> Result<Encoded> {
        let Posterior { mean, logvar } = self.encode_in(mode.slices, frames, check)?;
        let std = (logvar * 0.5)?.exp()?;
        Ok(Encoded { mean: (mean * SCALE)?, std: (std * SCALE)? })
    }

    fn decode(&self, latents: &Tensor, mode: Mode, check: Check) -> Result<Tensor> {
        self.decode_in(mode, &(latents / SCALE)?, check)
    }

    fn encode_bytes(&self, latent: (usize, usize)) -> usize {
        encode_bytes(&self.config, latent)
    }

    fn decode_budget(&self, frames: usize, latent: (usize, usize)) -> Option<Budget<'_>> {
        let available = ops::device_memory(&self.device)?.available;
        let peak = move |slices| decode_bytes(&self.config, frames, latent, self.dtype, slices);
        Some(Budget { available, peak: Box::new(peak) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::synth;

    /// A small autoencoder with synthetic weights.
    struct Tiny(Vae);

    impl Tiny {
        fn new() -> Self {
            let config = Config { block_out_channels: vec![32; 4], layers_per_block: 1 };
            Self(Vae::new(&config, synth::weights("", DType::F32, &Device::Cpu)).unwrap())
        }

        /// Mean and standard deviation of encoded noise, and decoded noise.
        fn run(&self, mode: Mode, frames: usize, (h, w): (usize, usize)) -> [Tensor; 3] {
            let noise = |name, shape: &[usize]| synth::noise(name, shape, &Device::Cpu).unwrap();
            let image = noise("image", &[frames, 3, 8 * h, 8 * w]);
            let latents = noise("latents", &[frames, 4, h, w]);
            let encoded = Autoencoder::encode(&self.0, &image, mode, &|| Ok(())).unwrap();
            let decoded = Autoencoder::decode(&self.0, &latents, mode, &|| Ok(())).unwrap();
            [encoded.mean, encoded.std, decoded]
        }

        /// Relative errors of [`Self::run`] in a mode, compared with the default mode.
        fn differences(&self, mode: Mode, frames: usize, size: (usize, usize)) -> [f32; 3] {
            let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
            let usual = self.run(Mode::default(), frames, size);
            let mut others = self.run(mode, frames, size).into_iter();
            usual.map(|usual| {
                let error = (&usual - others.next().unwrap()).unwrap();
                (norm(&error).unwrap() / norm(&usual).unwrap()).sqrt()
            })
        }
    }

    #[test]
    fn encoding_and_decoding_do_not_depend_on_the_slice_size() {
        // Frames have 20·32 latents: slices hold all 5 frames, 3, or 1.
        for pixels in [Slices::LARGEST.pixels(), 3 * 20 * 32, 1] {
            let slices = Slices::of_pixels(pixels);
            let mode = Mode { slices, ..Mode::default() };
            for difference in Tiny::new().differences(mode, 5, (20, 32)) {
                assert!(difference < 1e-5, "{slices:?}: {difference}");
            }
        }
    }

    #[test]
    fn wide_decoding_agrees_within_bf16_precision_and_encoding_stays_f32() {
        let mode = Mode { precision: Precision::Bf16, ..Mode::default() };
        let [mean, std, decoded] = Tiny::new().differences(mode, 3, (2, 2));
        assert_eq!((mean, std), (0.0, 0.0));
        assert!((1e-4..0.1).contains(&decoded), "{decoded}");
    }
}
