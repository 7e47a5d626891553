// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights: downloads from a fake hub with all its failures, the cache, model folders, and PyTorch files.

#[path = "common/hub.rs"]
mod hub;
#[path = "common/torch.rs"]
mod torch;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error},
    networks::{text::TextTower, unet::Denoiser, vae::Vae},
    weights::{
        Checkpoint, Config, Files, Hub, Progress, Source, Version, free_space, keys::Keys, locate,
        synth, synthesize,
    },
};
use half::{bf16, f16};
use hub::{Answer, COMMIT, Server, TEXT, UNET, VAE, sha256};
use torch::{Pickle, Tensor, state_dict};

const LICENCE: &str = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid";

/// A temporary hub cache.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn hub(&self, endpoint: &str) -> Hub {
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

fn fetch(hub: Hub) -> Result<Files, Error> {
    locate(&Source::Hub(hub), Version::V1, &Cancel::default(), &mut |_| ())
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

/// Parts of the advice in errors about missing weights.
const ADVICE: [&str; 4] = [LICENCE, "HF_TOKEN", "model-dir", "model=lite"];

#[test]
fn files_are_downloaded_once_to_the_cache_of_huggingface_hub() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let mut reports = Vec::new();
    let source = Source::Hub(cache.hub(&server.endpoint()));
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
fn a_gated_repository_fails_before_any_download() {
    for status in [401, 403] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| match request.path.contains("stabilityai") {
            true => Answer::status(status, "Access to this model is restricted"),
            false => published.answer(request),
        });
        assert_refused(&cache, &server, &ADVICE);
        assert_refused(&cache, &server, &[&status.to_string(), "diffusion_pytorch_model"]);
        assert!(server.requests().iter().all(|request| request.method == "HEAD"));
    }
}

#[test]
fn error_responses_are_not_saved_as_files() {
    for status in [401, 403, 404] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| match request.path.starts_with("/cdn/") {
            true => Answer::status(status, "<html>no</html>"),
            false => published.answer(request),
        });
        assert_refused(
            &cache,
            &server,
            &["downloading", "venhancer_paper.pt", &status.to_string()],
        );
        assert_eq!(
            server.gets("venhancer_paper.pt").len(),
            1,
            "permanent failures are not retried"
        );
    }
}

#[test]
fn a_file_missing_on_the_hub_is_named() {
    let (cache, mut published) = (Cache::new(), hub::Files::new());
    published.0.remove(UNET);
    let server = Server::start(move |request| published.answer(request));
    assert_refused(&cache, &server, &["venhancer_paper.pt", "404", "model-dir"]);
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
fn server_errors_are_retried_a_limited_number_of_times() {
    for (failures, fine) in [(2, true), (usize::MAX, false)] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| match request.before < failures {
            true => Answer::status(500 + (request.before % 4) as u16, "later"),
            false => answers.answer(request),
        });
        match fine {
            true => assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published),
            false => {
                assert_refused(&cache, &server, &["502", "model-dir"]);
                assert_eq!(server.requests().len(), 3);
            }
        }
    }
}

#[test]
fn truncated_oversized_and_corrupt_downloads_are_refused() {
    type Spoil = fn(&mut Answer);
    let spoils: [(Spoil, &str); 3] = [
        (|answer| answer.body.truncate(123_456), "after 123456 of 700000 bytes"),
        (|answer| answer.body.extend([0; 100_000]), "more than its 700000 bytes"),
        (|answer| answer.body[1000] ^= 1, "its SHA-256 is"),
    ];
    for (spoil, text) in spoils {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| {
            // The server fails requests for the bytes behind its truncated file.
            let mut answer = match request.from {
                Some(from) if request.path.starts_with("/cdn/") && from >= 123_456 => {
                    return Answer::status(500, "");
                }
                _ => answers.answer(request),
            };
            if request.gets(UNET) && request.path.starts_with("/cdn/") {
                spoil(&mut answer);
            }
            answer
        });
        match text.starts_with("after") {
            // The error is that of the last retry.
            true => assert_refused(&cache, &server, &["downloading", "500"]),
            false => assert_refused(&cache, &server, &["downloading", text]),
        }
        // The failed download does not block the next one.
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    }
}

#[test]
fn a_response_without_a_checksum_is_refused() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(move |request| {
        let mut answer = published.answer(request);
        answer.headers.retain(|(name, _)| *name != "X-Linked-ETag");
        answer
    });
    assert_refused(&cache, &server, &["SHA-256"]);
}

#[test]
fn a_refused_connection_fails_soon() {
    let cache = Cache::new();
    let closed = Server::start(|_| Answer::default()).endpoint();
    let start = Instant::now();
    let error = fetch(cache.hub(&closed)).unwrap_err().to_string();
    for part in ADVICE {
        assert!(error.contains(part), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(cache.complete_files(), Vec::<PathBuf>::new());
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
    // The layout that Python's huggingface_hub writes.
    for (name, bytes) in &published.0 {
        let (folder, blob) = (cache.folder(name), cache.blob(name, bytes));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, bytes).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        let name = name.splitn(3, '/').nth(2).unwrap();
        let link = folder.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&blob, link).unwrap();
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
            for part in ["need 2200000 bytes", "2199999 free", "HF_HOME"] {
                assert!(error.contains(part), "{error}");
            }
            assert!(server.requests().iter().all(|request| request.method == "HEAD"));
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_download_resumes_later() {
    /// A small tmpfs, which only root can mount.
    struct Disk(tempfile::TempDir);
    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }
    let mount = |disk: &Disk, options: &str| {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(disk.0.path())
            .stderr(Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success())
    };
    let disk = Disk(tempfile::tempdir().unwrap());
    if !mount(&disk, "size=400k") {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let published = hub::Files::new();
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let cache = Cache::new();
    let hub = Hub {
        cache: disk.0.path().join("hub"),
        // The disk fills up after the check.
        free_space: |_| Ok(u64::MAX),
        ..cache.hub(&server.endpoint())
    };
    let error = fetch(hub.clone()).unwrap_err().to_string();
    for part in ["writing", "No space left", "HF_HOME"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(mount(&disk, "remount,size=8m"));
    assert_complete(&fetch(hub).unwrap(), &published);
    assert!(server.gets("venhancer_paper.pt")[1].from > Some(100_000));
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

/// Downloads according to the environment variables.
#[test]
#[ignore = "other tests run it in a subprocess"]
fn download_in_a_subprocess() {
    let hub = Hub::from_env().unwrap();
    match fetch(hub) {
        Ok(files) => println!("unet: {}", files.unet.path.display()),
        Err(error) => println!("error: {error}"),
    }
}

fn process(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "download_in_a_subprocess", "--ignored", "--nocapture"]);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HTTP_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

#[test]
fn concurrent_processes_download_each_file_once() {
    let (home, published) = (tempfile::tempdir().unwrap(), hub::Files::new());
    fs::write(home.path().join("token"), "from a file\n").unwrap();
    let server = Server::start(move |request| {
        thread::sleep(Duration::from_millis(20));
        published.answer(request)
    });
    let start = |()| process(home.path(), &format!("{}/", server.endpoint())).spawn().unwrap();
    let children = [(), ()].map(start);
    for child in children {
        let output = child.wait_with_output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let path = home.path().join("hub/models--jwhejwhe--VEnhancer/snapshots").join(COMMIT);
        assert!(output.contains(&format!("unet: {}", path.display())), "{output}");
    }
    let asked = server.requests();
    assert_eq!(asked.iter().filter(|request| request.path.starts_with("/cdn/")).count(), 3);
    assert_eq!(asked[0].token.as_deref(), Some("Bearer from a file"));
}

#[test]
fn the_environment_variables_of_huggingface_hub_are_used() {
    let (home, published) = (tempfile::tempdir().unwrap(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    let run = |variables: &[(&str, &str)]| {
        let mut command = process(home.path(), &server.endpoint());
        let output = command.envs(variables.iter().copied()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let output = run(&[("HF_HUB_OFFLINE", "true")]);
    assert!(output.contains("HF_HUB_OFFLINE is set"), "{output}");
    assert!(server.requests().is_empty());
    let cache = home.path().join("another");
    let output = run(&[("HF_HUB_CACHE", &cache.to_string_lossy()), ("HF_TOKEN", "a token")]);
    assert!(output.contains(&format!("unet: {}/models--", cache.display())), "{output}");
    assert_eq!(server.requests()[0].token.as_deref(), Some("Bearer a token"));
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
    let source = Source::Hub(cache.hub(&server.endpoint()));
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

// Model folders.

/// The smallest model with all parts.
fn tiny() -> Config {
    let text = r#"{
        "min_padded": [80, 128],
        "unet": {
            "latents": 4, "dim": 32, "head_dim": 8, "num_heads": 8, "context_dim": 48,
            "num_res_blocks": 1, "dim_mult": [1, 2, 4, 4]
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
        "text": {"width": 48, "heads": 4, "layers": 3}
    }"#;
    serde_json::from_str(text).unwrap()
}

fn in_folder(folder: &Path) -> Result<Files, Error> {
    let source = Source::Folder(folder.into());
    locate(&source, Version::V2, &Cancel::default(), &mut |_| ())
}

#[test]
fn a_folder_with_a_config_is_a_model_of_those_sizes() {
    let folder = tempfile::tempdir().unwrap();
    synthesize(folder.path(), &tiny(), DType::F32).unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.config, tiny());
    let config = &files.config;
    let open = |checkpoint: &Checkpoint, keys: Keys| {
        checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ()).unwrap()
    };
    let unet = open(&files.unet, config.unet_keys().unwrap());
    let expected = synth::weight("unet.time_embed.0.bias", 128, DType::F32, &Device::Cpu).unwrap();
    let found = unet.get(128, "time_embed.0.bias").unwrap();
    assert_eq!(found.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap());
    Denoiser::new(&config.unet, unet).unwrap();
    Vae::new(&config.vae, open(&files.vae, config.vae_keys().unwrap())).unwrap();
    TextTower::new(&config.text, open(&files.text, config.text_keys().unwrap())).unwrap();
    // The file of one network does not fit another.
    let error = files.vae.open(
        &config.unet_keys().unwrap(),
        DType::F32,
        &Device::Cpu,
        &Cancel::default(),
        &mut |_| (),
    );
    let error = error.err().unwrap().to_string();
    for part in ["vae.safetensors", "is missing", "mismatches", "more"] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_file(folder.path().join("text.safetensors")).unwrap();
    let error = in_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("text.safetensors is missing"), "{error}");
}

#[test]
fn an_invalid_config_is_an_error_that_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let good = serde_json::to_string(&tiny()).unwrap();
    for (from, to, text) in [
        ("\"dim\":32", "\"dim\":33", "33 channels, which is not a multiple"),
        ("\"dim\":32", "\"dim\":-1", "line 1"),
        ("\"dim\":32", "\"dimension\":32", "unknown field `dimension`"),
        ("\"heads\":4,", "", "missing field `heads`"),
        ("{", "", "line 1"),
    ] {
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn a_folder_may_contain_the_published_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("venhancer_v2.pt"), "").unwrap();
    let error = in_folder(folder.path()).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain(["diffusion_pytorch_model", "open_clip_pytorch_model.bin"])
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("no venhancer_v2.pt"), "{error}");
    fs::write(path("diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    fs::write(path("open_clip_pytorch_model.bin"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.unet.path, path("venhancer_v2.pt"));
    assert_eq!(files.vae.path, path("diffusion_pytorch_model.fp16.safetensors"));
    assert_eq!(files.text.path, path("open_clip_pytorch_model.bin"));
    assert_eq!(files.config, Config::full());
    // In the subfolders of the repository.
    fs::create_dir(path("vae")).unwrap();
    fs::write(path("vae/diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.vae.path, path("vae/diffusion_pytorch_model.fp16.safetensors"));
}

// PyTorch files.

/// A temporary folder with a PyTorch file.
struct Torch(tempfile::TempDir);

impl Torch {
    fn new(pickle: &[u8], storages: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        torch::write(&folder.path().join("weights.pt"), pickle, storages);
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("weights.pt")
    }

    fn copy(&self) -> PathBuf {
        self.0.path().join("weights.pt.f16.safetensors")
    }

    fn open(&self, keys: &[(&str, &[usize])]) -> Result<candle_nn::VarBuilder<'static>, Error> {
        let checkpoint = Checkpoint { path: self.path(), ignored_prefixes: vec!["visual.".into()] };
        let keys = keys.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ())
    }

    /// The values of a tensor.
    fn read(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let tensor = self.open(&[(name, shape)]).unwrap().get(shape, name).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn refusal(&self, keys: &[(&str, &[usize])]) -> String {
        let error = self.open(keys).err().unwrap().to_string();
        assert!(error.contains("weights.pt") && !self.copy().exists(), "{error}");
        error
    }
}

/// A one-dimensional tensor of a whole storage.
fn whole<'a>(kind: &'a str, storage: &'a str, shape: &'a [usize; 1]) -> Tensor<'a> {
    Tensor { kind, storage, length: shape[0], offset: 0, shape, strides: &[1] }
}

/// A file whose storage `0` contains 0, 1, ….
fn counting(pickle: Pickle, count: u16) -> Torch {
    let bytes: Vec<_> = (0..count).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    Torch::new(&pickle.end(), &[("0", &bytes)])
}

#[test]
fn all_float_types_are_read() {
    // Two exact values, a rounded one, then the smallest and the largest of f16.
    let numbers = [0.0, -1.5, 1.0 / 3.0, 6e-8, 65504.0_f64];
    let read = |kind, bytes: Vec<u8>| {
        let pickle = state_dict(Pickle::new(), &[("a", whole(kind, "0", &[5]))]);
        Torch::new(&pickle.end(), &[("0", &bytes)]).read("a", &[5])
    };
    let bytes = |encode: fn(f64) -> Vec<u8>| numbers.into_iter().flat_map(encode).collect();
    let expected = numbers.map(|n| f16::from_f64(n).to_f32());
    let f16_bytes = bytes(|n| f16::from_f64(n).to_le_bytes().into());
    assert_eq!(read("HalfStorage", f16_bytes), expected);
    assert_eq!(read("FloatStorage", bytes(|n| (n as f32).to_le_bytes().into())), expected);
    assert_eq!(read("DoubleStorage", bytes(|n| n.to_le_bytes().into())), expected);
    // bf16 would round the largest f16 up.
    let narrow = |n: f64| bf16::from_f64(n.min(60000.0));
    let bf16_bytes = bytes(|n| bf16::from_f64(n.min(60000.0)).to_le_bytes().into());
    let expected = numbers.map(|n| f16::from_f32(narrow(n).to_f32()).to_f32());
    assert_eq!(read("BFloat16Storage", bf16_bytes), expected);
}

#[test]
fn a_state_dict_may_be_nested_next_to_other_data() {
    let inner = |pickle| state_dict(pickle, &[("a", whole("FloatStorage", "0", &[4]))]);
    // {"epoch": 3, "state_dict": …, "rest": [None, (1.0, True)]}
    let pickle = Pickle::new().raw(b"}(").text("epoch").int(3).text("state_dict");
    let pickle = inner(pickle).text("rest").raw(b"](N").raw(b"G\x3f\xf0\0\0\0\0\0\0\x88\x86eu");
    assert_eq!(counting(pickle, 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(counting(inner(Pickle::new()), 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn parameters_are_read_as_tensors() {
    let tensor = whole("FloatStorage", "0", &[2]);
    let pickle = Pickle::new().raw(b"}").text("a").global("torch._utils", "_rebuild_parameter");
    let pickle = pickle.raw(b"(").tensor(&tensor).raw(b"\x88").dict().raw(b"tRs");
    assert_eq!(counting(pickle, 2).read("a", &[2]), [0.0, 1.0]);
}

#[test]
fn strided_views_of_a_shared_storage_are_read() {
    let view = |offset, shape, strides| Tensor {
        kind: "FloatStorage",
        storage: "0",
        length: 12,
        offset,
        shape,
        strides,
    };
    let tensors = [
        ("part", view(3, &[4], &[1])),
        ("transposed", view(0, &[4, 3], &[1, 4])),
        ("permuted", view(0, &[2, 2, 3], &[3, 6, 1])),
        ("columns", view(1, &[3, 2], &[4, 2])),
        ("expanded", view(5, &[2, 3], &[0, 0])),
        ("number", view(7, &[], &[])),
        ("empty", view(0, &[0, 3], &[3, 1])),
    ];
    let file = counting(state_dict(Pickle::new(), &tensors), 12);
    let keys: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor.shape)).collect();
    let weights = file.open(&keys).unwrap();
    for (name, expected) in [
        ("part", vec![3, 4, 5, 6]),
        ("transposed", vec![0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        ("permuted", vec![0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]),
        ("columns", vec![1, 3, 5, 7, 9, 11]),
        ("expanded", vec![5; 6]),
        ("number", vec![7]),
        ("empty", vec![]),
    ] {
        let shape = keys.iter().find(|(key, _)| *key == name).unwrap().1;
        let found = weights.get(shape, name).unwrap().flatten_all().unwrap();
        let expected: Vec<_> = expected.into_iter().map(|n| n as f32).collect();
        assert_eq!(found.to_vec1::<f32>().unwrap(), expected, "{name}");
    }
}

#[test]
fn a_view_that_exceeds_its_storage_is_refused() {
    for (offset, shape, strides) in [
        (0, &[13][..], &[1][..]),
        (9, &[4], &[1]),
        (0, &[3, 4], &[5, 1]),
        (0, &[usize::MAX >> 1, 4], &[1, 1]),
        (usize::MAX >> 1, &[1], &[1]),
        (0, &[2], &[usize::MAX >> 1]),
        (0, &[2, 2], &[1]),
    ] {
        let tensor =
            Tensor { kind: "FloatStorage", storage: "0", length: 99, offset, shape, strides };
        let file = counting(state_dict(Pickle::new(), &[("a", tensor)]), 12);
        let error = file.refusal(&[("a", shape)]);
        assert!(error.contains("exceeds its storage") || error.contains("has strides"), "{error}");
    }
}

#[test]
fn a_value_that_is_not_finite_in_f16_is_refused() {
    for number in [1e6_f32, f32::NAN, f32::NEG_INFINITY] {
        let pickle =
            state_dict(Pickle::new(), &[("some.weight", whole("FloatStorage", "0", &[1]))]);
        let file = Torch::new(&pickle.end(), &[("0", &number.to_le_bytes())]);
        let error = file.refusal(&[("some.weight", &[1])]);
        assert!(error.contains("some.weight") && error.contains("not finite"), "{error}");
    }
}

#[test]
fn a_pickle_that_would_run_code_is_refused() {
    let marker = std::env::temp_dir().join(format!("venhance-ran-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let calls = |module: &str, name: &str| {
        Pickle::new().global(module, name).text(&command).raw(b"\x85R").end()
    };
    for (module, name) in
        [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
    {
        let file = Torch::new(&calls(module, name), &[]);
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(&format!("{module}.{name}")), "{error}");
    }
    // Referred to before the tensors, and never called.
    let pickle = state_dict(Pickle::new().raw(b"(").global("os", "system").raw(b"1"), &[]);
    assert!(Torch::new(&pickle.end(), &[]).refusal(&[("a", &[1])]).contains("os.system"));
    // An allowed name that is called.
    let storage = Pickle::new().global("torch", "FloatStorage").int(1 << 30).raw(b"\x85R").end();
    assert!(Torch::new(&storage, &[]).refusal(&[("a", &[1])]).contains("the pickle calls"));
    assert!(!marker.exists());
}

#[test]
fn malformed_pickles_are_errors() {
    let deep = [&[0x80, 2, b'N'][..], &[0x85; 1 << 20], b"."].concat();
    // A tuple of itself, forty times: 2⁴⁰ elements if it were copied.
    let mut doubling = vec![0x80, 2, b')', b'q', 0];
    (0..40).for_each(|_| doubling.extend(*b"h\0h\0\x86q\0"));
    doubling.push(b'.');
    for (pickle, text) in [
        (&b""[..], "truncated"),
        (b"\x80\x02", "truncated"),
        (b"\x80\x04.", "protocol 4"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02u.", "empty stack"),
        (b"\x80\x02N.", "no state dict"),
        (b"\x80\x02}h\x05.", "no entry 5"),
        (b"\x80\x02X\xff\xff\xff\xff.", "truncated"),
        (b"\x80\x02\x8a\xff.", "truncated"),
        (b"\x80\x02}K\x01K\x02s.", "a tensor name is an integer"),
        (b"\x80\x02}X\x01\0\0\0aK\x02s.", "a is not a tensor"),
        (b"\x80\x02\x93.", "unsupported opcode 0x93"),
        (&deep, "no state dict"),
        (&doubling, "no state dict"),
    ] {
        let error = Torch::new(pickle, &[]).refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn a_file_truncated_anywhere_is_an_error() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    for length in 0..bytes.len() {
        fs::write(file.path(), &bytes[..length]).unwrap();
        file.refusal(&[("a", &[12])]);
    }
    fs::write(file.path(), &bytes).unwrap();
    assert_eq!(file.read("a", &[12])[11], 11.0);
}

#[test]
fn a_flipped_byte_anywhere_does_not_panic() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 0xff;
        fs::write(file.path(), &changed).unwrap();
        // Either result is fine: many bytes are not read.
        let _ = file.open(&[("a", &[12])]);
        let _ = fs::remove_file(file.copy());
    }
}

#[test]
fn an_archive_that_expands_is_refused() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    // The central directory entry of the storage: 46 bytes, then its name.
    let name = b"archive/data/0";
    let entry = bytes.windows(name.len()).rposition(|part| part == name).unwrap() - 46;
    assert_eq!(bytes[entry..entry + 4], *b"PK\x01\x02");
    for (offset, value, text) in [
        (10, &8_u16.to_le_bytes()[..], "compressed"),
        (24, &0x7fff_0000_u32.to_le_bytes()[..], "has 2147418112 bytes"),
        (20, &1_u32.to_le_bytes()[..], "has 48 bytes"),
    ] {
        let mut changed = bytes.clone();
        changed[entry + offset..][..value.len()].copy_from_slice(value);
        fs::write(file.path(), changed).unwrap();
        let error = file.refusal(&[("a", &[12])]);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn missing_and_unexpected_tensors_are_named_and_ignored_ones_are_not() {
    let tensors = ["a", "b", "visual.c"].map(|name| (name, whole("FloatStorage", "0", &[4])));
    let file = counting(state_dict(Pickle::new(), &tensors), 4);
    let error = file.refusal(&[("a", &[2, 2]), ("c", &[4])]);
    for part in ["c [4] is missing", "a has shape [4], expected [2, 2]", "b [4] is unexpected"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("visual"), "{error}");
    file.open(&[("a", &[4]), ("b", &[4])]).unwrap();
}

#[test]
fn integer_tensors_are_refused() {
    let pickle = state_dict(Pickle::new(), &[("steps", whole("LongStorage", "0", &[1]))]);
    let file = Torch::new(&pickle.end(), &[("0", &[0; 8])]);
    assert!(file.refusal(&[("steps", &[1])]).contains("steps has dtype I64"));
}

#[test]
fn a_file_of_an_unknown_format_is_an_error() {
    for (bytes, text) in [
        (&b""[..], "weights.pt"),
        (b"<html>403 Forbidden</html>", "weights.pt"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "old format"),
    ] {
        let file = Torch(tempfile::tempdir().unwrap());
        fs::write(file.path(), bytes).unwrap();
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_converted_copy_is_used_until_the_file_changes() {
    let tensors = |offset| {
        let tensor = Tensor {
            kind: "FloatStorage",
            storage: "0",
            length: 12,
            offset,
            shape: &[2],
            strides: &[1],
        };
        state_dict(Pickle::new(), &[("a", tensor)])
    };
    let file = counting(tensors(3), 12);
    assert_eq!(file.read("a", &[2]), [3.0, 4.0]);
    let made = fs::metadata(file.copy()).unwrap().modified().unwrap();
    assert_eq!(file.read("a", &[2]), [3.0, 4.0]);
    assert_eq!(fs::metadata(file.copy()).unwrap().modified().unwrap(), made, "not converted again");
    // Another file of the same size.
    let other = counting(tensors(5), 12);
    fs::copy(other.path(), file.path()).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    // A damaged copy is replaced.
    let copy = fs::read(file.copy()).unwrap();
    fs::write(file.copy(), &copy[..copy.len() - 1]).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    assert_eq!(fs::read(file.copy()).unwrap(), copy);
}

/// Reads the file in the environment variable WEIGHTS.
#[test]
#[ignore = "another test runs it in a subprocess"]
fn read_in_a_subprocess() {
    let path = PathBuf::from(std::env::var_os("WEIGHTS").unwrap());
    let checkpoint = Checkpoint { path, ignored_prefixes: Vec::new() };
    let keys = Keys::from([("a".into(), vec![4])]);
    let cancel = Cancel::default();
    match checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ()) {
        Ok(weights) => {
            println!("read: {:?}", weights.get(4, "a").unwrap().to_vec1::<f32>().unwrap())
        }
        Err(error) => println!("error: {error}"),
    }
}

#[test]
fn the_copy_of_a_file_in_a_read_only_folder_is_in_the_users_cache() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let (file, cache) = (counting(pickle, 4), tempfile::tempdir().unwrap());
    // A folder in the place of the lock file stops even root.
    fs::create_dir(file.0.path().join("weights.pt.f16.safetensors.lock")).unwrap();
    let run = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "read_in_a_subprocess", "--ignored", "--nocapture"]);
        command.env("XDG_CACHE_HOME", cache.path()).env("WEIGHTS", file.path());
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    for _ in 0..2 {
        let output = run();
        assert!(output.contains("read: [0.0, 1.0, 2.0, 3.0]"), "{output}");
        let copies = fs::read_dir(cache.path().join("venhance")).unwrap();
        let copies: Vec<_> = copies.map(|entry| entry.unwrap().file_name()).collect();
        let copies = copies.iter().filter(|name| name.to_string_lossy().ends_with(".safetensors"));
        assert_eq!(copies.count(), 1);
    }
    assert!(!file.copy().exists());
}

#[test]
fn concurrent_threads_share_a_copy() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[60_000]))]);
    let file = counting(pickle, 60_000);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(file.read("a", &[60_000])[2047], 2047.0));
        }
    });
    let left: Vec<_> =
        fs::read_dir(file.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".incomplete")), "{left:?}");
}

#[test]
fn a_conversion_reports_its_progress() {
    let [a, b] = ["a", "b"].map(|name| (name, whole("FloatStorage", "0", &[60_000])));
    let file = counting(state_dict(Pickle::new(), &[a, b]), 60_000);
    let checkpoint = Checkpoint { path: file.path(), ignored_prefixes: Vec::new() };
    let keys = ["a", "b"].map(|name| (name.to_owned(), vec![60_000])).into();
    let mut reports = Vec::new();
    for _ in 0..2 {
        let mut progress = |progress| reports.push(progress);
        checkpoint
            .open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut progress)
            .unwrap();
    }
    let copy = file.copy().display().to_string();
    assert!(
        reports.iter().all(|report| report.file == copy && report.total == 240_000),
        "{reports:?}"
    );
    assert!(reports.is_sorted_by_key(|report| report.done), "{reports:?}");
    assert_eq!((reports[0].done, reports.last().unwrap().done), (0, 240_000));
}

#[test]
fn a_cancelled_conversion_leaves_no_copy() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let file = counting(pickle, 4);
    let checkpoint = Checkpoint { path: file.path(), ignored_prefixes: Vec::new() };
    let cancel = Cancel::default();
    cancel.cancel();
    let keys = Keys::from([("a".into(), vec![4])]);
    let result = checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ());
    assert_eq!(result.err(), Some(Error::Cancelled));
    assert!(!file.copy().exists());
    assert_eq!(file.read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}
