// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance IN OUT` enhances a video file, or every video of a folder.
//!
//! ```text
//! args, properties ─► session        one file from beginning to end
//!                       ├─► source     the streams of the input
//!                       ├─► target     container and encoders of the output
//!                       ├─► pipeline   work: IN to the partial file; finish: partial file to OUT
//!                       ├─► partial    the partial file and its index, for --resume
//!                       ├─► chapters   chapters of IN, for OUT
//!                       ├─► check      empty streams, content of OUT
//!                       ├─► trial      tries an encoder
//!                       ├─► settings   properties, prompts, what --resume compares
//!                       ├─► describe   what is done, for --plan and for the log
//!                       ├─► run        a pipeline until its end, an error or Ctrl-C
//!                       ├─► measure    time and memory, for --plan --measure
//!                       ├─► report     progress
//!                       └─► compare, compare_page    picture, or page, of input and output
//!                  ├─► jobs           plan, piece, join, status: one video on many machines
//!                  └─► serve          a web page that runs this program for each video (feature `serve`)
//! ```
//!
//! `boxes` finds the boxes of MP4 files; `demuxers` works around faults of demuxers; `console` prints for all of them; `local` keeps GStreamer from opening
//! anything but the named files.

#[macro_use]
mod console;
mod args;
mod boxes;
mod chapters;
mod check;
mod compare;
mod compare_page;
mod demuxers;
mod describe;
mod failure;
mod folder;
mod jobs;
mod local;
mod measure;
mod partial;
mod pipeline;
mod properties;
mod report;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod session;
mod settings;
mod signals;
mod source;
mod target;
mod trial;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use args::{Args, Command};
use failure::{Failure, Kind};
use folder::Folder;
use session::{Outcome, Session};
use signals::Signals;
use target::Container;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("venhance: {failure}");
            ExitCode::from(failure.kind as u8)
        }
    }
}

fn run() -> Result<(), Failure> {
    gst::init()
        .map_err(|error| error.to_string())
        .and_then(|()| gstvenhance::plugin_register_static().map_err(|error| error.to_string()))
        .map_err(|error| Failure::new(Kind::Plugin, format!("cannot start GStreamer: {error}")))?;
    local::forbid_references();
    match args::parse() {
        Command::Enhance(args) => enhance(args, signals()),
        Command::Plan(args, division, job) => {
            let session = Session::new(args, signals())?;
            session.warn_of_unused_flags();
            jobs::plan(&session, division, &job)
        }
        Command::Piece(job, selection) => jobs::make_pieces(&job, selection, &signals()),
        Command::Join(job) => jobs::join(&job, &signals()),
        Command::Status(job) => print(&jobs::status(&job)?),
        #[cfg(feature = "serve")]
        Command::Serve(options) => serve::run(options),
    }
}

fn signals() -> Signals {
    let signals = Signals::default();
    // If this fails, a signal ends the process at once; the partial file can still be played.
    let _ = signals.handle();
    signals
}

fn enhance(args: Args, signals: Signals) -> Result<(), Failure> {
    let input = args.input.clone();
    let output = match args.output.is_dir() && !input.is_dir() {
        true => folder::output(&input, &args.output),
        false => args.output.clone(),
    };
    let session = Session::new(args, signals)?;
    session.warn_of_unused_flags();
    if session.args.plan {
        return plan(&session, &input, &output);
    }
    if input.is_dir() {
        return enhance_folder(&session);
    }
    match session.enhance(&input, &output, 0)? {
        Outcome::Enhanced(summary, early) => {
            println!("{}: {summary}", output.display());
            early.map_or(Ok(()), Err)
        }
        Outcome::Skipped => {
            println!(
                "{}: already finished; its settings are not compared: use --overwrite to make it again",
                output.display()
            );
            Ok(())
        }
    }
}

/// Prints what would be done with a video, or with every video of a folder. No `output` may be named.
fn plan(session: &Session, input: &Path, output: &Path) -> Result<(), Failure> {
    let is_named = !output.as_os_str().is_empty();
    if !input.is_dir() {
        return print(&session.plan(input, is_named.then_some(output), 0)?);
    }
    let (jobs, _) = folder_jobs(session, input, output)?;
    for (index, (video, output)) in jobs.iter().enumerate() {
        let plan = session.plan(video, is_named.then_some(output), index)?;
        print(&format!("{}:\n{plan}", video.display()))?;
    }
    Ok(())
}

/// Prints to standard output. A closed pipe is not a failure.
fn print(text: &str) -> Result<(), Failure> {
    match console::write(&mut io::stdout(), text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Kind::Output, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The videos of a folder, each with its output, and the number of other files.
fn folder_jobs(
    session: &Session,
    input: &Path,
    output: &Path,
) -> Result<(Vec<(PathBuf, PathBuf)>, usize), Failure> {
    if session.args.compare.is_some() {
        return Err(Failure::usage("--compare works with one video, not with a folder"));
    }
    let folder = Folder::read(input)?;
    if !output.is_dir() && (output.exists() || Container::of(output).is_ok()) {
        let (input, output) = (input.display(), output.display());
        return Err(Failure::usage(format!(
            "{input} is a folder, so OUT must be one: {output} is not"
        )));
    }
    Ok((folder.jobs(output)?, folder.others))
}

/// Enhances every video of a folder. A failure is reported and the other videos follow.
fn enhance_folder(session: &Session) -> Result<(), Failure> {
    let (jobs, others) = folder_jobs(session, &session.args.input, &session.args.output)?;
    let (mut enhanced, mut skipped, mut failures) = (0, 0, Vec::new());
    for (index, (input, output)) in jobs.iter().enumerate() {
        match session.enhance(input, output, index) {
            Ok(Outcome::Enhanced(summary, early)) => {
                println!("{}: {summary}", output.display());
                enhanced += 1;
                failures.extend(early.inspect(|early| eprintln!("venhance: {early}")));
            }
            Ok(Outcome::Skipped) => skipped += 1,
            Err(failure) if failure.kind == Kind::Cancelled => return Err(failure),
            Err(failure) => {
                eprintln!("venhance: {failure}");
                failures.push(failure);
            }
        }
    }
    let failed = jobs.len() - enhanced - skipped;
    println!("{enhanced} enhanced, {skipped} already finished, {failed} failed, {others} skipped");
    if skipped > 0 {
        println!(
            "the settings of those already finished are not compared: use --overwrite to make them again"
        );
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let (bad, all) = (failures.len(), jobs.len());
            let message = format!("{bad} of {all} videos failed or ended early");
            Err(Failure::new(first.kind, message))
        }
    }
}
