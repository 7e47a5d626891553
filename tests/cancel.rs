// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element at work stops within a block of a network, or a part of a large frame. In its own test binary, because it
//! measures the processor time of the process, which other work on the machine hardly changes.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use std::{path::Path, thread::sleep, time::Duration};

use common::{Rig, TIMEOUT, caps, wait_for};
use gst::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use tiny_model::TinyModel;

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// An element in the middle of an evaluation, and the processor time of a whole one.
fn busy(model: &Path) -> (Rig, Duration) {
    let properties = format!("model=v1 model-dir={} up-scale=1 min-height=0", model.display());
    let mut rig = Rig::with(&properties, &caps("RGB", 64, 16, (8, 1)));
    rig.push(4);
    rig.event(gst::event::Eos::new());
    // The step that has ended, and the processor time so far. A message may be left out where steps are short.
    let done = || loop {
        let message = rig.bus.timed_pop_filtered(
            gst::ClockTime::try_from(TIMEOUT).unwrap(),
            &[gst::MessageType::Element, gst::MessageType::Error],
        );
        let message = message.expect("a step ends");
        assert_eq!(message.type_(), gst::MessageType::Element, "{message:?}");
        let unit = message.structure().and_then(|s| s.get::<String>("unit").ok());
        if let Some(step) = unit.as_deref().and_then(|unit| unit.strip_prefix("window 0, step ")) {
            return (step.parse::<u32>().unwrap(), processor_time());
        }
    };
    let ((step, first), (next, second)) = (done(), done());
    let evaluation = (second - first) / (next - step);
    wait_for("the next evaluation", || processor_time() > second + evaluation / 20);
    (rig, evaluation)
}

#[test]
fn an_evaluation_ends_within_a_block_when_the_element_stops_or_flushes() {
    let model = TinyModel::with_model((16, 64), &[1, 2, 4, 4]);
    for state in [Some(gst::State::Ready), Some(gst::State::Null), None] {
        let (rig, evaluation) = busy(&model.path("model"));
        let before = processor_time();
        match state {
            // Returns when the model has stopped.
            Some(state) => drop(rig.element.set_state(state).unwrap()),
            None => {
                rig.element.static_pad("sink").unwrap().send_event(gst::event::FlushStart::new());
                let mut last = Duration::ZERO;
                wait_for("rest", || {
                    sleep(Duration::from_millis(500));
                    let now = processor_time();
                    now - std::mem::replace(&mut last, now) < evaluation / 20
                });
            }
        }
        let after = processor_time() - before;
        eprintln!("{state:?}: {:.3} of an evaluation", after.div_duration_f64(evaluation));
        assert!(after < evaluation / 4, "{state:?}: {after:?} of {evaluation:?}");
        let rest = processor_time();
        sleep(Duration::from_millis(50));
        assert!(processor_time() - rest < evaluation / 20, "{state:?}: something works on");
        assert!(rig.frames().is_empty());
    }
}

#[test]
fn lite_and_the_conversions_around_it_end_within_a_part_of_a_large_frame() {
    common::init();
    let mut rig =
        Rig::with("model=lite up-scale=4 target-fps=0/1", &caps("I420", 960, 540, (10, 1)));
    rig.push(1);
    rig.wait_for_frames(1);
    let before = processor_time();
    rig.push(1);
    rig.wait_for_frames(2);
    let frame = processor_time() - before;
    // At different times of a frame.
    for part in [0.1, 0.3, 0.5, 0.7, 0.9] {
        rig.element.set_state(gst::State::Playing).unwrap();
        let caps = caps("I420", 960, 540, (10, 1));
        rig.harness.push_event(gst::event::StreamStart::new("again"));
        rig.set_caps(&caps);
        rig.event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        let start = processor_time();
        rig.push(2);
        wait_for("the middle of a frame", || processor_time() > start + frame.mul_f64(part));
        let before = processor_time();
        rig.element.set_state(gst::State::Null).unwrap();
        let after = processor_time() - before;
        eprintln!("at {part}: {after:?} of {frame:?}");
        assert!(after < frame / 4, "at {part}: {after:?} of {frame:?}");
    }
}
