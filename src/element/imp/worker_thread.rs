// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compute thread: loads the model, works, and says how it goes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use gst::{ClockTime, glib, prelude::*, subclass::prelude::*};

use super::{VEnhance, lock};
use crate::{
    element::{
        progress::Stage,
        worker::{Report, compute},
    },
    engine::{self, Cancel},
    models::{self, Choice, Loaded, Note},
    weights,
};

impl VEnhance {
    /// What the thread does from start to stop.
    pub(super) fn compute(&self, choice: &Choice, cancel: &Cancel) {
        let report = Arc::new(Reporter(self.obj().downgrade()));
        let run = || {
            let idle = lock(&self.idle).take();
            let mut loaded = match idle {
                Some(idle) if idle.choice == *choice => idle,
                idle => self.load(choice, idle, cancel)?,
            };
            let first = lock(&self.settings).first_frame;
            compute(&self.queue, &mut *loaded.enhancer, report.clone(), first);
            loaded.enhancer.reset();
            *lock(&self.idle) = Some(loaded);
            Ok(())
        };
        let error = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(()) | Err(engine::Error::Cancelled)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the model has panicked: please report what was on standard error".into(),
        };
        gst::element_imp_error!(self, gst::LibraryError::Failed, ("{error}"));
        self.queue.close(gst::FlowError::Error);
    }

    /// Loads the model, and says so on the bus.
    fn load(
        &self,
        choice: &Choice,
        before: Option<Loaded>,
        cancel: &Cancel,
    ) -> Result<Loaded, engine::Error> {
        let say = |kind, text: String| {
            let obj = self.obj();
            let message =
                gst::message::Progress::builder(kind, "load-model", &text).src(&*obj).build();
            let _ = obj.post_message(message);
        };
        say(gst::ProgressType::Start, format!("Loading model {}", choice.model));
        let loaded = models::build(choice, before, cancel, &mut |note| match note {
            Note::Download(progress) => self.post(transfer("venhance-download", progress)),
            Note::Copy(progress) => self.post(transfer("venhance-copy", progress)),
            Note::Warning(text) => {
                gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
            }
        });
        match &loaded {
            Ok(_) => say(gst::ProgressType::Complete, format!("Model {} is loaded", choice.model)),
            Err(engine::Error::Cancelled) => {
                say(gst::ProgressType::Canceled, "Loading was cancelled".into())
            }
            Err(error) => say(gst::ProgressType::Error, error.to_string()),
        }
        loaded
    }
}

/// The message that says how far files have come.
fn transfer(name: &str, progress: weights::Progress) -> gst::Structure {
    gst::Structure::builder(name)
        .field("file", progress.file)
        .field("bytes", progress.done)
        .field("total-bytes", progress.total)
        .build()
}

/// What the compute thread has to say. It does not keep the element alive.
struct Reporter(glib::WeakRef<crate::VEnhance>);

impl Report for Reporter {
    fn format(&self, frame: Option<ClockTime>, lookahead: usize) {
        let Some(obj) = self.0.upgrade() else { return };
        lock(&obj.imp().statistics).start_format(frame, lookahead);
        obj.imp().post_latency();
    }

    fn progress(&self, progress: engine::Progress, position: Option<ClockTime>) {
        let Some(obj) = self.0.upgrade() else { return };
        let structure = {
            let mut statistics = lock(&obj.imp().statistics);
            statistics.progress(progress, position);
            statistics.structure()
        };
        obj.imp().post(structure);
    }

    fn computed(&self, took: Duration) {
        let Some(obj) = self.0.upgrade() else { return };
        obj.imp().took(Stage::Compute, took);
    }

    fn warned(&self, text: String) {
        let Some(obj) = self.0.upgrade() else { return };
        gst::element_warning!(obj, gst::ResourceError::NoSpaceLeft, ("{text}"));
    }

    fn failed(&self, error: engine::Error) {
        let Some(obj) = self.0.upgrade() else { return };
        gst::element_error!(obj, gst::LibraryError::Failed, ("{error}"));
    }

    fn dropped(&self, events: Vec<gst::Event>) {
        let Some(obj) = self.0.upgrade() else { return };
        obj.imp().keep_sticky(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        element::{
            queue::{BufferInfo, Queue, QueueItem},
            timeline::FrameTime,
        },
        engine::{Clip, Enhancer, Error, Format, Frame},
    };

    /// A model that has something to say when a clip begins.
    struct Warns;

    impl Enhancer for Warns {
        fn lookahead(&self, _: &Format) -> usize {
            0
        }

        fn start(&mut self, _: Format, clip: Clip) -> Result<(), Error> {
            clip.sink.warning("smaller tiles".into());
            Ok(())
        }

        fn push(&mut self, _: Frame) -> Result<(), Error> {
            Ok(())
        }

        fn finish(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn reset(&mut self) {}
    }

    #[test]
    fn what_a_model_warns_of_at_work_is_on_the_bus() {
        gst::init().unwrap();
        let element: crate::VEnhance = glib::Object::new();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let queue = Arc::new(Queue::new());
        queue.open();
        let format = Format { input: (2, 2), output: (2, 2), made: 0, alpha: false };
        let stamp = BufferInfo {
            time: FrameTime::first(ClockTime::ZERO),
            duration: None,
            flags: gst::BufferFlags::empty(),
            metas: None,
        };
        queue.enter(QueueItem::Format(format, None)).unwrap();
        queue.enter(QueueItem::Frame(Frame::new(2, 2).unwrap(), stamp)).unwrap();
        let message = std::thread::scope(|scope| {
            let report = Arc::new(Reporter(element.downgrade()));
            scope.spawn(|| compute(&queue, &mut Warns, report, 0));
            let timeout = ClockTime::from_seconds(10);
            let message = bus.timed_pop_filtered(timeout, &[gst::MessageType::Warning]);
            queue.close(gst::FlowError::Flushing);
            message
        });
        element.set_bus(None);
        let message = message.unwrap();
        let gst::MessageView::Warning(warning) = message.view() else { unreachable!() };
        assert_eq!(warning.error().message(), "smaller tiles");
    }
}
