// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures a network with synthetic weights. Prints a line of JSON per run with seconds, peak
//! memory in addition to the weights, and GFLOP/s (a multiplication and an addition count as two
//! operations).
//!
//! ```text
//! cargo run --release --features bench --example bench_networks -- --network unet --dim 64 --head-dim 16 \
//!     --context-dim 128 --frames 8 --height 42 --width 64
//! ```

use std::time::Instant;

use candle_core::{DType, Device, Result};
use clap::{Parser, ValueEnum};
use gstvenhance::{
    networks::{
        text::{self, TextEncoder, Tokenizer},
        unet::{self, UNet},
        vae::{self, Vae},
    },
    ops,
    sampler::Conditions,
    weights::synth,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    Unet,
    VaeEncode,
    VaeDecode,
    Text,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

#[derive(Parser, Debug)]
struct Args {
    #[arg(long, value_enum)]
    network: Network,
    /// Ordinal of the CUDA device; without it, the network runs on the CPU.
    #[arg(long)]
    cuda: Option<usize>,
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Channels of the UNet's first level.
    #[arg(long, default_value_t = 320)]
    dim: usize,
    /// Channels of the UNet's attention heads.
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    /// Channels of the prompt's tokens.
    #[arg(long, default_value_t = 1024)]
    context_dim: usize,
    /// Guidance branches.
    #[arg(long, default_value_t = 1)]
    branches: usize,
    /// Frames of the window or the batch.
    #[arg(long, default_value_t = 8)]
    frames: usize,
    /// Height of the latents; of the frames for vae-encode.
    #[arg(long, default_value_t = 42)]
    height: usize,
    /// Width of the latents; of the frames for vae-encode.
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Number of runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = args.cuda.map_or(Ok(Device::Cpu), ops::cuda_device)?;
    let dtype = match args.dtype {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    };
    let weights = || synth::weights("", dtype, &device);
    let noise = |name: &str, shape: &[usize]| synth::noise(name, shape, &device);
    let (f, h, w) = (args.frames, args.height, args.width);
    match args.network {
        Network::Unet => {
            let config = unet::Config {
                dim: args.dim,
                head_dim: args.head_dim,
                context_dim: args.context_dim,
                ..unet::Config::full()
            };
            let denoiser = UNet::new(&config, weights())?;
            let x = noise("x", &[1, 4, f, h, w])?;
            let hint = noise("hint", &[1, 4, f.div_ceil(3), h, w])?;
            let mask: Vec<_> = (0..f).map(|n| n.is_multiple_of(3).then_some(n / 3)).collect();
            let conditions =
                Conditions { t: 601.0, hint: &hint, t_hint: 199.0, s_cond: 8.0, mask: &mask };
            let context = denoiser.context(&noise("context", &[1, 77, config.context_dim])?)?;
            let contexts = vec![&context; args.branches];
            time(&args, &device, || denoiser.forward(&x, &conditions, &contexts, &|| Ok(())))
        }
        Network::VaeEncode => {
            let vae = Vae::new(&vae::Config::full(), weights())?;
            let frames = noise("frames", &[f, 3, h, w])?;
            time(&args, &device, || vae.encode(&frames, &|| Ok(())))
        }
        Network::VaeDecode => {
            let vae = Vae::new(&vae::Config::full(), weights())?;
            let latents = noise("latents", &[f, 4, h, w])?;
            time(&args, &device, || vae.decode(&latents, &|| Ok(())))
        }
        Network::Text => {
            let encoder = TextEncoder::new(&text::Config::full(), weights())?;
            let (tokens, _) = Tokenizer::default().encode("a good video");
            time(&args, &device, || encoder.forward(&[tokens], &|| Ok(())))
        }
    }
}

/// Runs the network and prints a line for each run.
fn time<T>(args: &Args, device: &Device, mut run: impl FnMut() -> Result<T>) -> Result<()> {
    for _ in 0..args.runs {
        let (before, counted) = (MEMORY.current_usage(), ops::operations());
        MEMORY.reset_peak_usage();
        let start = Instant::now();
        let output = run()?;
        device.synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        drop(output);
        let operations = (ops::operations() - counted) as f64;
        // Host memory only.
        let peak = MEMORY.peak_usage().saturating_sub(before);
        let line = serde_json::json!({
            "network": format!("{:?}", args.network),
            "dtype": format!("{:?}", args.dtype),
            "frames": args.frames,
            "height": args.height,
            "width": args.width,
            "seconds": seconds,
            "peak_mib": peak as f64 / f64::from(1 << 20),
            "gflop": operations / 1e9,
            "gflop_per_second": operations / seconds / 1e9,
        });
        println!("{line}");
    }
    Ok(())
}
