// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress on standard error: a bar on a terminal, lines elsewhere.

use std::time::{Duration, Instant};

use gst::ClockTime;
use gstvenhance::engine::count;
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one file.
pub struct Report {
    name: String,
    /// Hidden without a terminal.
    bar: ProgressBar,
    total: Option<ClockTime>,
    started: Instant,
    /// Where the run starts; not zero for a resumed one.
    from: ClockTime,
    last_line: Instant,
    /// The model's last unit of work.
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

    /// Takes an element message of the enhancer.
    pub fn message(&mut self, message: &gst::StructureRef) {
        match message.name().as_str() {
            "venhance-download" => self.transfer("downloading", message),
            "venhance-conversion" => self.transfer("converting to", message),
            "venhance-progress" => {
                self.unit = message.get("unit").unwrap_or_default();
            }
            _ => {}
        }
    }

    /// Shows the progress of a download or a conversion.
    fn transfer(&mut self, verb: &str, message: &gst::StructureRef) {
        let file = message.get::<&str>("file").unwrap_or_default();
        let mib = |field| message.get::<u64>(field).unwrap_or_default() >> 20;
        let text = format!("{verb} {file}: {} of {} MiB", mib("bytes"), mib("total-bytes"));
        self.bar.set_message(text.clone());
        self.line(|_| text);
    }

    /// Shows the position in the output and the number of frames so far.
    pub fn update(&mut self, position: ClockTime, frames: u64) {
        let state = self.state(position, frames);
        self.bar.set_position(position.mseconds());
        self.bar.set_message(state.clone());
        self.line(|report| {
            let total = report.total.filter(|total| !total.is_zero());
            let percent = total.map(|total| {
                (position.mseconds() * 100 / total.mseconds().max(1)).min(100).to_string() + "%, "
            });
            format!("{}: {}{state}", report.name, percent.unwrap_or_default())
        });
    }

    /// Prints a line if there is no terminal and the last one was long enough ago.
    fn line(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}", text(self));
        }
    }

    fn state(&self, position: ClockTime, frames: u64) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let mut state =
            format!("{}, {:.1} a second", count(frames, "frame"), frames as f64 / elapsed);
        if !self.unit.is_empty() && self.unit != "frame" {
            state = format!("{state}, {}", self.unit);
        }
        let done = position.saturating_sub(self.from).seconds_f64();
        let left = self.total.map(|total| total.saturating_sub(position).seconds_f64());
        match left {
            Some(left) if done > 0.0 => {
                format!("{state}, {} left", clock((elapsed * left / done).ceil() as u64))
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

/// Seconds as h:mm:ss or m:ss.
pub fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}
