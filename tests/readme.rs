// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every command of the README runs.

mod common;

use std::{path::Path, process::Command};

/// The README's shell commands, block by block.
fn commands() -> Vec<&'static str> {
    include_str!("../README.md")
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .flat_map(str::lines)
        .collect()
}

#[test]
fn every_command_runs() {
    // scripts/test is what runs this test, after it has built the release.
    let (outer, commands): (Vec<_>, Vec<_>) = commands()
        .into_iter()
        .partition(|command| command.starts_with("scripts/") || command.starts_with("cargo "));
    let script = include_str!("../scripts/test");
    assert_eq!(outer, ["scripts/test", "cargo build --release"]);
    assert!(script.contains("\ncargo build --release\n"));

    let dir = tempfile::tempdir().unwrap();
    common::run(&format!(
        "videotestsrc num-buffers=16 ! video/x-raw,format=I420,width=96,height=64,framerate=8/1 ! x264enc ! queue \
         ! mp4mux name=m ! filesink location={} \
         audiotestsrc num-buffers=86 ! audio/x-raw,rate=44100,channels=2 ! avenc_aac ! queue ! m.",
        dir.path().join("in.mp4").display()
    ));
    // The plugin that was built for this test, in the place of the release.
    let exe = std::env::current_exe().unwrap();
    let plugin = exe.with_file_name("libgstvenhance.so");
    assert!(plugin.exists(), "{} is missing", plugin.display());
    let release = dir.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(&plugin, release.join("libgstvenhance.so")).unwrap();

    assert!(commands.len() >= 7, "{commands:?}");
    let script = format!("set -e\n{}\n", commands.join("\n"));
    // The first line comes before the one that says where the plugin is.
    let output = Command::new("bash")
        .args(["-ec", &script])
        .current_dir(dir.path())
        .env("GST_PLUGIN_PATH", &release)
        .env("GST_REGISTRY", dir.path().join("registry"))
        .env_remove("G_DEBUG")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    assert_result(&dir.path().join("out.mp4"));
    assert_result(&dir.path().join("out.webm"));
}

fn assert_result(file: &Path) {
    let video = common::decode(file);
    assert_eq!(video.info().width(), 192, "{}", file.display());
    assert!(video.times.len() >= 16);
}
