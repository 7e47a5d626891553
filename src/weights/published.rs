// SPDX-License-Identifier: MIT OR Apache-2.0
//! The published models and their files on the Hugging Face hub.

use crate::engine::Version;

/// A gated repository: users must accept its licence.
const VAE_REPO: &str = "stabilityai/stable-video-diffusion-img2vid";

/// A published file.
#[derive(Clone, Copy)]
pub(super) struct Published {
    pub(super) repo: &'static str,
    /// Names of equivalent files, in order of preference.
    pub(super) names: &'static [&'static str],
}

impl Version {
    /// The files of the denoiser, the autoencoder and the text encoder.
    pub(super) fn files(self) -> [Published; 3] {
        [
            Published {
                repo: "jwhejwhe/VEnhancer",
                names: match self {
                    Self::V1 => &["venhancer_paper.pt"],
                    Self::V2 => &["venhancer_v2.pt"],
                },
            },
            Published { repo: VAE_REPO, names: &["vae/diffusion_pytorch_model.fp16.safetensors"] },
            Published {
                repo: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                // The same weights; safetensors can be mapped without a conversion.
                names: &["open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
            },
        ]
    }
}

/// What a user can do to get the weights, for errors.
pub(super) fn advice() -> String {
    format!(
        "accept the licence at https://huggingface.co/{VAE_REPO} and set HF_TOKEN to a token of that account, set \
         model-dir to a folder with the files, or use model=lite"
    )
}
