// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hub on this machine that answers as it is told, and remembers what it was asked.

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

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub host: String,
    pub path: String,
    /// The first byte that is wanted.
    pub from: Option<usize>,
    pub token: Option<String>,
    /// Requests of the same method and path before this one.
    pub before: usize,
}

impl Request {
    pub fn gets(&self, name: &str) -> bool {
        self.method == "GET" && self.path.ends_with(name)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    pub cut: Option<usize>,
    /// Whether it says nothing for a while instead of ending.
    pub stall: bool,
}

impl Answer {
    pub fn status(status: u16, body: &str) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn cut(self, at: usize) -> Self {
        Self { cut: Some(at), ..self }
    }
}

/// The published files with other bytes, as the real hub gives them: through a redirection.
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

    /// REPOSITORY/resolve/COMMIT/NAME is looked up, and /cdn/REPOSITORY/NAME.
    pub fn answer(&self, request: &Request) -> Answer {
        if let Some(path) = request.path.strip_prefix("/cdn/") {
            return self.bytes(&self.0[path], request);
        }
        let parts: Vec<_> = request.path.trim_start_matches('/').splitn(5, '/').collect();
        let [owner, repo, "resolve", commit, name] = parts.as_slice() else {
            return Answer::status(400, "what is this?");
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
                // Another host: it must not be told the token.
                ("Location", format!("http://localhost:{port}/cdn/{key}")),
            ],
            body: b"Found. Redirecting".to_vec(),
            ..Answer::default()
        }
    }

    /// The bytes of a file, or those from the one that is wanted.
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

/// Ends with its handle.
pub struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (asked.clone(), stop.clone());
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    let (log, stopped, answer) = (&log, &stopped, &answer);
                    scope.spawn(move || {
                        // A client that goes away is none of our business.
                        let _ = serve(&stream.unwrap(), log, stopped, answer);
                    });
                }
            });
        });
        Self { port, asked, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests for the bytes of a file.
    pub fn gets(&self, name: &str) -> Vec<Request> {
        let resolved = |r: &Request| r.gets(name) && !r.path.starts_with("/cdn/");
        self.asked().into_iter().filter(resolved).collect()
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
    let mut head = format!(
        "HTTP/1.1 {} Status\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
    }
    stream.flush()?;
    let mut left = if answer.stall { 200 } else { 0 };
    while left > 0 && !stopped.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(50));
        left -= 1;
    }
    Ok(())
}
