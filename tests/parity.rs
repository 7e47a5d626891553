// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks and sampler against numbers that the real implementation has produced: every file in
//! `$VENHANCE_FIXTURES` (default `tests/fixtures`, whose README says what is in them), whatever its
//! name, by its metadata.

mod sampling;

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use gstvenhance::{
    networks::{
        text::{self, TextTower, Tokenizer},
        unet::{self, Denoiser},
        vae::{self, Vae},
    },
    wavefront::Conditions,
    weights::{
        keys::{self, Keys},
        synth,
    },
};
use safetensors::SafeTensors;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One file: tensors, and what they are about.
struct Fixture {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Fixture {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Ok(Self { tensors, metadata: metadata.unwrap_or_default() })
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.metadata.get(name).map(String::as_str).ok_or_else(|| format!("no {name}").into())
    }

    fn json(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(self.text(name)?)?)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("{name} = {text}").into())
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| format!("no tensor {name}").into())
    }
}

/// What has been compared.
struct Report {
    /// Where networks run.
    device: Device,
    compared: usize,
    failed: usize,
}

impl Report {
    fn on(device: Device) -> Self {
        Self { device, compared: 0, failed: 0 }
    }

    /// Prints past the test runner's capture.
    fn say(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn error(&mut self, what: &str, error: f64, tolerance: f64) {
        // Not a number is no small error.
        let bad = error.is_nan() || error > tolerance;
        self.compared += 1;
        self.failed += usize::from(bad);
        let verdict = if bad { "FAILED" } else { "ok" };
        self.say(&format!("{what}: {error:.2e} of {tolerance:.0e} {verdict}"));
    }

    fn tensor(&mut self, what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) -> Result<()> {
        assert_eq!(ours.dims(), theirs.dims(), "{what}");
        self.error(what, relative(ours, theirs)?, tolerance);
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

/// The types of numbers that a network may have.
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// How far a network with these tensors may be from the real one, which computed in f32.
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

fn usize_of(config: &Value, name: &str) -> Result<usize> {
    Ok(config[name].as_u64().ok_or_else(|| format!("no {name}"))? as usize)
}

fn usizes_of(config: &Value) -> Result<Vec<usize>> {
    let list = config.as_array().ok_or("no list")?;
    list.iter().map(|n| Ok(n.as_u64().ok_or("no number")? as usize)).collect()
}

fn unet_config(config: &Value) -> Result<unet::Config> {
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
    let keys = mask.iter().flatten().max().ok_or("no key frame")? + 1;
    let noise = |name: &str, shape: &[usize]| synth::noise(&format!("{tag}.{name}"), shape, device);
    let x = noise("x", &[1, 4, frames, h, w])?;
    let hint = noise("hint", &[1, 4, keys, h, w])?;
    let tokens = noise("context", &[1, 77, config.context_dim])?;
    let denoiser = Denoiser::new(config, synth::weights("", dtype, device))?;
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
    let theirs = fixture.tensor("out")?;
    let keys = keys::keys(|vb| Denoiser::new(&config, vb))?;
    for dtype in DTYPES {
        let ours = denoise(fixture, &config, dtype, &report.device)?;
        report.tensor(&format!("{name} {dtype:?}"), &ours, theirs, tolerance(dtype, &keys))?;
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
        let ours = [
            ("mean", posterior.mean),
            ("logvar", posterior.logvar),
            ("decoded", vae.decode(&latent, &|| Ok(()))?),
        ];
        for (what, ours) in ours {
            let theirs = fixture.tensor(what)?;
            let what = format!("{name} {what} {dtype:?}");
            report.tensor(&what, &ours, theirs, tolerance(dtype, &keys))?;
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
    let theirs = fixture.tensor("tokens")?.to_vec2::<i64>()?;
    for (ours, theirs) in tokens.iter().zip(&theirs) {
        let same = ours.iter().zip(theirs).all(|(a, b)| i64::from(*a) == *b);
        report.error(&format!("{name} tokens"), if same { 0.0 } else { 1.0 }, 0.0);
    }
    let keys = keys::keys(|vb| TextTower::new(&config, vb))?;
    for dtype in DTYPES {
        let tower = TextTower::new(&config, synth::weights("", dtype, &report.device))?;
        let ours = tower.forward(&tokens, &|| Ok(()))?;
        let what = format!("{name} {dtype:?}");
        report.tensor(&what, &ours, fixture.tensor("out")?, tolerance(dtype, &keys))?;
    }
    Ok(())
}

fn tokenizer(name: &str, path: &Path, report: &mut Report) -> Result<()> {
    let cases: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let tokenizer = Tokenizer::default();
    for case in cases.as_array().ok_or("no cases")? {
        let text = case["text"].as_str().ok_or("no text")?;
        let theirs = usizes_of(&case["tokens"])?;
        let ours: Vec<_> = tokenizer.encode(text).0.map(|token| token as usize).into();
        let what = format!("{name} {:?}", text.chars().take(24).collect::<String>());
        report.error(&what, if ours == theirs { 0.0 } else { 1.0 }, 0.0);
    }
    Ok(())
}

/// The full-size networks ask for the tensors of the published files, with their shapes; no weight is
/// made.
#[test]
fn full_size_networks_have_the_published_keys() {
    let published = |name: &str| -> Keys {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let denoiser = keys::keys(|vb| Denoiser::new(&unet::Config::full(), vb)).unwrap();
    keys::check(&denoiser, &published("venhancer_keys.json")).unwrap();
    assert_eq!(denoiser.len(), 2180);
    let vae = keys::keys(|vb| Vae::new(&vae::Config::full(), vb)).unwrap();
    keys::check(&vae, &published("svd_vae_keys.json")).unwrap();
    assert_eq!(vae.len(), 374);
    // Nobody has published a list for the text tower: by its description.
    let text = keys::keys(|vb| TextTower::new(&text::Config::full(), vb)).unwrap();
    assert_eq!(text.len(), 23 * 12 + 4);
    assert_eq!(text["transformer.resblocks.22.attn.in_proj_weight"], [3072, 1024]);
}

fn check(name: &str, path: &Path, report: &mut Report) -> Result<()> {
    let fixture = Fixture::read(path)?;
    match fixture.text("kind")? {
        "unet" => unet(name, &fixture, report),
        "vae" => vae(name, &fixture, report),
        "clip_text" => clip_text(name, &fixture, report),
        "diffusion" => sampling::diffusion(name, &fixture, report),
        "blending" => sampling::blending(name, &fixture, report),
        "tiled_decode" => sampling::tiled_decode(name, &fixture, report),
        "pipeline" => sampling::pipeline(name, &fixture, report),
        kind => Err(format!("{name}: unknown kind {kind}").into()),
    }
}

/// The files of fixtures, in order.
fn fixtures() -> Vec<PathBuf> {
    let folder = std::env::var("VENHANCE_FIXTURES");
    let folder =
        folder.unwrap_or_else(|_| format!("{}/tests/fixtures", env!("CARGO_MANIFEST_DIR")));
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_fixture_is_met() {
    let mut report = Report::on(Device::Cpu);
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let done = if name.ends_with(".safetensors") {
            check(&name, &path, &mut report)
        } else if name.starts_with("tokenizer") && name.ends_with(".json") {
            tokenizer(&name, &path, &mut report)
        } else if name.starts_with("schedules") && name.ends_with(".json") {
            sampling::schedules(&name, &path, &mut report)
        } else if name.starts_with("geometry") && name.ends_with(".json") {
            sampling::geometry(&name, &path, &mut report)
        } else {
            Ok(())
        };
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(report.compared > 0, "there are no fixtures");
    assert_eq!(report.failed, 0, "of {} comparisons", report.compared);
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn every_fixture_of_a_network_is_met_on_a_gpu() {
    let mut report = Report::on(gstvenhance::ops::cuda_device(0).unwrap());
    for path in
        fixtures().iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
    {
        let name = path.file_name().unwrap().to_string_lossy();
        let fixture = Fixture::read(path).unwrap();
        let done = match fixture.text("kind").unwrap() {
            "unet" => unet(&name, &fixture, &mut report),
            "vae" => vae(&name, &fixture, &mut report),
            "clip_text" => clip_text(&name, &fixture, &mut report),
            // The sampler's own are of toys.
            _ => Ok(()),
        };
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(report.compared > 0, "there are no fixtures");
    assert_eq!(report.failed, 0, "of {} comparisons", report.compared);
}
