// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the hub and its cache are.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{engine::Error, weights::disk::free_space};

const ENDPOINT: &str = "https://huggingface.co";

const RETRY_DELAY: Duration = Duration::from_millis(500);

const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A Hugging Face hub and its local cache.
#[derive(Clone)]
pub struct Hub {
    /// The cache folder: `hub` in HF_HOME.
    pub cache: PathBuf,
    /// Base URL of the hub.
    pub endpoint: String,
    /// Access token. It is sent to the endpoint only, not to redirect targets on other hosts.
    pub token: Option<String>,
    /// Whether to use the cache only.
    pub offline: bool,
    /// Delay before the first retry of a request; it doubles with each further one.
    pub retry_delay: Duration,
    /// Timeout of each read from and write to a connection. The request is then retried.
    pub read_timeout: Duration,
    /// Returns the free space of the disk that a folder is on, in bytes.
    pub free_space: fn(&Path) -> io::Result<u64>,
}

impl Hub {
    /// Reads the environment variables of `huggingface_hub`: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN,
    /// HF_TOKEN_PATH, HF_HUB_OFFLINE and XDG_CACHE_HOME.
    ///
    /// # Errors
    /// [`Error::Weights`] if neither a variable nor a home folder says where the cache is.
    pub fn from_env() -> Result<Self, Error> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = folder("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let home = home.ok_or_else(|| Error::Weights {
            tried: "finding the cache folder of the hub".into(),
            why: "the user has no home folder".into(),
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
            retry_delay: RETRY_DELAY,
            read_timeout: READ_TIMEOUT,
            free_space,
        })
    }
}
