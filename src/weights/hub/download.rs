// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fetches the files of a model from the cache or from the hub.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, CacheRepo, Repo};

use super::{
    client::{Client, RemoteFile},
    config::Hub,
    failure::Failure,
    partial::{Partial, sha256},
};
use crate::{
    engine::{
        Cancel, Error,
        log::{self, Area},
    },
    weights::{
        disk::{open_or_create, readable_size, with_suffix},
        lock,
        progress::{Progress, Reporter},
        published::{Published, advice},
    },
};

impl Hub {
    /// Returns the paths of files: those that are given, cached ones as they are, missing ones after their download.
    pub(in crate::weights) fn fetch(
        &self,
        files: [(Published, Option<PathBuf>); 3],
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<[PathBuf; 3], Error> {
        let mut files = files.map(|(file, path)| (file, path.or_else(|| self.cached(&file))));
        let missing: Vec<_> = files.iter_mut().filter(|(_, path)| path.is_none()).collect();
        if !missing.is_empty() {
            if self.offline {
                return Err(self.offline_error(&missing));
            }
            let client = Client::new(self, cancel);
            client.cancellable(|| self.download(&client, missing, progress))?;
        }
        Ok(files.map(|(_, path)| path.unwrap_or_default()))
    }

    fn offline_error(&self, missing: &[&mut (Published, Option<PathBuf>)]) -> Error {
        let names: Vec<_> = missing.iter().map(|(file, _)| file.names[0]).collect();
        Error::Weights {
            tried: format!("looking for {} in {}", names.join(", "), self.cache.display()),
            why: "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set".into(),
            instead: format!("unset it and {}", advice()),
        }
    }

    /// Downloads the missing files and sets their paths. The metadata of all files is requested first, so that a file
    /// that is not accessible fails before gigabytes of another one are downloaded.
    fn download(
        &self,
        client: &Client,
        missing: Vec<&mut (Published, Option<PathBuf>)>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let mut remotes = Vec::with_capacity(missing.len());
        for (file, path) in missing {
            let failed = |failure: Failure| {
                let tried = format!("requesting {} from {}", file.names[0], file.repo);
                failure.into_error(&tried)
            };
            let remote = client.metadata(file).map_err(failed)?;
            remotes.push((remote, path));
        }
        self.check_space(remotes.iter().map(|(remote, _)| remote))?;
        let total = remotes.iter().map(|(remote, _)| remote.size).sum();
        let mut reporter = Reporter::new(total, progress);
        for (remote, path) in remotes {
            let failed = |failure: Failure| {
                failure.into_error(&format!("downloading {}", client.url(&remote)))
            };
            log::info(
                Area::Weights,
                format_args!("Downloading {} ({} bytes)", client.url(&remote), remote.size),
            );
            reporter.begin(format!("{}/{}", remote.repo, remote.name));
            *path = Some(self.download_file(client, &remote, &mut reporter).map_err(failed)?);
        }
        Ok(())
    }

    /// Checks that the disk has space for the downloads, and for the converted copies of PyTorch files.
    fn check_space<'a>(&self, remotes: impl Iterator<Item = &'a RemoteFile>) -> Result<(), Error> {
        let failed = |why: String| Error::Weights {
            tried: format!("downloading to {}", self.cache.display()),
            why,
            instead: "free disk space there, or set HF_HOME to a folder on a larger disk".into(),
        };
        let need: u64 = remotes
            .map(|remote| {
                let blob = self.blob(remote);
                let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
                let here = length(&blob).max(length(&with_suffix(&blob, ".incomplete")));
                // A converted copy is at most as large as its source: those in f32 are too.
                let copy = if remote.name.ends_with(".safetensors") { 0 } else { remote.size };
                remote.size.saturating_sub(here).saturating_add(copy)
            })
            .fold(0, u64::saturating_add);
        fs::create_dir_all(&self.cache).map_err(|error| failed(error.to_string()))?;
        let free = (self.free_space)(&self.cache).map_err(|error| failed(error.to_string()))?;
        match free < need {
            true => {
                let [need, free] = [need, free].map(readable_size);
                Err(failed(format!("the files need {need}, the disk has {free} free")))
            }
            false => Ok(()),
        }
    }

    /// Downloads a file to the cache and returns its path there.
    fn download_file(
        &self,
        client: &Client,
        remote: &RemoteFile,
        reporter: &mut Reporter,
    ) -> Result<PathBuf, Failure> {
        let blob = self.blob(remote);
        let locks = self.cache.join(".locks").join(Repo::model(remote.repo.into()).folder_name());
        for folder in [Some(locks.as_path()), blob.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).map_err(|error| Failure::disk(folder, &error))?;
        }
        let lock_path = locks.join(format!("{}.lock", remote.sha256));
        let lock = open_or_create(&lock_path).map_err(|error| Failure::disk(&lock_path, &error))?;
        let advice = "set HF_HOME to a folder on a file system with file locks";
        lock::acquire(&lock, &lock_path, client.cancel, advice)?;
        // The blob may exist already: from another commit, or from a process that held the lock.
        let complete = blob.is_file() && sha256(&blob, client.cancel)? == remote.sha256;
        if !complete {
            let path = with_suffix(&blob, ".incomplete");
            let mut partial = Partial::open(path, client.cancel)?;
            client.download(remote, &mut partial, &mut |length| reporter.update(length))?;
            partial.finish(&blob)?;
        }
        reporter.end(remote.size);
        self.link(remote).map_err(|error| Failure::disk(&self.repo_folder(remote.repo), &error))
    }

    /// Links the name of a file in the snapshot of its commit to its blob, as `huggingface_hub` does.
    fn link(&self, remote: &RemoteFile) -> io::Result<PathBuf> {
        let repo = self.repo(remote.repo);
        let path = repo.pointer_path(&remote.commit).join(remote.name);
        // From the folder of the link up to that of the repository.
        let depth = Path::new(remote.name).components().count() + 1;
        let mut target = PathBuf::from_iter(std::iter::repeat_n("..", depth));
        target.extend(["blobs", &remote.sha256]);
        if fs::read_link(&path).ok().as_ref() != Some(&target) {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let new = with_suffix(&path, ".new");
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => std::os::unix::fs::symlink(&target, &new)?,
            }
            fs::rename(&new, &path)?;
        }
        repo.create_ref(&remote.commit)?;
        Ok(path)
    }

    fn repo(&self, name: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(Repo::model(name.into()))
    }

    fn repo_folder(&self, repo: &str) -> PathBuf {
        self.cache.join(Repo::model(repo.into()).folder_name())
    }

    fn blob(&self, remote: &RemoteFile) -> PathBuf {
        self.repo_folder(remote.repo).join("blobs").join(&remote.sha256)
    }

    /// The path of a file in the cache.
    fn cached(&self, file: &Published) -> Option<PathBuf> {
        file.names.iter().find_map(|name| self.repo(file.repo).get(name))
    }
}
