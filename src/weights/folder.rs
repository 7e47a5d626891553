// SPDX-License-Identifier: MIT OR Apache-2.0
//! A model folder: the layer sizes in `config.json`, and a safetensors file per network.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::{
    error::reason,
    keys::{self, Keys},
    store, synth,
};
use crate::{
    engine::Error,
    networks::{
        text::{self, TextEncoder},
        unet::{self, UNet},
        vae::{self, Vae},
    },
};

pub(super) const CONFIG: &str = "config.json";
pub(super) const UNET: &str = "unet.safetensors";
pub(super) const VAE: &str = "vae.safetensors";
pub(super) const TEXT: &str = "text.safetensors";

/// Upper limit of every number in a config, so that tensor sizes do not overflow.
const LARGEST: usize = 1 << 14;

/// Number of groups of every group norm.
const GROUPS: usize = 32;

/// The layer sizes of a model: `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that smaller frames are padded to. The height is 16 more than a multiple of 64, the
    /// width a multiple of 64.
    pub min_padded: (usize, usize),
    /// Sizes of the denoiser.
    pub unet: unet::Config,
    /// Sizes of the autoencoder.
    pub vae: vae::Config,
    /// Sizes of the text encoder.
    pub text: text::Config,
}

impl Config {
    /// The published models.
    pub fn full() -> Self {
        Self {
            min_padded: (720, 1280),
            unet: unet::Config::full(),
            vae: vae::Config::full(),
            text: text::Config::full(),
        }
    }

    /// The tensors of the denoiser.
    ///
    /// # Errors
    /// [`Error::Weights`] if the sizes are inconsistent.
    pub fn unet_keys(&self) -> Result<Keys, Error> {
        keys::keys(|vb| UNet::new(&self.unet, vb)).map_err(|error| invalid("unet", error))
    }

    /// The tensors of the autoencoder.
    ///
    /// # Errors
    /// [`Error::Weights`] if the sizes are inconsistent.
    pub fn vae_keys(&self) -> Result<Keys, Error> {
        keys::keys(|vb| Vae::new(&self.vae, vb)).map_err(|error| invalid("vae", error))
    }

    /// The tensors of the text encoder.
    ///
    /// # Errors
    /// [`Error::Weights`] if the sizes are inconsistent.
    pub fn text_keys(&self) -> Result<Keys, Error> {
        keys::keys(|vb| TextEncoder::new(&self.text, vb)).map_err(|error| invalid("text", error))
    }

    /// Reads and validates a `config.json`.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let failed = |why| Error::Weights {
            tried: format!("reading {}", path.display()),
            why,
            instead: "correct the file, or create a folder with `cargo run --example make_model`"
                .into(),
        };
        let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
        let config: Self =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        config.check().map_err(failed)?;
        Ok(config)
    }

    /// Validates the sizes; the error names the invalid one.
    fn check(&self) -> Result<(), String> {
        self.check_ranges()?;
        self.check_relations()
    }

    fn check_ranges(&self) -> Result<(), String> {
        let (unet, vae, text) = (&self.unet, &self.vae, &self.text);
        let (height, width) = self.min_padded;
        let numbers = [
            ("min_padded", vec![height, width]),
            ("unet.latents", vec![unet.latents]),
            ("unet.dim", vec![unet.dim]),
            ("unet.head_dim", vec![unet.head_dim]),
            ("unet.num_heads", vec![unet.num_heads]),
            ("unet.context_dim", vec![unet.context_dim]),
            ("unet.num_res_blocks", vec![unet.num_res_blocks]),
            ("unet.dim_mult", unet.dim_mult.clone()),
            ("vae.block_out_channels", vae.block_out_channels.clone()),
            ("vae.layers_per_block", vec![vae.layers_per_block]),
            ("text.width", vec![text.width]),
            ("text.heads", vec![text.heads]),
            ("text.layers", vec![text.layers]),
        ];
        for (name, numbers) in &numbers {
            if numbers.is_empty() || numbers.iter().any(|n| !(1..=LARGEST).contains(n)) {
                return Err(format!("{name} is {numbers:?}, must be 1 to {LARGEST}"));
            }
        }
        Ok(())
    }

    fn check_relations(&self) -> Result<(), String> {
        let (unet, vae, text) = (&self.unet, &self.vae, &self.text);
        let (height, width) = self.min_padded;
        let mut widths: Vec<_> = unet.dim_mult.iter().map(|multiple| multiple * unet.dim).collect();
        let without_heads = widths.iter().find(|&width| width % unet.head_dim != 0).copied();
        widths.extend(&vae.block_out_channels);
        let without_groups = widths.iter().find(|&width| width % GROUPS != 0);
        if height % 64 != 16 || width % 64 != 0 {
            Err(format!(
                "min_padded is {height}, {width}: the height must be 16 more than a multiple of 64, the \
                 width a multiple of 64"
            ))
        } else if let Some(width) = without_heads {
            Err(format!(
                "a level has {width} channels, which is not a multiple of head_dim ({})",
                unet.head_dim
            ))
        } else if let Some(width) = without_groups {
            Err(format!("a level has {width} channels, which is not a multiple of {GROUPS}"))
        } else if text.width % text.heads != 0 {
            Err(format!(
                "text.width ({}) is not a multiple of text.heads ({})",
                text.width, text.heads
            ))
        } else if text.width != unet.context_dim {
            let (width, context) = (text.width, unet.context_dim);
            Err(format!("text.width ({width}) differs from unet.context_dim ({context})"))
        } else {
            Ok(())
        }
    }
}

fn invalid(part: &str, error: candle_core::Error) -> Error {
    Error::Weights {
        tried: format!("building the {part} network from {CONFIG}"),
        why: reason(&error),
        instead: format!("correct the sizes of `{part}`"),
    }
}

/// Creates a model folder with [synthetic](synth) weights, seeded by their names with the prefixes "unet.", "vae." and
/// "clip.".
///
/// # Errors
/// [`Error::Weights`] if the config is invalid, or the folder cannot be written.
pub fn synthesize(folder: &Path, config: &Config, dtype: DType) -> Result<(), Error> {
    let failed = |why: String| Error::Weights {
        tried: format!("creating a model in {}", folder.display()),
        why,
        instead: "use other sizes, or another folder".into(),
    };
    config.check().map_err(failed)?;
    fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    for (file, prefix, keys) in [
        (UNET, "unet.", config.unet_keys()?),
        (VAE, "vae.", config.vae_keys()?),
        (TEXT, "clip.", config.text_keys()?),
    ] {
        let tensor = |name: &str, shape: &[usize]| {
            synth::weight(&format!("{prefix}{name}"), shape, dtype, &Device::Cpu)
        };
        store::write(&folder.join(file), &keys, dtype, HashMap::new(), tensor)
            .map_err(|error| failed(reason(&error)))?;
    }
    // Last: a folder without this file is not a model.
    let text = serde_json::to_vec_pretty(config).map_err(|error| failed(error.to_string()))?;
    fs::write(folder.join(CONFIG), text).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_config_is_an_error_that_names_the_number() {
        assert_eq!(Config::full().check(), Ok(()));
        let refuses = |change: fn(&mut Config), expected: &str| {
            let mut config = Config::full();
            change(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refuses(|config| config.unet.dim = 0, "unet.dim is [0]");
        refuses(|config| config.unet.dim_mult.clear(), "unet.dim_mult is []");
        refuses(|config| config.text.layers = usize::MAX, "text.layers");
        refuses(|config| config.unet.head_dim = 48, "multiple of head_dim");
        refuses(|config| config.vae.block_out_channels[1] = 40, "has 40 channels");
        refuses(|config| config.text.heads = 15, "text.width");
        refuses(|config| config.text.width = 512, "unet.context_dim (1024)");
        refuses(|config| config.min_padded.0 = 704, "min_padded is 704");
    }

    #[test]
    fn the_published_config_has_the_published_number_of_tensors() {
        let config = Config::full();
        assert_eq!(config.unet_keys().unwrap().len(), 2180);
        assert_eq!(config.vae_keys().unwrap().len(), 374);
        assert_eq!(config.text_keys().unwrap().len(), 280);
    }
}
