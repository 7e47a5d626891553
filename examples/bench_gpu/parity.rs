// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation on the GPU beside its CPU side, with the same numbers: odd sizes, and those of the real model, of
//! which the CPU computes a sample where all would take long.
//!
//! A family is what can break together. One process each keeps an illegal address in one from hiding the others.

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    ops::{
        Conv2d, ConvConfig, GroupNorm, LayerNorm, Linear, Moments, TimeConv, attention,
        attention_along_first, gather_pixels, geglu, scatter_pixels,
    },
    weights::synth,
};
use serde_json::json;

use super::{Args, Findings};

/// Makes an operation's input on a device, runs it there, and returns what is compared.
type Operation = fn(&Inputs) -> Result<Tensor>;

/// Family, case, operation.
const CASES: [(&str, &str, Operation); 50] = [
    ("attention", "700 queries, 900 keys", |x| x.attention([2, 700, 900, 2], 128)),
    ("attention", "129 queries, 65 keys", |x| x.attention([2, 129, 65, 2], 64)),
    ("attention", "193 queries, 1025 keys, 20 heads", |x| x.attention([1, 193, 1025, 1], 1280)),
    ("attention", "1 query, 130 keys", |x| x.attention([3, 1, 130, 3], 64)),
    ("attention", "to a prompt", |x| x.attention([3, 300, 77, 1], 320)),
    ("attention", "level 0, sampled", |x| x.sampled_attention(1, 5)),
    ("attention", "level 1, 2 frames, sampled", |x| x.sampled_attention(2, 10)),
    ("attention", "level 2, sampled", |x| x.sampled_attention(4, 20)),
    ("attention", "level 0 to a prompt, sampled", |x| {
        let (h, w) = x.latent;
        x.sampled(&x.tensor("q", &[1, h * w, 320])?, |q| {
            attention(q, &x.tensor("k", &[1, 77, 320])?, &x.tensor("v", &[1, 77, 320])?, 5, false)
        })
    }),
    ("attention", "one large head", |x| {
        let make = |name| x.tensor(name, &[2, 200, 512]);
        attention(&make("q")?, &make("k")?, &make("v")?, 1, false)
    }),
    ("temporal-attention", "31 frames", |x| x.attention_along_frames(31, 40, 320)),
    ("temporal-attention", "43 frames", |x| x.attention_along_frames(43, 40, 320)),
    ("temporal-attention", "1 frame", |x| x.attention_along_frames(1, 40, 64)),
    ("temporal-attention", "32 frames", |x| x.attention_along_frames(32, 7, 128)),
    ("temporal-attention", "33 frames", |x| x.attention_along_frames(33, 7, 128)),
    ("temporal-attention", "49 frames", |x| x.attention_along_frames(49, 7, 128)),
    ("temporal-attention", "31 frames of 2048 pixels", |x| x.attention_along_frames(31, 2048, 512)),
    ("temporal-attention", "31 frames, sequence after sequence", |x| {
        x.attention([40, 31, 31, 40], 320)
    }),
    ("temporal-attention", "pixels of 2 slices", Inputs::pixels),
    ("convolution", "320 to 320", |x| x.convolution(&[320], 320, (22, 20), ConvConfig::SAME)),
    ("convolution", "two parts", |x| x.convolution(&[320, 320], 640, (22, 20), ConvConfig::SAME)),
    ("convolution", "1280 to 1280, 11×13", |x| {
        x.convolution(&[1280], 1280, (11, 13), ConvConfig::SAME)
    }),
    ("convolution", "320 to 320, 1×1", |x| x.convolution(&[320], 320, (1, 1), ConvConfig::SAME)),
    ("convolution", "320 to 320, level 0", |x| {
        x.convolution(&[320], 320, x.latent, ConvConfig::SAME)
    }),
    ("convolution", "autoencoder, 128 to 256", |x| {
        x.convolution(&[128], 256, (22, 20), ConvConfig::SAME)
    }),
    ("convolution", "autoencoder, 128 to 128, 67×65", |x| {
        x.convolution(&[128], 128, (67, 65), ConvConfig::SAME)
    }),
    ("convolution", "4 to 320", |x| x.convolution(&[4], 320, (22, 20), ConvConfig::SAME)),
    ("convolution", "320 to 4", |x| x.convolution(&[320], 4, (22, 20), ConvConfig::SAME)),
    ("resampling", "to half the size", |x| x.convolution(&[320], 320, (22, 20), DOWN)),
    ("resampling", "to half the size, odd", |x| x.convolution(&[320], 320, (23, 17), DOWN)),
    ("resampling", "to twice the size", |x| {
        x.convolution(&[320], 320, (22, 20), ConvConfig::UPSAMPLE)
    }),
    ("resampling", "to twice the size, cropped", |x| {
        x.convolution(&[320], 320, (13, 9), ConvConfig { crop: 1, ..ConvConfig::UPSAMPLE })
    }),
    ("temporal-convolution", "3 frames among others", |x| x.time_convolution(320, (9, 17))),
    ("temporal-convolution", "3 frames of 1×1", |x| x.time_convolution(640, (1, 1))),
    ("temporal-convolution", "3 frames of level 2", |x| {
        x.time_convolution(1280, (x.latent.0 / 4, x.latent.1 / 4))
    }),
    ("linear", "two parts and a sum", |x| {
        let layer = x.layer(960, 640, true)?;
        let (a, b) = (x.tensor("x", &[2, 90, 320])?, x.tensor("skip", &[2, 90, 640])?);
        layer.forward(&[&a, &b], Some(&x.tensor("add", &[2, 90, 640])?))
    }),
    ("linear", "one part and a sum", |x| {
        let add = x.tensor("add", &[3, 37, 640])?;
        x.layer(320, 640, true)?.forward(&[&x.tensor("x", &[3, 37, 320])?], Some(&add))
    }),
    ("linear", "no bias, 77 rows", |x| {
        x.layer(1024, 320, false)?.forward(&[&x.tensor("x", &[1, 77, 1024])?], None)
    }),
    ("linear", "1 row", |x| {
        x.layer(320, 1280, true)?.forward(&[&x.tensor("x", &[1, 1, 320])?], None)
    }),
    ("linear", "129 rows, 40 inputs, 36 outputs", |x| {
        x.layer(40, 36, true)?.forward(&[&x.tensor("x", &[1, 129, 40])?], None)
    }),
    ("linear", "320 to 320, level 0, sampled", |x| x.sampled_linear(320, 320)),
    ("linear", "320 to 2560, level 0, sampled", |x| x.sampled_linear(320, 2560)),
    ("linear", "1280 to 320, level 0, sampled", |x| x.sampled_linear(1280, 320)),
    ("norm", "group and layer norm, 640 channels", |x| x.norms(640, (19, 23))),
    ("norm", "group and layer norm, 1280 channels, 1×3", |x| x.norms(1280, (1, 3))),
    ("norm", "group and layer norm, 320 channels, level 0", |x| x.norms(320, x.latent)),
    ("norm", "group and layer norm, 128 channels, 131×77", |x| x.norms(128, (131, 77))),
    ("gate", "1280 wide", |x| geglu(&x.tensor("gates", &[3, 50, 2560])?)),
    ("gate", "36 wide", |x| geglu(&x.tensor("gates", &[1, 7, 72])?)),
    ("gate", "1280 wide, level 0, sampled", |x| {
        x.sampled(&x.tensor("gates", &[1, x.latent.0 * x.latent.1, 2560])?, geglu)
    }),
];

/// The denoiser's convolution to half the size.
pub const DOWN: ConvConfig =
    ConvConfig { top: 2, bottom: 2, left: 1, right: 1, stride: 2, upsample: false, crop: 0 };

/// Allowed errors: inputs, outputs and intermediate results are rounded to the type.
const TYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 1.5e-3), (DType::BF16, 1.2e-2)];

/// Rows of a large operation that are compared.
const SAMPLED: usize = 97;

struct Inputs {
    device: Device,
    dtype: DType,
    latent: (usize, usize),
}

impl Inputs {
    /// The same numbers on every device, rounded to the type.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::noise(name, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::weight(name, shape, self.dtype, &Device::Cpu)?.to_device(&self.device)
    }

    /// Of `b` × `t` queries and `kb` × `s` keys, in heads of 64 channels.
    fn attention(&self, [b, t, s, kb]: [usize; 4], c: usize) -> Result<Tensor> {
        let (q, k) = (self.tensor("q", &[b, t, c])?, self.tensor("k", &[kb, s, c])?);
        attention(&q, &k, &self.tensor("v", &[kb, s, c])?, c / 64, false)
    }

    fn attention_along_frames(&self, frames: usize, pixels: usize, c: usize) -> Result<Tensor> {
        let make = |name| self.tensor(name, &[frames, pixels, c]);
        attention_along_first(&make("q")?, &make("k")?, &make("v")?, c / 64)
    }

    /// Two slices, in whose middle some pixels are replaced by others.
    fn pixels(&self) -> Result<Tensor> {
        let slices =
            [self.tensor("slice 1", &[3, 50, 320])?, self.tensor("slice 2", &[1, 50, 320])?];
        let tokens = gather_pixels(&slices, 5, 20)?;
        scatter_pixels(&tokens, &slices, 28)?;
        Tensor::cat(&slices, 0)
    }

    /// Runs an operation that treats the rows of x [b, rows, c] alike, and returns a sample of the output's: the CPU
    /// computes no others.
    fn sampled(&self, x: &Tensor, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let last = x.dim(1)? - 1;
        let rows = (0..SAMPLED).map(|n| (n * last / (SAMPLED - 1)) as u32);
        let rows = Tensor::from_iter(rows, &Device::Cpu)?;
        match self.device {
            Device::Cpu => run(&x.index_select(&rows, 1)?),
            _ => run(x)?.to_device(&Device::Cpu)?.index_select(&rows, 1),
        }
    }

    /// Attention within frames, at a level whose sides are the latents' divided by `divisor`.
    fn sampled_attention(&self, divisor: usize, heads: usize) -> Result<Tensor> {
        let tokens = self.latent.0.div_ceil(divisor) * self.latent.1.div_ceil(divisor);
        let frames = divisor.min(2);
        let make = |name| self.tensor(name, &[frames, tokens, 64 * heads]);
        let (k, v) = (make("k")?, make("v")?);
        self.sampled(&make("q")?, |q| attention(q, &k, &v, heads, false))
    }

    fn layer(&self, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.weight("linear.weight", &[outputs, inputs])?;
        let bias = bias.then(|| self.weight("linear.bias", &[outputs])).transpose()?;
        Linear::new(weight, bias)
    }

    fn sampled_linear(&self, inputs: usize, outputs: usize) -> Result<Tensor> {
        let (h, w) = self.latent;
        let layer = self.layer(inputs, outputs, true)?;
        let x = self.tensor("x", &[1, h * w, inputs])?;
        self.sampled(&x, |x| layer.forward(&[x], None))
    }

    /// Of two frames.
    fn convolution(
        &self,
        channels: &[usize],
        outputs: usize,
        (h, w): (usize, usize),
        shape: ConvConfig,
    ) -> Result<Tensor> {
        let inputs = channels.iter().sum();
        let weight = self.weight("conv.weight", &[outputs, inputs, 3, 3])?;
        let conv = Conv2d::new(weight, self.weight("conv.bias", &[outputs])?, shape)?;
        let part = |(n, c): (usize, &usize)| self.tensor(&format!("part {n}"), &[2, h, w, *c]);
        let parts = channels.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?;
        let (out_h, out_w) = shape.output((h, w));
        let shift = self.tensor("shift", &[2, outputs])?;
        let add = self.tensor("add", &[2, out_h, out_w, outputs])?;
        conv.forward(&parts.iter().collect::<Vec<_>>(), Some(&shift), Some(&add))
    }

    /// At a clip's beginning, then with frames before it.
    fn time_convolution(&self, c: usize, (h, w): (usize, usize)) -> Result<Tensor> {
        let weight = self.weight("time.weight", &[c, c, 3, 1, 1])?;
        let conv = TimeConv::new(weight, &self.weight("time.bias", &[c])?, 0.3)?;
        let frames = |name, n| self.tensor(name, &[n, h, w, c]);
        let (before, after) = (frames("before", 2)?, frames("after", 2)?);
        let (x, add) = (frames("x", 3)?, frames("add", 3)?);
        let first = conv.forward(None, &x, Some(&after), Some(&add))?;
        conv.forward(Some(&before), &first, None, None)
    }

    /// Group norms of each frame and of all frames, then a layer norm of their sum.
    fn norms(&self, c: usize, (h, w): (usize, usize)) -> Result<Tensor> {
        let numbers = |name| synth::weight(name, &[c][..], DType::F32, &self.device);
        let x = self.tensor("x", &[3, h, w, c])?;
        let norm = GroupNorm::new(&numbers("group.weight")?, &numbers("group.bias")?, 1e-5)?;
        let y = norm.affine(&Moments::of(&x)?)?.apply(&x, true)?;
        let pooled = norm.affine(&Moments::pool(&[Moments::of(&x)?])?)?.apply(&x, false)?;
        LayerNorm::new(&numbers("layer.weight")?, &numbers("layer.bias")?)?.forward(&(y + pooled)?)
    }
}

/// The families, in order.
pub fn families() -> Vec<&'static str> {
    let mut families: Vec<_> = CASES.iter().map(|(family, ..)| *family).collect();
    families.dedup();
    families
}

/// Compares all cases, or those of the family in `--only`.
pub fn run(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let chosen = |family: &str| args.only.as_deref().is_none_or(|only| only == family);
    if !families().into_iter().any(chosen) {
        candle_core::bail!("no such family; there are {}", families().join(", "));
    }
    for (family, case, operation) in CASES.iter().filter(|(family, ..)| chosen(family)) {
        for (dtype, allowed) in TYPES {
            let figure = json!({
                "what": "parity",
                "family": family,
                "case": case,
                "type": format!("{dtype:?}"),
            });
            let run = |device: &Device| {
                operation(&Inputs { device: device.clone(), dtype, latent: args.latent() })
            };
            let error = run(device).and_then(|actual| relative(&actual, &run(&Device::Cpu)?));
            match error {
                Ok(error) => findings.compare(figure, error, allowed),
                Err(error) => findings.failed(figure, error),
            }
        }
    }
    Ok(())
}

/// Returns ‖a − b‖ / ‖b‖, summed in f64 on the CPU.
pub fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.dims() != b.dims() {
        candle_core::bail!("cannot compare {:?} with {:?}", a.shape(), b.shape());
    }
    let values = |x: &Tensor| {
        x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    };
    let (a, b) = (values(a)?, values(b)?);
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.into_iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        difference += (a - b) * (a - b);
        norm += b * b;
    }
    Ok(f64::sqrt(difference / norm))
}
