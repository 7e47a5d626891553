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
    // These are run by scripts/test itself, which runs this test.
    let outer = ["scripts/enhance", "scripts/test", "cargo build --release"];
    let (outside, commands): (Vec<_>, Vec<_>) =
        commands().into_iter().partition(|command| outer.contains(command));
    assert_eq!(outside, outer);
    let script = include_str!("../scripts/test");
    assert!(script.contains("\ncargo build --release\n") && script.contains("\nscripts/enhance\n"));

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

    // scripts/enhance with arguments runs the application, here the one built for this test.
    let scripts = dir.path().join("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    let application = exe.parent().unwrap().with_file_name("examples/enhance");
    std::os::unix::fs::symlink(&application, scripts.join("enhance")).unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    std::fs::copy(dir.path().join("in.mp4"), dir.path().join("folder/one.mp4")).unwrap();

    assert!(commands.len() >= 12, "{commands:?}");
    let script = format!("set -e\n{}\n", commands.join("\n"));
    // The first line comes before the one that says where the plugin is. Its output is not in the way of
    // the application's, which replaces nothing.
    let script = script.replacen(
        "scripts/enhance in.mp4 out.mp4",
        "rm out.mp4\nscripts/enhance in.mp4 out.mp4",
        1,
    );
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
    for made in ["small.webm", "again.mp4"] {
        assert!(common::decode(&dir.path().join(made)).times.len() >= 31, "{made}");
    }
    for made in ["hevc.mkv", "picture.png", "enhanced/one.mp4"] {
        assert!(dir.path().join(made).metadata().unwrap().len() > 1000, "{made}");
    }
}

fn assert_result(file: &Path) {
    let video = common::decode(file);
    assert_eq!(video.info().width(), 192, "{}", file.display());
    assert!(video.times.len() >= 16);
}
