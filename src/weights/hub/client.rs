// SPDX-License-Identifier: MIT OR Apache-2.0
//! Talks to the hub: asks for what a file is, then for its bytes, again and again where they break off.

use std::{
    io::Read,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ureq::{
    Agent, RequestBuilder,
    config::RedirectAuthHeaders,
    http::{HeaderMap, StatusCode, Uri},
    typestate::WithoutBody,
};

use super::{Hub, partial::Partial};
use crate::{
    engine::{Cancel, Error},
    weights::published::{Published, Version, instead},
};

/// Requests for what a file is are repeated this often, those for its bytes so often since the last came.
const ASK_AGAIN: u32 = 2;
const PULL_AGAIN: u32 = 5;

/// How often a cancelled transfer is looked for.
const POLL: Duration = Duration::from_millis(100);

/// A connection that takes longer is none.
const CONNECT: Duration = Duration::from_secs(10);

/// Redirections within the hub: of a repository with a new name.
const REDIRECTIONS: usize = 5;

/// A file on the hub.
pub(super) struct Remote {
    pub(super) repo: &'static str,
    pub(super) name: &'static str,
    pub(super) commit: String,
    /// As hexadecimal digits.
    pub(super) sha256: String,
    /// In bytes.
    pub(super) size: u64,
}

/// Why a request did not do.
pub(super) enum Failure {
    /// It may another time.
    Passing {
        why: String,
        /// Whether bytes came before it.
        moved: bool,
    },
    /// It will not.
    Lasting(String),
    /// All is over.
    Ended(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ended(error)
    }
}

impl Failure {
    pub(super) fn error(self, tried: &str, version: Version) -> Error {
        match self {
            Self::Passing { why, .. } | Self::Lasting(why) => {
                Error::Weights { tried: tried.into(), why, instead: instead(version) }
            }
            Self::Ended(error) => error,
        }
    }
}

/// Makes requests until it is cancelled.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
    pub(super) cancel: &'a Cancel,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, cancel: &'a Cancel) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .timeout_per_read(Some(hub.silence))
            .timeout_per_write(Some(hub.silence))
            .build();
        Self { hub, agent: config.into(), cancel }
    }

    /// Runs `work`, whose requests break off when it is cancelled.
    pub(super) fn interruptible(
        &self,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.cancel.check()?;
        let result = thread::scope(|scope| {
            let (working, done) = mpsc::channel::<()>();
            let watch = move || {
                while done.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                    if self.cancel.check().is_err() {
                        return self.agent.clone().shutdown();
                    }
                }
            };
            let watching = thread::Builder::new().name("venhance-hub".into());
            watching.spawn_scoped(scope, watch).map_err(|error| Error::Weights {
                tried: "starting a thread for downloads".into(),
                why: error.to_string(),
                instead: "close other programs".into(),
            })?;
            let result = work();
            drop(working);
            result
        });
        // What a transfer says that was broken off is of no interest.
        result.map_err(|error| self.cancel.check().err().unwrap_or(error))
    }

    /// The address of a file's bytes, which does not change with the repository.
    pub(super) fn url(&self, remote: &Remote) -> String {
        let Remote { repo, name, commit, .. } = remote;
        format!("{}/{repo}/resolve/{commit}/{name}", self.hub.endpoint)
    }

    /// Asks for the first of a file's names that the hub has.
    pub(super) fn find(&self, file: &Published) -> Result<Remote, Failure> {
        for name in file.names {
            let url = format!("{}/{}/resolve/main/{name}", self.hub.endpoint, file.repo);
            let found = self.again(ASK_AGAIN, || self.ask(&url))?;
            if let Some((commit, sha256, size)) = found {
                return Ok(Remote { repo: file.repo, name, commit, sha256, size });
            }
        }
        Err(Failure::Lasting(format!("{} answers 404: it has no such file", self.hub.endpoint)))
    }

    /// A file's commit, SHA-256 and size in bytes, if the hub has it.
    fn ask(&self, url: &str) -> Result<Option<(String, String, u64)>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTIONS {
            // What lies behind a redirection to another host knows nothing of the hub.
            let request = self.agent.head(&url).config().max_redirects(0).build();
            let answer = self.authorized(request).call();
            let answer = answer.map_err(|error| passing(&error.to_string(), false))?;
            match answer.status() {
                StatusCode::NOT_FOUND => return Ok(None),
                status if !status.is_redirection() => succeeded(status)?,
                _ => match text(answer.headers(), "location") {
                    Some(path) if path.starts_with('/') => {
                        url = elsewhere(&url, path)?;
                        continue;
                    }
                    _ => (),
                },
            }
            return described(answer.headers()).map(Some).ok_or_else(|| {
                Failure::Lasting(format!(
                    "{url} answers without commit, size and SHA-256 of the file: it is no hub"
                ))
            });
        }
        Err(Failure::Lasting(format!("{url} leads from one place to the next")))
    }

    /// Gets all bytes of a file that are not here.
    pub(super) fn pull(
        &self,
        remote: &Remote,
        partial: &mut Partial,
        moved: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        loop {
            let resumed = partial.length() > 0;
            self.again(PULL_AGAIN, || self.pull_once(remote, partial, moved))?;
            let found = partial.sha256();
            if found == remote.sha256 {
                return Ok(());
            }
            partial.restart()?;
            if !resumed {
                return Err(Failure::Lasting(format!(
                    "its SHA-256 is {found}, not {} as the hub says",
                    remote.sha256
                )));
            }
            // What was here before may have been wrong.
        }
    }

    fn pull_once(
        &self,
        remote: &Remote,
        partial: &mut Partial,
        moved: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let (size, start) = (remote.size, partial.length());
        if start > size {
            partial.restart()?;
        } else if start == size {
            return Ok(());
        }
        let start = partial.length();
        let mut request = self.agent.get(self.url(remote));
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let answer = self.authorized(request).call();
        let answer = answer.map_err(|error| passing(&error.to_string(), false))?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT
                if text(answer.headers(), "content-range")
                    .is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) => {}
            // All from the beginning, or a range that was not asked for.
            StatusCode::OK => partial.restart()?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.restart()?;
                return Err(passing(&format!("the bytes from {start} were not given"), false));
            }
            status => {
                succeeded(status)?;
                return Err(Failure::Lasting(format!("the answer was {status}")));
            }
        }
        let start = partial.length();
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            self.cancel.check()?;
            let count = body
                .read(&mut buffer)
                .map_err(|error| passing(&error.to_string(), partial.length() > start))?;
            if count == 0 {
                break;
            }
            if partial.length() + count as u64 > size {
                partial.restart()?;
                return Err(Failure::Lasting(format!("more than its {size} bytes came")));
            }
            partial.append(&buffer[..count])?;
            moved(partial.length());
        }
        match partial.length() {
            length if length == size => Ok(()),
            length => {
                Err(passing(&format!("it ended after {length} of {size} bytes"), length > start))
            }
        }
    }

    fn authorized(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        match &self.hub.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Repeats what failed for now.
    fn again<T>(
        &self,
        most: u32,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut failed = 0;
        loop {
            match attempt() {
                Err(Failure::Passing { moved, .. }) if moved || failed < most => {
                    failed = if moved { 0 } else { failed };
                    self.pause(self.hub.retry_after * 2_u32.pow(failed))?;
                    failed += 1;
                }
                result => return result,
            }
        }
    }

    fn pause(&self, time: Duration) -> Result<(), Error> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.cancel.check()?;
            thread::sleep(POLL.min(time - start.elapsed().min(time)));
        }
        self.cancel.check()
    }
}

fn passing(why: &str, moved: bool) -> Failure {
    Failure::Passing { why: why.into(), moved }
}

/// Whether an answer is one.
fn succeeded(status: StatusCode) -> Result<(), Failure> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Lasting(format!(
            "the answer was {status}: HF_TOKEN is not set or not valid, or its account has not accepted \
             the licence"
        ))),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(passing(&format!("the answer was {status}"), false))
        }
        status if status.is_server_error() => {
            Err(passing(&format!("the answer was {status}"), false))
        }
        status => Err(Failure::Lasting(format!("the answer was {status}"))),
    }
}

/// Another path on the same host.
fn elsewhere(url: &str, path: &str) -> Result<String, Failure> {
    let wrong = |_| Failure::Lasting(format!("{url} leads to {path}, which is no address"));
    let mut parts = url.parse::<Uri>().map_err(wrong)?.into_parts();
    parts.path_and_query = Some(path.parse().map_err(wrong)?);
    let moved = Uri::from_parts(parts);
    moved.map(|uri| uri.to_string()).map_err(|error| Failure::Lasting(error.to_string()))
}

/// Commit, SHA-256 and size of a file. What is linked is the file, what is not may be a pointer to it.
fn described(headers: &HeaderMap) -> Option<(String, String, u64)> {
    let commit = text(headers, "x-repo-commit")?;
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"))?;
    let sha256 = etag.trim_start_matches("W/").trim_matches('"');
    let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"))?;
    // Both become names in the cache.
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_sha256 = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
    (plain(commit) && is_sha256)
        .then(|| Some((commit.to_owned(), sha256.to_lowercase(), size.parse().ok()?)))?
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
