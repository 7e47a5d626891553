// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance plan`: decides the pieces once.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use gst::{ClockTime, prelude::*};
use gstvenhance::{VEnhance, engine::count};
use parking_lot::Mutex;

use super::{
    boundaries::Candidates,
    job::{Job, JobFile, Piece},
};
use crate::{
    args::Division,
    failure::{Failure, Kind, make_enhancer},
    folder::{self, Folder},
    partial::{Paths, same_file},
    pipeline::{ScannedFrame, scan},
    report::Report,
    run::{End, Shown},
    session::{Prepared, Session, cancelled},
    source::Source,
};

/// Plans the video, or every video of the folder, that the session is for, and writes a job file or a folder of them.
/// Prints the number of pieces. A failure is reported and the other videos of the folder follow.
pub fn plan(session: &Session, division: Division, path: &Path) -> Result<(), Failure> {
    let (input, output) = (&session.args.input, &session.args.output);
    if !input.is_dir() {
        let output = match output.is_dir() {
            true => folder::output(input, output),
            false => output.clone(),
        };
        return plan_video(session, (input, &output, 0), division, path).map(drop);
    }
    let jobs = Folder::read(input)?.jobs(output)?;
    for folder in [output, path] {
        if folder.exists() && !folder.is_dir() {
            let (input, folder) = (input.display(), folder.display());
            return Err(Failure::usage(format!(
                "{input} is a folder, so OUT and the job file must be folders: {folder} is not"
            )));
        }
    }
    let (mut pieces, mut failures) = (0, Vec::new());
    for (index, (input, output)) in jobs.iter().enumerate() {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".json");
        match plan_video(session, (input, output, index), division, &path.join(name)) {
            Ok(more) => pieces += more,
            Err(failure) if failure.kind == Kind::Cancelled => return Err(failure),
            Err(failure) => {
                eprintln!("venhance: {failure}");
                failures.push(failure);
            }
        }
    }
    println!(
        "{}: {} of {}",
        path.display(),
        count(pieces, "piece"),
        count((jobs.len() - failures.len()) as u64, "video")
    );
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!("{} of {} videos have no job file", failures.len(), jobs.len());
            Err(Failure::new(first.kind, message))
        }
    }
}

/// Fails unless a job file, which is JSON, can contain the names.
fn check_names(input: &Path, output: &Path) -> Result<(), Failure> {
    let input = input.canonicalize().map_err(|error| Failure::input(input, error))?;
    match [&*input, output].into_iter().find(|path| path.to_str().is_none()) {
        None => Ok(()),
        Some(path) => Err(Failure::usage(format!(
            "{} is not in UTF-8, which a job file needs: rename it",
            path.display()
        ))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::output(path, &error))
}

/// Returns the number of pieces. `index` is the position of the input in its folder.
fn plan_video(
    session: &Session,
    (input, output, index): (&Path, &Path, usize),
    division: Division,
    path: &Path,
) -> Result<u64, Failure> {
    let output = absolute(output)?;
    check_names(input, &output)?;
    let paths = Paths::new(&output);
    paths.check_output()?;
    paths.check_input(input)?;
    if same_file(path, input) || paths.writes(&absolute(path)?) {
        return Err(Failure::usage(format!(
            "the job file {} would overwrite a video; use another name, such as job.json",
            path.display()
        )));
    }
    for old in [&output, &path.to_owned()] {
        if old.exists() && !session.args.overwrite {
            let old = old.display();
            return Err(Failure::usage(format!("{old} exists: replace it with --overwrite")));
        }
    }
    let folders = [output.with_file_name(""), absolute(path)?.with_file_name("")];
    for folder in &folders {
        // Those of a folder of videos are created.
        if session.args.folder().is_none() {
            folder.metadata().map_err(|error| Failure::output(folder, &error))?;
        }
    }
    let prepared = session.prepare(Source::open(input)?, &output)?;
    let Prepared { source, container, encoder, size } = &prepared;
    if let Some(size) = size.filter(|_| encoder.asked) {
        session.try_encoder(source, container, encoder, size, &output)?;
    }
    session.set_prompt(input, index)?;
    let settings = session.settings(source, encoder)?;
    let pieces = pieces(session, source, division)?;
    let number = pieces.len() as u64;
    let job = JobFile::new(path, {
        let paths = (source.path.clone(), output);
        Job::new(&session.args, paths, settings, pieces)
    })?;
    for folder in folders.iter().chain([&job.folder]) {
        fs::create_dir_all(folder).map_err(|error| Failure::output(folder, &error))?;
    }
    job.write()?;
    let frames = count(job.job.frames(), "frame");
    println!("{}: {frames} in {}", path.display(), count(number, "piece"));
    Ok(number)
}

/// Finds the pieces in a dry run.
fn pieces(session: &Session, source: &Source, division: Division) -> Result<Vec<Piece>, Failure> {
    let enhancer = dry_run(session)?;
    let candidates = Arc::new(Mutex::new(Candidates::default()));
    let found = candidates.clone();
    let scan = scan(source, &enhancer, move |frame| found.lock().add(frame))?;
    let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let json = session.args.json_progress;
    let mut report = Report::new(name, source.duration, ClockTime::ZERO, json);
    let end = session.run(&scan.pipeline, source, &source.path, Some((&scan, &mut report)));
    let (position, frames, rate) = scan.progress();
    report.finish(position, frames, rate);
    drop(report);
    let _ = scan.pipeline.set_state(gst::State::Null);
    match end? {
        End::Interrupted => return Err(cancelled("nothing is planned")),
        End::Eos(Some(failure)) => return Err(failure),
        End::Eos(None) => {}
    }
    let candidates = candidates.lock();
    let Some(last) = candidates.last() else {
        return Err(Failure::input(&source.path, "it contains no video frames"));
    };
    let count = match division {
        Division::Pieces(count) => count,
        Division::Length(length) => last.point.time.nseconds().div_ceil(length.nseconds()).max(1),
    };
    let starts = candidates.choose(count);
    let (frames, inputs) = (candidates.frames(), last.input + 1);
    let ends = starts.iter().skip(1).map(|start| start.point.frames).chain([frames]);
    let pieces = starts.iter().zip(ends).enumerate().map(|(index, (first, end))| {
        let ScannedFrame { point, input } = *first;
        let warm_up = input - u64::from(point.skip);
        Piece {
            start: point.frames,
            frames: end - point.frames,
            time: point.time.nseconds(),
            skip: point.skip,
            warm_up: warm_up as u32,
            cost: end - point.frames + warm_up * frames / inputs,
            name: Piece::name_of(index),
        }
    });
    Ok(pieces.collect())
}

/// An element that finds the same shots and resume points as the session's. Its output is small: they do not depend on
/// the size.
fn dry_run(session: &Session) -> Result<VEnhance, Failure> {
    let enhancer = make_enhancer()?;
    for pspec in crate::properties::settable() {
        let value = session.enhancer.property_value(pspec.name());
        enhancer.set_property_from_value(pspec.name(), &value);
    }
    enhancer.set_property_from_str("up-scale", "1");
    for limit in ["target-width", "target-height", "min-height"] {
        enhancer.set_property_from_str(limit, "0");
    }
    enhancer.set_dry_run();
    Ok(enhancer)
}
