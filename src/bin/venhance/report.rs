// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress on standard error, a bar on a terminal and lines elsewhere; for other programs, JSON on standard output.

use std::time::{Duration, Instant};

use gst::ClockTime;
use gstvenhance::engine::count;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two lines of JSON.
const JSON_INTERVAL: Duration = Duration::from_millis(500);

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
    /// Whether lines of JSON are printed instead of text.
    json: bool,
}

impl Report {
    pub fn new(name: String, total: Option<ClockTime>, from: ClockTime, json: bool) -> Self {
        let bar = match total {
            _ if json => ProgressBar::hidden(),
            Some(total) => ProgressBar::new(total.mseconds())
                .with_style(style("{prefix} [{wide_bar}] {percent}% {msg}")),
            None => ProgressBar::new_spinner().with_style(style("{prefix} {spinner} {msg}")),
        };
        bar.set_prefix(name.clone());
        bar.set_position(from.mseconds());
        let now = Instant::now();
        Self { name, bar, total, started: now, from, last_line: now, unit: String::new(), json }
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
        match self.json {
            true => self.json_line(|_| json!({ "text": text })),
            false => self.line(|_| text),
        }
    }

    /// Shows the position in the output, the number of frames so far, and for JSON the output's frame rate.
    pub fn update(&mut self, position: ClockTime, frames: u64, rate: Option<f64>) {
        if self.json {
            return self.json_line(|report| report.json(position, frames, rate));
        }
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

    /// Prints the last state as JSON.
    pub fn finish(&self, position: ClockTime, frames: u64, rate: Option<f64>) {
        if self.json {
            println!("{}", self.json(position, frames, rate));
        }
    }

    fn json(&self, position: ClockTime, frames: u64, rate: Option<f64>) -> serde_json::Value {
        json!({
            "position": position.seconds_f64(),
            "duration": self.total.map(ClockTime::seconds_f64),
            "frames": frames,
            "fps": rate,
            "seconds_left": self.seconds_left(position),
            "unit": self.unit,
        })
    }

    fn json_line(&mut self, line: impl FnOnce(&Self) -> serde_json::Value) {
        if self.last_line.elapsed() >= JSON_INTERVAL {
            self.last_line = Instant::now();
            println!("{}", line(self));
        }
    }

    fn state(&self, position: ClockTime, frames: u64) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let mut state =
            format!("{}, {:.1} a second", count(frames, "frame"), frames as f64 / elapsed);
        if !self.unit.is_empty() && self.unit != "frame" {
            state = format!("{state}, {}", self.unit);
        }
        match self.seconds_left(position) {
            Some(left) => format!("{state}, {} left", clock(left)),
            None => state,
        }
    }

    /// Estimated from the speed so far.
    fn seconds_left(&self, position: ClockTime) -> Option<u64> {
        let left = self.total?.saturating_sub(position).seconds_f64();
        let done = position.saturating_sub(self.from).seconds_f64();
        let elapsed = self.started.elapsed().as_secs_f64();
        (done > 0.0).then(|| (elapsed * left / done).ceil() as u64)
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
