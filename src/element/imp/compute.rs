// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compute thread: loads the model, runs the worker, reports.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use gst::{ClockTime, glib, prelude::*, subclass::prelude::*};

use super::{CAT, VEnhance};
use crate::{
    element::{
        Duplicates,
        progress::LatencyPart,
        worker::{Report, Worker},
    },
    engine::{
        self, Blank, Cancel, Enhancer, Error, duplicates::DuplicateMerger, shots::ShotEnhancer,
    },
    models::{self, Choice, LoadEvent, Loaded},
    weights,
};

impl VEnhance {
    /// Runs from start to stop. An error or a panic of the model ends it early and is posted.
    pub(super) fn compute(&self, choice: &Choice, cancel: &Cancel) {
        let run = || {
            if self.state.lock().dry_run {
                self.work(&mut Blank::default());
                return Ok(());
            }
            let idle = self.state.lock().idle.take();
            let mut loaded = match idle {
                Some(idle) if idle.choice == *choice => {
                    gst::debug!(CAT, imp = self, "Model {} is still loaded", choice.model);
                    idle
                }
                idle => self.load(choice, idle, cancel)?,
            };
            self.work(&mut *loaded.enhancer);
            loaded.enhancer.reset();
            self.state.lock().idle = Some(loaded);
            Ok(())
        };
        let error = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(Error::Cancelled)) if cancel.check().is_err() => return,
            Ok(Err(Error::Cancelled)) => {
                Error::Internal { what: "loading returned Cancelled without a cancellation".into() }
            }
            Ok(Err(error)) => error,
            Err(panic) => {
                Error::Internal { what: format!("the model panicked: {}", panic_text(&*panic)) }
            }
        };
        self.fail(gst::error_msg!(gst::LibraryError::Failed, ("{error}")));
        let dropped = self.queue.close(gst::FlowError::Error);
        gst::debug!(CAT, imp = self, "The compute thread ends; dropped: {dropped}");
    }

    /// Gives the model one clip after another until the element stops.
    fn work(&self, model: &mut dyn Enhancer) {
        let (shot_detection, duplicates) = {
            let properties = self.properties.lock();
            let properties = properties.in_effect();
            (properties.shot_detection, properties.duplicates)
        };
        let report = Arc::new(Reporter(self.obj().downgrade()));
        let mut merger;
        let model: &mut dyn Enhancer = match duplicates {
            Duplicates::Keep => model,
            Duplicates::Merge => {
                merger = DuplicateMerger::new(model);
                &mut merger
            }
        };
        match shot_detection {
            true => {
                let mut shots = ShotEnhancer::new(model);
                Worker::new(&self.queue, &mut shots, report).run();
            }
            false => Worker::new(&self.queue, model, report).run(),
        }
    }

    /// Loads the model and reports that on the bus.
    fn load(
        &self,
        choice: &Choice,
        before: Option<Loaded>,
        cancel: &Cancel,
    ) -> Result<Loaded, Error> {
        let post = |kind, text: String| {
            let obj = self.obj();
            gst::debug!(CAT, imp = self, "{text}");
            let message =
                gst::message::Progress::builder(kind, "load-model", &text).src(&*obj).build();
            let _ = obj.post_message(message);
        };
        post(gst::ProgressType::Start, format!("Loading model {}", choice.model));
        let loaded = models::build(choice, before, cancel, &mut |note| match note {
            LoadEvent::Download(progress) => self.post(transfer("venhance-download", progress)),
            LoadEvent::Conversion(progress) => self.post(transfer("venhance-conversion", progress)),
            LoadEvent::Warning(text) => {
                gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
            }
        });
        match &loaded {
            Ok(_) => post(gst::ProgressType::Complete, format!("Model {} is loaded", choice.model)),
            Err(Error::Cancelled) => {
                post(gst::ProgressType::Canceled, "Loading was cancelled".into())
            }
            Err(error) => post(gst::ProgressType::Error, error.to_string()),
        }
        loaded
    }
}

/// The message that reports on a file.
fn transfer(name: &str, progress: weights::Progress) -> gst::Structure {
    gst::Structure::builder(name)
        .field("file", progress.file)
        .field("bytes", progress.done)
        .field("total-bytes", progress.total)
        .build()
}

/// The message of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown reason")
}

/// Reports to the element. Holds no reference, because the element holds the model, which holds this.
struct Reporter(glib::WeakRef<crate::VEnhance>);

impl Report for Reporter {
    fn format(&self, frame: Option<ClockTime>, lookahead: usize) {
        let Some(obj) = self.0.upgrade() else { return };
        obj.imp().state.lock().statistics.start_format(frame, lookahead);
        obj.imp().post_latency();
    }

    fn progress(&self, progress: engine::Progress, position: Option<ClockTime>) {
        let Some(obj) = self.0.upgrade() else { return };
        gst::log!(CAT, obj = obj, "Finished {} in {:?}", progress.unit, progress.took);
        let message = {
            let statistics = &mut obj.imp().state.lock().statistics;
            statistics.progress(progress, position);
            statistics.message(Instant::now())
        };
        if let Some(message) = message {
            obj.imp().post(message);
        }
    }

    fn computed(&self, took: Duration) {
        let Some(obj) = self.0.upgrade() else { return };
        obj.imp().record(LatencyPart::Compute, took);
    }

    fn warned(&self, text: String) {
        let Some(obj) = self.0.upgrade() else { return };
        gst::element_warning!(obj, gst::ResourceError::NoSpaceLeft, ("{text}"));
    }

    fn failed(&self, error: Error) {
        let Some(obj) = self.0.upgrade() else { return };
        obj.imp().fail(gst::error_msg!(gst::LibraryError::Failed, ("{error}")));
    }

    fn log(&self, text: fmt::Arguments) {
        let Some(obj) = self.0.upgrade() else { return };
        gst::debug!(CAT, obj = obj, "{text}");
    }
}

#[cfg(test)]
mod tests;
