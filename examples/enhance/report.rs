// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the user sees while it works: a bar on a terminal, plain lines in a log. All of it goes to
//! standard error.

use std::time::{Duration, Instant};

use gst::ClockTime;
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines in a log.
const LINE: Duration = Duration::from_secs(10);

/// The progress of one file.
pub struct Report {
    name: String,
    /// Hidden where there is no terminal.
    bar: ProgressBar,
    total: Option<ClockTime>,
    started: Instant,
    /// Where the work began: not at zero when it goes on.
    from: ClockTime,
    last_line: Instant,
    /// The unit of work just done, as the model counts.
    unit: String,
}

impl Report {
    pub fn new(name: String, total: Option<ClockTime>, from: ClockTime) -> Self {
        let bar = match total {
            Some(total) => ProgressBar::new(total.mseconds())
                .with_style(style("{prefix} [{wide_bar}] {percent}% {msg}")),
            None => ProgressBar::new_spinner().with_style(style("{prefix} {spinner} {msg}")),
        };
        bar.set_prefix(name.clone());
        bar.set_position(from.mseconds());
        let now = Instant::now();
        Self { name, bar, total, started: now, from, last_line: now, unit: String::new() }
    }

    /// Notes the unit of work just done.
    pub fn unit(&mut self, unit: &str) {
        self.unit = unit.to_owned();
    }

    /// Shows how far a download or a copy has come, as the element says it.
    pub fn transfer(&mut self, doing: &str, progress: &gst::StructureRef) {
        let file = progress.get::<&str>("file").unwrap_or_default();
        let mib = |field| progress.get::<u64>(field).unwrap_or_default() >> 20;
        let text = format!("{doing} {file}: {} of {} MiB", mib("bytes"), mib("total-bytes"));
        self.bar.set_message(text.clone());
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE {
            self.last_line = Instant::now();
            eprintln!("{text}");
        }
    }

    /// Shows how far it has come.
    pub fn tick(&mut self, position: ClockTime, frames: u64) {
        let state = self.state(position, frames);
        self.bar.set_position(position.mseconds());
        self.bar.set_message(state.clone());
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE {
            self.last_line = Instant::now();
            let percent = self.total.filter(|total| !total.is_zero()).map(|total| {
                format!("{}%, ", (position.mseconds() * 100 / total.mseconds().max(1)).min(100))
            });
            eprintln!("{}: {}{state}", self.name, percent.unwrap_or_default());
        }
    }

    fn state(&self, position: ClockTime, frames: u64) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let mut state = format!("{frames} frames, {:.1} a second", frames as f64 / elapsed);
        if !self.unit.is_empty() && self.unit != "frame" {
            state = format!("{state}, {}", self.unit);
        }
        let done = position.saturating_sub(self.from).seconds_f64();
        let left = self.total.map(|total| total.saturating_sub(position).seconds_f64());
        match left {
            Some(left) if done > 0.0 => {
                format!("{state}, {} to go", clock((elapsed * left / done).ceil() as u64))
            }
            _ => state,
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

/// Seconds as people read them: 1:02:03.
pub fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}
