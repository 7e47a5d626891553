// SPDX-License-Identifier: MIT OR Apache-2.0
//! Downloads in other processes: environment variables, locks and limits.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use gstvenhance::weights::Hub;

use super::fetch;
use crate::hub::{self, COMMIT, Server};

/// With the limit of a shell for the size of files, because filling a disk takes one that only root can make.
#[test]
fn a_failed_write_is_an_error_and_the_download_resumes_later() {
    let (home, published) = (tempfile::tempdir().unwrap(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    let plain = process(home.path(), &server.endpoint());
    let mut limited = Command::new("sh");
    // In blocks of 512 or 1024 bytes.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 400; exec \"$0\" \"$@\""]);
    limited.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let output = |mut command: Command| {
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let error = output(limited);
    for part in ["error: writing", "File too large", "HF_HOME"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(output(plain).contains("unet: "));
    assert!(server.gets("venhancer_paper.pt")[1].from > Some(100_000));
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
    command.args([
        "--exact",
        "download::processes::download_in_a_subprocess",
        "--ignored",
        "--nocapture",
    ]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_uppercase();
        let used = ["HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME", "HTTP_PROXY", "ALL_PROXY"];
        if used.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
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
        let mut command = process(&home.path().join("unused"), &server.endpoint());
        command.env("HOME", home.path());
        let output = command.envs(variables.iter().copied()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for variable in [("HF_HUB_OFFLINE", "true"), ("TRANSFORMERS_OFFLINE", "1")] {
        let output = run(&[variable]);
        assert!(output.contains("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"), "{output}");
    }
    assert!(server.requests().is_empty());
    let folder = |name: &str| home.path().join(name).display().to_string();
    for (n, (variables, cache, token)) in [
        (
            vec![
                ("HF_HUB_CACHE", folder("a").as_str()),
                ("HF_TOKEN", "new"),
                // The old names, which the new ones replace.
                ("HUGGINGFACE_HUB_CACHE", "unused"),
                ("HUGGING_FACE_HUB_TOKEN", "unused"),
                ("HF_HUB_OFFLINE", "0"),
                ("TRANSFORMERS_OFFLINE", "1"),
            ],
            folder("a"),
            "new",
        ),
        (
            vec![
                ("HUGGINGFACE_HUB_CACHE", folder("b").as_str()),
                ("HUGGING_FACE_HUB_TOKEN", " old\n"),
            ],
            folder("b"),
            "old",
        ),
        (vec![("HF_HOME", "~/c"), ("HF_TOKEN", "x")], folder("c/hub"), "x"),
        (
            vec![("HF_HOME", "${HOME}/$UNSET_NAME"), ("HF_TOKEN_PATH", "~/token")],
            folder("$UNSET_NAME/hub"),
            "of a file",
        ),
        (vec![("HF_HUB_CACHE", "$HOME/d"), ("HF_TOKEN", "x")], folder("d"), "x"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(home.path().join("token"), "of a file\n").unwrap();
        let before = server.requests().len();
        let output = run(&variables);
        assert!(output.contains(&format!("unet: {cache}/models--")), "{n}: {output}");
        let sent = server.requests()[before].token.clone();
        assert_eq!(sent, Some(format!("Bearer {token}")), "{n}");
    }
}

#[test]
fn a_token_file_that_cannot_be_read_is_none() {
    let (home, published) = (tempfile::tempdir().unwrap(), hub::Files::new());
    let server = Server::start(move |request| published.answer(request));
    let fifo = home.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = process(home.path(), &server.endpoint());
    let output = command.env("HF_TOKEN_PATH", &fifo).output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("unet: "), "{output}");
    assert_eq!(server.requests()[0].token, None);
}
