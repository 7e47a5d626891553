// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element with a mock in place of the model.

use std::sync::mpsc;

use super::*;
use crate::{
    engine::{ClipContext, Enhancer, Format, Frame},
    models::Loaded,
};

/// What a model does with a frame.
type Push = Box<dyn FnMut(&ClipContext, Frame) -> Result<(), Error> + Send>;

/// A model that does `push` with each frame, and nothing else.
struct Mock {
    push: Push,
    clip: Option<ClipContext>,
}

impl Enhancer for Mock {
    fn lookahead(&self, _: &Format) -> usize {
        0
    }

    fn start(&mut self, _: Format, clip: ClipContext) -> Result<(), Error> {
        self.clip = Some(clip);
        Ok(())
    }

    fn push(&mut self, frame: Frame, _: u64, _: &[u64]) -> Result<(), Error> {
        (self.push)(self.clip.as_ref().unwrap(), frame)
    }

    fn finish(&mut self, _: &[u64]) -> Result<(), Error> {
        Ok(())
    }

    fn reset(&mut self) {
        self.clip = None;
    }
}

/// An element that plays with a mock, at the size and rate of its input.
struct Rig {
    element: crate::VEnhance,
    harness: gst_check::Harness,
    bus: gst::Bus,
}

impl Rig {
    fn new(push: impl FnMut(&ClipContext, Frame) -> Result<(), Error> + Send + 'static) -> Self {
        gst::init().unwrap();
        let element: crate::VEnhance = glib::Object::builder()
            .property("model", crate::Model::Lite)
            .property("up-scale", 1.0)
            .property("target-fps", gst::Fraction::new(0, 1))
            // It would hold a frame back.
            .property("shot-detection", false)
            .build();
        let choice = models::choose(&element.imp().properties.lock().latest().options).unwrap();
        let mock = Mock { push: Box::new(push), clip: None };
        element.imp().state.lock().idle = Some(Loaded::with_enhancer(choice, Box::new(mock)));
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut harness = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        harness.set_src_caps(
            gst::Caps::builder("video/x-raw")
                .field("format", "GRAY8")
                .field("width", 16)
                .field("height", 16)
                .field("framerate", gst::Fraction::new(10, 1))
                .build(),
        );
        Self { element, harness, bus }
    }

    /// Pushes frames and then EOS.
    fn push(&mut self, frames: u64) {
        for n in 0..frames {
            let mut buffer = gst::Buffer::with_size(256).unwrap();
            buffer.get_mut().unwrap().set_pts(ClockTime::from_mseconds(100) * n);
            // An error of the model is returned here.
            let _ = self.harness.push(buffer);
        }
        self.harness.push_event(gst::event::Eos::new());
    }

    fn message(&self, kind: gst::MessageType) -> String {
        let message = self.bus.timed_pop_filtered(ClockTime::from_seconds(20), &[kind]);
        match message.expect("no message").view() {
            gst::MessageView::Error(error) => error.error().message().to_owned(),
            gst::MessageView::Warning(warning) => warning.error().message().to_owned(),
            _ => unreachable!(),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The messages on the bus hold the element, which holds the bus.
        self.element.set_bus(None);
    }
}

/// The first error that is posted when a model does this with each of three frames. The element stops
/// after it.
fn error_of(push: impl FnMut(&ClipContext, Frame) -> Result<(), Error> + Send + 'static) -> String {
    let mut rig = Rig::new(push);
    rig.push(3);
    let error = rig.message(gst::MessageType::Error);
    rig.element.set_state(gst::State::Null).unwrap();
    error
}

#[test]
fn a_model_that_keeps_the_contract_gives_no_error() {
    let mut rig = Rig::new(|clip, frame| clip.sink.frame(Arc::new(frame)));
    rig.push(3);
    for n in 0..3 {
        assert_eq!(rig.harness.pull().unwrap().pts(), Some(ClockTime::from_mseconds(100) * n));
    }
    assert!(rig.bus.pop_filtered(&[gst::MessageType::Error]).is_none());
}

#[test]
fn a_frame_too_many_is_an_element_error() {
    let error = error_of(|clip, frame| {
        let frame = Arc::new(frame);
        clip.sink.frame(frame.clone())?;
        clip.sink.frame(frame)
    });
    assert!(
        error.contains("internal error") && error.contains("2 output frames, too many"),
        "{error}"
    );
}

#[test]
fn a_frame_too_many_is_an_element_error_even_if_the_model_ignores_it() {
    let error = error_of(|clip, frame| {
        let frame = Arc::new(frame);
        let _ = clip.sink.frame(frame.clone());
        let _ = clip.sink.frame(frame);
        Ok(())
    });
    assert!(error.contains("too many"), "{error}");
}

#[test]
fn a_frame_after_the_end_of_its_clip_is_an_element_error() {
    let mut before: Option<ClipContext> = None;
    let mut rig = Rig::new(move |clip, frame| match before.replace(clip.clone()) {
        None => clip.sink.frame(Arc::new(frame)),
        Some(before) => before.sink.frame(Arc::new(frame)),
    });
    // Each is a clip.
    for n in 0..2 {
        let mut buffer = gst::Buffer::with_size(256).unwrap();
        buffer.get_mut().unwrap().set_pts(ClockTime::from_seconds(n));
        let _ = rig.harness.push(buffer);
    }
    let error = rig.message(gst::MessageType::Error);
    assert!(error.contains("used after its end"), "{error}");
}

#[test]
fn a_frame_too_few_is_an_element_error() {
    let mut count = 0;
    let error = error_of(move |clip, frame| {
        count += 1;
        if count == 2 { Ok(()) } else { clip.sink.frame(Arc::new(frame)) }
    });
    assert!(
        error.contains("internal error")
            && error.contains("2 output frames for 3 input frames of a clip, instead of 3"),
        "{error}"
    );
}

#[test]
fn a_panic_of_the_model_is_an_element_error_with_its_message() {
    let error = error_of(|_, _| panic!("index out of range"));
    assert!(error.contains("internal error") && error.contains("index out of range"), "{error}");
}

#[test]
fn a_cancellation_that_nobody_asked_for_is_an_element_error() {
    let error = error_of(|_, _| Err(Error::Cancelled));
    assert!(error.contains("internal error") && error.contains("returned Cancelled"), "{error}");
}

#[test]
fn an_error_of_the_model_is_an_element_error() {
    let error = error_of(|_, _| Err(Error::NotFinite { what: "window 3".into() }));
    assert!(error.contains("window 3"), "{error}");
}

#[test]
fn a_warning_of_the_model_is_on_the_bus() {
    let mut rig = Rig::new(|clip, frame| {
        clip.sink.warning("smaller tiles".into());
        clip.sink.frame(Arc::new(frame))
    });
    rig.push(1);
    assert_eq!(rig.message(gst::MessageType::Warning), "smaller tiles");
}

#[test]
fn a_flush_does_not_wait_for_the_model_and_drops_what_it_computes() {
    let (started, wait_started) = mpsc::channel();
    let (release, wait_release) = mpsc::channel();
    let mut blocked = false;
    let mut rig = Rig::new(move |clip, frame| {
        if !std::mem::replace(&mut blocked, true) {
            started.send(()).unwrap();
            wait_release.recv().unwrap();
            assert_eq!(clip.cancel.check(), Err(Error::Cancelled));
        }
        clip.sink.frame(Arc::new(frame))
    });
    rig.push(1);
    wait_started.recv_timeout(Duration::from_secs(20)).unwrap();
    // Would hang here, because the model is released afterwards.
    rig.harness.push_event(gst::event::FlushStart::new());
    rig.harness.push_event(gst::event::FlushStop::new(true));
    release.send(()).unwrap();
    let segment = gst::FormattedSegment::<ClockTime>::new();
    rig.harness.push_event(gst::event::Segment::new(&segment));
    let mut buffer = gst::Buffer::with_size(256).unwrap();
    buffer.get_mut().unwrap().set_pts(ClockTime::SECOND);
    rig.harness.push(buffer).unwrap();
    assert_eq!(rig.harness.pull().unwrap().pts(), Some(ClockTime::SECOND));
    assert!(rig.bus.pop_filtered(&[gst::MessageType::Error]).is_none());
}
