// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of the pieces, in a folder of the job that machines share.
//!
//! | file | |
//! |---|---|
//! | `0003.lock` | locked by the process that makes piece 3 |
//! | `0003.partial.mkv`, `0003.partial.json` | the partial file and its index |
//! | `0003-HASH.mkv` | the finished piece, named by its content |
//! | `0003.json` | the [`Record`], which makes the piece complete |
//! | `join.partial.mkv`, … | the files of a join until the output is complete |
//!
//! If a lock cannot be had, a process makes the piece under a name of its own. Whatever two processes do, a record and the
//! file that it names belong together.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use gstvenhance::weights::open_or_create;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::job::{JobFile, Piece, unique, write_whole};
use crate::{
    failure::Failure,
    partial::{Content, Paths, ResumePoint, Settings},
    settings::hex,
};

/// How the temporary files of a join begin.
pub const JOIN: &str = "join";

/// A record is smaller.
const MAX_RECORD: u64 = 1 << 20;

/// What is known of a finished piece.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The name of the file.
    file: String,
    bytes: u64,
    sha256: String,
    /// Number of its frames.
    frames: u64,
    /// Running times of the last frame and of its end in nanoseconds.
    last: u64,
    end: u64,
    /// As in a [`Content`].
    caps: String,
    /// Frames a second of the run that finished it.
    pub rate: f64,
}

/// The files of one piece.
pub struct Store<'a> {
    job: &'a JobFile,
    pub piece: &'a Piece,
}

/// The right to use the temporary names of a piece, while this exists.
pub struct Claim {
    pub paths: Paths,
    /// Locked, unless the names are unique.
    _lock: Option<File>,
}

impl<'a> Store<'a> {
    pub fn new(job: &'a JobFile, piece: &'a Piece) -> Self {
        Self { job, piece }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.job.folder.join(format!("{}{suffix}", self.piece.name))
    }

    fn paths(&self, suffix: &str) -> Paths {
        let how_to_continue = "make this piece again to continue";
        Paths { how_to_continue, ..Paths::new(&self.path(suffix)) }
    }

    /// Claims the temporary names of the piece. If another process has them, gives others.
    pub fn claim(&self) -> Result<Claim, Failure> {
        let (folder, path) = (&self.job.folder, self.path(".lock"));
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::output(folder, &error));
            }
            _ => {}
        }
        let lock = open_or_create(&path).map_err(|error| Failure::output(&path, &error))?;
        // `venhance status` holds it for a moment.
        let is_locked = (0..10).any(|_| {
            let is_locked = lock.try_lock().is_ok();
            if !is_locked {
                std::thread::sleep(Duration::from_millis(10));
            }
            is_locked
        });
        Ok(match is_locked {
            true => Claim { paths: self.paths(""), _lock: Some(lock) },
            // Also where the file system has no locks.
            false => Claim { paths: self.paths(&format!(".{}", unique())), _lock: None },
        })
    }

    /// Where the next piece starts; `None` after the last one.
    pub fn next_start(&self) -> Option<ResumePoint> {
        let next = self.job.job.pieces.iter().find(|next| next.start == self.piece.end())?;
        Some(next.start())
    }

    /// What its partial file depends on.
    pub fn settings(&self) -> Settings {
        let (job, piece) = (self.job.id.clone(), self.piece.name.clone());
        Settings::from([("job".into(), job), ("piece".into(), piece)])
    }

    /// The index of its partial file, and whether a process makes it.
    pub fn partial(&self) -> Option<(PathBuf, bool)> {
        let lock = File::open(self.path(".lock")).ok()?;
        let is_locked = lock.try_lock().is_err();
        let index = self.paths("").index;
        (is_locked || index.exists()).then_some((index, is_locked))
    }

    /// The record, if there is one, and its file has the right size.
    pub fn record(&self) -> Result<Record, String> {
        let path = self.path(".json");
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_RECORD).read_to_end(&mut text));
        read.map_err(|_| "missing".to_owned())?;
        let record: Record =
            serde_json::from_slice(&text).map_err(|_| "without a record".to_owned())?;
        let is_complete = record.frames == self.piece.frames && !record.file.contains('/');
        let length = self.file(&record).metadata().map_or(0, |metadata| metadata.len());
        match is_complete && length == record.bytes {
            true => Ok(record),
            false => {
                Err(format!("damaged: {} has {length} of {} bytes", record.file, record.bytes))
            }
        }
    }

    /// The record, if its file is as it was written.
    pub fn verified(&self) -> Result<Record, String> {
        let record = self.record()?;
        let found =
            checksum(&self.file(&record)).map_err(|error| format!("unreadable: {error}"))?;
        match found == record.sha256 {
            true => Ok(record),
            false => Err(format!("damaged: {} has changed", record.file)),
        }
    }

    fn file(&self, record: &Record) -> PathBuf {
        self.job.folder.join(&record.file)
    }

    /// The file of the piece, after the header if it is not the first one.
    pub fn open(&self, record: &Record) -> Result<File, Failure> {
        let path = self.file(record);
        let open = || {
            let mut file = File::open(&path)?;
            if self.piece.start > 0 {
                let header = header_length(&mut file)?;
                file.seek(SeekFrom::Start(header))?;
            }
            Ok(file)
        };
        open().map_err(|error: io::Error| Failure::input(&path, error))
    }

    /// Makes a complete partial file the piece.
    pub fn publish(&self, claim: Claim, content: &Content, rate: f64) -> Result<(), Failure> {
        let publish = |video: &Path| {
            let file = File::open(video)?;
            file.sync_all()?;
            let sha256 = checksum(video)?;
            let record = Record {
                file: format!("{}-{}.mkv", self.piece.name, &sha256[..16]),
                bytes: file.metadata()?.len(),
                sha256,
                frames: content.frames - self.piece.start,
                last: content.last.nseconds(),
                end: content.end.nseconds(),
                caps: content.caps.to_string(),
                rate,
            };
            fs::rename(video, self.file(&record))?;
            write_whole(&self.path(".json"), &serde_json::to_vec(&record)?)
        };
        let path = &claim.paths.video;
        publish(path).map_err(|error| Failure::output(path, &error))?;
        claim.paths.remove_temporary()
    }
}

impl Record {
    /// The content of the partial file up to the end of the piece.
    pub fn content(&self, piece: &Piece) -> Option<Content> {
        let time =
            |time: u64| (time <= i64::MAX as u64).then(|| gst::ClockTime::from_nseconds(time));
        Some(Content {
            frames: piece.end(),
            last: time(self.last)?,
            end: time(self.end)?,
            caps: self.caps.parse().ok()?,
        })
    }
}

/// Removes the files of all pieces, and the folder if nothing else is in it.
pub fn remove_all(job: &JobFile) {
    let folder = &job.folder;
    let remove = || {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.split(['.', '-']).next().unwrap_or_default();
            let known = [".mkv", ".json", ".lock", ".new"].iter().any(|end| name.ends_with(end));
            let mut numbers = job.job.pieces.iter().map(|piece| piece.name.as_str());
            if known && (number == JOIN || numbers.any(|name| name == number)) {
                fs::remove_file(path)?;
            }
        }
        fs::remove_dir(folder)
    };
    match remove() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("{} cannot be removed: {error}", folder.display());
        }
        _ => {}
    }
}

fn checksum(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// The number of bytes before the first cluster of a Matroska file (RFC 9559; elements: RFC 8794).
fn header_length(file: &mut File) -> io::Result<u64> {
    const SEGMENT: u32 = 0x1853_8067;
    const CLUSTER: u32 = 0x1f43_b675;
    let mut at = 0;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let (id, id_length) = number(file, true)?;
        if id == u64::from(CLUSTER) {
            return Ok(at);
        }
        let (size, size_length) = number(file, false)?;
        at += id_length + size_length;
        // A segment contains the other elements.
        if id != u64::from(SEGMENT) {
            at = at.checked_add(size).ok_or(io::ErrorKind::InvalidData)?;
        }
    }
}

/// Reads a number of a variable length, of which the leading zeros say the length. Returns it, with the bit that marks
/// the length if it is an id, and the length.
fn number(file: &mut File, is_id: bool) -> io::Result<(u64, u64)> {
    let mut first = [0];
    file.read_exact(&mut first)?;
    let rest = first[0].leading_zeros() as usize;
    if rest > 7 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes[8 - rest..])?;
    let marked = if is_id { first[0] } else { first[0] & !(0x80 >> rest) };
    if rest < 8 {
        bytes[7 - rest] = marked;
    }
    Ok((u64::from_be_bytes(bytes), rest as u64 + 1))
}
