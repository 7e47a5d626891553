// SPDX-License-Identifier: MIT OR Apache-2.0
//! The job file: one JSON object, made by `venhance plan` and read by the other commands.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use gst::ClockTime;
use gstvenhance::weights::create_new;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    args::{Args, Prompts},
    failure::Failure,
    partial::{ResumePoint, Settings, changes},
    properties::{self, Property},
    settings::{digest, hex},
};

/// Of the format.
const VERSION: u32 = 1;

/// Maximum size of a job file in bytes.
const MAX_SIZE: u64 = 64 << 20;

/// A video that is enhanced in pieces.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    pub version: u32,
    pub input: PathBuf,
    pub output: PathBuf,
    /// Whether an output of another job or run is replaced.
    pub overwrite: bool,
    /// As given by `--encoder` and `--quality`.
    pub encoder: Option<String>,
    pub quality: Option<u32>,
    /// Everything that the output depends on.
    pub settings: Settings,
    /// At least one.
    pub pieces: Vec<Piece>,
}

/// A piece of the output.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Number of output frames before it.
    pub start: u64,
    /// Number of its output frames.
    pub frames: u64,
    /// Running time of the first one in nanoseconds.
    pub time: u64,
    /// Number of input frames that are skipped.
    pub skip: u32,
    /// Number of input frames after these, before the first one that is part of the output.
    pub warm_up: u32,
    /// An estimate of the number of output frames that are computed: with those of the warm-up.
    pub cost: u64,
    /// The name of its file, without an extension, in the folder of the pieces.
    pub name: String,
}

impl Piece {
    /// The name of the piece with this number.
    pub fn name_of(index: usize) -> String {
        format!("{index:04}")
    }

    pub fn start(&self) -> ResumePoint {
        let Self { start, time, skip, .. } = *self;
        ResumePoint { time: ClockTime::from_nseconds(time), skip, frames: start }
    }

    /// Number of output frames of the whole video up to its end.
    pub fn end(&self) -> u64 {
        self.start + self.frames
    }
}

/// A job and its file.
pub struct JobFile {
    pub path: PathBuf,
    /// Tells it from other jobs with the same output.
    pub id: String,
    pub job: Job,
    /// Folder of the pieces, which no other job uses.
    pub folder: PathBuf,
}

/// Says that a job is finished, in a file beside the job file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Joined {
    /// The id of the job.
    job: String,
    /// That of its output.
    digest: String,
}

impl JobFile {
    pub fn new(path: &Path, job: Job) -> Result<Self, Failure> {
        let text =
            serde_json::to_vec(&job).map_err(|error| Failure::output(path, &error.into()))?;
        let id = hex(&Sha256::digest(text))[..16].to_owned();
        let mut folder = job.output.clone().into_os_string();
        folder.push(format!(".{id}.pieces"));
        Ok(Self { path: path.to_owned(), id, job, folder: folder.into() })
    }

    /// Reads a job file.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text));
        read.map_err(|error| Failure::input(path, error))?;
        let job: Job = serde_json::from_slice(&text).map_err(|error| {
            Failure::input(
                path,
                format!("it is no job file ({error}); make one with venhance plan"),
            )
        })?;
        job.check().map_err(|why| {
            Failure::input(path, format!("{why}; make another job file with venhance plan"))
        })?;
        Self::new(path, job)
    }

    /// Reads a job file, or all job files of a folder in the order of their names.
    pub fn open_all(path: &Path) -> Result<Vec<Self>, Failure> {
        if !path.is_dir() {
            return Ok(vec![Self::open(path)?]);
        }
        let failed = |error| Failure::input(path, error);
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
        let mut paths = paths.map_err(failed)?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        match paths.is_empty() {
            true => Err(Failure::input(path, "there is no job file in this folder")),
            false => paths.iter().map(|path| Self::open(path)).collect(),
        }
    }

    /// Writes the file under a temporary name and renames it. The job is not finished, also if it was before.
    pub fn write(&self) -> Result<(), Failure> {
        let failed = |error| Failure::output(&self.path, &error);
        match std::fs::remove_file(self.joined()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let text = serde_json::to_vec_pretty(&self.job).map_err(|error| failed(error.into()))?;
        write_whole(&self.path, &text).map_err(failed)
    }

    /// The command line of a run over the whole video.
    pub fn args(&self) -> Result<Args, Failure> {
        let Job { input, output, encoder, quality, settings, .. } = &self.job;
        let mut given = Vec::new();
        for pspec in properties::settable() {
            let Some(text) = settings.get(&format!("--{}", pspec.name())) else { continue };
            let value = properties::parse(&pspec, text).map_err(|why| {
                Failure::input(&self.path, format!("--{} {text:?}: {why}", pspec.name()))
            })?;
            given.push(Property { name: pspec.name().to_owned(), value });
        }
        Ok(Args {
            input: input.clone(),
            output: output.clone(),
            encoder: encoder.clone(),
            quality: *quality,
            resume: false,
            overwrite: false,
            compare: None,
            properties: given,
            prompts: Prompts::Given,
            save_dir: None,
            plan: false,
            measure: false,
            json_progress: false,
        })
    }

    /// Fails if the input or the program has changed since the plan.
    pub fn check_settings(&self, now: &Settings) -> Result<(), Failure> {
        match changes(&self.job.settings, now) {
            None => Ok(()),
            Some(changes) => Err(Failure::usage(format!(
                "{} is of another video or program: {changes}; plan again",
                self.path.display()
            ))),
        }
    }

    fn joined(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".joined");
        path.into()
    }

    /// Whether the output is there and of this job.
    pub fn is_joined(&self) -> bool {
        let text = File::open(self.joined()).and_then(|file| {
            let mut text = Vec::new();
            file.take(MAX_SIZE).read_to_end(&mut text).map(|_| text)
        });
        let joined = text.ok().and_then(|text| serde_json::from_slice::<Joined>(&text).ok());
        joined.is_some_and(|joined| {
            let is_whole = digest(&self.job.output).is_ok_and(|digest| digest == joined.digest);
            joined.job == self.id && is_whole
        })
    }

    /// Records that a file, which then gets the name of the output, is the output of this job. If that does not come
    /// about, the job is not finished.
    pub fn record_joined(&self, finished: &Path) -> Result<(), Failure> {
        let digest = digest(finished).map_err(|error| Failure::output(finished, &error))?;
        let path = self.joined();
        serde_json::to_vec(&Joined { job: self.id.clone(), digest })
            .map_err(io::Error::from)
            .and_then(|text| write_whole(&path, &text))
            .map_err(|error| Failure::output(&path, &error))
    }

    /// Fails if the output exists and may not be replaced.
    pub fn check_output(&self) -> Result<(), Failure> {
        let output = &self.job.output;
        match output.exists() && !self.job.overwrite {
            true => Err(Failure::usage(format!(
                "{} exists and is not the output of {}: move it away, or plan again with --overwrite",
                output.display(),
                self.path.display()
            ))),
            false => Ok(()),
        }
    }
}

impl Job {
    /// Number of output frames.
    pub fn frames(&self) -> u64 {
        self.pieces.last().map_or(0, Piece::end)
    }

    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("it has version {}, this program reads {VERSION}", self.version));
        }
        let mut before: Option<&Piece> = None;
        for (index, piece) in self.pieces.iter().enumerate() {
            let follows = match before {
                Some(before) => piece.start == before.end() && piece.time > before.time,
                None => piece.start == 0,
            };
            let possible = piece.start.checked_add(piece.frames).is_some()
                && piece.time <= i64::MAX as u64
                && piece.name == Piece::name_of(index);
            if !(follows && possible) || piece.frames == 0 {
                return Err(format!("its piece {index} is damaged"));
            }
            before = Some(piece);
        }
        before.map(|_| ()).ok_or_else(|| "it has no pieces".into())
    }

    /// The job of a run with the arguments `args` from `input` to `output`.
    pub fn new(
        args: &Args,
        (input, output): (PathBuf, PathBuf),
        settings: Settings,
        pieces: Vec<Piece>,
    ) -> Self {
        Self {
            version: VERSION,
            input,
            output,
            overwrite: args.overwrite,
            encoder: args.encoder.clone(),
            quality: args.quality,
            settings,
            pieces,
        }
    }
}

/// Writes a file under a temporary name of its own and renames it.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", unique()));
    let write = || {
        let mut file = create_new(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

/// A part of a name that no other process uses, also on another machine.
pub fn unique() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("{}-{now}", std::process::id())
}
