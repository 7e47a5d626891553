// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which files make a model, and where they are.

use std::path::{Path, PathBuf};

use super::{
    Checkpoint, Config, Hub, Progress,
    folder::{CONFIG, TEXT, UNET, VAE},
    published::{Version, instead},
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
};

/// Where to look for a model.
#[derive(Clone)]
pub enum Source {
    /// The hub, and the cache of what was downloaded.
    Hub(Hub),
    /// A folder: a model of its own with a `config.json`, else the files of the hub under their names.
    Folder(PathBuf),
}

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Its sizes.
    pub config: Config,
    /// The denoiser.
    pub unet: Checkpoint,
    /// The autoencoder.
    pub vae: Checkpoint,
    /// The text tower.
    pub text: Checkpoint,
}

/// Finds the files of a model. Files that are in the hub's cache are used as they are; what is not there
/// is downloaded, checked, and cached. `progress` is called a few times a second; `cancel` takes effect
/// within a second, unless the network takes longer to connect.
///
/// # Errors
/// [`Error::Weights`] if a file is missing or cannot be had, with what to do; [`Error::Cancelled`].
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
                    instead: instead(version),
                });
            }
            return Ok(files(config, parts));
        }
        Source::Folder(folder) => published_in(folder, version)?,
    };
    Ok(files(Config::full(), [unet, vae, text]))
}

/// The sizes of a model, without its weights.
///
/// # Errors
/// [`Error::Weights`] if a folder's `config.json` cannot be used.
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
    let whole = |path| Checkpoint { path, unused: Vec::new() };
    let text = Checkpoint {
        path: text,
        unused: vec![
            "visual.".into(),
            // The last block: its output is not looked at.
            format!("transformer.resblocks.{}.", config.text.layers - 1),
            "text_projection".into(),
            "logit_scale".into(),
            "attn_mask".into(),
        ],
    };
    Files { unet: whole(unet), vae: whole(vae), text, config }
}

/// The hub's files in a folder, with or without the folders before their names.
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
            why: format!("there is no {CONFIG}, and no {}", missing.join(", no ")),
            instead: instead(version),
        }),
    }
}
