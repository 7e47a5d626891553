// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layer sizes of a diffusion model, which a model folder has in its `config.json`.

use std::{fs::File, io::Read, ops::RangeInclusive, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Error, printable},
    networks::{
        text::{self, TextEncoder},
        unet::{self, UNet},
        vae::{self, Vae},
    },
    weights::{
        keys::{self, Keys},
        reason,
    },
};

/// Name of the file in a model folder.
pub(super) const CONFIG: &str = "config.json";

/// Maximum size of the file in bytes.
const MAX_CONFIG: u64 = 1 << 16;

/// Number of groups of every group norm.
const GROUPS: usize = 32;

/// Maximum number of channels of a level.
const MAX_CHANNELS: usize = 8192;

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
        let failed = |why: String| {
            Error::Weights {
            tried: format!("reading {}", path.display()),
            why: printable(&why),
            instead: "correct the file, or create a folder with `cargo run --example make_model`; if the folder \
                      holds the published files, remove config.json"
                .into(),
        }
        };
        let mut text = Vec::new();
        let read =
            File::open(path).and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut text));
        read.map_err(|error| failed(error.to_string()))?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(failed(format!("it has more than {MAX_CONFIG} bytes")));
        }
        let config: Self =
            serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        config.check().map_err(failed)?;
        Ok(config)
    }

    /// Validates the sizes before anything is built from them; the error names the invalid one.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_ranges()?;
        self.check_relations()
    }

    /// Checks that every number is in its range: at most several times that of the published models, so that neither
    /// the number nor the size of the tensors is a problem.
    fn check_ranges(&self) -> Result<(), String> {
        let (unet, vae, text) = (&self.unet, &self.vae, &self.text);
        // The sides of latents are an eighth of those of frames: the autoencoder halves them between its levels, and
        // the denoiser needs a height of 2 more than a multiple of 2^(levels − 1).
        check_count("unet.dim_mult", &unet.dim_mult, 1..=4)?;
        check_count("vae.block_out_channels", &vae.block_out_channels, 4..=4)?;
        let (height, width) = self.min_padded;
        let numbers: [(&str, &[usize], RangeInclusive<usize>); 13] = [
            ("min_padded", &[height, width], 1..=4096),
            // The autoencoder has no other number.
            ("unet.latents", &[unet.latents], 4..=4),
            ("unet.dim", &[unet.dim], 1..=2048),
            ("unet.head_dim", &[unet.head_dim], 1..=1024),
            ("unet.num_heads", &[unet.num_heads], 1..=128),
            ("unet.context_dim", &[unet.context_dim], 1..=MAX_CHANNELS),
            ("unet.num_res_blocks", &[unet.num_res_blocks], 1..=16),
            ("unet.dim_mult", &unet.dim_mult, 1..=16),
            ("vae.block_out_channels", &vae.block_out_channels, 1..=MAX_CHANNELS),
            ("vae.layers_per_block", &[vae.layers_per_block], 1..=16),
            ("text.width", &[text.width], 1..=MAX_CHANNELS),
            ("text.heads", &[text.heads], 1..=MAX_CHANNELS),
            ("text.layers", &[text.layers], 1..=256),
        ];
        for (name, numbers, range) in &numbers {
            if let Some(number) = numbers.iter().find(|number| !range.contains(*number)) {
                let (first, last) = (range.start(), range.end());
                return Err(format!("{name} is {number}, must be {first} to {last}"));
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
        let too_wide = widths.iter().find(|&&width| width > MAX_CHANNELS);
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
        } else if let Some(width) = too_wide {
            Err(format!("a level has {width} channels, must be at most {MAX_CHANNELS}"))
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

fn check_count(name: &str, numbers: &[usize], range: RangeInclusive<usize>) -> Result<(), String> {
    match range.contains(&numbers.len()) {
        true => Ok(()),
        false => {
            let (first, last) = (range.start(), range.end());
            Err(format!("{name} has {} levels, must be {first} to {last}", numbers.len()))
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
        refuses(|config| config.unet.dim = 0, "unet.dim is 0");
        refuses(|config| config.unet.dim = 16_384, "unet.dim is 16384");
        refuses(|config| config.unet.num_res_blocks = 16_384, "unet.num_res_blocks is 16384");
        refuses(|config| config.unet.latents = 8, "unet.latents is 8");
        refuses(|config| config.unet.dim_mult.clear(), "unet.dim_mult has 0 levels");
        refuses(|config| config.unet.dim_mult = vec![1; 1 << 14], "has 16384 levels");
        refuses(|config| config.unet.dim_mult[3] = 17, "unet.dim_mult is 17");
        refuses(|config| (config.unet.dim, config.unet.dim_mult[3]) = (2048, 8), "16384 channels");
        refuses(|config| config.vae.block_out_channels = vec![128; 3], "has 3 levels");
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
