// SPDX-License-Identifier: MIT OR Apache-2.0
//! The videos of a folder.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{failure::Failure, target::Container};

pub const VIDEO_EXTENSIONS: [&str; 24] = [
    "3gp", "asf", "avi", "flv", "gif", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg",
    "mts", "mxf", "ogm", "ogv", "qt", "ts", "vob", "webm", "wmv", "y4m", "yuv",
];

/// Number of names in a message.
const MOST_NAMES: usize = 10;

/// What a folder contains.
pub struct Folder {
    /// In the order of their names.
    pub videos: Vec<PathBuf>,
    /// Number of files and subfolders that are skipped.
    pub others: usize,
}

impl Folder {
    /// Finds the videos of a folder, and reports what is skipped.
    ///
    /// # Errors
    /// If there are none.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let (mut videos, mut others) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(|error| Failure::input(folder, error))? {
            let path = entry.map_err(|error| Failure::input(folder, error))?.path();
            match is_video(&path) {
                true => videos.push(path),
                false if !is_partial(&path) => others.push(path),
                false => {}
            }
        }
        if videos.is_empty() {
            let why = "there is no video in this folder; subfolders are not searched";
            return Err(Failure::input(folder, why));
        }
        videos.sort();
        // A prompt.
        others.retain(|path| {
            let of = |video: &PathBuf| video.with_extension("txt") == *path;
            !videos.iter().any(of)
        });
        others.sort();
        if !others.is_empty() {
            let names = others.iter().take(MOST_NAMES).map(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}{}", if path.is_dir() { "/" } else { "" })
            });
            let names = names.collect::<Vec<_>>().join(", ");
            let more = if others.len() > MOST_NAMES { ", …" } else { "" };
            eprintln!("{}: skipping {names}{more}: not named like videos", folder.display());
        }
        Ok(Self { videos, others: others.len() })
    }

    /// The videos, each with its output in the folder `output`.
    ///
    /// # Errors
    /// If an output would replace an input or another output.
    pub fn jobs(&self, output: &Path) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
        let videos = self.videos.iter();
        let jobs: Vec<_> =
            videos.map(|video| (video.clone(), self::output(video, output))).collect();
        check_conflicts(&jobs)?;
        Ok(jobs)
    }
}

/// The output for `input` in a folder: of the same name if it is that of an output format, else .mp4.
pub fn output(input: &Path, folder: &Path) -> PathBuf {
    let name = PathBuf::from(input.file_name().unwrap_or_default());
    let name = if Container::of(&name).is_ok() { name } else { name.with_extension("mp4") };
    folder.join(name)
}

fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    VIDEO_EXTENSIONS.contains(&extension.as_str()) && path.is_file() && !is_partial(path)
}

/// Whether a file is one of an interrupted run.
fn is_partial(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ["mkv", "json", "new"].iter().any(|suffix| name.ends_with(&format!(".partial.{suffix}")))
}

fn check_conflicts(jobs: &[(PathBuf, PathBuf)]) -> Result<(), Failure> {
    let inputs: HashMap<_, _> =
        jobs.iter().map(|(input, _)| (with_real_folder(input), input)).collect();
    let mut outputs: HashMap<&PathBuf, &PathBuf> = HashMap::new();
    for (input, output) in jobs {
        let conflict = match inputs.get(&with_real_folder(output)) {
            Some(other) => Some(format!("{} would replace {}", input.display(), other.display())),
            None => outputs.insert(output, input).map(|other| {
                let (other, output) = (other.display(), output.display());
                format!("{other} and {} would both become {output}", input.display())
            }),
        };
        if let Some(conflict) = conflict {
            return Err(Failure::usage(format!("{conflict}: rename one, or use another folder")));
        }
    }
    Ok(())
}

/// The path with the links of its folder resolved; the file itself need not exist.
fn with_real_folder(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.unwrap_or_default().join(path.file_name().unwrap_or_default())
}
