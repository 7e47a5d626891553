// SPDX-License-Identifier: MIT OR Apache-2.0
//! Downloads from a fake hub, and the cache.

mod failures;
mod processes;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use gstvenhance::{
    engine::{Cancel, Error, Version},
    models::{Config, Files, locate},
    weights::{Hub, Progress, Source, free_space},
};

use crate::{
    ADVICE,
    hub::{self, Answer, COMMIT, Server, TEXT, UNET, VAE, sha256},
};

/// A temporary hub cache.
pub struct Cache(tempfile::TempDir);

impl Cache {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn hub(&self, endpoint: &str) -> Hub {
        Hub {
            cache: self.0.path().join("hub"),
            endpoint: endpoint.into(),
            token: Some("secret".into()),
            offline: false,
            retry_delay: Duration::from_millis(5),
            read_timeout: Duration::from_secs(30),
            free_space,
        }
    }

    fn folder(&self, file: &str) -> PathBuf {
        let parts: Vec<_> = file.split('/').collect();
        self.0.path().join("hub").join(format!("models--{}--{}", parts[0], parts[1]))
    }

    fn blob(&self, file: &str, bytes: &[u8]) -> PathBuf {
        self.folder(file).join("blobs").join(sha256(bytes))
    }

    /// Adds a file in the layout that Python's `huggingface_hub` writes; returns its path.
    pub fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let (folder, blob) = (self.folder(name), self.blob(name, bytes));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, bytes).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        let name = name.splitn(3, '/').nth(2).unwrap();
        let link = folder.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&blob, &link).unwrap();
        link
    }

    /// All files in the cache but incomplete downloads and locks.
    fn complete_files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, found);
                } else if !path.to_string_lossy().ends_with(".incomplete") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.0.path().join("hub"), &mut found);
        found.retain(|path| path.components().all(|part| part.as_os_str() != ".locks"));
        found
    }
}

fn from_hub(hub: Hub) -> Source {
    Source { path: None, hub: Ok(hub) }
}

fn fetch(hub: Hub) -> Result<Files, Error> {
    locate(&from_hub(hub), Version::V1, &Cancel::default(), &mut |_| ())
}

/// All three files are those of the hub.
fn assert_complete(files: &Files, published: &hub::Files) {
    let paths = [(&files.unet, UNET), (&files.vae, VAE), (&files.text, TEXT)];
    for (checkpoint, name) in paths {
        assert!(fs::read(&checkpoint.path).unwrap() == published.0[name], "{name}");
    }
}

/// The download fails with an error that contains `parts`, and leaves no complete file.
fn assert_refused(cache: &Cache, server: &Server, parts: &[&str]) {
    let error = fetch(cache.hub(&server.endpoint())).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(cache.complete_files(), Vec::<PathBuf>::new());
}

#[test]
fn files_are_downloaded_once_to_the_cache_of_huggingface_hub() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let mut reports = Vec::new();
    let source = from_hub(cache.hub(&server.endpoint()));
    let mut progress = |progress: Progress| reports.push(progress);
    let files = locate(&source, Version::V1, &Cancel::default(), &mut progress).unwrap();
    assert_complete(&files, &published);
    assert_eq!(files.config, Config::full());
    let total: u64 = published.0.values().map(|file| file.len() as u64).sum();
    assert!(reports.iter().all(|progress| progress.total == total), "{reports:?}");
    assert!(reports.is_sorted_by_key(|progress| progress.done), "{reports:?}");
    assert_eq!(reports.last().unwrap().done, total);
    assert!(reports.iter().any(|progress| progress.file == UNET), "{reports:?}");
    let snapshot = cache.folder(VAE).join("snapshots").join(COMMIT);
    assert_eq!(files.vae.path, snapshot.join("vae/diffusion_pytorch_model.fp16.safetensors"));
    let link = fs::read_link(&files.vae.path).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(sha256(&published.0[VAE])));
    assert_eq!(fs::read_to_string(cache.folder(VAE).join("refs/main")).unwrap(), COMMIT);
    // The metadata of all files is requested first, and only the hub gets the token.
    let asked = server.requests();
    let last_head = asked.iter().rposition(|request| request.method == "HEAD").unwrap();
    let first_get = asked.iter().position(|request| request.method == "GET").unwrap();
    assert!(last_head < first_get, "{asked:?}");
    for request in &asked {
        let expected = (!request.path.starts_with("/cdn/")).then_some("Bearer secret");
        assert_eq!(request.token.as_deref(), expected, "{request:?}");
    }
    assert_eq!(locate(&source, Version::V1, &Cancel::default(), &mut |_| ()), Ok(files));
    assert_eq!(server.requests().len(), asked.len(), "the cache is used");
}

#[test]
fn an_interrupted_download_resumes() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| {
        let answer = answers.answer(request);
        match request.gets(UNET) && request.path.starts_with("/cdn/") && request.before < 3 {
            true => answer.cut(100_000),
            false => answer,
        }
    });
    assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    let gets = server.gets("venhancer_paper.pt");
    let from: Vec<_> = gets.iter().map(|request| request.from).collect();
    assert_eq!(from, [None, Some(100_000), Some(200_000), Some(300_000)]);
}

#[test]
fn an_incomplete_file_is_resumed_and_restarted_if_its_checksum_is_wrong() {
    for (begin, gets) in [
        (published_part(UNET, 400_000), vec![Some(400_000)]),
        (published_part(UNET, 700_000), vec![]),
        (vec![7; 400_000], vec![Some(400_000), None]),
        (vec![7; 700_000], vec![None]),
        (vec![7; 900_000], vec![None]),
    ] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        let blob = cache.blob(UNET, &published.0[UNET]);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob.with_extension("incomplete"), begin).unwrap();
        assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
        let asked = server.gets("venhancer_paper.pt");
        let from: Vec<_> = asked.iter().map(|request| request.from).collect();
        assert_eq!(from, gets);
    }
}

#[test]
fn an_existing_blob_is_verified_before_it_is_linked() {
    for (bytes, gets) in [(published_part(UNET, 700_000), 0), (vec![7; 700_000], 1)] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        let blob = cache.blob(UNET, &published.0[UNET]);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, bytes).unwrap();
        assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
        assert_eq!(server.gets("venhancer_paper.pt").len(), gets);
    }
}

fn published_part(name: &str, length: usize) -> Vec<u8> {
    hub::Files::new().0[name][..length].to_vec()
}

#[test]
fn a_server_without_range_requests_restarts_the_download() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| {
        let mut whole = request.clone();
        whole.from = None;
        let answer = answers.answer(&whole);
        match request.gets(UNET) && request.path.starts_with("/cdn/") && request.before == 0 {
            true => answer.cut(100_000),
            false => answer,
        }
    });
    assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
}

#[test]
fn the_text_encoder_is_found_under_both_of_its_names() {
    let (cache, mut published) = (Cache::new(), hub::Files::new());
    let file = published.0.remove(TEXT).unwrap();
    let other = TEXT.replace("open_clip_model.safetensors", "open_clip_pytorch_model.bin");
    published.0.insert(other, file.clone());
    let server = Server::start(move |request| published.answer(request));
    let files = fetch(cache.hub(&server.endpoint())).unwrap();
    assert!(files.text.path.ends_with("open_clip_pytorch_model.bin"));
    assert!(fs::read(&files.text.path).unwrap() == file);
}

#[test]
fn offline_mode_uses_the_cache_or_fails() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(|_| Answer::status(500, ""));
    let hub = Hub { offline: true, ..cache.hub(&server.endpoint()) };
    let error = fetch(hub.clone()).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain(["HF_HUB_OFFLINE", "venhancer_paper.pt"]) {
        assert!(error.contains(part), "{part}: {error}");
    }
    let length = error.replace(&hub.cache.display().to_string(), "").len();
    assert!(length < 400, "{length} characters: {error}");
    for (name, bytes) in &published.0 {
        cache.add(name, bytes);
    }
    assert_complete(&fetch(hub).unwrap(), &published);
    assert!(server.requests().is_empty());
}

#[test]
fn too_little_disk_space_fails_before_any_download() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    // The files, and the converted copy of the first.
    let most = 2 * 700_000 + 300_000 + 500_000;
    for (room, fine) in [(most - 1, false), (most, true)] {
        static ROOM: Mutex<u64> = Mutex::new(0);
        *ROOM.lock().unwrap() = room;
        let hub =
            Hub { free_space: |_| Ok(*ROOM.lock().unwrap()), ..cache.hub(&server.endpoint()) };
        let result = fetch(hub);
        assert_eq!(result.is_ok(), fine, "{result:?}");
        if let Err(error) = result {
            let error = error.to_string();
            for part in ["need 2.10 MiB", "2.10 MiB free", "HF_HOME"] {
                assert!(error.contains(part), "{error}");
            }
            assert!(server.requests().iter().all(|request| request.method == "HEAD"));
        }
    }
}

#[test]
fn concurrent_threads_download_each_file_once() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| {
        thread::sleep(Duration::from_millis(20));
        answers.answer(request)
    });
    thread::scope(|scope| {
        for _ in 0..2 {
            let hub = cache.hub(&server.endpoint());
            scope.spawn(|| assert_complete(&fetch(hub).unwrap(), &published));
        }
    });
    let gets = server.requests().iter().filter(|request| request.path.starts_with("/cdn/")).count();
    assert_eq!(gets, 3);
}

#[test]
fn only_the_scheme_host_and_port_of_the_hub_get_the_token() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let storage = published.clone();
    // Another port of the same host.
    let other = Server::start(move |request| {
        let name = request.path.trim_start_matches('/');
        storage.bytes(&storage.0[name], request)
    });
    let target = other.endpoint();
    let answers = published.clone();
    let server = Server::start(move |request| {
        if let Some(path) = request.path.strip_prefix("/moved") {
            let mut answer = answers.answer(&hub::Request { path: path.into(), ..request.clone() });
            for (name, value) in &mut answer.headers {
                if *name == "Location" {
                    *value = value.replacen(
                        &format!(
                            "http://localhost:{}/cdn",
                            request.host.rsplit(':').next().unwrap()
                        ),
                        &target,
                        1,
                    );
                }
            }
            return answer;
        }
        // A renamed repository: a redirect within the hub, by its path or its whole URL.
        let path = format!("/moved{}", request.path);
        let location = match request.path.contains("CLIP") {
            true => format!("http://{}{path}", request.host),
            false => path,
        };
        Answer { status: 307, headers: vec![("Location", location)], ..Answer::default() }
    });
    assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    assert!(server.requests().iter().all(|r| r.token.as_deref() == Some("Bearer secret")));
    assert_eq!(other.requests().len(), 3);
    assert!(other.requests().iter().all(|request| request.token.is_none()));
}

#[test]
fn a_link_in_the_place_of_an_incomplete_file_is_not_followed() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let blob = cache.blob(UNET, &published.0[UNET]);
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let target = blob.with_extension("target");
    fs::write(&target, "mine").unwrap();
    std::os::unix::fs::symlink(&target, blob.with_extension("incomplete")).unwrap();
    let error = fetch(cache.hub(&server.endpoint())).unwrap_err().to_string();
    assert!(error.contains("it is a symbolic link"), "{error}");
    assert_eq!(fs::read(&target).unwrap(), b"mine");
}

/// A server that stalls after 100,000 bytes of the denoiser, unless the rest is requested.
fn stalling(published: &hub::Files) -> Server {
    let answers = published.clone();
    Server::start(move |request| {
        let answer = answers.answer(request);
        match request.gets(UNET) && request.path.starts_with("/cdn/") && request.from.is_none() {
            true => Answer { stall: true, ..answer.cut(100_000) },
            false => answer,
        }
    })
}

#[test]
fn a_cancelled_download_ends_within_a_second_and_resumes_later() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = stalling(&published);
    let cancel = Cancel::default();
    let source = from_hub(cache.hub(&server.endpoint()));
    let mut cancelled = None;
    thread::scope(|scope| {
        let (cancel, source) = (&cancel, &source);
        let running = scope.spawn(move || locate(source, Version::V1, cancel, &mut |_| ()));
        while server.gets("venhancer_paper.pt").is_empty() {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(300));
        assert!(!running.is_finished());
        let start = Instant::now();
        cancel.cancel();
        assert_eq!(running.join().unwrap(), Err(Error::Cancelled));
        cancelled = Some(start.elapsed());
    });
    assert!(cancelled.unwrap() < Duration::from_secs(1), "{cancelled:?}");
    assert_eq!(cache.complete_files(), Vec::<PathBuf>::new());
    assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    assert_eq!(server.gets("venhancer_paper.pt").last().unwrap().from, Some(100_000));
}

#[test]
fn a_stalled_download_times_out_and_resumes() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = stalling(&published);
    let read_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let files = fetch(Hub { read_timeout, ..cache.hub(&server.endpoint()) }).unwrap();
    // The server stalls for ten seconds.
    let took = start.elapsed();
    assert!(took >= read_timeout && took < Duration::from_secs(8), "{took:?}");
    assert_complete(&files, &published);
    assert_eq!(server.gets("venhancer_paper.pt").last().unwrap().from, Some(100_000));
}
