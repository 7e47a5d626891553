// SPDX-License-Identifier: MIT OR Apache-2.0
//! The videos of a folder.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{failure::Failure, target::Container};

const VIDEO_EXTENSIONS: [&str; 24] = [
    "3gp", "asf", "avi", "flv", "gif", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg",
    "mts", "mxf", "ogm", "ogv", "qt", "ts", "vob", "webm", "wmv", "y4m", "yuv",
];

/// The videos of the folder `input` in the order of their names, each with its output in the folder
/// `output`.
///
/// # Errors
/// If there are none, or if an output would replace an input or another output.
pub fn jobs(input: &Path, output: &Path) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    let job = |path: PathBuf| {
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        let name = if Container::of(&name).is_ok() { name } else { name.with_extension("mp4") };
        let output = output.join(name);
        (path, output)
    };
    let jobs: Vec<_> = videos(input)?.into_iter().map(job).collect();
    check_conflicts(&jobs)?;
    Ok(jobs)
}

/// The videos of a folder in the order of their names.
///
/// # Errors
/// If there are none.
pub fn videos(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut videos = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Failure::input(folder, error))? {
        let path = entry.map_err(|error| Failure::input(folder, error))?.path();
        if is_video(&path) {
            videos.push(path);
        }
    }
    if videos.is_empty() {
        return Err(Failure::input(folder, "there is no video in this folder"));
    }
    videos.sort();
    Ok(videos)
}

fn is_video(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let partial = path.to_string_lossy().ends_with(".partial.mkv");
    VIDEO_EXTENSIONS.contains(&extension.as_str()) && path.is_file() && !partial
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
