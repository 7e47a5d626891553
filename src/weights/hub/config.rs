// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the hub and its cache are.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{engine::Error, weights::disk::free_space};

const ENDPOINT: &str = "https://huggingface.co";

const RETRY_DELAY: Duration = Duration::from_millis(500);

const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum length of a token file in bytes.
const MAX_TOKEN: u64 = 4096;

/// A Hugging Face hub and its local cache.
#[derive(Clone)]
pub struct Hub {
    /// The cache folder.
    pub cache: PathBuf,
    /// Base URL of the hub.
    pub endpoint: String,
    /// Access token. It is sent to the endpoint's scheme, host and port only, not to other redirect targets.
    pub token: Option<String>,
    /// Whether to use the cache only.
    pub offline: bool,
    /// Delay before the first retry of a request; it doubles with each further one.
    #[doc(hidden)]
    pub retry_delay: Duration,
    /// Timeout of each read and write, of the headers of a response, and of every 16 KiB of a body. The request is then
    /// retried.
    #[doc(hidden)]
    pub read_timeout: Duration,
    /// Returns the free space of the disk that a folder is on, in bytes.
    #[doc(hidden)]
    pub free_space: fn(&Path) -> io::Result<u64>,
}

impl Hub {
    /// Reads the environment variables of `huggingface_hub` as it does: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN,
    /// HF_TOKEN_PATH, HF_HUB_OFFLINE, XDG_CACHE_HOME, and their old names HUGGINGFACE_HUB_CACHE, HUGGING_FACE_HUB_TOKEN
    /// and TRANSFORMERS_OFFLINE. `~`, `$NAME` and `${NAME}` in paths are expanded.
    ///
    /// # Errors
    /// [`Error::Weights`] if neither a variable nor a home folder says where the cache is.
    pub fn from_env() -> Result<Self, Error> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_owned());
        let folder = |name: &str| set(name).map(|value| expanded(&value));
        let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = folder("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
        let home = home.ok_or_else(|| Error::Weights {
            tried: "finding the cache folder of the hub".into(),
            why: "the user has no home folder".into(),
            instead: "set HF_HOME to a folder".into(),
        })?;
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let offline = text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE"));
        let offline = offline.unwrap_or_default().to_uppercase();
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Ok(Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').into(),
            token: token.or_else(|| read_token(&token_file)),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            retry_delay: RETRY_DELAY,
            read_timeout: READ_TIMEOUT,
            free_space,
        })
    }
}

/// Expands `~` and variables in a path. Variables that are not set stay, as in Python.
fn expanded(path: &OsStr) -> PathBuf {
    let Some(text) = path.to_str() else { return path.into() };
    let home = || dirs::home_dir().and_then(|home| home.into_os_string().into_string().ok());
    let variable = |name: &str| env::var(name).ok();
    PathBuf::from(shellexpand::full_with_context_no_errors(text, home, variable).as_ref())
}

fn read_token(path: &Path) -> Option<String> {
    let mut token = String::new();
    // Opening a FIFO would wait.
    let file = path.is_file().then(|| File::open(path))?.ok()?;
    file.take(MAX_TOKEN).read_to_string(&mut token).ok()?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}
