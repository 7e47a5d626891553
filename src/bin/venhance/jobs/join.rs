// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance join`: makes the output of the pieces, without encoding the video again.

use std::path::Path;

use gstvenhance::engine::count;

use super::{
    job::JobFile,
    store::{JOIN, Record, Store, remove_all},
};
use crate::{
    failure::{Failure, Kind},
    partial::{Content, Partial, Paths},
    pipeline::Finish,
    session::{Prepared, Session, conversions},
    signals::Signals,
    source::Source,
};

/// Makes the output of a job, or those of the jobs of a folder, and removes the pieces. A failure is reported and the other
/// jobs follow.
///
/// # Errors
/// If pieces are missing or damaged; the message names them.
pub fn join(path: &Path, signals: &Signals) -> Result<(), Failure> {
    let jobs = JobFile::open_all(path)?;
    let mut failures = Vec::new();
    for job in &jobs {
        match join_one(job, signals) {
            Ok(summary) => println!("{}: {summary}", job.job.output.display()),
            Err(failure) if failure.kind == Kind::Cancelled || jobs.len() == 1 => {
                return Err(failure);
            }
            Err(failure) => {
                eprintln!("venhance: {failure}");
                failures.push(failure);
            }
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!("{} of {} jobs failed", failures.len(), jobs.len());
            Err(Failure::new(first.kind, message))
        }
    }
}

/// Returns a summary.
fn join_one(job: &JobFile, signals: &Signals) -> Result<String, Failure> {
    if !job.is_joined() {
        match join_pieces(job, signals) {
            // Another process has taken them away.
            Err(_) if job.is_joined() => {}
            Ok(None) => {}
            Ok(Some(summary)) => return Ok(summary),
            Err(failure) => return Err(failure),
        }
    }
    // An interrupted join leaves them.
    remove_all(job);
    Ok("already finished".into())
}

/// Joins the pieces. Returns a summary, or `None` if another process has done so in the meantime.
fn join_pieces(job: &JobFile, signals: &Signals) -> Result<Option<String>, Failure> {
    job.check_output()?;
    let (records, content) = records(job)?;
    let session = Session::new(job.args()?, signals.clone())?;
    let output = &job.job.output;
    let prepared = session.prepare(Source::open(&job.job.input)?, output)?;
    let Prepared { source, container, encoder, .. } = &prepared;
    for note in conversions(source, container)? {
        eprintln!("{}: {note}", source.path.display());
    }
    let settings = session.settings(source, encoder)?;
    job.check_settings(&settings)?;
    // Not beside the output, where an interrupted run leaves its own.
    let names = Paths::new(&job.folder.join(JOIN));
    let paths = Paths { output: output.clone(), how_to_continue: "join again", ..names };
    paths.check_output()?;
    paths.check_input(&source.path)?;
    let mut partial = Partial::create(&paths, &settings)?;
    // No other process may write the files before the output has its name.
    let _lock = partial.lock()?;
    if job.is_joined() {
        return Ok(None);
    }
    partial.set_stream(content.caps.to_string())?;
    for (store, record) in &records {
        partial.append_clusters(&mut store.open(record)?)?;
    }
    partial.complete(&content)?;
    drop(partial);
    let finish = Finish { source, container, encoder, content: &content };
    session.finish(&finish, &paths, || job.record_joined(&paths.finished))?;
    remove_all(job);
    let pieces = count(records.len() as u64, "piece");
    Ok(Some(format!("{} of {pieces}", count(content.frames, "frame"))))
}

/// The records of all pieces, and what they contain together.
fn records(job: &JobFile) -> Result<(Vec<(Store<'_>, Record)>, Content), Failure> {
    let stores = job.job.pieces.iter().map(|piece| Store::new(job, piece));
    let stores: Vec<_> = stores.collect();
    // Nothing is read while a piece is missing: a scheduler can call this again and again.
    let all_there = stores.iter().all(|store| store.record().is_ok());
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    let mut content: Option<Content> = None;
    for (number, store) in stores.into_iter().enumerate() {
        let found = if all_there { store.verified() } else { store.record() };
        let found = found.and_then(|record| {
            let next = record.content(store.piece).ok_or("without a record")?;
            match &content {
                Some(before) if before.caps != next.caps => {
                    Err("encoded in another way than the first one".into())
                }
                _ => Ok((record, next)),
            }
        });
        match found {
            Ok((record, next)) => {
                content = Some(next);
                records.push((store, record));
            }
            Err(why) => problems.push(format!("piece {number} is {why}")),
        }
    }
    match content {
        Some(content) if problems.is_empty() => Ok((records, content)),
        _ => Err(Failure::new(
            Kind::Input,
            format!(
                "{}: {}; make them with venhance piece",
                job.path.display(),
                problems.join(", ")
            ),
        )),
    }
}
