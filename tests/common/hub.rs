// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fake Hugging Face hub: an HTTP server on the loopback interface that records its requests.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sha2::{Digest, Sha256};

/// An HTTP request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub host: String,
    pub path: String,
    /// Start of the requested range.
    pub from: Option<usize>,
    pub token: Option<String>,
    /// Number of earlier requests of the same method and path.
    pub before: usize,
}

impl Request {
    pub fn gets(&self, name: &str) -> bool {
        self.method == "GET" && self.path.ends_with(name)
    }
}

/// An HTTP response.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Stalls before the connection is closed.
    pub stall: bool,
    /// Whether the header does not say how long the body is.
    pub without_length: bool,
    /// Time between two bytes, of the header as well.
    pub slow: Option<Duration>,
}

impl Answer {
    pub fn status(status: u16, body: &str) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn cut(self, at: usize) -> Self {
        Self { cut: Some(at), ..self }
    }
}

/// The published files with synthetic contents, served as the hub does: through a redirect to another host.
#[derive(Clone)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

pub const UNET: &str = "jwhejwhe/VEnhancer/venhancer_paper.pt";
pub const VAE: &str =
    "stabilityai/stable-video-diffusion-img2vid/vae/diffusion_pytorch_model.fp16.safetensors";
pub const TEXT: &str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/open_clip_model.safetensors";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

impl Files {
    pub fn new() -> Self {
        let bytes =
            |seed: usize, count: usize| (0..count).map(|n| ((n * seed) >> 7) as u8).collect();
        Self(BTreeMap::from([
            (UNET.into(), bytes(31, 700_000)),
            (VAE.into(), bytes(37, 300_000)),
            (TEXT.into(), bytes(41, 500_000)),
        ]))
    }

    /// Serves REPOSITORY/resolve/COMMIT/NAME, which redirects, and /cdn/REPOSITORY/NAME.
    pub fn answer(&self, request: &Request) -> Answer {
        if let Some(path) = request.path.strip_prefix("/cdn/") {
            return self.bytes(&self.0[path], request);
        }
        let parts: Vec<_> = request.path.trim_start_matches('/').splitn(5, '/').collect();
        let [owner, repo, "resolve", commit, name] = parts.as_slice() else {
            return Answer::status(400, "bad request");
        };
        assert!(*commit == "main" || *commit == COMMIT, "{commit}");
        let key = format!("{owner}/{repo}/{name}");
        let Some(file) = self.0.get(&key) else { return Answer::status(404, "Entry not found") };
        let port = request.host.rsplit(':').next().unwrap();
        Answer {
            status: 302,
            headers: vec![
                ("X-Repo-Commit", COMMIT.into()),
                ("X-Linked-ETag", format!("\"{}\"", sha256(file))),
                ("X-Linked-Size", file.len().to_string()),
                ("ETag", "\"a pointer's\"".into()),
                // Another host name, which must not get the token.
                ("Location", format!("http://localhost:{port}/cdn/{key}")),
            ],
            body: b"Found. Redirecting".to_vec(),
            ..Answer::default()
        }
    }

    /// The bytes of a file, or the requested range.
    pub fn bytes(&self, file: &[u8], request: &Request) -> Answer {
        match request.from {
            Some(from) if from < file.len() => {
                let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
                Answer {
                    status: 206,
                    headers: vec![("Content-Range", range)],
                    body: file[from..].to_vec(),
                    ..Answer::default()
                }
            }
            Some(_) => Answer::status(416, ""),
            None => Answer { status: 200, body: file.to_vec(), ..Answer::default() },
        }
    }
}

/// A running server. It stops when it is dropped.
pub struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (requests.clone(), stop.clone());
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    let (log, stopped, answer) = (&log, &stopped, &answer);
                    scope.spawn(move || {
                        // Fails when the client disconnects, as some tests do.
                        let _ = serve(&stream.unwrap(), log, stopped, answer);
                    });
                }
            });
        });
        Self { port, requests, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Downloads of a file so far, without those at the redirect target.
    pub fn gets(&self, name: &str) -> Vec<Request> {
        let resolved = |r: &Request| r.gets(name) && !r.path.starts_with("/cdn/");
        self.requests().into_iter().filter(resolved).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: &TcpStream,
    log: &Mutex<Vec<Request>>,
    stopped: &AtomicBool,
    answer: &(impl Fn(&Request) -> Answer + Sync),
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next() else { return Ok(()) };
    let first = first?;
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let from = headers.get("range").map(|range| {
        let range = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        range.unwrap().parse().unwrap()
    });
    let request = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|r| r.method == method && r.path == path).count();
        let request = Request {
            method: method.into(),
            host: headers.get("host").cloned().unwrap_or_default(),
            path: path.into(),
            from,
            token: headers.get("authorization").cloned(),
            before,
        };
        log.push(request.clone());
        request
    };
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    if !answer.without_length {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut response = format!("{head}\r\n").into_bytes();
    if request.method != "HEAD" {
        response.extend(&answer.body[..answer.cut.unwrap_or(answer.body.len())]);
    }
    match answer.slow {
        None => stream.write_all(&response)?,
        Some(pause) => {
            for byte in response {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                stream.write_all(&[byte])?;
                thread::sleep(pause);
            }
        }
    }
    stream.flush()?;
    let mut left = if answer.stall { 200 } else { 0 };
    while left > 0 && !stopped.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(50));
        left -= 1;
    }
    Ok(())
}
