// SPDX-License-Identifier: MIT OR Apache-2.0
//! `enhance IN OUT`: makes a video, or a folder of them, larger, smoother and cleaner.
//!
//! ```text
//! args ─► job ─► source      what is in the file
//!            ├─► target      what it is written with
//!            ├─► graph       the two pipelines
//!            ├─► partial     what survives a crash
//!            ├─► report      progress
//!            └─► compare     the picture
//! ```

mod args;
mod compare;
mod failure;
mod graph;
mod job;
mod partial;
mod report;
mod source;
mod target;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
};

use failure::{Failure, Kind};
use job::{Done, Session};

/// How often the user has pressed Ctrl-C.
static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("enhance: {failure}");
            ExitCode::from(failure.kind as u8)
        }
    }
}

fn start() -> Result<(), Failure> {
    gst::init()
        .and_then(|()| gstvenhance::plugin_register_static().map_err(|_| unreachable!()))
        .map_err(|error| {
            Failure::new(Kind::Plugin, format!("GStreamer does not start: {error}"))
        })?;
    let args = args::parse();
    let handler = || {
        if INTERRUPTS.fetch_add(1, Ordering::Relaxed) > 0 {
            std::process::exit(Kind::Cancelled as i32);
        }
    };
    // Without it, Ctrl-C ends the process, and the partial file still plays.
    let _ = ctrlc::set_handler(handler);

    let (input, output) = (args.input.clone(), args.output.clone());
    let session = Session::new(args, &INTERRUPTS)?;
    match input.is_dir() {
        _ if session.args.plan => {
            println!("{}", session.plan(&input)?);
            Ok(())
        }
        true => folder(&session),
        false => {
            if let Some(folder) = &session.args.save_dir {
                std::fs::create_dir_all(folder).map_err(|error| Failure::output(folder, &error))?;
            }
            match session.enhance(&input, &output, 0)? {
                Done::Enhanced(what) => println!("{}: {what}", output.display()),
                Done::Before => println!("{}: was there before", output.display()),
            }
            Ok(())
        }
    }
}

/// Enhances every video of a folder; one that fails does not keep the others from it.
fn folder(session: &Session) -> Result<(), Failure> {
    let (input, output) = (&session.args.input, &session.args.output);
    if session.args.compare.is_some() {
        return Err(Failure::usage("--compare is for one video, not for a folder"));
    }
    let jobs = job::folder(input, output)?;
    std::fs::create_dir_all(output).map_err(|error| Failure::output(output, &error))?;
    let (mut done, mut before, mut failures) = (0, 0, Vec::new());
    for (index, (input, output)) in jobs.iter().enumerate() {
        match session.enhance(input, output, index) {
            Ok(Done::Enhanced(what)) => {
                println!("{}: {what}", output.display());
                done += 1;
            }
            Ok(Done::Before) => before += 1,
            Err(failure) if failure.kind == Kind::Cancelled => return Err(failure),
            Err(failure) => {
                eprintln!("enhance: {failure}");
                failures.push(failure);
            }
        }
    }
    println!("{done} enhanced, {before} there before, {} failed", failures.len());
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::new(first.kind, format!("{} of {} failed", failures.len(), jobs.len())))
        }
    }
}
