// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sampler against numbers that the real implementation has produced, through the code that runs in
//! the element; only the noise comes by name, through the trait that the real noise has.

#[path = "../common/sink.rs"]
mod sink;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    engine::{self, ClipContext, Options, Solver, interpolated_frames, target_size},
    networks::{
        text::{self, TextEncoder},
        unet::{self, Prompted},
        vae::{self, Vae},
    },
    sampler::{
        Batch, Canvas, Check, Conditions, Decode, Denoiser, Frame, Guidance, LatentSink, Mode,
        Models, Noise, NoiseSchedule, Purpose, Sampler, SamplerParams, Settings, Stream,
        Velocities, Windows, cross_fade, evaluations, mask, tile_weights, timesteps,
    },
    weights::synth,
};
use serde_json::Value;

use crate::{
    golden::{self, Fixture, Report, unet_config, usize_of, usizes_of},
    say,
};

type Outcome<T> = golden::Result<T>;

fn clip() -> ClipContext {
    sink::clip(&Arc::new(sink::Discard))
}

/// Latents as they leave the sampler.
#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<Tensor>>>);

impl Collect {
    fn latents(&self) -> Vec<Tensor> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl LatentSink for Collect {
    fn take(&mut self, batch: Batch) -> std::result::Result<(), engine::Error> {
        self.0.lock().unwrap().extend(batch.frames.into_iter().map(|frame| frame.x));
        Ok(())
    }
}

/// Noise that is made by name for a whole clip, and handed out by frame.
struct SyntheticNoise {
    /// The name, and the number of frames for all of them.
    name: Box<dyn Fn(Purpose, usize) -> (String, usize) + Send + Sync>,
    /// Where in the whole an output frame is.
    index: Box<dyn Fn(Purpose, usize) -> usize + Send + Sync>,
    cache: Mutex<HashMap<String, Tensor>>,
}

impl std::fmt::Debug for SyntheticNoise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyntheticNoise")
    }
}

impl Noise for SyntheticNoise {
    fn normal(&self, purpose: Purpose, frame: usize, (h, w): (usize, usize)) -> Result<Tensor> {
        let (name, frames) = (self.name)(purpose, frame);
        let mut cache = self.cache.lock().unwrap();
        if !cache.contains_key(&name) {
            let whole = synth::noise(&name, &[1, 4, frames, h, w][..], &Device::Cpu)?;
            cache.insert(name.clone(), whole);
        }
        cache[&name].narrow(2, (self.index)(purpose, frame), 1)?.squeeze(2)?.contiguous()
    }
}

/// All numbers in a text.
fn numbers(text: &str) -> Vec<f64> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn float_of(config: &Value, name: &str) -> Outcome<f64> {
    config[name].as_f64().ok_or_else(|| format!("no {name}").into())
}

fn text_of<'a>(config: &'a Value, name: &str) -> Outcome<&'a str> {
    config[name].as_str().ok_or_else(|| format!("no {name}").into())
}

fn solver(name: &str, mode: &str) -> Outcome<Solver> {
    match (name, mode) {
        ("heun", _) => Ok(Solver::Heun),
        (_, "fast") => Ok(Solver::Fast),
        (_, "normal") => Ok(Solver::Normal),
        _ => Err(format!("solver {name}, mode {mode}").into()),
    }
}

/// "fast", "normal15", "heun10".
fn schedule(name: &str) -> Outcome<(Solver, u32)> {
    let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    let (name, steps) = name.split_at(digits);
    Ok((solver(name, name)?, steps.parse().unwrap_or(15)))
}

/// a·xt·cos(t/b) + c·tanh(xt rolled by d along the frames) + e·mean(y).
struct Toy {
    numbers: Vec<f64>,
    conditional: f64,
    unconditional: f64,
}

impl Denoiser for Toy {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        _: Mode,
        _: Check,
    ) -> Result<Velocities> {
        let [a, b, c, d, e] = self.numbers[..] else { candle_core::bail!("another toy") };
        let (frames, d) = (x.dim(2)?, d as usize);
        let rolled = Tensor::cat(&[x.narrow(2, frames - d, d)?, x.narrow(2, 0, frames - d)?], 2)?;
        let same = ((x * (a * (conditions.t / b).cos()))? + (rolled.tanh()? * c)?)?;
        let branch = |y: f64| &same + e * y;
        Ok(Velocities {
            conditional: branch(self.conditional)?,
            unconditional: guided.then(|| branch(self.unconditional)).transpose()?,
        })
    }
}

fn sample(tag: &str, config: &Value) -> Outcome<Tensor> {
    let device = &Device::Cpu;
    let (frames, interpolated) = (usize_of(config, "frames")?, usize_of(config, "interp")?);
    let (h, w) = (usize_of(config, "height")?, usize_of(config, "width")?);
    let chunks: Vec<_> = Windows::of_clip(interpolated).all(frames);
    match config["chunks"].as_array() {
        Some(theirs) => assert_eq!(ranges(theirs)?, chunks),
        None => assert_eq!(chunks.len(), 1),
    }
    let mean = |name: &str| -> Outcome<f64> {
        let y = synth::noise(&format!("{tag}.{name}"), &[1, 2, 3][..], device)?;
        Ok(f64::from(y.mean_all()?.to_scalar::<f32>()?))
    };
    let toy = Toy {
        numbers: numbers(text_of(config, "toy")?),
        conditional: mean("y")?,
        unconditional: mean("u")?,
    };
    let solver = solver(text_of(config, "solver")?, text_of(config, "mode")?)?;
    let steps = usize_of(config, "steps")? as u32;
    let (start, evaluations) = evaluations(&NoiseSchedule::default(), solver, steps);
    let guidance = Guidance {
        scale: float_of(config, "guide_scale")?,
        rescale: float_of(config, "guide_rescale")?,
    };
    let name = move |purpose, _| match purpose {
        Purpose::Step(step) => (format!("solver.noise.{step}"), frames),
        purpose => panic!("no {purpose:?} here"),
    };
    let noise = Arc::new(SyntheticNoise {
        name: Box::new(name),
        index: Box::new(|_, frame| frame),
        cache: Mutex::default(),
    });
    let params = SamplerParams { guidance, t_hint: 0, s_cond: 0.0, interpolated, noise };
    let output = Collect::default();
    let toy: Arc<dyn Denoiser> = Arc::new(toy);
    let mut sampler = Sampler::new(&[toy], &evaluations, params, clip(), output.clone())?;
    let x = synth::noise(&format!("{tag}.x"), &[1, 4, frames, h, w][..], device)?;
    for n in 0..frames {
        let x = (x.narrow(2, n, 1)? * start)?;
        let hint = n.is_multiple_of(interpolated + 1).then(|| x.clone());
        let non_final_windows = Windows::of_clip(interpolated).non_final_windows(n + 1);
        let ended = n + 1 == frames;
        sampler.push(Batch {
            frames: vec![Frame::new(x, hint, None)],
            non_final_windows,
            ended,
        })?;
    }
    Ok(Tensor::cat(&output.latents(), 2)?)
}

pub fn diffusion(name: &str, fixture: &Fixture, report: &mut Report) -> Outcome<()> {
    let (table, device) = (NoiseSchedule::default(), &Device::Cpu);
    let sigmas = Tensor::new(table.sigmas(), device)?;
    report.tensor(&format!("{name} sigmas"), &sigmas, fixture.tensor("sigmas")?, 1e-5)?;
    let schedules = fixture.json("timesteps")?;
    for (schedule_name, theirs) in schedules.as_object().ok_or("no schedules")? {
        let (solver, steps) = schedule(schedule_name)?;
        let s: Vec<_> = timesteps(solver, steps).iter().map(|&t| table.s(t)).collect();
        let same =
            s.iter().map(|&s| table.nearest_timestep(s)).collect::<Vec<_>>() == usizes_of(theirs)?;
        let what = format!("{name} times of {schedule_name}");
        report.error(&what, if same { 0.0 } else { 1.0 }, 0.0);
        let sigmas = Tensor::new([&s[..], &[0.0]].concat(), device)?;
        let theirs = fixture.tensor(&format!("sched.{schedule_name}.sigmas"))?;
        report.tensor(&format!("{name} s of {schedule_name}"), &sigmas, theirs, 1e-5)?;
    }
    for (tensor, theirs) in &fixture.tensors {
        let what = format!("{name} {tensor}");
        if let Some(t) = tensor.strip_prefix("diffuse.") {
            let noise = |name: &str| synth::noise(name, theirs.dims(), device);
            let (x, noise) = (noise("diffuse.x0")?, noise("diffuse.noise")?);
            report.tensor(&what, &table.diffuse(&x, t.parse()?, &noise)?, theirs, 1e-5)?;
        } else if let Some(tag) = tensor.strip_prefix("sample.") {
            report.tensor(&what, &sample(tag, &fixture.json(tensor)?)?, theirs, 1e-5)?;
        }
    }
    Ok(())
}

/// Every schedule that a user can ask for: the times exactly, s to the precision of the σ table.
pub fn schedules(name: &str, path: &Path, report: &mut Report) -> Outcome<()> {
    let all: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let table = NoiseSchedule::default();
    let mut check = |what: String, solver, steps, theirs: &serde_json::Value| -> Outcome<()> {
        let (_, evaluations) = evaluations(&table, solver, steps);
        let mut timesteps_seen = Vec::new();
        for evaluation in &evaluations {
            // The second evaluation of a Heun step is at the time of the next step's first.
            if solver != Solver::Heun || evaluation.step == timesteps_seen.len() {
                timesteps_seen.push(evaluation.timestep);
            }
        }
        let same = timesteps_seen == usizes_of(&theirs["times"])?;
        report.error(&format!("{name} times of {what}"), if same { 0.0 } else { 1.0 }, 0.0);
        let theirs: Vec<f32> = serde_json::from_value(theirs["s"].clone())?;
        let s = timesteps(solver, steps).into_iter().map(|t| table.s(t)).chain([0.0]);
        let s = Tensor::new(s.collect::<Vec<_>>(), &Device::Cpu)?;
        let theirs = Tensor::new(theirs, &Device::Cpu)?;
        report.tensor(&format!("{name} s of {what}"), &s, &theirs, 1e-5)
    };
    for (solver_name, solver) in [("normal", Solver::Normal), ("heun", Solver::Heun)] {
        for steps in 1..=100 {
            let theirs = &all[solver_name][steps.to_string()];
            check(format!("{solver_name} {steps}"), solver, steps, theirs)?;
        }
    }
    check("fast".into(), Solver::Fast, 15, &all["fast"])
}

pub fn blending(name: &str, fixture: &Fixture, report: &mut Report) -> Outcome<()> {
    let device = &Device::Cpu;
    let cases = fixture.text("blend")?;
    for case in cases.split(" = ").next().unwrap_or_default().split(' ') {
        let (tag, sizes) = case.split_once(':').ok_or("no case")?;
        let theirs = fixture.tensor(&format!("blend.{tag}"))?;
        let sizes: Vec<_> = numbers(sizes).into_iter().map(|size| size as usize).collect();
        let [a, b, extent] = sizes[..] else { return Err("no sizes".into()) };
        let frames = |side: &str, count: usize| -> Outcome<Vec<Tensor>> {
            let mut shape = theirs.dims().to_vec();
            shape[2] = count;
            let whole = synth::noise(&format!("blend.{side}.{tag}"), shape, device)?;
            Ok((0..count).map(|n| whole.narrow(2, n, 1)).collect::<Result<_>>()?)
        };
        let (previous, mut this) = (frames("a", a)?, frames("b", b)?);
        cross_fade(&previous, &mut this, extent)?;
        report.tensor(&format!("{name} {tag}"), &Tensor::cat(&this, 2)?, theirs, 1e-5)?;
    }
    for (tensor, theirs) in &fixture.tensors {
        if tensor.starts_with("gauss.") {
            let (h, w) = theirs.dims2()?;
            let (rows, columns) = tile_weights(h, w);
            let weights = rows.iter().flat_map(|y| columns.iter().map(move |x| (x * y) as f32));
            let ours = Tensor::from_vec(weights.collect::<Vec<_>>(), (h, w), device)?;
            report.tensor(&format!("{name} {tensor}"), &ours, theirs, 1e-5)?;
        }
    }
    Ok(())
}

fn ranges(list: &[Value]) -> Outcome<Vec<std::ops::Range<usize>>> {
    let range = |pair: &Value| match usizes_of(pair)?[..] {
        [first, end] => Ok(first..end),
        _ => Err("no range".into()),
    };
    list.iter().map(range).collect()
}

pub fn geometry(name: &str, path: &Path, report: &mut Report) -> Outcome<()> {
    let tables: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    for (table, cases) in tables.as_object().ok_or("no tables")? {
        for case in cases.as_array().ok_or("no cases")? {
            let same = match table.as_str() {
                "target_resolution" => target_is(case)?,
                "pad_to_fit" => padding_is(case)?,
                "make_chunks" => {
                    let windows = Windows::of_clip(usize_of(case, "interp")?);
                    let chunks = case["chunks"].as_array().ok_or("no chunks")?;
                    windows.all(usize_of(case, "frames")?) == ranges(chunks)?
                }
                "sliding_windows" => {
                    let [total, length, overlap] = usizes_of(&case["in"])?[..] else {
                        return Err("no windows".into());
                    };
                    let out = case["out"].as_array().ok_or("no windows")?;
                    Windows { length, overlap }.all(total) == ranges(out)?
                }
                "interp" => {
                    let rate = |name| {
                        Ok::<_, Box<dyn std::error::Error>>((
                            (float_of(case, name)? * 1000.0).round() as u32,
                            1000,
                        ))
                    };
                    interpolated_frames(rate("target")?, rate("fps")?) == usize_of(case, "interp")?
                }
                "mask_cond" => {
                    let theirs = case["mask"].as_array().ok_or("no mask")?;
                    let theirs: Vec<_> =
                        theirs.iter().map(|key| key.as_u64().map(|key| key as usize)).collect();
                    let (keys, interpolated) = (usize_of(case, "keys")?, usize_of(case, "interp")?);
                    theirs.len() == keys + interpolated * (keys - 1)
                        && mask(0, theirs.len(), interpolated) == theirs
                }
                _ => return Err(format!("unknown table {table}").into()),
            };
            if !same {
                say(&case.to_string());
            }
            report.error(&format!("{name} {table}"), if same { 0.0 } else { 1.0 }, 0.0);
        }
    }
    Ok(())
}

fn target_is(case: &Value) -> Outcome<bool> {
    let options = Options::default();
    let [h, w] = usizes_of(&case["in"])?[..] else { return Err("no size".into()) };
    let scale = float_of(case, "up_scale")?;
    let (width, height) = target_size((w, h), scale, options.min_height, options.max_pixels);
    Ok(usizes_of(&case["out"])? == [height, width])
}

fn padding_is(case: &Value) -> Outcome<bool> {
    let [h, w] = usizes_of(&case["in"])?[..] else { return Err("no size".into()) };
    let canvas = Canvas::new((h, w), Canvas::SMALLEST);
    let (top, left) = canvas.origin;
    let (bottom, right) = (canvas.padded.0 - h - top, canvas.padded.1 - w - left);
    Ok(usizes_of(&case["left_right_top_bottom"])? == [left, right, top, bottom])
}

pub fn tiled_decode(name: &str, fixture: &Fixture, report: &mut Report) -> Outcome<()> {
    let device = &Device::Cpu;
    let config = vae::Config {
        block_out_channels: usizes_of(&fixture.json("block_out_channels")?)?,
        layers_per_block: fixture.number("layers_per_block")?,
    };
    let (f, h, w) =
        (fixture.number("frames")?, fixture.number("height")?, fixture.number("width")?);
    let vae = Vae::new(&config, synth::weights("", DType::F32, device))?;
    let tag = fixture.text("tag")?;
    let latents = synth::noise(&format!("{tag}.latent"), &[1, 4, f, h, w][..], device)?;
    let mut decode = Decode::new(Arc::new(vae), (h, w), clip());
    // "rows 5, 17, 29…, columns 7, 19, 31… of the decoded frames (every 12th)"
    let kept = numbers(fixture.text("out")?);
    let [row, row2, .., column, column2, _, _] = kept[..] else { return Err("no rows".into()) };
    let every = |size: usize, first: f64, second: f64| {
        let indices = (first as u32..size as u32).step_by((second - first) as usize);
        Tensor::new(indices.collect::<Vec<_>>(), device)
    };
    let (rows, columns) = (every(8 * h, row, row2)?, every(8 * w, column, column2)?);
    let mut frames = Vec::new();
    for n in 0..f {
        let latent = latents.narrow(2, n, 1)?;
        decode.push([(latent, None)], n + 1 == f, |frame, _| {
            let kept = frame.index_select(&rows, 2).and_then(|f| f.index_select(&columns, 3));
            frames.push(kept.unwrap());
            Ok(())
        })?;
    }
    let ours = Tensor::cat(&frames, 0)?.transpose(0, 1)?.contiguous()?;
    report.tensor(name, &ours, fixture.tensor("out")?, 1e-4)
}

/// The networks of a pipeline, with its two prompts.
fn models(fixture: &Fixture) -> Outcome<Models> {
    let device = &Device::Cpu;
    let prefixes: Vec<_> = fixture.text("weights")?.split(' ').skip(1).collect();
    let weights = |name: &str| -> Outcome<_> {
        let prefix = prefixes.iter().find(|prefix| prefix.starts_with(name)).ok_or("no prefix")?;
        Ok(synth::weights(prefix, DType::F32, device))
    };
    let config = fixture.json("clip")?;
    let config = text::Config {
        width: usize_of(&config, "width")?,
        heads: usize_of(&config, "heads")?,
        layers: usize_of(&config, "layers")?,
    };
    let encoder = TextEncoder::new(&config, weights("clip")?)?;
    let mut tokens = Vec::new();
    for row in fixture.tensor("tokens")?.to_vec2::<i64>()? {
        let row: Vec<_> = row.into_iter().map(|token| token as u32).collect();
        tokens.push(row.try_into().map_err(|_| "not 77 tokens")?);
    }
    let contexts = encoder.forward(&tokens, &|| Ok(()))?;
    let denoiser = unet::Denoiser::new(&unet_config(&fixture.json("unet")?)?, weights("unet")?)?;
    let config = fixture.json("vae")?;
    let config = vae::Config {
        block_out_channels: usizes_of(&config["block_out_channels"])?,
        layers_per_block: usize_of(&config, "layers_per_block")?,
    };
    let vae = Arc::new(Vae::new(&config, weights("vae")?)?);
    let denoiser = Arc::new(Prompted::new(Arc::new(denoiser), &contexts)?);
    Ok(Models { encoder: vae.clone(), denoisers: vec![denoiser], decoder: vae })
}

pub fn pipeline(name: &str, fixture: &Fixture, report: &mut Report) -> Outcome<()> {
    let pair = |name: &str| match usizes_of(&fixture.json(name)?)?[..] {
        [h, w] => Ok((h, w)),
        _ => Err(Box::<dyn std::error::Error>::from(format!("no {name}"))),
    };
    let (keys, interpolated): (usize, usize) = (fixture.number("keys")?, fixture.number("interp")?);
    let frames = keys + interpolated * (keys - 1);
    let (smallest, tag) = (pair("min_padded")?, fixture.text("tag")?);
    let canvas = Canvas::new(pair("target")?, smallest);
    let settings = Settings {
        solver: solver("", fixture.text("solver_mode")?)?,
        steps: fixture.number("steps")?,
        guidance: Guidance {
            scale: fixture.number("guide_scale")?,
            rescale: fixture.number("guide_rescale")?,
        },
        noise_aug: fixture.number("noise_aug")?,
        downscale_cond: fixture.number("s_cond")?,
        smallest,
    };
    let prefix = tag.to_owned();
    let noise = SyntheticNoise {
        name: Box::new(move |purpose, frame| match purpose {
            Purpose::Encode => (format!("{prefix}.vae.{frame}"), 1),
            Purpose::Hint => (format!("{prefix}.hint"), keys),
            Purpose::Start => (format!("{prefix}.latent"), frames),
            Purpose::Step(step) => (format!("{prefix}.step.{step}"), frames),
        }),
        index: Box::new(move |purpose, frame| match purpose {
            Purpose::Encode => 0,
            Purpose::Hint => frame / (interpolated + 1),
            Purpose::Start | Purpose::Step(_) => frame,
        }),
        cache: Mutex::default(),
    };
    let (models, output) = (models(fixture)?, Collect::default());
    let noise = Arc::new(noise);
    let mut stream =
        Stream::new(&models, &settings, noise, (canvas, interpolated), clip(), output.clone())?;
    let mut decode = Decode::new(models.decoder.clone(), canvas.latent(), clip());
    let (mut latents, mut images) = (Vec::new(), Vec::new());
    let (h, w) = pair("input")?;
    let shape = [keys, 3, h, w];
    let video = (synth::noise(&format!("{tag}.video"), &shape[..], &Device::Cpu)? * 0.5)?;
    for n in 0..=keys {
        match n < keys {
            true => stream.push(&video.get(n)?, None)?,
            false => stream.finish()?,
        }
        let done = output.latents();
        latents.extend(done.iter().cloned());
        let done = done.into_iter().map(|latent| (latent, None));
        decode.push(done, n == keys, |image, _| {
            images.push(image);
            Ok(())
        })?;
    }
    let ours = Tensor::cat(&latents, 2)?.squeeze(0)?;
    report.tensor(&format!("{name} latent"), &ours, fixture.tensor("latent")?, 1e-3)?;
    let listed = usizes_of(&fixture.json("out_frames")?)?;
    let ((top, left), (h, w)) = (canvas.origin, canvas.target);
    let ours = listed.iter().map(|&n| images[n].narrow(2, top, h)?.narrow(3, left, w));
    let ours = Tensor::cat(&ours.collect::<Result<Vec<_>>>()?, 0)?.transpose(0, 1)?;
    report.tensor(&format!("{name} out"), &ours, fixture.tensor("out")?, 1e-3)
}
