// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was published, and how it can be had.

/// The gated repository: its licence must be accepted.
const VAE_REPO: &str = "stabilityai/stable-video-diffusion-img2vid";

/// A published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// As published with its paper.
    V1,
    /// The second version.
    V2,
}

/// A published file.
#[derive(Clone, Copy)]
pub(super) struct Published {
    pub(super) repo: &'static str,
    /// Its names: any of them will do, the first one best.
    pub(super) names: &'static [&'static str],
}

impl Version {
    /// Denoiser, autoencoder, text tower. The gated one is not the first, but all are asked for before
    /// any is downloaded.
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
                // The same numbers; the first can be mapped as it is.
                names: &["open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
            },
        ]
    }
}

/// How weights can be had.
pub(super) fn instead(version: Version) -> String {
    let names = version.files().map(|file| file.names[0]).join(", ");
    format!(
        "to download the weights, accept the licence at https://huggingface.co/{VAE_REPO} and set HF_TOKEN \
         to a token of that account; or set model-dir to a folder that holds {names}; or use model=lite"
    )
}
