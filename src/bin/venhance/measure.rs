// SPDX-License-Identifier: MIT OR Apache-2.0
//! Estimates the time and the memory of a run by doing the beginning of it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use gst::{ClockTime, prelude::*};
use gstvenhance::{Model, engine::count};

use crate::{
    failure::Failure,
    partial::{Partial, Paths, ResumePoint},
    pipeline::Work,
    report::clock,
    session::Session,
    source::Source,
    target::{Container, Encoder},
    trial::TemporaryFolder,
};

/// How long it works, from the first frame on.
const LENGTH: Duration = Duration::from_secs(2);
/// Longest wait for the first frame.
const TIMEOUT: Duration = Duration::from_secs(20);
const TICK: ClockTime = ClockTime::from_mseconds(10);

impl Session {
    /// Enhances the beginning of a video and forgets it. Returns the time for all of its `frames` output frames, and
    /// the most memory that this process has used. None for the diffusion models, which load weights and take
    /// minutes for a window, and for a video that fails: a run will say why.
    pub fn measure(&self, source: &Source, frames: usize) -> Result<Option<String>, Failure> {
        if self.model != Model::Lite {
            return Ok(None);
        }
        // A plan needs no OUT, and OUT can be a folder.
        let container = Container::of(&self.args.output);
        let container = container.or_else(|_| Container::of(Path::new("out.mp4")))?;
        let mut encoder = Encoder::new(container, self.args.encoder.as_deref(), self.args.quality)?;
        encoder.set_size(container, self.output(source)?.size)?;
        let folder = TemporaryFolder::new()?;
        let paths = Paths::new(&folder.0.join("measured"));
        let partial = Partial::create(&paths, &self.settings(source, &encoder)?)?;
        let start = ResumePoint::START;
        let work = Work::new(source, &encoder, self.enhancer.upcast_ref(), partial, start, None)?;
        let Some((done, took)) = run(&work) else { return Ok(None) };
        let seconds = took.as_secs_f64() / done as f64 * frames as f64;
        let memory = peak_memory().map_or(String::new(), |mib| format!(", memory: {mib} MiB"));
        let (time, done) = (clock(seconds.ceil() as u64), count(done, "frame"));
        Ok(Some(format!("time: about {time}{memory}, measured on {done}")))
    }
}

/// The number of output frames and the time for them.
fn run(work: &Work) -> Option<(u64, Duration)> {
    let bus = work.pipeline.bus()?;
    work.pipeline.set_state(gst::State::Playing).ok()?;
    let started = Instant::now();
    let mut first: Option<(Instant, u64)> = None;
    loop {
        let message =
            bus.timed_pop_filtered(TICK, &[gst::MessageType::Eos, gst::MessageType::Error]);
        let (now, frames) = (Instant::now(), work.state.frames());
        match message.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Eos(_)) => return (frames > 0).then(|| (frames, now - started)),
            Some(_) => return None,
            None => {}
        }
        match first {
            None if frames > 0 => first = Some((now, frames)),
            None if now - started > TIMEOUT => return None,
            Some((since, before)) if now - since > LENGTH && frames > before => {
                return Some((frames - before, now - since));
            }
            _ => {}
        }
    }
}

/// The most memory that this process has used, in MiB.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib >> 10)
}
