// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares networks with outputs of the reference implementation, on any device and data type. Used by the tests and
//! by bench_gpu.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use gstvenhance::{
    networks::{
        text::{self, TextEncoder, Tokenizer},
        unet::{self, UNet},
        vae::{self, Vae},
    },
    sampler::Conditions,
    weights::{
        keys::{self, Keys},
        synth,
    },
};
use safetensors::SafeTensors;
use serde_json::Value;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A fixture: tensors and metadata.
pub struct Fixture {
    pub tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Fixture {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Ok(Self { tensors, metadata: metadata.unwrap_or_default() })
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        self.metadata.get(name).map(String::as_str).ok_or_else(|| format!("no {name}").into())
    }

    pub fn json(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(self.text(name)?)?)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("{name} = {text}").into())
    }

    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| format!("no tensor {name}").into())
    }
}

/// The error of one comparison and its tolerance.
pub struct Comparison<'a> {
    pub what: &'a str,
    pub error: f64,
    pub tolerance: f64,
}

/// Runs comparisons and counts them.
pub struct Report<'a> {
    /// Device of the networks.
    pub device: Device,
    /// Called for every comparison.
    tell: &'a mut dyn FnMut(&Comparison),
    pub compared: usize,
}

impl<'a> Report<'a> {
    pub fn new(device: Device, tell: &'a mut dyn FnMut(&Comparison)) -> Self {
        Self { device, tell, compared: 0 }
    }

    pub fn error(&mut self, what: &str, error: f64, tolerance: f64) {
        self.compared += 1;
        (self.tell)(&Comparison { what, error, tolerance });
    }

    pub fn tensor(
        &mut self,
        what: &str,
        actual: &Tensor,
        expected: &Tensor,
        tolerance: f64,
    ) -> Result<()> {
        assert_eq!(actual.dims(), expected.dims(), "{what}");
        self.error(what, relative(actual, expected)?, tolerance);
        Ok(())
    }
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (values(a)?, values(b)?);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    Ok(difference / norm(&mut b.iter().copied()))
}

/// The data types of a network.
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Returns the allowed error of a network with these tensors, relative to the reference in f32.
///
/// A number that is rounded to a type of p significant bits moves by 0.42·2⁻ᵖ of itself: the root mean
/// square over numbers whose logarithms are spread evenly. With each matrix of a network at most four
/// things are rounded: itself, what it is applied to after its norm, what comes of that, and what a
/// non-linearity makes of it. These errors are independent, so that their squares add up.
fn tolerance(dtype: DType, keys: &Keys) -> f64 {
    let bits = match dtype {
        DType::F16 => 11,
        DType::BF16 => 8,
        _ => return 1e-4,
    };
    let matrices = keys.values().filter(|shape| shape.len() > 1).count();
    0.42 * 0.5_f64.powi(bits) * (4.0 * matrices as f64).sqrt()
}

pub fn usize_of(config: &Value, name: &str) -> Result<usize> {
    Ok(config[name].as_u64().ok_or_else(|| format!("no {name}"))? as usize)
}

pub fn usizes_of(config: &Value) -> Result<Vec<usize>> {
    let list = config.as_array().ok_or("no list")?;
    list.iter().map(|n| Ok(n.as_u64().ok_or("no number")? as usize)).collect()
}

pub fn unet_config(config: &Value) -> Result<unet::Config> {
    Ok(unet::Config {
        latents: 4,
        dim: usize_of(config, "dim")?,
        head_dim: usize_of(config, "head_dim")?,
        num_heads: usize_of(config, "num_heads")?,
        context_dim: usize_of(config, "context_dim")?,
        num_res_blocks: usize_of(config, "num_res_blocks")?,
        dim_mult: usizes_of(&config["dim_mult"])?,
    })
}

/// A denoiser's inputs, by name, and its output with a type of numbers.
fn denoise(
    fixture: &Fixture,
    config: &unet::Config,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let tag = fixture.text("tag")?;
    let (frames, h, w) =
        (fixture.number("frames")?, fixture.number("height")?, fixture.number("width")?);
    let mask: Vec<Option<usize>> = fixture
        .json("mask_cond")?
        .as_array()
        .ok_or("no mask")?
        .iter()
        .map(|key| key.as_u64().map(|key| key as usize))
        .collect();
    let inputs = mask.iter().flatten().max().ok_or("no input frame")? + 1;
    let noise = |name: &str, shape: &[usize]| synth::noise(&format!("{tag}.{name}"), shape, device);
    let x = noise("x", &[1, 4, frames, h, w])?;
    let hint = noise("hint", &[1, 4, inputs, h, w])?;
    let tokens = noise("context", &[1, 77, config.context_dim])?;
    let denoiser = UNet::new(config, synth::weights("", dtype, device))?;
    let conditions = Conditions {
        t: fixture.number("t")?,
        hint: &hint,
        t_hint: fixture.number("t_hint")?,
        s_cond: fixture.number("s_cond")?,
        mask: &mask,
    };
    let context = denoiser.context(&tokens)?;
    Ok(denoiser.forward(&x, &conditions, &[&context], &|| Ok(()))?.remove(0))
}

fn unet(name: &str, fixture: &Fixture, report: &mut Report) -> Result<()> {
    let config = unet_config(&fixture.json("config")?)?;
    let expected = fixture.tensor("out")?;
    let keys = keys::keys(|vb| UNet::new(&config, vb))?;
    for dtype in DTYPES {
        let actual = denoise(fixture, &config, dtype, &report.device)?;
        report.tensor(&format!("{name} {dtype:?}"), &actual, expected, tolerance(dtype, &keys))?;
    }
    Ok(())
}

fn vae(name: &str, fixture: &Fixture, report: &mut Report) -> Result<()> {
    let device = &report.device.clone();
    let config = vae::Config {
        block_out_channels: usizes_of(&fixture.json("block_out_channels")?)?,
        layers_per_block: fixture.number("layers_per_block")?,
    };
    let tag = fixture.text("tag")?;
    let (f, h, w) =
        (fixture.number::<usize>("frames")?, fixture.number("height")?, fixture.number("width")?);
    let image = (synth::noise(&format!("{tag}.image"), &[f, 3, h, w][..], device)? * 0.5)?;
    let mean = fixture.tensor("mean")?;
    let latent = synth::noise(&format!("{tag}.latent"), mean.dims(), device)?;
    let keys = keys::keys(|vb| Vae::new(&config, vb))?;
    for dtype in DTYPES {
        let vae = Vae::new(&config, synth::weights("", dtype, device))?;
        let posterior = vae.encode(&image, &|| Ok(()))?;
        let actual = [
            ("mean", posterior.mean),
            ("logvar", posterior.logvar),
            ("decoded", vae.decode(&latent, &|| Ok(()))?),
        ];
        for (what, actual) in actual {
            let expected = fixture.tensor(what)?;
            let what = format!("{name} {what} {dtype:?}");
            report.tensor(&what, &actual, expected, tolerance(dtype, &keys))?;
        }
    }
    Ok(())
}

fn clip_text(name: &str, fixture: &Fixture, report: &mut Report) -> Result<()> {
    let config = fixture.json("config")?;
    let config = text::Config {
        width: usize_of(&config, "width")?,
        heads: usize_of(&config, "heads")?,
        layers: usize_of(&config, "layers")?,
    };
    let tokenizer = Tokenizer::default();
    let prompts = fixture.json("prompts")?;
    let prompts = prompts.as_array().ok_or("no prompts")?.iter();
    let tokens: Vec<_> =
        prompts.map(|prompt| tokenizer.encode(prompt.as_str().unwrap_or_default()).0).collect();
    let expected = fixture.tensor("tokens")?.to_vec2::<i64>()?;
    for (actual, expected) in tokens.iter().zip(&expected) {
        let same = actual.iter().zip(expected).all(|(a, b)| i64::from(*a) == *b);
        report.error(&format!("{name} tokens"), if same { 0.0 } else { 1.0 }, 0.0);
    }
    let keys = keys::keys(|vb| TextEncoder::new(&config, vb))?;
    for dtype in DTYPES {
        let tower = TextEncoder::new(&config, synth::weights("", dtype, &report.device))?;
        let actual = tower.forward(&tokens, &|| Ok(()))?;
        let what = format!("{name} {dtype:?}");
        report.tensor(&what, &actual, fixture.tensor("out")?, tolerance(dtype, &keys))?;
    }
    Ok(())
}

/// Compares the network of a fixture; says whether the fixture is one of a network.
pub fn network(name: &str, fixture: &Fixture, report: &mut Report) -> Result<bool> {
    match fixture.text("kind")? {
        "unet" => unet(name, fixture, report)?,
        "vae" => vae(name, fixture, report)?,
        "clip_text" => clip_text(name, fixture, report)?,
        _ => return Ok(false),
    }
    Ok(true)
}
