// SPDX-License-Identifier: MIT OR Apache-2.0
//! The index of an interrupted run of the application, from which `--resume` continues.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use crate::{
    assert_printable, cases, common,
    mutation::{apply, mutations, number},
};

const APPLICATION: &str = env!("CARGO_BIN_EXE_venhance");

/// Frames of the input.
const FRAMES: usize = 64;

/// A run that was interrupted after a piece or more.
struct Interrupted {
    folder: tempfile::TempDir,
    video: Vec<u8>,
    index: Vec<u8>,
}

impl Interrupted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        common::run(&format!(
            "videotestsrc pattern=snow num-buffers={FRAMES} ! video/x-raw,format=I420,width=48,height=32,framerate=8/1 \
             ! x264enc ! mp4mux ! filesink location={}",
            folder.path().join("in.mp4").display()
        ));
        let run = |command: &mut Command| {
            command.args(ARGUMENTS).current_dir(folder.path()).output().unwrap()
        };
        let whole = run(&mut Command::new(APPLICATION));
        assert!(whole.status.success(), "{}", text(&whole));
        let size = fs::metadata(folder.path().join("out.mkv")).unwrap().len();
        fs::remove_file(folder.path().join("out.mkv")).unwrap();
        // A limit for the size of files, in KiB, interrupts the run.
        let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", size * 6 / 10 / 1024);
        let cut = run(Command::new("bash").args(["-c", &limit, APPLICATION]));
        assert_eq!(cut.status.code(), Some(4), "{}", text(&cut));
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        let (video, index) = (read("out.mkv.partial.mkv"), read("out.mkv.partial.json"));
        assert!(index.split(|byte| *byte == b'\n').count() > 3, "no piece is complete");
        Self { folder, video, index }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Resumes with another index.
    fn resume(&self, index: &[u8]) -> Output {
        let _ = fs::remove_file(self.path("out.mkv"));
        fs::write(self.path("out.mkv.partial.mkv"), &self.video).unwrap();
        fs::write(self.path("out.mkv.partial.json"), index).unwrap();
        resume(self.folder.path())
    }

    /// Resumes with another index, and checks that the output can be read if that works. A wrong number in the index
    /// may leave frames out.
    fn check(&self, index: &[u8]) -> Output {
        let output = self.resume(index);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 2 | 3 | 4)), "{code:?}: {}", text(&output));
        assert_printable(&text(&output));
        if code == Some(0) {
            let video = common::decode(&self.path("out.mkv"));
            assert!((1..=FRAMES).contains(&video.times.len()), "{}", text(&output));
        }
        output
    }

    fn lines(&self) -> Vec<Value> {
        let lines = self.index.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}

const ARGUMENTS: [&str; 8] =
    ["in.mp4", "out.mkv", "--model", "lite", "--up-scale", "4", "--target-fps", "8"];

fn resume(folder: &Path) -> Output {
    let mut command = Command::new(APPLICATION);
    command.args(ARGUMENTS).arg("--resume").current_dir(folder).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn joined(lines: &[Value]) -> Vec<u8> {
    lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

/// Takes 5 s: the application runs ten times.
#[test]
fn an_index_that_no_run_writes_is_refused() {
    let interrupted = Interrupted::new();
    let output = interrupted.check(&interrupted.index);
    assert!(output.status.success(), "{}", text(&output));
    let lines = interrupted.lines();
    let bytes = lines.last().unwrap()["bytes"].as_u64().unwrap();
    let piece = json!({"bytes": bytes, "time": 2_000_000_000_u64, "skip": 15});
    let with = |name: &str, value: Value| {
        let mut piece = piece.clone();
        piece[name] = value;
        piece
    };
    for last in [
        with("time", json!(u64::MAX)),
        with("time", json!(i64::MAX as u64 + 1)),
        with("time", json!(0)),
        with("bytes", json!(0)),
        with("bytes", json!(interrupted.video.len() + 1)),
        with("skip", json!(1_u64 << 32)),
        with("more", json!(1)),
        json!({"bytes": 0, "complete": true}),
        json!({"bytes": bytes, "complete": false}),
    ] {
        let index = joined(&[&lines[..2], std::slice::from_ref(&last)].concat());
        let output = interrupted.resume(&index);
        assert_eq!(output.status.code(), Some(2), "{last}: {}", text(&output));
        for part in ["cannot resume out.mkv.partial.mkv", "start over with --overwrite"] {
            assert!(text(&output).contains(part), "{last}: {}", text(&output));
        }
    }
    // Nothing is written for a stream that never began.
    let complete = json!({"bytes": 5, "complete": true});
    let output = interrupted.resume(&joined(&[lines[0].clone(), complete]));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    // Texts of the index are escaped.
    let mut other = lines[0].clone();
    other["settings"]["--up-scale"] = json!("\u{1b}[31m");
    let output = interrupted.resume(&joined(&[&[other], &lines[1..]].concat()));
    assert!(text(&output).contains("--up-scale was \\u{1b}[31m and is now 4"), "{}", text(&output));
}

#[test]
fn links_in_the_place_of_temporary_files_are_not_followed() {
    let interrupted = Interrupted::new();
    let mine = interrupted.path("mine");
    fs::write(&mine, "mine").unwrap();
    let link = interrupted.path("out.mkv.partial.new");
    symlink(&mine, &link).unwrap();
    let output = interrupted.check(&interrupted.index);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!link.is_symlink());
    fs::remove_file(interrupted.path("out.mkv")).unwrap();
    for name in ["out.mkv.partial.mkv", "out.mkv.partial.json"] {
        for option in ["--resume", "--overwrite"] {
            let link = interrupted.path(name);
            symlink(&mine, &link).unwrap();
            let mut command = Command::new(APPLICATION);
            command.args(ARGUMENTS).arg(option).current_dir(interrupted.folder.path());
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(4), "{}", text(&output));
            assert!(text(&output).contains("it is a symbolic link"), "{}", text(&output));
            fs::remove_file(link).unwrap();
        }
        assert_eq!(fs::read(&mine).unwrap(), b"mine");
    }
}

/// Changes numbers of an index.
fn renumbered(lines: &[Value], changes: &[(Index, Index, u64)]) -> Vec<u8> {
    let mut lines = lines.to_vec();
    for (line, field, number) in changes {
        let at = 2 + line.index(lines.len() - 2);
        let names = ["bytes", "time", "skip"];
        lines[at][names[field.index(names.len())]] = json!(number);
    }
    joined(&lines)
}

proptest! {
    #![proptest_config(cases(3))]

    #[test]
    fn a_changed_index_is_continued_or_refused(
        changes in mutations(),
        numbers in proptest::collection::vec((any::<Index>(), any::<Index>(), number()), 1..3),
    ) {
        static RUN: std::sync::OnceLock<Interrupted> = std::sync::OnceLock::new();
        let interrupted = RUN.get_or_init(Interrupted::new);
        interrupted.check(&apply(interrupted.index.clone(), &changes));
        interrupted.check(&renumbered(&interrupted.lines(), &numbers));
    }
}
