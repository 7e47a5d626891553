// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation on the GPU beside its side for the CPU, with the same numbers.

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    ops::{Conv2d, GroupNorm, LayerNorm, Linear, Moments, Shape, TimeConv, attention, geglu},
    weights::synth,
};
use serde_json::json;

/// Makes an operation's input on a device, and does it there.
type Operation = fn(&Inputs) -> Result<Tensor>;

const OPERATIONS: [(&str, Operation); 18] = [
    ("attention of long sequences", |x| x.attention(2, 700, 900, 2, 128)),
    ("attention to a prompt", |x| x.attention(3, 300, 77, 1, 320)),
    ("attention along 31 frames", |x| x.attention(40, 31, 31, 40, 320)),
    ("attention along 43 frames", |x| x.attention(40, 43, 43, 40, 320)),
    ("attention of one large head", |x| x.attention_of_one_head(200, 512)),
    ("convolution", |x| x.convolution(&[320], 320, Shape::SAME)),
    ("convolution of two parts", |x| x.convolution(&[320, 320], 640, Shape::SAME)),
    ("convolution of the autoencoder", |x| x.convolution(&[128], 256, Shape::SAME)),
    ("convolution of the autoencoder's last level", |x| x.convolution(&[128], 128, Shape::SAME)),
    ("convolution of few channels", |x| x.convolution(&[4], 320, Shape::SAME)),
    ("convolution to few channels", |x| x.convolution(&[320], 4, Shape::SAME)),
    ("convolution to half the size", |x| x.convolution(&[320], 320, DOWN)),
    ("convolution to twice the size", |x| x.convolution(&[320], 320, Shape::DOUBLE)),
    ("convolution along the frames", Inputs::time_convolution),
    ("linear layer", Inputs::linear),
    ("linear layer without more", Inputs::plain_linear),
    ("norms", Inputs::norms),
    ("gates", |x| geglu(&x.tensor("gates", &[3, 50, 2560])?)),
];

const DOWN: Shape =
    Shape { top: 2, bottom: 2, left: 1, right: 1, stride: 2, double: false, crop: 0 };

/// How far f16 and bf16 may be off: what goes in, comes out, and half-way results are rounded.
const TYPES: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::F16, 1.5e-3), (DType::BF16, 1.2e-2)];

struct Inputs {
    device: Device,
    dtype: DType,
}

impl Inputs {
    /// The same numbers on every device, rounded to the type.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::noise(name, shape, &self.device)?.to_dtype(self.dtype)
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::weight(name, shape, self.dtype, &self.device)
    }

    fn attention(&self, b: usize, t: usize, s: usize, kb: usize, c: usize) -> Result<Tensor> {
        let (q, k) = (self.tensor("q", &[b, t, c])?, self.tensor("k", &[kb, s, c])?);
        attention(&q, &k, &self.tensor("v", &[kb, s, c])?, c / 64, false)
    }

    fn attention_of_one_head(&self, t: usize, c: usize) -> Result<Tensor> {
        let make = |name| self.tensor(name, &[2, t, c]);
        attention(&make("q")?, &make("k")?, &make("v")?, 1, false)
    }

    fn convolution(&self, channels: &[usize], outputs: usize, shape: Shape) -> Result<Tensor> {
        let (h, w) = (22, 20);
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

    fn time_convolution(&self) -> Result<Tensor> {
        let c = 320;
        let weight = self.weight("time.weight", &[c, c, 3, 1, 1])?;
        let conv = TimeConv::new(weight, &self.weight("time.bias", &[c])?, 0.3)?;
        let frames = |name, n| self.tensor(name, &[n, 9, 17, c]);
        let (before, after) = (frames("before", 2)?, frames("after", 2)?);
        let (x, add) = (frames("x", 3)?, frames("add", 3)?);
        let first = conv.forward(None, &x, Some(&after), Some(&add))?;
        conv.forward(Some(&before), &first, None, None)
    }

    fn linear(&self) -> Result<Tensor> {
        let weight = self.weight("linear.weight", &[640, 960])?;
        let layer = Linear::new(weight, Some(self.weight("linear.bias", &[640])?))?;
        let (x, skip) = (self.tensor("x", &[2, 90, 320])?, self.tensor("skip", &[2, 90, 640])?);
        layer.forward(&[&x, &skip], Some(&self.tensor("add", &[2, 90, 640])?))
    }

    fn plain_linear(&self) -> Result<Tensor> {
        let layer = Linear::new(self.weight("plain.weight", &[320, 1024])?, None)?;
        layer.forward(&[&self.tensor("x", &[1, 77, 1024])?], None)
    }

    fn norms(&self) -> Result<Tensor> {
        let c = 640;
        let numbers = |name| synth::weight(name, &[c][..], DType::F32, &self.device);
        let x = self.tensor("x", &[3, 19, 23, c])?;
        let norm = GroupNorm::new(&numbers("group.weight")?, &numbers("group.bias")?, 1e-5)?;
        let y = norm.affine(&Moments::of(&x)?)?.apply(&x, true)?;
        let pooled = norm.affine(&Moments::pool(&[Moments::of(&x)?])?)?.apply(&x, false)?;
        LayerNorm::new(&numbers("layer.weight")?, &numbers("layer.bias")?)?.forward(&(y + pooled)?)
    }
}

pub fn all(device: &Device) -> Result<()> {
    for (what, operation) in OPERATIONS {
        for (dtype, allowed) in TYPES {
            let ours = operation(&Inputs { device: device.clone(), dtype });
            let theirs = operation(&Inputs { device: Device::Cpu, dtype })?;
            let error = ours.and_then(|ours| relative(&ours, &theirs));
            let line = match error {
                Ok(error) => json!({
                    "what": what,
                    "type": format!("{dtype:?}"),
                    "error": error,
                    "allowed": allowed,
                    "holds": error <= allowed,
                }),
                Err(error) => json!({
                    "what": what,
                    "type": format!("{dtype:?}"),
                    "failed": error.to_string(),
                    "holds": false,
                }),
            };
            println!("{line}");
        }
    }
    Ok(())
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let wide = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32);
    let (a, b) = (wide(a)?, wide(b)?);
    let norm = |x: Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    Ok(norm((a - &b)?)? / norm(b)?)
}
