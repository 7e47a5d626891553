// SPDX-License-Identifier: MIT OR Apache-2.0
//! The full-size model on an NVIDIA GPU, with synthetic weights: is it right, how fast is it, what does it
//! take? A line of JSON for each finding; without arguments, all parts.
//!
//! ```text
//! cargo run --release --features cuda --example bench_gpu -- parity memory window vae clip
//! ```

mod clip;
mod model;
mod parity;
mod window;

use std::time::Instant;

use candle_core::{Device, Result};
use clap::{Parser, ValueEnum};
use gstvenhance::ops;

/// Measures the full-size model on a GPU.
#[derive(Parser)]
struct Args {
    /// What to do. Nothing: all of it.
    parts: Vec<Part>,
    /// The device's number.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Height and width of the output in pixels.
    #[arg(long, num_args = 2, default_values_t = [1320, 1982])]
    size: Vec<usize>,
    /// Height and width of the window's latents instead of the output's.
    #[arg(long, num_args = 2)]
    latent: Option<Vec<usize>>,
    /// Where the window's velocity is written, for torch_reference.py to compare.
    #[arg(long)]
    save: Option<std::path::PathBuf>,
    /// Frames of the window that is timed.
    #[arg(long, default_value_t = 31)]
    frames: usize,
    /// Times that something is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only kernels that run on every device.
    #[arg(long)]
    portable: bool,
    /// What the device can do at best: dense products of f16, in TFLOP/s; what a floor is computed from.
    #[arg(long, default_value_t = 790.0)]
    tflops: f64,
    /// The same for its memory, in TB/s.
    #[arg(long, default_value_t = 4.8)]
    bandwidth: f64,
    /// GiB that `memory` leaves free.
    #[arg(long, default_value_t = 15)]
    leave: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every operation beside its side for the CPU.
    Parity,
    /// The peak of the longest window while the rest of the device is taken; before what fills the device.
    Memory,
    /// Seconds of a window's evaluation, both branches, and what they are spent on.
    Window,
    /// Seconds of encoding and decoding a frame; with those of a window, an estimate for the published example.
    Vae,
    /// 61 frames from end to end.
    Clip,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = ops::cuda_device(args.device)?;
    ops::use_portable_kernels(args.portable);
    for part in Part::value_variants() {
        if args.parts.is_empty() || args.parts.contains(part) {
            run(*part, &args, &device)?;
        }
    }
    Ok(())
}

fn run(part: Part, args: &Args, device: &Device) -> Result<()> {
    match part {
        Part::Parity => parity::all(device),
        Part::Window => window::time(args, device),
        Part::Vae => window::autoencoder(args, device),
        Part::Memory => window::memory(args, device),
        Part::Clip => clip::run(args, device),
    }
}

/// Seconds until the device has done what `run` asks of it.
fn seconds<T>(device: &Device, run: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    device.synchronize()?;
    let start = Instant::now();
    let made = run()?;
    device.synchronize()?;
    Ok((start.elapsed().as_secs_f64(), made))
}
