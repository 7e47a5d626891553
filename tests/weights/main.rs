// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights: downloads, model folders, and PyTorch files.

mod download;
mod folder;
#[path = "../common/hub.rs"]
mod hub;
mod pytorch;
#[path = "../common/torch.rs"]
mod torch;

const LICENCE: &str = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid";

/// Parts of the advice in errors about missing weights.
const ADVICE: [&str; 4] = [LICENCE, "HF_TOKEN", "model-dir", "model=lite"];
