// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells how far files have come, not too often.

use std::time::{Duration, Instant};

use super::Progress;

/// Progress is told this often.
const EVERY: Duration = Duration::from_millis(200);

/// Bytes of one file after the other.
pub(super) struct Meter<'a> {
    report: &'a mut dyn FnMut(Progress),
    file: String,
    /// Bytes of the files before this one.
    before: u64,
    total: u64,
    reported: Option<Instant>,
}

impl<'a> Meter<'a> {
    /// Of `total` bytes in all files.
    pub(super) fn new(total: u64, report: &'a mut dyn FnMut(Progress)) -> Self {
        Self { report, file: String::new(), before: 0, total, reported: None }
    }

    /// The next file.
    pub(super) fn begin(&mut self, file: String) {
        self.file = file;
    }

    /// So many bytes of the file are here.
    pub(super) fn at(&mut self, length: u64) {
        if self.reported.is_none_or(|last| last.elapsed() >= EVERY) {
            self.tell(length);
        }
    }

    /// The file is complete; this is always told.
    pub(super) fn end(&mut self, length: u64) {
        self.tell(length);
        self.before += length;
    }

    fn tell(&mut self, length: u64) {
        self.reported = Some(Instant::now());
        let (file, done, total) = (self.file.clone(), self.before + length, self.total);
        (self.report)(Progress { file, done, total });
    }
}
