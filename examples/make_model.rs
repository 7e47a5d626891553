// SPDX-License-Identifier: MIT OR Apache-2.0
//! Creates a model folder with synthetic weights, for tests and benchmarks without a download. Its output is noise. By
//! default the model is tiny.
//!
//! ```text
//! cargo run --release --example make_model -- tiny
//! ```

use std::{path::PathBuf, process::ExitCode};

use candle_core::DType;
use clap::{Parser, ValueEnum};
use gstvenhance::{
    models::{Config, synthesize},
    networks::{text, unet, vae},
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

#[derive(Parser, Debug)]
#[command(about = "Creates a model folder with synthetic weights")]
struct Args {
    /// Folder to create.
    folder: PathBuf,
    /// Use the sizes of the published models and ignore the other size options. 5 GB in f16.
    #[arg(long)]
    full: bool,
    /// Data type of the weights.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Size that smaller frames are padded to. HEIGHT is 16 more than a multiple of 64, WIDTH a multiple of 64.
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"], default_values_t = [80, 128])]
    min_padded: Vec<usize>,
    /// Channels of the first level of the denoiser.
    #[arg(long, default_value_t = 32)]
    dim: usize,
    /// Channels per attention head of the denoiser.
    #[arg(long, default_value_t = 8)]
    head_dim: usize,
    /// Heads of the first temporal attention of the denoiser.
    #[arg(long, default_value_t = 8)]
    num_heads: usize,
    /// Residual blocks per level of the denoiser.
    #[arg(long, default_value_t = 1)]
    num_res_blocks: usize,
    /// Channels of each level of the denoiser, as multiples of --dim.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 4])]
    dim_mult: Vec<usize>,
    /// Channels of each level of the autoencoder.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 32, 64, 64])]
    vae_channels: Vec<usize>,
    /// Residual blocks per level of the autoencoder.
    #[arg(long, default_value_t = 1)]
    vae_blocks: usize,
    /// Channels of the text encoder.
    #[arg(long, default_value_t = 48)]
    text_width: usize,
    /// Attention heads of the text encoder.
    #[arg(long, default_value_t = 4)]
    text_heads: usize,
    /// Layers of the text encoder.
    #[arg(long, default_value_t = 3)]
    text_layers: usize,
}

impl Args {
    fn config(&self) -> Config {
        if self.full {
            return Config::full();
        }
        Config {
            min_padded: (self.min_padded[0], self.min_padded[1]),
            unet: unet::Config {
                dim: self.dim,
                head_dim: self.head_dim,
                num_heads: self.num_heads,
                context_dim: self.text_width,
                num_res_blocks: self.num_res_blocks,
                dim_mult: self.dim_mult.clone(),
                ..unet::Config::full()
            },
            vae: vae::Config {
                block_out_channels: self.vae_channels.clone(),
                layers_per_block: self.vae_blocks,
            },
            text: text::Config {
                width: self.text_width,
                heads: self.text_heads,
                layers: self.text_layers,
            },
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dtype = match args.dtype {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    };
    match synthesize(&args.folder, &args.config(), dtype) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make_model: {error}");
            ExitCode::FAILURE
        }
    }
}
