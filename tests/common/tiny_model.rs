// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tiny diffusion model in a folder.
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::path::PathBuf;

use gstvenhance::{
    models::{self, Config},
    networks::{text, unet, vae},
};

use crate::common::{self, run};

/// A temporary folder with a model, and a video `in.mp4` of four frames of 36×24 at 8 fps.
pub struct TinyModel(tempfile::TempDir);

impl TinyModel {
    pub fn new() -> Self {
        let folder = Self::with_model((80, 128), &[1, 2, 4, 4]);
        run(&format!(
            "videotestsrc pattern=ball num-buffers=4 ! video/x-raw,format=I420,width=36,height=24,framerate=8/1 \
             ! x264enc ! mp4mux ! filesink location={}",
            folder.path("in.mp4").display()
        ));
        folder
    }

    /// Only the model, with its `min_padded` and `dim_mult`.
    pub fn with_model(min_padded: (usize, usize), dim_mult: &[usize]) -> Self {
        common::init();
        let folder = Self(tempfile::tempdir().unwrap());
        let config = Config {
            min_padded,
            unet: unet::Config {
                dim: 32,
                head_dim: 8,
                context_dim: 48,
                num_res_blocks: 1,
                dim_mult: dim_mult.to_vec(),
                ..unet::Config::full()
            },
            vae: vae::Config { block_out_channels: vec![32, 32, 64, 64], layers_per_block: 1 },
            text: text::Config { width: 48, heads: 4, layers: 3 },
        };
        models::synthesize(&folder.path("model"), &config, candle_core::DType::F32).unwrap();
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The element in gst-launch syntax.
    pub fn element(&self, model: &str, properties: &str) -> String {
        let folder = self.path("model");
        format!("venhance model={model} model-dir={} {properties}", folder.display())
    }

    pub fn source(&self) -> String {
        format!("filesrc location={} ! decodebin", self.path("in.mp4").display())
    }
}
