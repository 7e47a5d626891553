// SPDX-License-Identifier: MIT OR Apache-2.0
//! The HTTP client of the hub: file metadata, and downloads that resume after interruptions.

use std::{
    io::Read,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ureq::{
    Agent, Body, RequestBuilder,
    http::{HeaderMap, Response, StatusCode, Uri},
    typestate::WithoutBody,
};

use super::{config::Hub, failure::Failure, partial::Partial};
use crate::{
    engine::{Cancel, Error, printable},
    weights::published::Published,
};

/// Retries of a metadata request.
const METADATA_RETRIES: u32 = 2;

/// Retries of a download since it last made progress.
const DOWNLOAD_RETRIES: u32 = 5;

/// How often a blocked transfer checks for cancellation.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Connect and DNS timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of redirects: of a renamed repository, then to the storage.
const MAX_REDIRECTS: usize = 5;

/// Bytes that a download must transfer within every read timeout. Fewer are no progress.
const MIN_BYTES: u64 = 16 << 10;

/// Maximum length of the name of a commit, which is a file name in the cache.
const MAX_COMMIT: usize = 64;

/// Metadata of a file on the hub.
pub(super) struct RemoteFile {
    pub(super) repo: &'static str,
    pub(super) name: &'static str,
    pub(super) commit: String,
    /// In hexadecimal.
    pub(super) sha256: String,
    /// In bytes.
    pub(super) size: u64,
}

/// An HTTP client whose requests can be cancelled.
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
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(hub.read_timeout))
            .timeout_per_write(Some(hub.read_timeout))
            .timeout_send_request(Some(hub.read_timeout))
            .timeout_recv_response(Some(hub.read_timeout))
            .build();
        Self { hub, agent: config.into(), cancel }
    }

    /// Runs `work`. When it is cancelled, a watcher thread shuts its connections down.
    pub(super) fn cancellable(
        &self,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.cancel.check()?;
        let result = thread::scope(|scope| {
            let (working, done) = mpsc::channel::<()>();
            let watch = move || {
                while done.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if self.cancel.check().is_err() {
                        return self.agent.clone().shutdown();
                    }
                }
            };
            let watcher = thread::Builder::new().name("venhance-hub".into());
            watcher.spawn_scoped(scope, watch).map_err(|error| Error::Weights {
                tried: "starting the download thread".into(),
                why: error.to_string(),
                instead: "close other programs".into(),
            })?;
            let result = work();
            drop(working);
            result
        });
        // The error of a connection that was shut down is replaced by `Cancelled`.
        result.map_err(|error| self.cancel.check().err().unwrap_or(error))
    }

    /// The URL of a file at its commit.
    pub(super) fn url(&self, remote: &RemoteFile) -> String {
        let RemoteFile { repo, name, commit, .. } = remote;
        format!("{}/{repo}/resolve/{commit}/{name}", self.hub.endpoint)
    }

    /// Requests the metadata of a file: of the first of its names that exists on the hub.
    pub(super) fn metadata(&self, file: &Published) -> Result<RemoteFile, Failure> {
        for name in file.names {
            let url = format!("{}/{}/resolve/main/{name}", self.hub.endpoint, file.repo);
            let found = self.retry(METADATA_RETRIES, || self.request_metadata(&url))?;
            if let Some((commit, sha256, size)) = found {
                return Ok(RemoteFile { repo: file.repo, name, commit, sha256, size });
            }
        }
        Err(Failure::Refused(format!("{} has no such file (404 Not Found)", self.hub.endpoint)))
    }

    /// The commit, SHA-256 and size of a file; `None` if it does not exist.
    fn request_metadata(&self, url: &str) -> Result<Option<(String, String, u64)>, Failure> {
        // Redirects to other servers are not followed: their responses lack the metadata.
        let response = self.send(url, true, |url| self.agent.head(url))?;
        match response.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            status if !status.is_redirection() => check_status(status)?,
            _ => (),
        }
        parse_metadata(response.headers()).map(Some).ok_or_else(|| {
            Failure::Invalid(format!(
                "the response of {url} has no commit, size or SHA-256 of the file, so it is not from a \
                 Hugging Face hub"
            ))
        })
    }

    /// Sends a request and follows redirects, only within the hub if `within_hub` is set. Only the hub gets the token.
    fn send(
        &self,
        url: &str,
        within_hub: bool,
        request: impl Fn(&Uri) -> RequestBuilder<WithoutBody>,
    ) -> Result<Response<Body>, Failure> {
        let hub = self.hub.endpoint.parse::<Uri>().map_err(|error| {
            Failure::Invalid(format!("{} is not a URL: {error}", self.hub.endpoint))
        })?;
        let mut target = url
            .parse::<Uri>()
            .map_err(|error| Failure::Invalid(format!("{url} is not a URL: {error}")))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = request(&target);
            if let Some(token) = self.hub.token.as_ref().filter(|_| same_origin(&target, &hub)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(Failure::transient)?;
            let location = header(response.headers(), "location");
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return Ok(response);
            };
            let next = resolve(&target, location).ok_or_else(|| {
                let location = printable(location);
                Failure::Invalid(format!("{target} redirects to {location}, which is not a URL"))
            })?;
            if within_hub && !same_origin(&next, &hub) {
                return Ok(response);
            }
            target = next;
        }
        Err(Failure::Invalid(format!("{url} redirects more than {MAX_REDIRECTS} times")))
    }

    /// Downloads the bytes that `partial` lacks, and verifies the checksum. `progress` is called with the length so
    /// far.
    pub(super) fn download(
        &self,
        remote: &RemoteFile,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        loop {
            let resumed = partial.length() > 0;
            self.retry(DOWNLOAD_RETRIES, || self.request_rest(remote, partial, progress))?;
            let found = partial.sha256();
            if found == remote.sha256 {
                return Ok(());
            }
            partial.clear()?;
            if !resumed {
                return Err(Failure::Invalid(format!(
                    "its SHA-256 is {found}, expected {}",
                    remote.sha256
                )));
            }
            // The bytes from before may have been wrong: try once more from the beginning.
        }
    }

    /// Requests the bytes that `partial` lacks, and appends them.
    fn request_rest(
        &self,
        remote: &RemoteFile,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        if partial.length() > remote.size {
            partial.clear()?;
        } else if partial.length() == remote.size {
            return Ok(());
        }
        let start = partial.length();
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.send(&self.url(remote), false, |url| {
            let request = self.agent.get(url);
            range.iter().fold(request, |request, range| request.header("Range", range))
        })?;
        let header = |name| header(response.headers(), name);
        let restarts = match response.status() {
            StatusCode::PARTIAL_CONTENT
                if header("content-range")
                    .is_some_and(|range| range.starts_with(&format!("bytes {start}-"))) =>
            {
                false
            }
            // The server ignored the range.
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.clear()?;
                return Err(Failure::transient(format!("the server has no bytes from {start} on")));
            }
            status => {
                check_status(status)?;
                return Err(unexpected(status));
            }
        };
        let expected = if restarts { remote.size } else { remote.size - start };
        let length = header("content-length").and_then(|length| length.parse::<u64>().ok());
        if let Some(length) = length.filter(|length| *length != expected) {
            return Err(Failure::Invalid(format!(
                "the server answered with {length} bytes instead of {expected}, so this is not the file"
            )));
        }
        if restarts {
            partial.clear()?;
        }
        self.read_body(response, remote.size, partial, progress)
    }

    /// Appends the body of a response to `partial`, which must then have `size` bytes.
    fn read_body(
        &self,
        response: Response<Body>,
        size: u64,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let progress_from = partial.longest() + MIN_BYTES;
        let interrupted = |why: String, length: u64| Failure::Transient {
            why,
            progressed: length >= progress_from,
        };
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        let (mut period, mut begin) = (Instant::now(), partial.length());
        loop {
            self.cancel.check()?;
            let count = body
                .read(&mut buffer)
                .map_err(|error| interrupted(printable(&error.to_string()), partial.length()))?;
            if count == 0 {
                break;
            }
            if partial.length() + count as u64 > size {
                partial.clear()?;
                return Err(Failure::Invalid(format!(
                    "the server sent more than its {size} bytes"
                )));
            }
            partial.append(&buffer[..count])?;
            progress(partial.length());
            if period.elapsed() >= self.hub.read_timeout {
                if partial.length() - begin < MIN_BYTES {
                    let seconds = self.hub.read_timeout.as_secs_f32();
                    let why =
                        format!("the server sent fewer than {MIN_BYTES} bytes in {seconds} s");
                    return Err(interrupted(why, partial.length()));
                }
                (period, begin) = (Instant::now(), partial.length());
            }
        }
        match partial.length() {
            length if length == size => Ok(()),
            length => {
                let why = format!("the connection closed after {length} of {size} bytes");
                Err(interrupted(why, length))
            }
        }
    }

    /// Retries transient failures up to `retries` times with exponential backoff. Progress resets the count.
    fn retry<T>(
        &self,
        retries: u32,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut failed = 0;
        loop {
            match attempt() {
                Err(Failure::Transient { progressed, .. }) if progressed || failed < retries => {
                    failed = if progressed { 0 } else { failed };
                    self.sleep(self.hub.retry_delay * 2_u32.pow(failed))?;
                    failed += 1;
                }
                result => return result,
            }
        }
    }

    /// Sleeps, unless cancelled.
    fn sleep(&self, time: Duration) -> Result<(), Error> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.cancel.check()?;
            thread::sleep(POLL_INTERVAL.min(time - start.elapsed().min(time)));
        }
        self.cancel.check()
    }
}

/// Turns the status of a failed request into a failure.
fn check_status(status: StatusCode) -> Result<(), Failure> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Refused(format!(
            "the server answered {status}: HF_TOKEN is unset or invalid, or its account has not accepted the \
             licence"
        ))),
        StatusCode::NOT_FOUND => Err(Failure::Refused(format!("the server answered {status}"))),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Failure::transient(format!("the server answered {status}")))
        }
        status if status.is_server_error() => {
            Err(Failure::transient(format!("the server answered {status}")))
        }
        status => Err(unexpected(status)),
    }
}

fn unexpected(status: StatusCode) -> Failure {
    Failure::Invalid(format!("the server answered {status}"))
}

/// Whether two URLs have the same scheme, host and port.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// The target of a redirect: a URL, or an absolute path on the same server.
fn resolve(url: &Uri, location: &str) -> Option<Uri> {
    let scheme = url.scheme_str()?;
    let location = match location {
        location if location.starts_with("//") => format!("{scheme}:{location}"),
        location if location.starts_with('/') => {
            format!("{scheme}://{}{location}", url.authority()?)
        }
        location => location.to_owned(),
    };
    location.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
}

/// Parses commit, SHA-256 and size from the response headers. For a file in LFS, the plain ETag and length are those
/// of its pointer, and the linked ones those of the file.
fn parse_metadata(headers: &HeaderMap) -> Option<(String, String, u64)> {
    let commit = header(headers, "x-repo-commit")?;
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"))?;
    let sha256 = etag.trim_start_matches("W/").trim_matches('"');
    let size = header(headers, "x-linked-size").or_else(|| header(headers, "content-length"))?;
    // Both become file names in the cache.
    let is_plain = |text: &str| {
        (1..=MAX_COMMIT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let is_sha256 = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
    (is_plain(commit) && is_sha256)
        .then(|| Some((commit.to_owned(), sha256.to_lowercase(), size.parse().ok()?)))?
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
