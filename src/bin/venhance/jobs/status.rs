// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance status`: what is done of a job.

use std::path::Path;

use gst::ClockTime;
use gstvenhance::engine::count;

use super::{job::JobFile, store::Store};
use crate::{failure::Failure, partial::frames_in, report::clock};

/// The progress of some pieces.
#[derive(Default)]
struct Total {
    frames: u64,
    done: u64,
    running: u64,
    /// The frames a second of finished and running pieces: their sum and their number.
    rates: (f64, u32),
}

impl Total {
    fn add_rate(&mut self, rate: f64) {
        if rate > 0.0 {
            self.rates = (self.rates.0 + rate, self.rates.1 + 1);
        }
    }

    /// The time until all is done if the running processes go on.
    fn left(&self) -> Option<u64> {
        let rate = self.rates.0 / f64::from(self.rates.1) * self.running as f64;
        (rate > 0.0).then(|| ((self.frames - self.done) as f64 / rate).ceil() as u64)
    }
}

/// A table of all pieces of a job, or of the jobs of a folder, and when they will be finished.
pub fn status(path: &Path) -> Result<String, Failure> {
    let (mut lines, mut total, mut number) = (Vec::new(), Total::default(), 0_u64);
    for job in JobFile::open_all(path)? {
        let frames = job.job.frames();
        if job.is_joined() {
            lines.push(format!("{}: finished", job.job.output.display()));
            (total.frames, total.done) = (total.frames + frames, total.done + frames);
            number += job.job.pieces.len() as u64;
            continue;
        }
        lines.push(format!("{}:", job.job.output.display()));
        lines.push("piece        from    frames  state".into());
        for piece in &job.job.pieces {
            let store = Store::new(&job, piece);
            let state = state(&store, &mut total);
            total.frames += piece.frames;
            let from = clock(ClockTime::from_nseconds(piece.time).seconds());
            lines.push(format!("{number:5}  {from:>10}  {:8}  {state}", piece.frames));
            number += 1;
        }
    }
    let percent = total.done * 100 / total.frames.max(1);
    let left = total.left().map_or(String::new(), |left| format!(", {} left", clock(left)));
    let pieces = count(number, "piece");
    let (frames, running) = (count(total.frames, "frame"), total.running);
    lines.push(format!("{pieces}: {percent}% of {frames}, {running} running{left}"));
    Ok(lines.join("\n"))
}

/// The state of a piece for users, which is added to the total.
fn state(store: &Store<'_>, total: &mut Total) -> String {
    match store.record() {
        Ok(record) => {
            total.done += store.piece.frames;
            total.add_rate(record.rate);
            return "done".into();
        }
        Err(why) if why != "missing" => return why,
        Err(_) => {}
    }
    let Some((index, is_running)) = store.partial() else { return "waiting".into() };
    let frames = frames_in(&index).saturating_sub(store.piece.start).min(store.piece.frames);
    total.done += frames;
    let percent = frames * 100 / store.piece.frames;
    if !is_running {
        return format!("stopped at {percent}%");
    }
    total.running += 1;
    let created = index.metadata().and_then(|index| index.created());
    if let Some(age) = created.ok().and_then(|created| created.elapsed().ok()) {
        total.add_rate(frames as f64 / age.as_secs_f64());
    }
    format!("running, {percent}%")
}
