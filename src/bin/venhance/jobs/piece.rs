// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance piece`: makes pieces.

use std::{path::Path, time::Instant};

use gstvenhance::engine::count;

use super::{
    job::{JobFile, Piece},
    store::{Claim, Store, remove_all},
};
use crate::{
    args::Selection,
    failure::{Failure, Kind},
    partial::{Partial, Progress, ResumePoint},
    report::clock,
    session::{Prepared, Session},
    signals::Signals,
    source::Source,
};

/// Variables with which schedulers number the tasks of an array.
const TASK_VARIABLES: [&str; 2] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"];

impl Selection {
    /// The numbers of the first and the last piece.
    fn range(self) -> Result<(usize, usize), Failure> {
        match self {
            Self::One(number) => Ok((number, number)),
            Self::Range(from, to) => Ok((from, to)),
            Self::OfTask => {
                let value = TASK_VARIABLES.iter().find_map(|name| std::env::var(name).ok());
                let number = value.and_then(|value| value.parse().ok());
                number.map(|number| (number, number)).ok_or_else(|| {
                    Failure::usage(format!(
                        "which piece? give its number, or --from and --to, or set {}",
                        TASK_VARIABLES.join(" or ")
                    ))
                })
            }
        }
    }
}

/// Makes pieces of a job, or of the jobs of a folder, with one model load. A failure is reported and the other pieces
/// follow.
pub fn make_pieces(path: &Path, selection: Selection, signals: &Signals) -> Result<(), Failure> {
    let (from, to) = selection.range()?;
    let jobs = JobFile::open_all(path)?;
    let pieces = jobs.iter().flat_map(|job| job.job.pieces.iter().map(move |piece| (job, piece)));
    let pieces: Vec<_> = pieces.collect();
    if matches!(selection, Selection::OfTask) && from >= pieces.len() {
        println!("there is no piece {from}: {} has {} pieces", path.display(), pieces.len());
        return Ok(());
    }
    if from > to || to >= pieces.len() {
        let (shown, last) = (path.display(), pieces.len() - 1);
        let asked = match from == to {
            true => format!("is no piece {from}"),
            false => format!("are no pieces {from} to {to}"),
        };
        return Err(Failure::usage(format!("there {asked}: {shown} has pieces 0 to {last}")));
    }
    let mut session: Option<Session> = None;
    let (mut failures, mut current) = (Vec::new(), None);
    for (number, (job, piece)) in (from..=to).zip(&pieces[from..=to]) {
        let made = (|| {
            if current != Some(&job.path) || session.is_none() {
                match &mut session {
                    Some(session) => session.set_args(job.args()?)?,
                    None => session = Some(Session::new(job.args()?, signals.clone())?),
                }
                current = Some(&job.path);
            }
            session.as_ref().map_or(Ok(String::new()), |session| make(session, job, piece))
        })();
        match made {
            Ok(summary) => println!("piece {number} of {}: {summary}", job.job.output.display()),
            Err(failure) if failure.kind == Kind::Cancelled => return Err(failure),
            Err(failure) => {
                eprintln!("venhance: piece {number}: {failure}");
                failures.push(failure);
            }
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let (bad, all) = (failures.len(), to - from + 1);
            Err(Failure::new(first.kind, format!("{bad} of {} failed", count(all as u64, "piece"))))
        }
    }
}

/// Makes a piece unless it is finished. Returns a summary.
fn make(session: &Session, job: &JobFile, piece: &Piece) -> Result<String, Failure> {
    let store = Store::new(job, piece);
    let finished = || store.verified().is_ok() || job.is_joined();
    if finished() {
        return Ok("already finished".into());
    }
    let source = Source::open(&job.job.input)?.video_only();
    let prepared = session.prepare(source, &job.job.output)?;
    job.check_settings(&session.settings(&prepared.source, &prepared.encoder)?)?;
    let claim = store.claim()?;
    // Another process may have made it since.
    if finished() {
        if job.is_joined() {
            remove_all(job);
        }
        return Ok("already finished".into());
    }
    make_claimed(session, &prepared, &store, claim).or_else(|failure| match job.is_joined() {
        // Another process has made it, and a third one has taken it away.
        true => Ok("already finished".into()),
        false => Err(failure),
    })
}

fn make_claimed(
    session: &Session,
    prepared: &Prepared,
    store: &Store<'_>,
    claim: Claim,
) -> Result<String, Failure> {
    let Prepared { source, encoder, .. } = prepared;
    let began = Instant::now();
    let (partial, progress) = open_partial(store, &claim)?;
    let (content, frames) = match progress {
        Progress::Complete(content) => {
            drop(partial);
            (content, 0)
        }
        Progress::UpTo(start) => {
            let end = store.next_start();
            let made = session.work(source, encoder, &claim.paths, partial, start, end)?;
            (made.content, made.frames)
        }
    };
    let found = session.video_of(source, &claim.paths.video)?.shown;
    if found != store.piece.frames || content.frames != store.piece.end() {
        // Not to continue with.
        claim.paths.remove_temporary()?;
        return Err(Failure::input(
            &source.path,
            format!(
                "this piece has {found} frames, planned were {}; if the input has not changed, this is a bug",
                store.piece.frames
            ),
        ));
    }
    let took = began.elapsed();
    let rate = frames as f64 / took.as_secs_f64();
    store.publish(claim, &content, rate)?;
    let (frames, took) = (count(found, "frame"), clock(took.as_secs()));
    Ok(format!("{frames} in {took}, {rate:.1} a second"))
}

/// Opens the partial file, and returns how much of the piece it contains. One of another plan is replaced.
fn open_partial(store: &Store<'_>, claim: &Claim) -> Result<(Partial, Progress), Failure> {
    let start: ResumePoint = store.piece.start();
    let settings = store.settings();
    match Partial::resume(&claim.paths, &settings) {
        Ok((partial, Some(progress))) => {
            if let Progress::UpTo(point) = &progress {
                eprintln!("continues at {}", clock(point.time.seconds()));
            }
            Ok((partial, progress))
        }
        Ok((partial, None)) => Ok((partial, Progress::UpTo(start))),
        Err(Failure { kind: Kind::Usage, .. }) => {
            Ok((Partial::create(&claim.paths, &settings)?, Progress::UpTo(start)))
        }
        Err(failure) => Err(failure),
    }
}
