// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an enhancement leaves behind while it is under way, so that nothing is lost when it is cut off:
//! a Matroska file that plays, and an index of the pieces of it that are complete.
//!
//! A piece ends where a key frame begins a cluster. Going on after it means to cut the file off there
//! and to append more clusters: their times count from the beginning of the file.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use gst::ClockTime;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Everything that the frames depend on, as the index keeps it: name and value.
pub type Settings = Vec<(String, String)>;

/// Paths of what an enhancement leaves behind.
pub struct Paths {
    pub output: PathBuf,
    /// The Matroska file.
    pub video: PathBuf,
    /// One JSON object a line: settings, stream, then a line for each piece.
    pub index: PathBuf,
    /// The finished file before it has its name.
    pub finished: PathBuf,
}

impl Paths {
    pub fn new(output: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = output.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            output.with_file_name(name)
        };
        Self {
            output: output.to_owned(),
            video: with(".partial.mkv"),
            index: with(".partial.json"),
            finished: with(".partial.new"),
        }
    }

    /// Removes all of it.
    pub fn clear(&self) -> Result<(), Failure> {
        for path in [&self.finished, &self.video, &self.index] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::output(path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A place between two pieces, and how to go on there with frames as if nothing had been interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joint {
    /// The time of the first frame after it.
    pub time: ClockTime,
    /// Input frames before the first that is needed.
    pub skip: u64,
    /// The number of that frame in its clip.
    pub first: u32,
}

impl Joint {
    /// Where all begins.
    pub const BEGINNING: Self = Self { time: ClockTime::ZERO, skip: 0, first: 0 };
}

/// How far an enhancement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// What is after it is not in a complete piece.
    UpTo(Joint),
    /// Only the finished file is missing.
    Complete,
}

/// The files of an enhancement under way; locked, so that no other process writes them.
#[derive(Debug)]
pub struct Partial {
    video_path: PathBuf,
    index_path: PathBuf,
    video: File,
    index: File,
    /// Length of the video file.
    bytes: u64,
    /// Which stream the file holds: the model and the encoder's caps.
    stream: Option<String>,
    /// Whether the muxer's header is to be left out: the file has one.
    appends: bool,
    settings: Value,
}

/// What the index of an interrupted enhancement says.
struct Index {
    settings: Value,
    stream: Option<String>,
    bytes: u64,
    progress: Progress,
    /// Length of the lines that are whole.
    length: u64,
}

impl Partial {
    /// Begins anew; what is there is replaced.
    pub fn begin(paths: &Paths, settings: &Settings) -> Result<Self, Failure> {
        let mut partial = Self::open(paths, settings)?;
        partial.video.set_len(0).map_err(|error| Failure::output(&paths.video, &error))?;
        partial.index.set_len(0).map_err(|error| Failure::output(&paths.index, &error))?;
        partial.note(&json!({ "settings": partial.settings }))?;
        Ok(partial)
    }

    /// Goes on after the last complete piece; begins anew if there is none.
    pub fn resume(paths: &Paths, settings: &Settings) -> Result<(Self, Option<Progress>), Failure> {
        let mut partial = Self::open(paths, settings)?;
        let index = partial.read_index()?.filter(|index| match partial.video.metadata() {
            Ok(video) => video.len() >= index.bytes && index.bytes > 0,
            Err(_) => false,
        });
        let Some(index) = index else {
            drop(partial);
            return Ok((Self::begin(paths, settings)?, None));
        };
        partial.check_settings(&index.settings, &paths.video)?;
        (partial.stream, partial.bytes, partial.appends) = (index.stream, index.bytes, true);
        let cut = |file: &mut File, length| {
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length)).map(|_| ())
        };
        cut(&mut partial.video, index.bytes).map_err(|e| Failure::output(&paths.video, &e))?;
        cut(&mut partial.index, index.length).map_err(|e| Failure::output(&paths.index, &e))?;
        Ok((partial, Some(index.progress)))
    }

    fn open(paths: &Paths, settings: &Settings) -> Result<Self, Failure> {
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(|error| Failure::output(path, &error))
        };
        let video = open(&paths.video)?;
        match video.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let error = io::Error::other("another process is writing it");
                return Err(Failure::output(&paths.video, &error));
            }
            // Not every file system can lock.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self {
            index: open(&paths.index)?,
            video,
            video_path: paths.video.clone(),
            index_path: paths.index.clone(),
            bytes: 0,
            stream: None,
            appends: false,
            settings: settings.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect(),
        })
    }

    /// Reads the whole lines; a torn last one is what a cut-off leaves.
    fn read_index(&mut self) -> Result<Option<Index>, Failure> {
        let mut text = Vec::new();
        self.index
            .read_to_end(&mut text)
            .map_err(|error| Failure::output(&self.index_path, &error))?;
        let mut index: Option<Index> = None;
        let mut length = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n") else { break };
            let Ok(entry) = serde_json::from_slice::<Value>(line) else { break };
            length += line.len() as u64 + 1;
            match (&mut index, entry.get("settings")) {
                (None, Some(settings)) => {
                    index = Some(Index {
                        settings: settings.clone(),
                        stream: None,
                        bytes: 0,
                        progress: Progress::UpTo(Joint::BEGINNING),
                        length,
                    });
                }
                (None, None) => break,
                (Some(index), _) => index.add(&entry, length),
            }
        }
        Ok(index)
    }

    /// The frames before and after the joint must be made alike.
    fn check_settings(&self, before: &Value, video: &Path) -> Result<(), Failure> {
        let names = [before, &self.settings].into_iter().filter_map(Value::as_object);
        let differs = names
            .flat_map(|settings| settings.keys())
            .find(|name| before.get(name.as_str()) != self.settings.get(name.as_str()));
        let Some(name) = differs else { return Ok(()) };
        let show = |settings: &Value| match settings.get(name) {
            Some(Value::String(text)) => text.clone(),
            _ => "the default".into(),
        };
        Err(Failure::usage(format!(
            "{} was made with another {name}: {}, not {}; give the same, or begin anew with \
             --overwrite",
            video.display(),
            show(before),
            show(&self.settings)
        )))
    }

    /// Takes note of what the file holds, before its first byte; it must be what it held before.
    pub fn stream(&mut self, stream: String) -> Result<(), Failure> {
        match &self.stream {
            None => {
                self.note(&json!({ "stream": stream }))?;
                self.stream = Some(stream);
                Ok(())
            }
            Some(before) if *before == stream => Ok(()),
            Some(before) => Err(Failure::usage(format!(
                "{} cannot be continued: the model or the encoder is no longer the same ({before}; \
                 now {stream}); begin anew with --overwrite",
                self.video_path.display()
            ))),
        }
    }

    /// Writes what comes from the muxer.
    pub fn write(&mut self, buffer: &gst::BufferRef) -> Result<(), Failure> {
        if self.appends && buffer.flags().contains(gst::BufferFlags::HEADER) {
            return Ok(());
        }
        let write = |video: &mut File| {
            let map = buffer.map_readable().map_err(io::Error::other)?;
            video.write_all(&map).map(|()| map.len())
        };
        let written =
            write(&mut self.video).map_err(|error| Failure::output(&self.video_path, &error))?;
        self.bytes += written as u64;
        Ok(())
    }

    /// All that has been written is complete up to a joint, after which is what comes next.
    pub fn end_piece(&mut self, joint: Joint) -> Result<(), Failure> {
        self.sync()?;
        let Joint { time, skip, first } = joint;
        let time = time.nseconds();
        self.note(&json!({ "bytes": self.bytes, "time": time, "skip": skip, "first": first }))
    }

    /// All frames have been written.
    pub fn complete(&mut self) -> Result<(), Failure> {
        self.sync()?;
        self.note(&json!({ "bytes": self.bytes, "complete": true }))
    }

    /// Whether there is anything in it.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn sync(&self) -> Result<(), Failure> {
        self.video.sync_data().map_err(|error| Failure::output(&self.video_path, &error))
    }

    fn note(&mut self, entry: &Value) -> Result<(), Failure> {
        self.index
            .write_all(format!("{entry}\n").as_bytes())
            .and_then(|()| self.index.sync_data())
            .map_err(|error| Failure::output(&self.index_path, &error))
    }
}

impl Drop for Partial {
    /// An enhancement that has not come to its first frame leaves nothing behind.
    fn drop(&mut self) {
        if self.is_empty() && self.video.metadata().is_ok_and(|video| video.len() == 0) {
            let _ = std::fs::remove_file(&self.video_path);
            let _ = std::fs::remove_file(&self.index_path);
        }
    }
}

impl Index {
    fn add(&mut self, entry: &Value, length: u64) {
        if let Some(stream) = entry.get("stream").and_then(Value::as_str) {
            self.stream = Some(stream.to_owned());
        }
        if let Some(bytes) = entry.get("bytes").and_then(Value::as_u64) {
            self.bytes = bytes;
        }
        let number = |name| entry.get(name).and_then(Value::as_u64);
        if let Some(time) = number("time") {
            self.progress = Progress::UpTo(Joint {
                time: ClockTime::from_nseconds(time),
                // Frames that are made again in vain do no harm.
                skip: number("skip").unwrap_or(0),
                first: number("first").and_then(|first| first.try_into().ok()).unwrap_or(0),
            });
        }
        if entry.get("complete").is_some() {
            self.progress = Progress::Complete;
        }
        self.length = length;
    }
}
