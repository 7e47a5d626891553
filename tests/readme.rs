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

const APPLICATION: &str = env!("CARGO_BIN_EXE_venhance");

/// The command of scripts/README.md, which has never been run to its end: it takes gigabytes of weights and hours.
const PUBLISHED: &str = "scripts/published example.mp4 published.mp4";

/// What is said, on both outputs, and whether it is a success.
fn says(command: &mut Command) -> (String, bool) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (text.into_owned(), output.status.success())
}

#[test]
fn the_published_example_is_compared_with_what_was_published() {
    assert!(include_str!("../scripts/README.md").contains(&format!("\n{PUBLISHED}\n")));
    let dir = tempfile::tempdir().unwrap();
    let video = |name: &str, frames: u32| {
        common::run(&format!(
            "videotestsrc num-buffers={frames} ! video/x-raw,format=I420,width=720,height=480,framerate=8/1 \
             ! x264enc speed-preset=ultrafast ! mp4mux ! filesink location={}",
            dir.path().join(name).display()
        ));
    };
    video("example.mp4", 49);
    video("short.mp4", 48);
    let scripts = dir.path().join("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/published");
    std::os::unix::fs::symlink(ours, scripts.join("published")).unwrap();
    std::os::unix::fs::symlink(APPLICATION, scripts.join("enhance")).unwrap();
    let run = |command: &str| {
        says(
            Command::new("bash")
                .args(["-ec", command])
                .current_dir(dir.path())
                .env_remove("G_DEBUG"),
        )
    };

    let (text, same) = run("scripts/published example.mp4 --plan");
    assert!(same && text.contains("windows: 8 of frames"), "{text}");
    let (text, same) = run("scripts/published short.mp4 --plan");
    assert!(
        !same && text.contains("differs from the authors' log, which has: frames: 49 in the input (from its duration), 145 in the output"),
        "{text}"
    );
    assert!(
        text.contains("frames: 48 in the input (from its duration), 142 in the output")
            && !text.contains("which has: resolution"),
        "{text}"
    );
    let (text, same) = run("scripts/published example.mp4 --plan --solver heun");
    assert!(!same && text.contains("which has: evaluations: 14 per window"), "{text}");

    // The plan is the application's; the run is played.
    std::fs::rename(scripts.join("enhance"), scripts.join("real")).unwrap();
    for (frames, expected) in [(145, true), (144, false)] {
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n*--plan*) exec scripts/real \"$@\";;\n\
             *) echo \"$2: {frames} frames of 1982x1320 at 24 fps in 1:02:03, 0.0 a second\";;\nesac\n"
        );
        std::fs::write(scripts.join("enhance"), script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(scripts.join("enhance"), mode).unwrap();
        let (text, same) = run(PUBLISHED);
        assert_eq!(same, expected, "{text}");
        let said =
            if expected { "As published: 145" } else { "which has: 145 frames of 1982x1320" };
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn every_command_runs() {
    // These are run by scripts/test itself, which runs this test: with the feature serve, which includes cli.
    let outer = ["scripts/enhance", "scripts/test", "cargo build --release --features cli"];
    let (outside, commands): (Vec<_>, Vec<_>) =
        commands().into_iter().partition(|command| outer.contains(command));
    assert_eq!(outside, outer);
    let script = include_str!("../scripts/test");
    assert!(
        script.contains("\ncargo build --release --features serve\n")
            && script.contains(" scripts/enhance\n")
    );

    let dir = tempfile::tempdir().unwrap();
    common::run(&format!(
        "videotestsrc num-buffers=16 ! video/x-raw,format=I420,width=96,height=64,framerate=8/1 ! x264enc ! queue \
         ! mp4mux name=m ! filesink location={} \
         audiotestsrc num-buffers=86 ! audio/x-raw,rate=44100,channels=2 ! avenc_aac ! queue ! m.",
        dir.path().join("in.mp4").display()
    ));
    // The plugin and the example that were built for this test, in the place of the release.
    let exe = std::env::current_exe().unwrap();
    let plugin = exe.with_file_name("libgstvenhance.so");
    let make_model = exe.parent().unwrap().with_file_name("examples").join("make_model");
    for built in [&plugin, &make_model] {
        assert!(built.exists(), "{} is missing", built.display());
    }
    let release = dir.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(&plugin, release.join("libgstvenhance.so")).unwrap();

    // scripts/enhance with arguments runs the application, here the one built for this test.
    let scripts = dir.path().join("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    std::os::unix::fs::symlink(APPLICATION, scripts.join("enhance")).unwrap();
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
    let script = script.replacen(
        "cargo run --release --features cli --example make_model --",
        &make_model.display().to_string(),
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
    for made in ["small.webm", "again.mp4", "joined.mp4"] {
        assert!(common::decode(&dir.path().join(made)).times.len() >= 31, "{made}");
    }
    for made in ["hevc.mkv", "picture.png", "enhanced/one.mp4", "timeline.mp4"] {
        assert!(dir.path().join(made).metadata().unwrap().len() > 1000, "{made}");
    }
}

fn assert_result(file: &Path) {
    let video = common::decode(file);
    assert_eq!(video.info().width(), 192, "{}", file.display());
    assert!(video.times.len() >= 16);
}
