// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the networks of `model=lite` with scenes made on the fly, and writes the file that the plugin
//! holds. Without arguments it does all of what made the file shipped. Runs go on where they were
//! interrupted; each writes its loss curve to standard output.

mod motion;
mod plane;
mod random;
mod scene;
mod school;
mod sharpen;
mod trainer;

use std::{collections::HashMap, path::PathBuf};

use candle_core::{Device, Result, Tensor};
use clap::Parser;
use gstvenhance::lite::network::{COARSE, FINE, SHARPENERS};

use random::Random;
use trainer::{Learner, Run};

/// Trains the networks of `model=lite`.
#[derive(Parser)]
struct Args {
    /// What to train: x2, x3, x4, flow. Nothing: all of it.
    parts: Vec<String>,
    /// Steps of a part in all, instead of the recipe's.
    #[arg(long)]
    steps: Option<usize>,
    /// Where runs are kept.
    #[arg(long, default_value = "target/train")]
    folder: PathBuf,
    /// The file to write.
    #[arg(long, default_value = "src/lite/weights.safetensors")]
    output: PathBuf,
    /// Start of all chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Steps of each part: the recipe.
const RECIPE: [(&str, usize); 4] =
    [("x2", 24_000), ("x3", 5_000), ("x4", 11_000), ("flow", 22_000)];

fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.folder)?;
    let device = Device::cuda_if_available(0)?;
    for (part, steps) in RECIPE {
        if args.parts.is_empty() || args.parts.iter().any(|name| name == part) {
            train(part, args.steps.unwrap_or(steps), &args, &device)?;
        }
    }
    export(&args)
}

fn file(part: &str, args: &Args) -> PathBuf {
    args.folder.join(format!("{part}.safetensors"))
}

fn train(part: &str, steps: usize, args: &Args, device: &Device) -> Result<()> {
    let file = file(part, args);
    let (known, step) = trainer::load(&file)?;
    let mut random = Random::new(args.seed);
    let mut learner = |network| Learner::new(network, &known, &mut random, device);
    // What comes after an interruption is not what was seen before it.
    let seed = args.seed + 2 + step as u64;
    match SHARPENERS.iter().find(|sharpener| sharpener.network.name == part) {
        Some(sharpener) => {
            let learner = learner(sharpener.network)?;
            let mut run = Run::new(file, &[&learner], step, steps, 2e-3)?;
            sharpen::train(*sharpener, &learner, &mut run, seed, device)
        }
        None => {
            let (coarse, fine) = (learner(COARSE.network)?, learner(FINE.network)?);
            let mut run = Run::new(file, &[&coarse, &fine], step, steps, 1e-3)?;
            motion::train(&coarse, &fine, &mut run, seed, device)
        }
    }
}

/// Puts what the runs have come to into one file, if all have come to something.
fn export(args: &Args) -> Result<()> {
    let mut tensors = HashMap::new();
    let mut recipe = HashMap::from([
        ("made by".to_string(), "examples/train_lite of gst-plugin-venhance".to_string()),
        ("data".into(), "dead leaves in layered motion, made by the same program".into()),
        ("seed".into(), args.seed.to_string()),
    ]);
    let networks = SHARPENERS.map(|sharpener| sharpener.network);
    for (part, _) in RECIPE {
        let (known, step) = trainer::load(&file(part, args))?;
        recipe.insert(format!("steps of {part}"), step.to_string());
        for network in networks.iter().chain([&COARSE.network, &FINE.network]) {
            if let Some(values) = known.get(network.name) {
                tensors.extend(trainer::layers(*network, values)?);
            }
        }
        if step == 0 {
            // The plugin would not start with it.
            println!("{part} is not trained yet: {} stays as it is", args.output.display());
            return Ok(());
        }
    }
    write(&tensors, recipe, &args.output)
}

fn write(
    tensors: &HashMap<String, Tensor>,
    recipe: HashMap<String, String>,
    output: &PathBuf,
) -> Result<()> {
    let wrap = candle_core::Error::wrap;
    let bytes = safetensors::serialize(tensors, Some(recipe)).map_err(wrap)?;
    std::fs::write(output, &bytes)?;
    println!("{}: {} bytes", output.display(), bytes.len());
    Ok(())
}
