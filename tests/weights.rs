// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights: what a hub does wrong never becomes a file, and files give the numbers that are in them or an
//! error.

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

/// A cache of its own.
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
            retry_after: Duration::from_millis(5),
            silence: Duration::from_secs(30),
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

    /// Files that a loader would take for weights: all but what says by its name that it is not whole.
    fn named(&self) -> Vec<PathBuf> {
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

/// All three files hold what the hub has.
fn assert_right(files: &Files, published: &hub::Files) {
    let paths = [(&files.unet, UNET), (&files.vae, VAE), (&files.text, TEXT)];
    for (checkpoint, name) in paths {
        assert!(fs::read(&checkpoint.path).unwrap() == published.0[name], "{name}");
    }
}

/// A failed fetch says so, and leaves nothing under a good name.
fn assert_refused(cache: &Cache, server: &Server, parts: &[&str]) {
    let error = fetch(cache.hub(&server.endpoint())).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(cache.named(), Vec::<PathBuf>::new());
}

/// Advice that an error about missing weights gives.
const ADVICE: [&str; 4] = [LICENCE, "HF_TOKEN", "model-dir", "model=lite"];

#[test]
fn files_come_from_the_hub_once_and_lie_where_its_own_tools_look() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let mut told = Vec::new();
    let source = Source::Hub(cache.hub(&server.endpoint()));
    let mut progress = |progress: Progress| told.push(progress);
    let files = locate(&source, Version::V1, &Cancel::default(), &mut progress).unwrap();
    assert_right(&files, &published);
    assert_eq!(files.config, Config::full());
    let total: u64 = published.0.values().map(|file| file.len() as u64).sum();
    assert!(told.iter().all(|progress| progress.total == total), "{told:?}");
    assert!(told.is_sorted_by_key(|progress| progress.done), "{told:?}");
    assert_eq!(told.last().unwrap().done, total);
    assert!(told.iter().any(|progress| progress.file == UNET), "{told:?}");
    let snapshot = cache.folder(VAE).join("snapshots").join(COMMIT);
    assert_eq!(files.vae.path, snapshot.join("vae/diffusion_pytorch_model.fp16.safetensors"));
    let link = fs::read_link(&files.vae.path).unwrap();
    assert_eq!(link, Path::new("../../../blobs").join(sha256(&published.0[VAE])));
    assert_eq!(fs::read_to_string(cache.folder(VAE).join("refs/main")).unwrap(), COMMIT);
    // All are asked for before any is downloaded, and only the hub is told the token.
    let asked = server.asked();
    let last_head = asked.iter().rposition(|request| request.method == "HEAD").unwrap();
    let first_get = asked.iter().position(|request| request.method == "GET").unwrap();
    assert!(last_head < first_get, "{asked:?}");
    for request in &asked {
        let told = request.token.as_deref();
        let expected = (!request.path.starts_with("/cdn/")).then_some("Bearer secret");
        assert_eq!(told, expected, "{request:?}");
    }
    assert_eq!(locate(&source, Version::V1, &Cancel::default(), &mut |_| ()), Ok(files));
    assert_eq!(server.asked().len(), asked.len(), "the cache does");
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| {
        let answer = answers.answer(request);
        match request.gets(UNET) && request.path.starts_with("/cdn/") && request.before < 3 {
            true => answer.cut(100_000),
            false => answer,
        }
    });
    assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    let gets = server.gets("venhancer_paper.pt");
    let from: Vec<_> = gets.iter().map(|request| request.from).collect();
    assert_eq!(from, [None, Some(100_000), Some(200_000), Some(300_000)]);
}

#[test]
fn what_another_process_left_is_gone_on_with_and_dropped_if_it_is_wrong() {
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
        assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
        let asked = server.gets("venhancer_paper.pt");
        let from: Vec<_> = asked.iter().map(|request| request.from).collect();
        assert_eq!(from, gets);
    }
}

#[test]
fn bytes_that_are_here_under_a_good_name_are_looked_at_before_they_get_another() {
    for (bytes, gets) in [(published_part(UNET, 700_000), 0), (vec![7; 700_000], 1)] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        let blob = cache.blob(UNET, &published.0[UNET]);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, bytes).unwrap();
        assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
        assert_eq!(server.gets("venhancer_paper.pt").len(), gets);
    }
}

fn published_part(name: &str, length: usize) -> Vec<u8> {
    hub::Files::new().0[name][..length].to_vec()
}

#[test]
fn a_server_that_knows_no_ranges_gives_all_again() {
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
    assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
}

#[test]
fn a_licence_that_is_missing_is_known_before_anything_is_downloaded() {
    for status in [401, 403] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| match request.path.contains("stabilityai") {
            true => Answer::status(status, "Access to this model is restricted"),
            false => published.answer(request),
        });
        assert_refused(&cache, &server, &ADVICE);
        assert_refused(&cache, &server, &[&status.to_string(), "diffusion_pytorch_model"]);
        assert!(server.asked().iter().all(|request| request.method == "HEAD"));
    }
}

#[test]
fn an_answer_that_is_no_file_never_becomes_one() {
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
        assert_eq!(server.gets("venhancer_paper.pt").len(), 1, "asking again would not help");
    }
}

#[test]
fn a_file_that_the_hub_does_not_have_is_named() {
    let (cache, mut published) = (Cache::new(), hub::Files::new());
    published.0.remove(UNET);
    let server = Server::start(move |request| published.answer(request));
    assert_refused(&cache, &server, &["venhancer_paper.pt", "404", "model-dir"]);
}

#[test]
fn the_text_tower_comes_under_either_of_its_names() {
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
fn a_server_in_trouble_is_asked_again_but_not_for_ever() {
    for (failures, fine) in [(2, true), (usize::MAX, false)] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| match request.before < failures {
            true => Answer::status(500 + (request.before % 4) as u16, "later"),
            false => answers.answer(request),
        });
        match fine {
            true => assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published),
            false => {
                assert_refused(&cache, &server, &["502", "model-dir"]);
                assert_eq!(server.asked().len(), 3);
            }
        }
    }
}

#[test]
fn a_short_a_long_and_a_changed_file_are_refused() {
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
            // As a server that has nothing else: what is asked for after its end is not there.
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
            // It broke off, and what was asked for then was not given.
            true => assert_refused(&cache, &server, &["downloading", "500"]),
            false => assert_refused(&cache, &server, &["downloading", text]),
        }
        // Nothing of it is in the way of the right one.
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    }
}

#[test]
fn a_hub_without_checksums_is_no_hub() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(move |request| {
        let mut answer = published.answer(request);
        answer.headers.retain(|(name, _)| *name != "X-Linked-ETag");
        answer
    });
    assert_refused(&cache, &server, &["SHA-256"]);
}

#[test]
fn without_a_network_the_error_comes_soon() {
    let cache = Cache::new();
    let closed = Server::start(|_| Answer::default()).endpoint();
    let start = Instant::now();
    let error = fetch(cache.hub(&closed)).unwrap_err().to_string();
    for part in ADVICE {
        assert!(error.contains(part), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(cache.named(), Vec::<PathBuf>::new());
}

#[test]
fn offline_the_cache_does_or_the_error_says_so() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(|_| Answer::status(500, ""));
    let hub = Hub { offline: true, ..cache.hub(&server.endpoint()) };
    let error = fetch(hub.clone()).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain(["HF_HUB_OFFLINE", "venhancer_paper.pt"]) {
        assert!(error.contains(part), "{part}: {error}");
    }
    // As Python's huggingface_hub leaves it.
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
    assert_right(&fetch(hub).unwrap(), &published);
    assert!(server.asked().is_empty());
}

#[test]
fn a_disk_without_room_is_found_out_before_anything_is_downloaded() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    // The files, and a copy of the first in another format.
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
            assert!(server.asked().iter().all(|request| request.method == "HEAD"));
        }
    }
}

#[test]
fn a_disk_that_fills_up_is_an_error_and_what_was_written_is_gone_on_with() {
    /// A disk of its own, which only root can have.
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
        eprintln!("skipped: this user cannot mount a small disk");
        return;
    }
    let published = hub::Files::new();
    let answers = published.clone();
    let server = Server::start(move |request| answers.answer(request));
    let cache = Cache::new();
    let hub = Hub {
        cache: disk.0.path().join("hub"),
        // It fills up after it was asked.
        free_space: |_| Ok(u64::MAX),
        ..cache.hub(&server.endpoint())
    };
    let error = fetch(hub.clone()).unwrap_err().to_string();
    for part in ["writing", "No space left", "HF_HOME"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(mount(&disk, "remount,size=8m"));
    assert_right(&fetch(hub).unwrap(), &published);
    assert!(server.gets("venhancer_paper.pt")[1].from > Some(100_000));
}

#[test]
fn two_at_once_download_each_file_once() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| {
        thread::sleep(Duration::from_millis(20));
        answers.answer(request)
    });
    thread::scope(|scope| {
        for _ in 0..2 {
            let hub = cache.hub(&server.endpoint());
            scope.spawn(|| assert_right(&fetch(hub).unwrap(), &published));
        }
    });
    let gets = server.asked().iter().filter(|request| request.path.starts_with("/cdn/")).count();
    assert_eq!(gets, 3);
}

/// What a process of its own does, whose variables are set.
#[test]
#[ignore = "other tests run it, with their variables"]
fn in_a_process_of_its_own() {
    let hub = Hub::from_env().unwrap();
    match fetch(hub) {
        Ok(files) => println!("unet: {}", files.unet.path.display()),
        Err(error) => println!("error: {error}"),
    }
}

fn process(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "in_a_process_of_its_own", "--ignored", "--nocapture"]);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HTTP_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

#[test]
fn two_processes_at_once_download_each_file_once_as_their_variables_say() {
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
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|request| request.path.starts_with("/cdn/")).count(), 3);
    assert_eq!(asked[0].token.as_deref(), Some("Bearer from a file"));
}

#[test]
fn the_variables_of_the_hubs_own_tools_count() {
    let (home, published) = (tempfile::tempdir().unwrap(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    let run = |variables: &[(&str, &str)]| {
        let mut command = process(home.path(), &server.endpoint());
        let output = command.envs(variables.iter().copied()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let output = run(&[("HF_HUB_OFFLINE", "true")]);
    assert!(output.contains("HF_HUB_OFFLINE is set"), "{output}");
    assert!(server.asked().is_empty());
    let cache = home.path().join("another");
    let output = run(&[("HF_HUB_CACHE", &cache.to_string_lossy()), ("HF_TOKEN", "a token")]);
    assert!(output.contains(&format!("unet: {}/models--", cache.display())), "{output}");
    assert_eq!(server.asked()[0].token.as_deref(), Some("Bearer a token"));
}

/// Falls silent after 100,000 bytes of the denoiser, unless it is asked for the rest.
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
fn a_cancelled_download_ends_within_a_second_and_goes_on_later() {
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
    assert_eq!(cache.named(), Vec::<PathBuf>::new());
    assert_right(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    assert_eq!(server.gets("venhancer_paper.pt").last().unwrap().from, Some(100_000));
}

#[test]
fn a_server_that_falls_silent_is_left_and_asked_for_the_rest() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = stalling(&published);
    let silence = Duration::from_millis(300);
    let start = Instant::now();
    let files = fetch(Hub { silence, ..cache.hub(&server.endpoint()) }).unwrap();
    // The server would be silent for ten seconds.
    let took = start.elapsed();
    assert!(took >= silence && took < Duration::from_secs(8), "{took:?}");
    assert_right(&files, &published);
    assert_eq!(server.gets("venhancer_paper.pt").last().unwrap().from, Some(100_000));
}

// Folders.

/// As small as a model can be and still have all its parts.
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
fn a_folder_with_a_config_is_a_model_of_its_size() {
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
    // The files of one network are none of another.
    let error = files.vae.open(
        &config.unet_keys().unwrap(),
        DType::F32,
        &Device::Cpu,
        &Cancel::default(),
        &mut |_| (),
    );
    let error = error.err().unwrap().to_string();
    for part in ["vae.safetensors", "is missing", "tensors,", "and "] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_file(folder.path().join("text.safetensors")).unwrap();
    let error = in_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("text.safetensors is missing"), "{error}");
}

#[test]
fn a_config_that_cannot_be_is_an_error_that_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let good = serde_json::to_string(&tiny()).unwrap();
    for (from, to, text) in [
        ("\"dim\":32", "\"dim\":33", "33 channels are no multiple"),
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
fn a_folder_may_hold_the_files_of_the_hub() {
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
    // With the folders of the repository.
    fs::create_dir(path("vae")).unwrap();
    fs::write(path("vae/diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.vae.path, path("vae/diffusion_pytorch_model.fp16.safetensors"));
}

// PyTorch files.

/// A folder with a PyTorch file.
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
        let checkpoint = Checkpoint { path: self.path(), unused: vec!["visual.".into()] };
        let keys = keys.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ())
    }

    /// The numbers of a tensor.
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

/// All numbers of a storage in a row.
fn whole<'a>(kind: &'a str, storage: &'a str, shape: &'a [usize; 1]) -> Tensor<'a> {
    Tensor { kind, storage, length: shape[0], offset: 0, shape, strides: &[1] }
}

/// A file with the numbers 0, 1, …, as the storage `0`.
fn counting(pickle: Pickle, count: u16) -> Torch {
    let bytes: Vec<_> = (0..count).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    Torch::new(&pickle.end(), &[("0", &bytes)])
}

#[test]
fn every_float_type_is_read() {
    // Exact in all of them, then rounded, then the smallest and the largest of f16.
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
    // The largest of f16 would be rounded up in bf16.
    let narrow = |n: f64| bf16::from_f64(n.min(60000.0));
    let bf16_bytes = bytes(|n| bf16::from_f64(n.min(60000.0)).to_le_bytes().into());
    let expected = numbers.map(|n| f16::from_f32(narrow(n).to_f32()).to_f32());
    assert_eq!(read("BFloat16Storage", bf16_bytes), expected);
}

#[test]
fn a_state_dict_may_be_wrapped_and_carry_plain_data() {
    let inner = |pickle| state_dict(pickle, &[("a", whole("FloatStorage", "0", &[4]))]);
    // {"epoch": 3, "state_dict": …, "rest": [None, (1.0, True)]}
    let pickle = Pickle::new().raw(b"}(").text("epoch").int(3).text("state_dict");
    let pickle = inner(pickle).text("rest").raw(b"](N").raw(b"G\x3f\xf0\0\0\0\0\0\0\x88\x86eu");
    assert_eq!(counting(pickle, 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(counting(inner(Pickle::new()), 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn parameters_are_tensors() {
    let tensor = whole("FloatStorage", "0", &[2]);
    let pickle = Pickle::new().raw(b"}").text("a").global("torch._utils", "_rebuild_parameter");
    let pickle = pickle.raw(b"(").tensor(&tensor).raw(b"\x88").dict().raw(b"tRs");
    assert_eq!(counting(pickle, 2).read("a", &[2]), [0.0, 1.0]);
}

#[test]
fn views_read_their_part_of_a_shared_storage() {
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
fn a_view_beyond_its_storage_is_refused() {
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
        assert!(error.contains("reaches beyond") || error.contains("has the strides"), "{error}");
    }
}

#[test]
fn a_number_without_a_place_in_f16_is_refused() {
    for number in [1e6_f32, f32::NAN, f32::NEG_INFINITY] {
        let pickle =
            state_dict(Pickle::new(), &[("some.weight", whole("FloatStorage", "0", &[1]))]);
        let file = Torch::new(&pickle.end(), &[("0", &number.to_le_bytes())]);
        let error = file.refusal(&[("some.weight", &[1])]);
        assert!(error.contains("some.weight") && error.contains("not finite"), "{error}");
    }
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name() {
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
    // Hidden behind tensors, and never called.
    let pickle = state_dict(Pickle::new().raw(b"(").global("os", "system").raw(b"1"), &[]);
    assert!(Torch::new(&pickle.end(), &[]).refusal(&[("a", &[1])]).contains("os.system"));
    // Known names in unknown roles.
    let storage = Pickle::new().global("torch", "FloatStorage").int(1 << 30).raw(b"\x85R").end();
    assert!(Torch::new(&storage, &[]).refusal(&[("a", &[1])]).contains("the pickle calls"));
    assert!(!marker.exists());
}

#[test]
fn pickles_that_make_no_sense_are_errors() {
    let deep = [&[0x80, 2, b'N'][..], &[0x85; 1 << 20], b"."].concat();
    // Doubles itself forty times.
    let mut doubling = vec![0x80, 2, b')', b'q', 0];
    (0..40).for_each(|_| doubling.extend(*b"h\0h\0\x86q\0"));
    doubling.push(b'.');
    for (pickle, text) in [
        (&b""[..], "ends too early"),
        (b"\x80\x02", "ends too early"),
        (b"\x80\x04.", "protocol 4"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02u.", "empty stack"),
        (b"\x80\x02N.", "no dictionary"),
        (b"\x80\x02}h\x05.", "remembers nothing"),
        (b"\x80\x02X\xff\xff\xff\xff.", "ends too early"),
        (b"\x80\x02\x8a\xff.", "ends too early"),
        (b"\x80\x02}K\x01K\x02s.", "a tensor's name is a number"),
        (b"\x80\x02}X\x01\0\0\0aK\x02s.", "a is no tensor"),
        (b"\x80\x02\x93.", "unknown code 0x93"),
        (&deep, "no dictionary"),
        (&doubling, "no dictionary"),
    ] {
        let error = Torch::new(pickle, &[]).refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_an_error() {
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
fn no_byte_of_a_header_can_bring_the_reader_down() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 0xff;
        fs::write(file.path(), &changed).unwrap();
        // Read or refused: most bytes change nothing that is looked at.
        let _ = file.open(&[("a", &[12])]);
        let _ = fs::remove_file(file.copy());
    }
}

#[test]
fn an_archive_that_unpacks_to_more_than_itself_is_refused() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    // The entry of the storage in the directory at the end: 46 bytes, then its name.
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
fn tensors_that_are_missing_or_extra_are_named_and_unused_ones_are_not() {
    let tensors = ["a", "b", "visual.c"].map(|name| (name, whole("FloatStorage", "0", &[4])));
    let file = counting(state_dict(Pickle::new(), &tensors), 4);
    let error = file.refusal(&[("a", &[2, 2]), ("c", &[4])]);
    for part in ["c [4] is missing", "a is [4], not [2, 2]", "b [4] is not of this network"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("visual"), "{error}");
    file.open(&[("a", &[4]), ("b", &[4])]).unwrap();
}

#[test]
fn numbers_that_no_weight_is_made_of_are_refused() {
    let pickle = state_dict(Pickle::new(), &[("steps", whole("LongStorage", "0", &[1]))]);
    let file = Torch::new(&pickle.end(), &[("0", &[0; 8])]);
    assert!(file.refusal(&[("steps", &[1])]).contains("steps is of I64"));
}

#[test]
fn a_file_that_is_of_no_format_is_an_error() {
    for (bytes, text) in [
        (&b""[..], "weights.pt"),
        (b"<html>403 Forbidden</html>", "weights.pt"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "old format"),
        // With pickle_protocol=4.
        (b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "old format"),
    ] {
        let file = Torch(tempfile::tempdir().unwrap());
        fs::write(file.path(), bytes).unwrap();
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{error}");
    }
}

/// As the published autoencoder's, whose header has 46,208 = 0xB480 bytes.
#[test]
fn a_safetensors_file_may_begin_with_the_first_byte_of_a_pickle() {
    let bytes = include_bytes!("fixtures/header_0x80.safetensors.bin");
    assert_eq!(bytes[0], 0x80);
    let file = Torch(tempfile::tempdir().unwrap());
    fs::write(file.path(), bytes).unwrap();
    let expected: Vec<f32> = bytes[bytes.len() - 24..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(file.read("a.weight", &[2, 3]), expected);
}

#[test]
fn the_copy_is_used_until_the_file_changes() {
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
    assert_eq!(fs::metadata(file.copy()).unwrap().modified().unwrap(), made, "not made again");
    // Of the same size, later.
    let other = counting(tensors(5), 12);
    fs::copy(other.path(), file.path()).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    // A copy that is damaged is made again.
    let copy = fs::read(file.copy()).unwrap();
    fs::write(file.copy(), &copy[..copy.len() - 1]).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    assert_eq!(fs::read(file.copy()).unwrap(), copy);
}

/// What a process of its own does, whose variables are set.
#[test]
#[ignore = "another test runs it, with its variables"]
fn reads_in_a_process_of_its_own() {
    let path = PathBuf::from(std::env::var_os("WEIGHTS").unwrap());
    let checkpoint = Checkpoint { path, unused: Vec::new() };
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
fn where_the_folder_cannot_be_written_the_copy_goes_to_the_users_cache() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let (file, cache) = (counting(pickle, 4), tempfile::tempdir().unwrap());
    // Not even root can make a file where a folder is.
    fs::create_dir(file.0.path().join("weights.pt.f16.safetensors.lock")).unwrap();
    let run = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "reads_in_a_process_of_its_own", "--ignored", "--nocapture"]);
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
fn two_at_once_share_a_copy() {
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
fn a_copy_says_how_far_it_has_come_once() {
    let [a, b] = ["a", "b"].map(|name| (name, whole("FloatStorage", "0", &[60_000])));
    let file = counting(state_dict(Pickle::new(), &[a, b]), 60_000);
    let checkpoint = Checkpoint { path: file.path(), unused: Vec::new() };
    let keys = ["a", "b"].map(|name| (name.to_owned(), vec![60_000])).into();
    let mut said = Vec::new();
    for _ in 0..2 {
        let mut progress = |progress| said.push(progress);
        checkpoint
            .open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut progress)
            .unwrap();
    }
    let copy = file.copy().display().to_string();
    assert!(said.iter().all(|said| said.file == copy && said.total == 240_000), "{said:?}");
    assert!(said.is_sorted_by_key(|said| said.done), "{said:?}");
    assert_eq!((said[0].done, said.last().unwrap().done), (0, 240_000));
}

#[test]
fn a_cancelled_copy_is_no_copy() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let file = counting(pickle, 4);
    let checkpoint = Checkpoint { path: file.path(), unused: Vec::new() };
    let cancel = Cancel::default();
    cancel.cancel();
    let keys = Keys::from([("a".into(), vec![4])]);
    let result = checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ());
    assert_eq!(result.err(), Some(Error::Cancelled));
    assert!(!file.copy().exists());
    assert_eq!(file.read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}
