// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the files of a model.

use std::path::{Path, PathBuf};

use super::{
    Checkpoint, Config, Hub, Progress,
    folder::{CONFIG, TEXT, UNET, VAE},
    published::{Version, advice},
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
};

/// The source of a model.
#[derive(Clone)]
pub enum Source {
    /// The Hugging Face hub and its local cache.
    Hub(Hub),
    /// A folder: with a `config.json`, a model of its own; otherwise, the published files under their names on the hub.
    Folder(PathBuf),
}

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

/// Finds the files of a model. Files in the cache of the hub are used; missing ones are downloaded to it and verified.
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
    let [unet, vae, text] = match source {
        Source::Hub(hub) => hub.fetch(version, cancel, progress)?,
        Source::Folder(folder) if folder.join(CONFIG).is_file() => {
            let config = sizes(source)?;
            let parts = [UNET, VAE, TEXT].map(|name| folder.join(name));
            if let Some(missing) = parts.iter().find(|path| !path.is_file()) {
                return Err(Error::Weights {
                    tried: format!("reading the model in {}", folder.display()),
                    why: format!("{} is missing", missing.display()),
                    instead: advice(version),
                });
            }
            return Ok(files(config, parts));
        }
        Source::Folder(folder) => published_in(folder, version)?,
    };
    Ok(files(Config::full(), [unet, vae, text]))
}

/// The layer sizes of a model. Does not need its weights.
///
/// # Errors
/// [`Error::Weights`] if the `config.json` of a folder is invalid.
pub fn sizes(source: &Source) -> Result<Config, Error> {
    match source {
        Source::Folder(folder) if folder.join(CONFIG).is_file() => {
            Config::read(&folder.join(CONFIG))
        }
        _ => Ok(Config::full()),
    }
}

fn files(config: Config, [unet, vae, text]: [PathBuf; 3]) -> Files {
    for path in [&unet, &vae, &text] {
        log::debug(Area::Weights, format_args!("Using {}", path.display()));
    }
    let all_used = |path| Checkpoint { path, ignored_prefixes: Vec::new() };
    let text = Checkpoint {
        path: text,
        ignored_prefixes: vec![
            "visual.".into(),
            // VEnhancer uses the output of the penultimate block.
            format!("transformer.resblocks.{}.", config.text.layers - 1),
            "text_projection".into(),
            "logit_scale".into(),
            "attn_mask".into(),
        ],
    };
    Files { unet: all_used(unet), vae: all_used(vae), text, config }
}

/// Finds the published files in a folder, with or without the subfolders of the hub.
fn published_in(folder: &Path, version: Version) -> Result<[PathBuf; 3], Error> {
    let mut missing = Vec::new();
    let paths = version.files().map(|file| {
        let paths = file.names.iter().flat_map(|name| {
            let name = Path::new(name);
            [Some(name), name.file_name().map(Path::new)].into_iter().flatten()
        });
        let path = paths.map(|name| folder.join(name)).find(|path| path.is_file());
        path.unwrap_or_else(|| {
            missing.push(file.names.join(" or "));
            PathBuf::new()
        })
    });
    match missing.is_empty() {
        true => Ok(paths),
        false => Err(Error::Weights {
            tried: format!("looking for weights in {}", folder.display()),
            why: format!("it has no {CONFIG} and no {}", missing.join(", no ")),
            instead: advice(version),
        }),
    }
}
