// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the tests let a model deliver.
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::sync::{Arc, Mutex};

use gstvenhance::engine::{Cancel, ClipContext, Error, Frame, Progress, Sink};

/// Keeps the frames, the units of progress and the warnings.
#[derive(Default)]
pub struct Record {
    pub frames: Mutex<Vec<Arc<Frame>>>,
    pub units: Mutex<Vec<String>>,
    pub warnings: Mutex<Vec<String>>,
}

impl Record {
    pub fn take(&self) -> Vec<Arc<Frame>> {
        std::mem::take(&mut *self.frames.lock().unwrap())
    }

    pub fn count(&self) -> usize {
        self.frames.lock().unwrap().len()
    }
}

impl Sink for Record {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        self.frames.lock().unwrap().push(frame);
        Ok(())
    }

    fn progress(&self, progress: Progress) {
        self.units.lock().unwrap().push(progress.unit);
    }

    fn warning(&self, text: String) {
        self.warnings.lock().unwrap().push(text);
    }
}

/// Drops everything at once.
pub struct Discard;

impl Sink for Discard {
    fn frame(&self, _: Arc<Frame>) -> Result<(), Error> {
        Ok(())
    }

    fn progress(&self, _: Progress) {}
}

/// A clip for this sink that nobody cancels.
pub fn clip<S: Sink + 'static>(sink: &Arc<S>) -> ClipContext {
    ClipContext { sink: sink.clone(), cancel: Cancel::default() }
}
