// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the published files.

use std::path::{Path, PathBuf};

use super::{
    Checkpoint, Hub, Progress,
    published::{Published, advice},
};
use crate::engine::{Cancel, Error, Version};

/// Where the files of a model are.
#[derive(Clone)]
pub struct Source {
    /// A folder with the files, or the file of the denoiser. What is not there comes from the hub, but for the
    /// denoiser.
    pub path: Option<PathBuf>,
    /// The hub, or the reason why there is none; that is an error only if the hub is needed.
    pub hub: Result<Hub, Error>,
}

impl Source {
    /// Finds the published files of the denoiser, the autoencoder and the text encoder: in the folder, with or without
    /// the subfolders of the hub, then in the cache of the hub, then on the hub.
    ///
    /// # Errors
    /// [`Error::Weights`] if a file is missing or its download fails; [`Error::Cancelled`].
    pub fn locate(
        &self,
        version: Version,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<[PathBuf; 3], Error> {
        let mut files = version.files().map(|file| {
            let path = self.folder().and_then(|folder| find_in(folder, &file));
            (file, path)
        });
        if let Some(path) = &self.path {
            let denoiser = &mut files[0].1;
            if path.is_file() {
                *denoiser = Some(path.clone());
            }
            if denoiser.is_none() {
                return Err(no_denoiser(path, version));
            }
        }
        if let [(_, Some(denoiser)), (_, Some(vae)), (_, Some(text))] = &files {
            return Ok([denoiser, vae, text].map(PathBuf::clone));
        }
        self.hub.as_ref().map_err(Error::clone)?.fetch(files, cancel, progress)
    }

    /// Checks that `path`, if it is not a model folder, has the denoiser. Of a file, reads the beginning.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn check(&self, version: Version) -> Result<(), Error> {
        match &self.path {
            Some(path) if path.is_file() => {
                let remedy =
                    "set model-dir to a folder with the weights, or to the file of the denoiser";
                let file = Checkpoint { remedy: remedy.into(), ..Checkpoint::new(path.clone()) };
                file.format().map(drop)
            }
            Some(path) if find_in(path, &version.files()[0]).is_none() => {
                Err(no_denoiser(path, version))
            }
            _ => Ok(()),
        }
    }

    /// The folder that `path` is or is in.
    pub fn folder(&self) -> Option<&Path> {
        let path = self.path.as_deref()?;
        if path.is_file() { path.parent() } else { Some(path) }
    }
}

/// A published file in a folder.
fn find_in(folder: &Path, file: &Published) -> Option<PathBuf> {
    let names = file.names.iter().map(Path::new);
    let mut paths = names.flat_map(|name| [Some(name), name.file_name().map(Path::new)]).flatten();
    paths.find_map(|name| Some(folder.join(name)).filter(|path| path.is_file()))
}

fn no_denoiser(folder: &Path, version: Version) -> Error {
    Error::Weights {
        tried: format!("looking for weights in {}", folder.display()),
        why: match (folder.is_dir(), folder.exists()) {
            (true, _) => format!("it has no config.json and no {}", version.files()[0].names[0]),
            (false, true) => "it is neither a file nor a folder".into(),
            (false, false) => "there is no such file or folder".into(),
        },
        instead: advice(),
    }
}
