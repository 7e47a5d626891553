// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the networks of `model=lite` on synthetic scenes and writes the weights file that the plugin embeds.
//!
//!     cargo run --release --example train_lite
//!
//! Without arguments it trains every part, which takes two to three hours of one core. Processes for one part each
//! can run at the same time: `train_lite x4`. An interrupted run resumes from its last checkpoint. The loss curve goes to
//! standard output.

mod clips;
mod codec;
mod degradation;
mod flow;
mod gradient;
mod image;
mod pool;
mod random;
mod scene;
mod trainer;
mod upscaler;

use std::{collections::HashMap, path::PathBuf};

use candle_core::{Device, Result, Tensor};
use clap::Parser;
use gstvenhance::lite::network::{COARSE, FINE, UPSCALERS, Upscaler};

use random::Random;
use trainer::{Run, Trainee};

/// Trains the networks of `model=lite`.
#[derive(Parser)]
struct Args {
    /// Parts to train: x2, x3, x4, flow. Default: all.
    parts: Vec<String>,
    /// Folder of the checkpoints.
    #[arg(long, default_value = "target/train", value_name = "DIR")]
    folder: PathBuf,
    /// Weights file to write.
    #[arg(long, default_value = "src/lite/weights.safetensors", value_name = "FILE")]
    output: PathBuf,
    /// Instead of training, write clips for `examples/quality` to this folder.
    #[arg(long, value_name = "DIR")]
    clips: Option<PathBuf>,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// Training steps of each upscaler.
const UPSCALER_STEPS: [usize; UPSCALERS.len()] = [28_000, 12_000, 14_000];
/// Factor on the residuals that the exported upscalers predict. They are trained on scenes and overestimate the detail of
/// films. A residual that is the best estimate keeps 1 − 0.15² = 98 % of its gain in squared error.
const RESIDUAL_SCALE: f64 = 0.85;
/// Training steps of the flow.
const FLOW_STEPS: usize = 30_000;
/// Name of the part that is the flow; those of the upscalers are the names of their networks.
const FLOW: &str = "flow";

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.clips {
        std::fs::create_dir_all(folder)?;
        return clips::write_clips(folder, args.seed);
    }
    gst::init().map_err(candle_core::Error::wrap)?;
    std::fs::create_dir_all(&args.folder)?;
    let device = Device::cuda_if_available(0)?;
    let is_wanted =
        |part: &str| args.parts.is_empty() || args.parts.iter().any(|name| name == part);
    for (upscaler, steps) in UPSCALERS.into_iter().zip(UPSCALER_STEPS) {
        if is_wanted(upscaler.network.name) {
            train_upscaler(upscaler, steps, &args, &device)?;
        }
    }
    if is_wanted(FLOW) {
        train_flow(&args, &device)?;
    }
    export(&args)
}

fn checkpoint(part: &str, args: &Args) -> PathBuf {
    args.folder.join(format!("{part}.safetensors"))
}

/// The seed of a run from `step` on. A resumed run does not repeat the samples before the interruption.
fn seed(args: &Args, step: usize) -> u64 {
    args.seed + 2 + step as u64
}

/// Trains an upscaler from its checkpoint on.
fn train_upscaler(upscaler: Upscaler, steps: usize, args: &Args, device: &Device) -> Result<()> {
    let file = checkpoint(upscaler.network.name, args);
    let (saved, step) = trainer::load(&file)?;
    let mut random = Random::new(args.seed);
    let trainee = Trainee::new(upscaler.network, &saved, &mut random, device)?;
    let mut run = Run::new(file, &[&trainee], step, steps, 2e-3)?;
    upscaler::train(upscaler, &trainee, &mut run, seed(args, step), device)
}

/// Trains the flow refiners from their checkpoint on.
fn train_flow(args: &Args, device: &Device) -> Result<()> {
    let file = checkpoint(FLOW, args);
    let (saved, step) = trainer::load(&file)?;
    let mut random = Random::new(args.seed);
    let mut trainee = |network| Trainee::new(network, &saved, &mut random, device);
    let (coarse, fine) = (trainee(COARSE.network)?, trainee(FINE.network)?);
    let mut run = Run::new(file, &[&coarse, &fine], step, FLOW_STEPS, 1e-3)?;
    flow::train(&coarse, &fine, &mut run, seed(args, step), device)
}

/// Writes the weights of all parts to one file, once every part has a checkpoint.
fn export(args: &Args) -> Result<()> {
    let mut tensors = HashMap::new();
    let mut metadata = HashMap::from([
        ("created by".to_string(), "examples/train_lite of gst-plugin-venhance".to_string()),
        ("data".into(), "dead leaves in layered motion, drawn by the same program".into()),
        ("seed".into(), args.seed.to_string()),
        ("scale of the residuals".into(), RESIDUAL_SCALE.to_string()),
    ]);
    let networks = UPSCALERS.map(|upscaler| upscaler.network);
    for part in networks.map(|network| network.name).into_iter().chain([FLOW]) {
        let (saved, step) = trainer::load(&checkpoint(part, args))?;
        metadata.insert(format!("steps of {part}"), step.to_string());
        let scale = if part == FLOW { 1.0 } else { RESIDUAL_SCALE };
        for network in networks.iter().chain([&COARSE.network, &FINE.network]) {
            if let Some(parameters) = saved.get(network.name) {
                tensors.extend(trainer::export_layers(*network, parameters, scale)?);
            }
        }
        if step == 0 {
            // The plugin cannot load an incomplete file.
            println!("{part} is not trained yet; {} was not written", args.output.display());
            return Ok(());
        }
    }
    write(&tensors, metadata, &args.output)
}

fn write(
    tensors: &HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
    output: &PathBuf,
) -> Result<()> {
    let bytes =
        safetensors::serialize(tensors, Some(metadata)).map_err(candle_core::Error::wrap)?;
    std::fs::write(output, &bytes)?;
    println!("{}: {} bytes", output.display(), bytes.len());
    Ok(())
}
