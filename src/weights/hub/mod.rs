// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files of the Hugging Face hub, in the cache that its own tools share: what Python downloaded is found
//! here, and the other way round.

mod client;
mod partial;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{Cache, CacheRepo, Repo};

use self::{
    client::{Client, Failure, Remote},
    partial::Partial,
};
use super::{
    Progress, free_space, lock,
    meter::Meter,
    published::{Published, Version, instead},
    store::with_suffix,
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
};

const ENDPOINT: &str = "https://huggingface.co";

/// The pause before a request is repeated for the first time; it doubles each time.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A server that is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// A hub and its cache.
#[derive(Clone)]
pub struct Hub {
    /// The folder of the cache: `hub` in HF_HOME.
    pub cache: PathBuf,
    /// The address of the hub.
    pub endpoint: String,
    /// What tells the hub who asks.
    pub token: Option<String>,
    /// Whether the cache must do.
    pub offline: bool,
    /// The pause before a request is repeated for the first time; it doubles each time.
    pub retry_after: Duration,
    /// How long a server may be silent in the middle of a request, which is then repeated.
    pub silence: Duration,
    /// Bytes that a folder's disk has room for.
    pub free_space: fn(&Path) -> io::Result<u64>,
}

impl Hub {
    /// As the variables say that the hub's own tools read: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN,
    /// HF_TOKEN_PATH, HF_HUB_OFFLINE and XDG_CACHE_HOME.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is no place for a cache.
    pub fn from_env() -> Result<Self, Error> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = folder("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let home = home.ok_or_else(|| Error::Weights {
            tried: "looking for the cache of the hub".into(),
            why: "this user has no home folder".into(),
            instead: "set HF_HOME to a folder".into(),
        })?;
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| {
            let token = fs::read_to_string(token_file).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        });
        let offline = text("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Ok(Self {
            cache: folder("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').into(),
            token,
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            retry_after: RETRY_AFTER,
            silence: SILENCE,
            free_space,
        })
    }

    /// The files of a model: those of the cache as they are, the others downloaded.
    pub(super) fn fetch(
        &self,
        version: Version,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<[PathBuf; 3], Error> {
        let mut files = version.files().map(|file| (file, self.cached(&file)));
        let missing: Vec<_> = files.iter_mut().filter(|(_, path)| path.is_none()).collect();
        if !missing.is_empty() {
            if self.offline {
                let names: Vec<_> = missing
                    .iter()
                    .map(|(file, _)| format!("{}/{}", file.repo, file.names[0]))
                    .collect();
                return Err(Error::Weights {
                    tried: format!("looking for {} in {}", names.join(", "), self.cache.display()),
                    why: "they are not there, and HF_HUB_OFFLINE is set".into(),
                    instead: format!("unset HF_HUB_OFFLINE; {}", instead(version)),
                });
            }
            let client = Client::new(self, cancel);
            client.interruptible(|| self.download(&client, version, missing, progress))?;
        }
        Ok(files.map(|(_, path)| path.unwrap_or_default()))
    }

    fn repo(&self, name: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(Repo::model(name.into()))
    }

    /// The cache's folder of a repository.
    fn folder(&self, repo: &str) -> PathBuf {
        self.cache.join(Repo::model(repo.into()).folder_name())
    }

    fn cached(&self, file: &Published) -> Option<PathBuf> {
        file.names.iter().find_map(|name| self.repo(file.repo).get(name))
    }

    /// Asks for all files first: that one cannot be had must be known before gigabytes of another came.
    fn download(
        &self,
        client: &Client,
        version: Version,
        missing: Vec<&mut (Published, Option<PathBuf>)>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let mut remotes = Vec::with_capacity(missing.len());
        for (file, path) in missing {
            let failed = |failure: Failure| {
                failure.error(&format!("asking for {} of {}", file.names[0], file.repo), version)
            };
            let remote = client.find(file).map_err(failed)?;
            remotes.push((remote, path));
        }
        self.check_space(remotes.iter().map(|(remote, _)| remote))?;
        let total = remotes.iter().map(|(remote, _)| remote.size).sum();
        let mut meter = Meter::new(total, progress);
        for (remote, path) in remotes {
            let failed = |failure: Failure| {
                failure.error(&format!("downloading {}", client.url(&remote)), version)
            };
            log::info(
                Area::Weights,
                format_args!("Downloading {} ({} bytes)", client.url(&remote), remote.size),
            );
            meter.begin(format!("{}/{}", remote.repo, remote.name));
            *path = Some(self.get(client, &remote, &mut meter).map_err(failed)?);
        }
        Ok(())
    }

    fn check_space<'a>(&self, remotes: impl Iterator<Item = &'a Remote>) -> Result<(), Error> {
        let failed = |why: String| Error::Weights {
            tried: format!("downloading to {}", self.cache.display()),
            why,
            instead: "make room there, or set HF_HOME to a folder on a larger disk".into(),
        };
        let need: u64 = remotes
            .map(|remote| {
                let blob = self.blob(remote);
                let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
                let here = length(&blob).max(length(&with_suffix(&blob, ".incomplete")));
                // A copy that can be mapped is at most as large.
                let copy = if remote.name.ends_with(".safetensors") { 0 } else { remote.size };
                remote.size.saturating_sub(here).saturating_add(copy)
            })
            .fold(0, u64::saturating_add);
        fs::create_dir_all(&self.cache).map_err(|error| failed(error.to_string()))?;
        let free = (self.free_space)(&self.cache).map_err(|error| failed(error.to_string()))?;
        match free < need {
            true => Err(failed(format!("the files need {need} bytes, the disk has {free} free"))),
            false => Ok(()),
        }
    }

    fn blob(&self, remote: &Remote) -> PathBuf {
        self.folder(remote.repo).join("blobs").join(&remote.sha256)
    }

    /// Downloads a file into the cache.
    fn get(&self, client: &Client, remote: &Remote, meter: &mut Meter) -> Result<PathBuf, Failure> {
        let blob = self.blob(remote);
        let locks = self.cache.join(".locks").join(Repo::model(remote.repo.into()).folder_name());
        for folder in [Some(locks.as_path()), blob.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).map_err(|error| disk(folder, &error))?;
        }
        let lock_path = locks.join(format!("{}.lock", remote.sha256));
        let lock = lock::create(&lock_path).map_err(|error| disk(&lock_path, &error))?;
        lock::wait(&lock, &lock_path, client.cancel)?;
        // It may be there for another commit, or another process may have downloaded it meanwhile.
        let whole =
            blob.is_file() && Partial::open(blob.clone(), client.cancel)?.sha256() == remote.sha256;
        if !whole {
            let path = with_suffix(&blob, ".incomplete");
            let mut partial = Partial::open(path, client.cancel)?;
            client.pull(remote, &mut partial, &mut |length| meter.at(length))?;
            partial.finish(&blob)?;
        }
        meter.end(remote.size);
        self.link(remote).map_err(|error| disk(&self.folder(remote.repo), &error))
    }

    /// Gives a downloaded file its name.
    fn link(&self, remote: &Remote) -> io::Result<PathBuf> {
        let repo = self.repo(remote.repo);
        let path = repo.pointer_path(&remote.commit).join(remote.name);
        // Up from the folder of the link to that of the repository.
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
}

/// What went wrong with a file of the cache.
fn disk(path: &Path, error: &io::Error) -> Failure {
    Failure::Ended(Error::Weights {
        tried: format!("writing {}", path.display()),
        why: error.to_string(),
        instead: "make room there, or set HF_HOME to another folder".into(),
    })
}
