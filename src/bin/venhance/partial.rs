// SPDX-License-Identifier: MIT OR Apache-2.0
//! The partial file of a run, from which `--resume` continues after an interruption or a crash: a Matroska
//! file that can be played, and an index of its complete pieces.
//!
//! A piece ends before a cluster that starts with a key frame. To resume, the file is truncated there and
//! more clusters are appended. This works because the times of clusters count from the start of the file.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use gst::ClockTime;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Everything that the output depends on, as pairs of name and value.
pub type Settings = Vec<(String, String)>;

/// The output and the files that exist while it is made.
pub struct Paths {
    pub output: PathBuf,
    /// The partial Matroska file.
    pub video: PathBuf,
    /// One JSON object a line: the settings, the stream, then each piece.
    pub index: PathBuf,
    /// The finished file until it is renamed to `output`.
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

    /// Removes the temporary files.
    pub fn remove_temporary(&self) -> Result<(), Failure> {
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

/// A boundary between two pieces, and what it takes to resume there with the same frames as without an
/// interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Running time of the first frame after it.
    pub time: ClockTime,
    /// Number of input frames before the first one that is needed.
    pub skip: u64,
    /// Index of that frame in its clip.
    pub first: u32,
}

impl ResumePoint {
    /// The start of the video.
    pub const START: Self = Self { time: ClockTime::ZERO, skip: 0, first: 0 };
}

/// How much of a video is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The pieces before this point are complete.
    UpTo(ResumePoint),
    /// All frames are in the partial file; only the finished file is missing.
    Complete,
}

/// The open partial file and its index. The file is locked against other processes.
#[derive(Debug)]
pub struct Partial {
    video_path: PathBuf,
    index_path: PathBuf,
    video: File,
    index: File,
    /// Length of the partial file.
    bytes: u64,
    /// The model and the caps of the encoded video in the file.
    stream: Option<String>,
    /// Whether to drop the muxer's header because the file has one.
    appends: bool,
    settings: Value,
}

/// The content of an index.
struct Index {
    settings: Value,
    stream: Option<String>,
    bytes: u64,
    progress: Progress,
    /// Length of the complete lines.
    length: u64,
}

impl Partial {
    /// Starts a new partial file. An existing one is replaced.
    pub fn create(paths: &Paths, settings: &Settings) -> Result<Self, Failure> {
        let mut partial = Self::open(paths, settings)?;
        partial.video.set_len(0).map_err(|error| Failure::output(&paths.video, &error))?;
        partial.index.set_len(0).map_err(|error| Failure::output(&paths.index, &error))?;
        partial.append(&json!({ "settings": partial.settings }))?;
        Ok(partial)
    }

    /// Opens the partial file after its last complete piece. Without such a piece, starts a new file and
    /// returns no progress.
    pub fn resume(paths: &Paths, settings: &Settings) -> Result<(Self, Option<Progress>), Failure> {
        let mut partial = Self::open(paths, settings)?;
        let index = partial.read_index()?.filter(|index| match partial.video.metadata() {
            Ok(video) => video.len() >= index.bytes && index.bytes > 0,
            Err(_) => false,
        });
        let Some(index) = index else {
            drop(partial);
            return Ok((Self::create(paths, settings)?, None));
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
                let error = io::Error::other("another process writes to it");
                return Err(Failure::output(&paths.video, &error));
            }
            // Some file systems do not support locks.
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

    /// Reads the complete lines. A crash can leave an incomplete last one.
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
                        progress: Progress::UpTo(ResumePoint::START),
                        length,
                    });
                }
                (None, None) => break,
                (Some(index), _) => index.add(&entry, length),
            }
        }
        Ok(index)
    }

    /// Fails if the settings of the interrupted run differ.
    fn check_settings(&self, before: &Value, video: &Path) -> Result<(), Failure> {
        let names = [before, &self.settings].into_iter().filter_map(Value::as_object);
        let differs = names
            .flat_map(|settings| settings.keys())
            .find(|name| before.get(name.as_str()) != self.settings.get(name.as_str()));
        let Some(name) = differs else { return Ok(()) };
        let show = |settings: &Value| match settings.get(name) {
            Some(Value::String(text)) => text.clone(),
            _ => "default".into(),
        };
        Err(Failure::usage(format!(
            "cannot resume {}: {name} was {} and is now {}; use the same value, or start over with \
             --overwrite",
            video.display(),
            show(before),
            show(&self.settings)
        )))
    }

    /// Records the stream before the first byte is written.
    ///
    /// # Errors
    /// If the file was started with another stream.
    pub fn set_stream(&mut self, stream: String) -> Result<(), Failure> {
        match &self.stream {
            None => {
                self.append(&json!({ "stream": stream }))?;
                self.stream = Some(stream);
                Ok(())
            }
            Some(before) if *before == stream => Ok(()),
            Some(before) => Err(Failure::usage(format!(
                "cannot resume {}: the model or the encoder has changed from {before} to {stream}; start \
                 over with --overwrite",
                self.video_path.display()
            ))),
        }
    }

    /// Writes a buffer of the muxer.
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

    /// Ends a piece: everything written so far comes before the resume point.
    pub fn end_piece(&mut self, point: ResumePoint) -> Result<(), Failure> {
        self.sync()?;
        let ResumePoint { time, skip, first } = point;
        let time = time.nseconds();
        self.append(&json!({ "bytes": self.bytes, "time": time, "skip": skip, "first": first }))
    }

    /// Marks the file as complete.
    pub fn complete(&mut self) -> Result<(), Failure> {
        self.sync()?;
        self.append(&json!({ "bytes": self.bytes, "complete": true }))
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn sync(&self) -> Result<(), Failure> {
        self.video.sync_data().map_err(|error| Failure::output(&self.video_path, &error))
    }

    fn append(&mut self, entry: &Value) -> Result<(), Failure> {
        self.index
            .write_all(format!("{entry}\n").as_bytes())
            .and_then(|()| self.index.sync_data())
            .map_err(|error| Failure::output(&self.index_path, &error))
    }
}

impl Drop for Partial {
    /// Removes the files if nothing has been written.
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
            self.progress = Progress::UpTo(ResumePoint {
                time: ClockTime::from_nseconds(time),
                // Without them, frames are computed that are not needed.
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
