// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a folder that is a model, with synthetic weights, to try things without a download: what comes
//! out of it is noise. The sizes are tiny unless others are given.
//!
//! ```text
//! cargo run --release --example make_model -- tiny
//! ```

use std::{path::PathBuf, process::ExitCode};

use candle_core::DType;
use clap::{Parser, ValueEnum};
use gstvenhance::{
    networks::{text, unet, vae},
    weights::{Config, synthesize},
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

#[derive(Parser, Debug)]
#[command(about = "Makes a folder that is a model, with synthetic weights")]
struct Args {
    /// Where to make it.
    folder: PathBuf,
    /// The sizes of the published model; the other sizes are ignored. 5 GB in f16.
    #[arg(long)]
    full: bool,
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Height and width that smaller frames are padded to: 16 more than a multiple of 64, and a multiple
    /// of 64.
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"], default_values_t = [80, 128])]
    min_padded: Vec<usize>,
    /// Channels of the denoiser's first level.
    #[arg(long, default_value_t = 32)]
    dim: usize,
    /// Channels of its attention heads.
    #[arg(long, default_value_t = 8)]
    head_dim: usize,
    /// Heads of its first temporal attention.
    #[arg(long, default_value_t = 8)]
    num_heads: usize,
    /// Residual blocks of its levels.
    #[arg(long, default_value_t = 1)]
    num_res_blocks: usize,
    /// Channels of its levels, in multiples of the first.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 4])]
    dim_mult: Vec<usize>,
    /// Channels of the autoencoder's levels.
    #[arg(long, value_delimiter = ',', default_values_t = [32, 32, 64, 64])]
    vae_channels: Vec<usize>,
    /// Residual blocks of the autoencoder's levels.
    #[arg(long, default_value_t = 1)]
    vae_blocks: usize,
    /// Channels of the text tower's tokens.
    #[arg(long, default_value_t = 48)]
    text_width: usize,
    /// Heads of the text tower.
    #[arg(long, default_value_t = 4)]
    text_heads: usize,
    /// Blocks of the text tower.
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
