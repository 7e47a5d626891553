// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of a diffusion model: the published ones, or those of a model folder, which has the layer sizes in its
//! `config.json` and a safetensors file per network.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};

use super::config::{CONFIG, Config};
use crate::{
    engine::{
        Cancel, Error, Version,
        log::{self, Area},
    },
    weights::{self, Checkpoint, Progress, Source, reason, synth},
};

const UNET: &str = "unet.safetensors";
const VAE: &str = "vae.safetensors";
const TEXT: &str = "text.safetensors";

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The layer sizes.
    pub config: Config,
    /// The denoiser.
    pub unet: Checkpoint,
    /// The autoencoder.
    pub vae: Checkpoint,
    /// The text encoder.
    pub text: Checkpoint,
}

/// Finds the files of a model. Published files are looked for next to `source.path`, then in the cache of the hub;
/// missing ones are downloaded and verified.
///
/// `progress` is called a few times a second during a download. `cancel` takes effect within a second, or after the
/// connect timeout.
///
/// # Errors
/// [`Error::Weights`] if a file is missing or its download fails; [`Error::Cancelled`].
pub fn locate(
    source: &Source,
    version: Version,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Progress),
) -> Result<Files, Error> {
    let folder = model_folder(source);
    let (config, paths) = match folder {
        Some(folder) => (Config::read(&folder.join(CONFIG))?, files_in(folder)?),
        None => (Config::full(), source.locate(version, cancel, progress)?),
    };
    for path in &paths {
        log::debug(Area::Weights, format_args!("Using {}", path.display()));
    }
    let [unet, vae, text] = paths.map(|path| {
        let remedy = match source.folder() {
            _ if folder.is_some() => {
                "replace it by a file with these tensors, or correct config.json"
            }
            Some(folder) if path.starts_with(folder) => "replace it by the published file",
            _ => "delete it to download it again",
        };
        Checkpoint { remedy: remedy.into(), ..Checkpoint::new(path) }
    });
    let text = Checkpoint {
        ignored_prefixes: vec![
            "visual.".into(),
            // VEnhancer uses the output of the penultimate block.
            format!("transformer.resblocks.{}.", config.text.layers - 1),
            "text_projection".into(),
            "logit_scale".into(),
            "attn_mask".into(),
        ],
        // The reference computes the prompt in f32.
        copy_dtype: DType::F32,
        ..text
    };
    Ok(Files { config, unet, vae, text })
}

/// The layer sizes of a model. Does not need its weights.
///
/// # Errors
/// [`Error::Weights`] if the `config.json` of a folder is invalid, or a path has neither that nor the denoiser.
pub(super) fn sizes(source: &Source, version: Version) -> Result<Config, Error> {
    match model_folder(source) {
        Some(folder) => Config::read(&folder.join(CONFIG)),
        None => source.check(version).map(|()| Config::full()),
    }
}

/// The model folder that a source names itself or by its denoiser.
fn model_folder(source: &Source) -> Option<&Path> {
    let path = source.path.as_deref()?;
    let folder = match path.file_name() {
        Some(name) if name == UNET && path.is_file() => path.parent()?,
        _ => path,
    };
    folder.join(CONFIG).is_file().then_some(folder)
}

/// The files of a model folder.
fn files_in(folder: &Path) -> Result<[PathBuf; 3], Error> {
    let paths = [UNET, VAE, TEXT].map(|name| folder.join(name));
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(paths),
        Some(missing) => Err(Error::Weights {
            tried: format!("reading the model in {}", folder.display()),
            why: format!("{} is missing", missing.display()),
            instead: format!(
                "add the missing file, or remove {CONFIG} if the folder holds the published files"
            ),
        }),
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
        weights::write(&folder.join(file), &keys, dtype, HashMap::new(), tensor)
            .map_err(|error| failed(reason(&error)))?;
    }
    // Last: a folder without this file is not a model.
    let text = serde_json::to_vec_pretty(config).map_err(|error| failed(error.to_string()))?;
    fs::write(folder.join(CONFIG), text).map_err(|error| failed(error.to_string()))
}
