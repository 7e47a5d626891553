// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests of the application share: how to run it, and what it works on.
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use super::common::{self, Video, decode, run};

pub fn venhance() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venhance"));
    command.env_remove("G_DEBUG").stdin(Stdio::null());
    command
}

/// A temporary folder for the files of one test.
pub struct Scratch(pub tempfile::TempDir);

pub const VIDEO: &str = "videotestsrc pattern=ball num-buffers=16 \
    ! video/x-raw,format=I420,width=96,height=64,framerate=8/1 ! x264enc ! queue";

/// Two seconds of sound from `encoder`.
pub fn audio(encoder: &str) -> String {
    format!(
        "audiotestsrc num-buffers=88 samplesperbuffer=1000 ! audio/x-raw,rate=44100,channels=2 ! audioconvert ! audioresample ! {encoder} ! queue"
    )
}

impl Scratch {
    pub fn new() -> Self {
        common::init();
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file with video and the given other streams.
    pub fn make(&self, name: &str, video: &str, muxer: &str, others: &[String]) -> PathBuf {
        let path = self.path(name);
        let others: Vec<_> = others.iter().map(|other| format!(" {other} ! m.")).collect();
        let location = path.display();
        run(&format!("{video} ! {muxer} name=m ! filesink location={location}{}", others.concat()));
        path
    }

    pub fn enhance(&self, arguments: &[&str]) -> Output {
        let mut child = venhance()
            .current_dir(self.0.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It prints less than a pipe holds.
        end(&mut child);
        child.wait_with_output().unwrap()
    }

    /// Enhances, and decodes what has come out.
    pub fn result(&self, arguments: &[&str]) -> Video {
        let output = self.enhance(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        self.nothing_left(arguments[1]);
        decode(&self.path(arguments[1]))
    }

    pub fn nothing_left(&self, output: &str) {
        for suffix in ["mkv", "json", "new"] {
            let path = self.path(&format!("{output}.partial.{suffix}"));
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

/// A small disk in memory, until it is dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// `None` where mounting is not permitted.
    pub fn mount(folder: &Path, size: &str) -> Option<Self> {
        mount(folder, &format!("size={size}")).then(|| Self(folder.to_owned()))
    }

    pub fn grow(&self) {
        assert!(mount(&self.0, "remount,size=64m"));
    }
}

fn mount(folder: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Starts a run, and leaves it running.
pub fn start(scratch: &Scratch, arguments: &[&str]) -> Child {
    let mut command = venhance();
    command.current_dir(scratch.0.path()).args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for a run, which must not hang.
pub fn end(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > common::TIMEOUT {
            child.kill().unwrap();
            panic!("venhance hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Number of lines in the index of a partial file: the settings, the stream, then each piece.
pub fn pieces(index: &Path) -> usize {
    std::fs::read_to_string(index).unwrap_or_default().lines().count()
}

/// The chapters of a Matroska or WebM file, each as "start-end titles" in milliseconds; an edition as "edition", and
/// chapters within others after a ">".
pub fn chapters(file: &Path) -> Vec<String> {
    fn add(entry: &gst::TocEntry, depth: usize, found: &mut Vec<String>) {
        let tags = entry.tags();
        let titles = tags.iter().flat_map(|tags| tags.iter_tag::<gst::tags::Title>());
        let titles = titles.map(|title| title.get().to_owned()).collect::<Vec<_>>().join("|");
        let (start, stop) = entry.start_stop_times().unwrap();
        found.push(match entry.entry_type() {
            gst::TocEntryType::Edition => "edition".into(),
            _ => {
                format!("{}{}-{} {titles}", ">".repeat(depth), start / 1_000_000, stop / 1_000_000)
            }
        });
        let depth = depth + usize::from(entry.entry_type() != gst::TocEntryType::Edition);
        entry.sub_entries().iter().for_each(|entry| add(entry, depth, found));
    }
    common::init();
    let discoverer = gst_pbutils::Discoverer::new(gst::ClockTime::from_seconds(10)).unwrap();
    let uri = gst::glib::filename_to_uri(file, None).unwrap();
    let toc = discoverer.discover_uri(&uri).unwrap().toc();
    let mut found = Vec::new();
    toc.iter().flat_map(|toc| toc.entries()).for_each(|entry| add(&entry, 0, &mut found));
    found
}

/// A file that GStreamer cannot make.
pub fn media(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/media").join(name)
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub fn fails(output: &Output, code: i32, why: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    assert!(text(output).contains(why), "{why:?} is not in {}", text(output));
}
