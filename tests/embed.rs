// SPDX-License-Identifier: MIT OR Apache-2.0
//! The programs that embed the element, in Rust, C and Python, and a timeline of GStreamer Editing Services.

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The plugin that was built for this test.
fn plugins() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().into()
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A command that finds the plugin and no weights.
fn command(program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env("GST_PLUGIN_PATH", plugins())
        .env("GST_REGISTRY", dir.join("registry"))
        .env("HF_HOME", dir.join("hub"))
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs a program that embeds the element: with `lite` it prints every frame and reports progress; without weights
/// it prints what to do and fails.
fn assert_embeds(program: &Path, dir: &Path) {
    let output = command(program, dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (frames, messages) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{messages}");
    let frames: Vec<&str> = frames.lines().collect();
    assert_eq!(frames.len(), 47, "{frames:?}");
    // The brightness grows by 10 an input frame, so by 5 an output frame.
    for (n, frame) in frames.iter().enumerate() {
        let (rest, value) = frame.rsplit_once(' ').unwrap();
        assert!(rest.ends_with(" 640x360"), "{frame}");
        assert!(value.parse::<usize>().unwrap().abs_diff(5 * n) <= 2, "frame {n}: {frame}");
    }
    assert!(messages.contains("venhance-progress"), "{messages}");

    for (model, said) in [("v1", "model-dir"), ("nonsense", "nonsense")] {
        let output = command(program, dir).arg(model).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let messages = text(&output.stderr);
        assert!(messages.contains(said), "{messages}");
        assert!(!messages.contains("Traceback"), "{messages}");
    }
}

#[test]
fn a_rust_program_embeds_the_element() {
    let dir = tempfile::tempdir().unwrap();
    assert_embeds(&plugins().with_file_name("examples").join("embed"), dir.path());
}

#[test]
fn a_python_program_embeds_the_element() {
    let dir = tempfile::tempdir().unwrap();
    assert_embeds(&example("embed.py"), dir.path());
}

#[test]
fn a_c_program_embeds_the_element() {
    let dir = tempfile::tempdir().unwrap();
    let compile = format!(
        "cc -Wall -Wextra -Werror {:?} -o embed $(pkg-config --cflags --libs gstreamer-app-1.0 gstreamer-video-1.0)",
        example("embed.c")
    );
    let status = command("sh", dir.path()).args(["-c", &compile]).status().unwrap();
    assert!(status.success());
    assert_embeds(&dir.path().join("embed"), dir.path());
}
