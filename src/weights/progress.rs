// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress of downloads and conversions.

use std::time::{Duration, Instant};

/// Minimum time between two reports.
const INTERVAL: Duration = Duration::from_millis(200);

/// Progress of a download, or of the conversion of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The current file: repository and name of a download, or the path of a converted copy.
    pub file: String,
    /// Bytes done, of all files.
    pub done: u64,
    /// Bytes in total, of all files.
    pub total: u64,
}

/// Reports the progress through a sequence of files at a limited rate.
pub(super) struct Reporter<'a> {
    report: &'a mut dyn FnMut(Progress),
    file: String,
    /// Bytes of the completed files.
    completed: u64,
    total: u64,
    last: Option<Instant>,
}

impl<'a> Reporter<'a> {
    /// A reporter for `total` bytes in all files.
    pub(super) fn new(total: u64, report: &'a mut dyn FnMut(Progress)) -> Self {
        Self { report, file: String::new(), completed: 0, total, last: None }
    }

    /// Begins the next file.
    pub(super) fn begin(&mut self, file: String) {
        self.file = file;
    }

    /// Sets the bytes done of the current file.
    pub(super) fn update(&mut self, length: u64) {
        if self.last.is_none_or(|last| last.elapsed() >= INTERVAL) {
            self.send(length);
        }
    }

    /// Completes the current file. This is always reported.
    pub(super) fn end(&mut self, length: u64) {
        self.send(length);
        self.completed += length;
    }

    fn send(&mut self, length: u64) {
        self.last = Some(Instant::now());
        let (file, done, total) = (self.file.clone(), self.completed + length, self.total);
        (self.report)(Progress { file, done, total });
    }
}
