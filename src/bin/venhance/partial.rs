// SPDX-License-Identifier: MIT OR Apache-2.0
//! The partial file of a run, from which `--resume` continues after an interruption or a crash: a Matroska
//! file that can be played, and an index of its complete pieces.
//!
//! A piece ends before a cluster that starts with a key frame. To resume, the file is truncated there and
//! more clusters are appended. This works because the times of clusters count from the start of the file.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use gst::ClockTime;
use gstvenhance::{
    engine::printable,
    weights::{create_new, open_or_create},
};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind};

/// Everything that the output depends on, by name.
pub type Settings = BTreeMap<String, String>;

/// Maximum size of an index in bytes: enough for months of video.
const MAX_INDEX: u64 = 64 << 20;

/// The output and the files that exist while it is made.
pub struct Paths {
    pub output: PathBuf,
    /// The partial Matroska file.
    pub video: PathBuf,
    /// One JSON object a line: the settings, the stream, then each piece.
    pub index: PathBuf,
    /// The finished file until it is renamed to `output`.
    pub finished: PathBuf,
    /// What a user does to continue an interrupted run.
    pub how_to_continue: &'static str,
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
            how_to_continue: "continue with --resume",
        }
    }

    /// Creates the finished file, also in the place of an old one, so that no link is followed.
    pub fn create_finished(&self) -> Result<File, Failure> {
        create_new(&self.finished).map_err(|error| Failure::output(&self.finished, &error))
    }

    /// Fails if the output is something else than a file.
    pub fn check_output(&self) -> Result<(), Failure> {
        let Ok(metadata) = self.output.metadata() else { return Ok(()) };
        let output = self.output.display();
        match (metadata.is_dir(), metadata.is_file()) {
            (true, _) => Err(Failure::usage(format!(
                "{output} is a folder: use the name of a file for OUT, or a folder for IN"
            ))),
            (_, false) => Err(Failure::usage(format!("{output} is not a file: use another OUT"))),
            _ => Ok(()),
        }
    }

    fn written(&self) -> [&PathBuf; 4] {
        [&self.output, &self.video, &self.index, &self.finished]
    }

    /// Whether a file of this name is written.
    pub fn writes(&self, path: &Path) -> bool {
        self.written().into_iter().any(|written| written == path || same_file(written, path))
    }

    /// Fails if a file that is written is the input.
    pub fn check_input(&self, input: &Path) -> Result<(), Failure> {
        match self.written().into_iter().find(|path| same_file(path, input)) {
            None => Ok(()),
            Some(path) => Err(Failure::usage(format!(
                "the output {} would overwrite the input; use another OUT",
                path.display()
            ))),
        }
    }

    /// Gives the finished file the name of the output.
    pub fn publish(&self, finished: &File) -> Result<(), Failure> {
        finished
            .sync_all()
            .and_then(|()| std::fs::rename(&self.finished, &self.output))
            .map_err(|error| Failure::output(&self.output, &error))
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

/// Whether two paths lead to one file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// A boundary between two pieces, and what it takes to resume there with the same frames as without an
/// interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Running time of the first frame after it.
    pub time: ClockTime,
    /// Number of input frames before the first one that is needed.
    pub skip: u32,
    /// Number of output frames before it.
    pub frames: u64,
}

impl ResumePoint {
    /// The start of the video.
    pub const START: Self = Self { time: ClockTime::ZERO, skip: 0, frames: 0 };
}

/// The video of a complete partial file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub frames: u64,
    /// Running time of the last frame.
    pub last: ClockTime,
    /// Running time of its end.
    pub end: ClockTime,
    /// The encoder's caps. A Matroska file does not contain all of their fields.
    pub caps: gst::Caps,
}

/// How much of a video is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The pieces before this point are complete.
    UpTo(ResumePoint),
    /// All frames are in the partial file; only the finished file is missing.
    Complete(Content),
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
    /// Whether [`close`](Self::close) removes the files.
    discarded: bool,
    closed: bool,
    settings: Settings,
}

/// A line of the index.
#[derive(Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields)]
enum Entry {
    Settings {
        settings: Settings,
    },
    Stream {
        stream: String,
    },
    /// The pieces before a [`ResumePoint`] are complete: the first so many bytes of the file.
    Piece {
        bytes: u64,
        time: u64,
        skip: u32,
        frames: u64,
    },
    /// All of a [`Content`] is there.
    Complete {
        bytes: u64,
        complete: bool,
        frames: u64,
        last: u64,
        end: u64,
        caps: String,
    },
}

/// The content of an index.
struct Index {
    settings: Settings,
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
        partial.append(&Entry::Settings { settings: settings.clone() })?;
        Ok(partial)
    }

    /// Opens the partial file after its last complete piece. Without such a piece, starts a new file and
    /// returns no progress.
    ///
    /// # Errors
    /// If the index is damaged, does not belong to the partial file, or is from a run with other settings.
    pub fn resume(paths: &Paths, settings: &Settings) -> Result<(Self, Option<Progress>), Failure> {
        let mut partial = Self::open(paths, settings)?;
        let Some(index) = partial.read_index()?.filter(|index| index.bytes > 0) else {
            drop(partial);
            return Ok((Self::create(paths, settings)?, None));
        };
        let video = partial.video.metadata();
        let length = video.map_err(|error| Failure::output(&paths.video, &error))?.len();
        if length < index.bytes {
            let bytes = index.bytes;
            return Err(partial.unusable(&format!("it has {length} bytes, its index says {bytes}")));
        }
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
        let open =
            |path: &Path| open_or_create(path).map_err(|error| Failure::output(path, &error));
        let new = !paths.video.exists();
        let video = open(&paths.video)?;
        match video.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(
                    Kind::Output,
                    format!(
                        "another venhance process is writing {}; wait for it or use another OUT",
                        paths.video.display()
                    ),
                ));
            }
            // Some file systems do not support locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let index = open(&paths.index).inspect_err(|_| {
            if new {
                let _ = std::fs::remove_file(&paths.video);
            }
        })?;
        Ok(Self {
            index,
            video,
            video_path: paths.video.clone(),
            index_path: paths.index.clone(),
            bytes: 0,
            discarded: false,
            closed: false,
            stream: None,
            appends: false,
            settings: settings.clone(),
        })
    }

    /// Reads the complete lines. A crash can leave an incomplete last one.
    fn read_index(&mut self) -> Result<Option<Index>, Failure> {
        let mut text = Vec::new();
        let read = Read::by_ref(&mut self.index).take(MAX_INDEX + 1).read_to_end(&mut text);
        read.map_err(|error| self.unusable(&format!("its index cannot be read: {error}")))?;
        if text.len() as u64 > MAX_INDEX {
            return Err(self.unusable(&format!("its index has more than {MAX_INDEX} bytes")));
        }
        let mut index: Option<Index> = None;
        for (n, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let Some(json) = line.strip_suffix(b"\n") else { break };
            let entry = serde_json::from_slice(json).ok();
            entry
                .and_then(|entry| Index::add(&mut index, entry, line.len() as u64))
                .ok_or_else(|| self.unusable(&format!("line {} of its index is damaged", n + 1)))?;
        }
        Ok(index)
    }

    fn unusable(&self, why: &str) -> Failure {
        let video = self.video_path.display();
        Failure::usage(format!("cannot resume {video}: {why}; start over with --overwrite"))
    }

    /// Fails if the settings of the interrupted run differ.
    fn check_settings(&self, before: &Settings, video: &Path) -> Result<(), Failure> {
        let mut flags = String::new();
        for (name, was, _) in changed(before, &self.settings) {
            if name.starts_with("--") {
                flags.push_str(&format!(" {name} {}", quoted(was)));
            }
        }
        let Some(changes) = changes(before, &self.settings) else { return Ok(()) };
        let remedy = match &*flags {
            "" => "use the same input, encoder and version".to_owned(),
            flags => format!("use{flags}"),
        };
        Err(Failure::usage(format!(
            "cannot resume {}: {changes}; {remedy}, or start over with --overwrite",
            video.display(),
        )))
    }

    /// Records the stream before the first byte is written.
    ///
    /// # Errors
    /// If the file was started with another stream.
    pub fn set_stream(&mut self, stream: String) -> Result<(), Failure> {
        match &self.stream {
            None => {
                self.append(&Entry::Stream { stream: stream.clone() })?;
                self.stream = Some(stream);
                Ok(())
            }
            Some(before) if *before == stream => Ok(()),
            Some(before) => Err(Failure::usage(format!(
                "cannot resume {}: the model or the encoder has changed from {} to {stream}; start \
                 over with --overwrite",
                self.video_path.display(),
                printable(before)
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

    /// Appends the rest of a file: clusters.
    pub fn append_clusters(&mut self, clusters: &mut File) -> Result<(), Failure> {
        let copied = io::copy(clusters, &mut self.video);
        self.bytes += copied.map_err(|error| Failure::output(&self.video_path, &error))?;
        Ok(())
    }

    /// Ends a piece: everything written so far comes before the resume point.
    pub fn end_piece(&mut self, point: ResumePoint) -> Result<(), Failure> {
        self.sync()?;
        let ResumePoint { time, skip, frames } = point;
        let time = time.nseconds();
        self.append(&Entry::Piece { bytes: self.bytes, time, skip, frames })
    }

    /// Marks the file as complete.
    pub fn complete(&mut self, content: &Content) -> Result<(), Failure> {
        self.sync()?;
        let Content { frames, last, end, caps } = content;
        self.append(&Entry::Complete {
            bytes: self.bytes,
            complete: true,
            frames: *frames,
            last: last.nseconds(),
            end: end.nseconds(),
            caps: caps.to_string(),
        })
    }

    /// The lock, which holds as long as the result exists, also after this is dropped.
    pub fn lock(&self) -> Result<File, Failure> {
        self.video.try_clone().map_err(|error| Failure::output(&self.video_path, &error))
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Lets [`close`](Self::close) remove the files: they hold nothing but a header.
    pub fn discard(&mut self) {
        self.discarded = true;
    }

    /// Ends the run: removes the files if they were discarded or nothing has been written. Nothing may be written after
    /// this, because another run may open the files.
    pub fn close(&mut self) {
        let unwritten = || self.video.metadata().is_ok_and(|video| video.len() == 0);
        if !self.closed && (self.discarded || self.is_empty() && unwritten()) {
            let _ = std::fs::remove_file(&self.video_path);
            let _ = std::fs::remove_file(&self.index_path);
        }
        self.closed = true;
    }

    fn sync(&self) -> Result<(), Failure> {
        self.video.sync_data().map_err(|error| Failure::output(&self.video_path, &error))
    }

    fn append(&mut self, entry: &Entry) -> Result<(), Failure> {
        serde_json::to_vec(entry)
            .map_err(io::Error::from)
            .and_then(|line| self.index.write_all(&[&line[..], b"\n"].concat()))
            .and_then(|()| self.index.sync_data())
            .map_err(|error| Failure::output(&self.index_path, &error))
    }
}

/// The settings that differ: name, and both values.
fn changed<'a>(
    before: &'a Settings,
    now: &'a Settings,
) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    let both = now.iter().map(|(name, now)| {
        let was = before.get(name).map(String::as_str).unwrap_or_default();
        (name.as_str(), was, now.as_str())
    });
    both.filter(|(_, was, now)| was != now)
}

/// Which settings differ, if any do.
pub fn changes(before: &Settings, now: &Settings) -> Option<String> {
    let changes: Vec<_> = changed(before, now)
        .map(|(name, was, now)| format!("{name} was {} and is now {}", quoted(was), quoted(now)))
        .collect();
    (!changes.is_empty()).then(|| changes.join(", "))
}

/// Number of frames before the last resume point in an index that another process may be writing; 0 without a resume point.
pub fn frames_in(index: &Path) -> u64 {
    let Ok(file) = File::open(index) else { return 0 };
    let lines = BufReader::new(file.take(MAX_INDEX)).lines().map_while(Result::ok);
    let frames = lines.filter_map(|line| match serde_json::from_str(&line) {
        Ok(Entry::Piece { frames, .. } | Entry::Complete { frames, .. }) => Some(frames),
        _ => None,
    });
    frames.last().unwrap_or(0)
}

/// A value as it is written on a command line.
fn quoted(value: &str) -> String {
    let value = printable(value);
    match value.is_empty() || value.contains([' ', '\'', '"', '&', ';', '*', '$']) {
        true => format!("'{}'", value.replace('\'', r"'\''")),
        false => value,
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.close();
    }
}

impl Index {
    /// Adds an entry of `length` bytes, unless it cannot follow those before.
    fn add(index: &mut Option<Self>, entry: Entry, length: u64) -> Option<()> {
        let Some(index) = index else {
            let Entry::Settings { settings } = entry else { return None };
            let progress = Progress::UpTo(ResumePoint::START);
            *index = Some(Self { settings, stream: None, bytes: 0, progress, length });
            return Some(());
        };
        let Progress::UpTo(before) = &index.progress else { return None };
        let time = |nanoseconds: u64| {
            (nanoseconds <= i64::MAX as u64).then(|| ClockTime::from_nseconds(nanoseconds))
        };
        match entry {
            Entry::Stream { stream } if index.stream.is_none() => index.stream = Some(stream),
            Entry::Piece { bytes, time: nanoseconds, skip, frames }
                if index.stream.is_some() && bytes > index.bytes =>
            {
                let time = time(nanoseconds)?;
                if time <= before.time || frames < before.frames {
                    return None;
                }
                index.progress = Progress::UpTo(ResumePoint { time, skip, frames });
                index.bytes = bytes;
            }
            Entry::Complete { bytes, complete: true, frames, last, end, caps }
                if index.stream.is_some() && bytes >= index.bytes.max(1) =>
            {
                let (last, end, caps) = (time(last)?, time(end)?, caps.parse().ok()?);
                index.progress = Progress::Complete(Content { frames, last, end, caps });
                index.bytes = bytes;
            }
            _ => return None,
        }
        index.length += length;
        Some(())
    }
}
