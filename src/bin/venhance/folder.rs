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
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(input).map_err(|error| Failure::input(input, error))? {
        let path = entry.map_err(|error| Failure::input(input, error))?.path();
        if is_video(&path) {
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            let name = if Container::of(&name).is_ok() { name } else { name.with_extension("mp4") };
            jobs.push((path, output.join(name)));
        }
    }
    if jobs.is_empty() {
        return Err(Failure::input(input, "there is no video in this folder"));
    }
    jobs.sort();
    check_conflicts(&jobs)?;
    Ok(jobs)
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
