// SPDX-License-Identifier: MIT OR Apache-2.0
//! The full-size model on an NVIDIA GPU, with synthetic weights: is it right, how fast is it, how much memory does it
//! take? Prints a line of JSON for each figure; without arguments, runs all parts.
//!
//! ```text
//! cargo run --release --features bench,cuda --example bench_gpu -- parity fixtures ops window
//! ```
//!
//! Exit status: 0 if all comparisons hold, 3 if one does not, 1 if something could not be run.

mod clip;
mod findings;
mod fixtures;
#[path = "../../tests/golden/mod.rs"]
mod golden;
mod model;
mod ops;
mod parity;
mod window;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use candle_core::{Device, Result};
use clap::{Parser, ValueEnum};
use findings::Findings;
use gstvenhance::{
    ops::{ProductBackend, cuda_device, use_portable_kernels, use_products},
    sampler::Canvas,
};

/// Measures the full-size model on a GPU.
#[derive(Parser)]
struct Args {
    /// What to run; all of it if none is given.
    parts: Vec<Part>,
    /// Number of the CUDA device.
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Height and width of the output in pixels.
    #[arg(long, num_args = 2, default_values_t = [1320, 1982])]
    size: Vec<usize>,
    /// Height and width of the latents; by default those of the output's size.
    #[arg(long, num_args = 2)]
    latent: Option<Vec<usize>>,
    /// Frames of the window that is timed.
    #[arg(long, default_value_t = 31)]
    frames: usize,
    /// Number of measurements.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// `parity`: run this family alone. `ops`: run operations whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Print the families of `parity` and exit.
    #[arg(long)]
    list: bool,
    /// `window`: write the velocities to this file.
    #[arg(long)]
    save: Option<PathBuf>,
    /// `window`: compare the velocities with those in this file.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// `fixtures`: the folder with the fixtures.
    #[arg(long, default_value = "tests/fixtures")]
    fixtures: PathBuf,
    /// Pixels per slice; by default chosen from the device's memory.
    #[arg(long)]
    slices: Option<usize>,
    /// Use only the portable kernels.
    #[arg(long)]
    portable: bool,
    /// Implementation of f16 and bf16 linear layers.
    #[arg(long, value_enum, default_value = "kernels")]
    products: Products,
    /// Dense f16 throughput of the device in TFLOP/s, for computing lower bounds.
    #[arg(long, default_value_t = 790.0)]
    tflops: f64,
    /// Memory bandwidth of the device in TB/s, for computing lower bounds.
    #[arg(long, default_value_t = 4.8)]
    bandwidth: f64,
    /// `memory`: GiB that are left free.
    #[arg(long, default_value_t = 15)]
    leave: u64,
}

impl Args {
    /// Height and width of the latents.
    fn latent(&self) -> (usize, usize) {
        match self.latent.as_deref() {
            Some([h, w]) => (*h, *w),
            _ => Canvas::new((self.size[0], self.size[1]), Canvas::SMALLEST).latent(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Products {
    Kernels,
    Cublaslt,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Compares every operation with its CPU implementation.
    Parity,
    /// Compares the networks with outputs of the reference implementation, from a folder of fixtures.
    Fixtures,
    /// Times single operations, with the names of torch_ops.py.
    Ops,
    /// Peak memory of the longest window while the rest of the device is taken; before parts that fill the device.
    Memory,
    /// Times a window's evaluation, both branches, and each kind of kernel in it.
    Window,
    /// Times from a cancellation in the middle of a window to an idle device.
    Cancel,
    /// Times encoding and decoding a frame; with the time of a window, estimates the published example.
    Vae,
    /// Times 61 frames from end to end.
    Clip,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.list {
        parity::families().iter().for_each(|family| println!("{family}"));
        return Ok(ExitCode::SUCCESS);
    }
    let device = cuda_device(args.device)?;
    use_portable_kernels(args.portable);
    use_products(match args.products {
        Products::Kernels => ProductBackend::Kernels,
        Products::Cublaslt => ProductBackend::CublasLt,
    });
    let mut findings = Findings::default();
    for part in Part::value_variants() {
        if args.parts.is_empty() || args.parts.contains(part) {
            run(*part, &args, &device, &mut findings)?;
        }
    }
    Ok(findings.exit_code())
}

fn run(part: Part, args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    match part {
        Part::Parity => parity::run(args, device, findings),
        Part::Fixtures => fixtures::run(args, device, findings),
        Part::Ops => ops::run(args, device, findings),
        Part::Memory => window::memory(args, device, findings),
        Part::Window => window::time(args, device, findings),
        Part::Cancel => window::cancel(args, device, findings),
        Part::Vae => window::autoencoder(args, device, findings),
        Part::Clip => clip::run(args, device, findings),
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
