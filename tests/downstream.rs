// SPDX-License-Identifier: MIT OR Apache-2.0
//! What downstream asks and returns: upstream events, queries, flow errors.

mod common;

use common::{Rig, caps, discont, frames, times, tripled, wait_for};
use gst::{ClockTime, prelude::*};

#[test]
fn a_request_to_renegotiate_that_changes_nothing_splits_no_clip() {
    let mut rig = Rig::new();
    rig.push(2);
    assert!(rig.harness.push_upstream_event(gst::event::Reconfigure::new()));
    rig.push(2);
    assert_eq!(times(&rig.finish()), tripled(0, 4));
}

#[test]
fn quality_of_service_events_go_upstream_and_drop_nothing() {
    let mut rig = Rig::new();
    rig.push(2);
    let late = ClockTime::from_seconds(100);
    let qos =
        gst::event::Qos::new(gst::QOSType::Underflow, 5.0, late.nseconds() as i64, ClockTime::ZERO);
    assert!(rig.harness.push_upstream_event(qos));
    wait_for("the QoS event", || {
        rig.harness.try_pull_upstream_event().is_some_and(|e| e.type_() == gst::EventType::Qos)
    });
    rig.push(2);
    assert_eq!(times(&rig.finish()), tripled(0, 4));
}

#[test]
fn errors_from_downstream_reach_upstream_with_the_next_buffer() {
    for error in [
        gst::FlowError::Error,
        gst::FlowError::NotLinked,
        gst::FlowError::Eos,
        gst::FlowError::NotNegotiated,
    ] {
        let mut rig = Rig::new();
        rig.push(1);
        rig.wait_for_frames(1);
        rig.element.static_pad("src").unwrap().add_probe(
            gst::PadProbeType::BUFFER,
            move |_, info| {
                info.flow_res = Err(error);
                info.data = None;
                gst::PadProbeReturn::Handled
            },
        );
        let mut last = Ok(gst::FlowSuccess::Ok);
        for _ in 0..100 {
            let frame = rig.frame();
            last = rig.harness.push(frame);
            if last.is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(last, Err(error));
    }
}

#[test]
fn an_error_from_downstream_after_the_end_of_stream_is_on_the_bus() {
    let mut rig = Rig::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    rig.element.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        // The stream ends before the frame gets anywhere.
        let _ = released.lock().unwrap().recv();
        info.flow_res = Err(gst::FlowError::Error);
        info.data = None;
        gst::PadProbeReturn::Handled
    });
    rig.push(2);
    rig.event(gst::event::Eos::new());
    drop(release);
    let mut error = None;
    wait_for("an error", || {
        error = rig.error();
        error.is_some()
    });
    assert!(error.unwrap().contains("see the error of the element after venhance"));
}

#[test]
fn after_a_relink_the_stream_goes_on() {
    let mut rig = Rig::new();
    rig.push(2);
    rig.wait_for_frames(4);
    let src = rig.element.static_pad("src").unwrap();
    let peer = src.peer().unwrap();
    src.unlink(&peer).unwrap();
    let mut last = Ok(gst::FlowSuccess::Ok);
    while last.is_ok() {
        let frame = rig.frame();
        last = rig.harness.push(frame);
    }
    assert_eq!(last, Err(gst::FlowError::NotLinked));
    src.link(&peer).unwrap();
    let before = rig.frames().len();
    rig.push(2);
    let seen = rig.finish();
    let after = &frames(&seen)[before..];
    assert_eq!(after.len(), 4);
    assert!(discont(&after[0]));
}

#[test]
fn the_stream_goes_on_after_downstream_returned_eos_for_the_last_one() {
    let mut rig = Rig::new();
    rig.push(1);
    rig.wait_for_frames(1);
    let src = rig.element.static_pad("src").unwrap();
    let probe = src.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        info.flow_res = Err(gst::FlowError::Eos);
        info.data = None;
        gst::PadProbeReturn::Handled
    });
    let mut last = Ok(gst::FlowSuccess::Ok);
    while last.is_ok() {
        let frame = rig.frame();
        last = rig.harness.push(frame);
    }
    src.remove_probe(probe.unwrap());
    rig.event(gst::event::StreamStart::new("next"));
    rig.begin_segment();
    let before = rig.frames().len();
    rig.push(2);
    rig.wait_for_frames(before + 4);
}

#[test]
fn a_sink_that_returned_eos_gets_its_end_of_stream() {
    common::run(
        "videotestsrc ! video/x-raw,width=64,height=48 ! venhance up-scale=2 ! fakesink num-buffers=5",
    );
    common::run(
        "videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48,framerate=10/1 ! venhance up-scale=2 target-fps=90 ! fakesink num-buffers=4",
    );
}

#[test]
fn the_pointer_of_a_navigation_event_is_scaled_back_to_the_input() {
    let mut rig = Rig::new();
    rig.push(1);
    let event = gst_video::NavigationEvent::new_mouse_button_press(1, 50.0, 13.0);
    assert!(rig.harness.push_upstream_event(event.build()));
    let mut press = None;
    wait_for("the event", || {
        press = rig
            .harness
            .try_pull_upstream_event()
            .filter(|event| event.type_() == gst::EventType::Navigation);
        press.is_some()
    });
    match gst_video::NavigationEvent::parse(&press.unwrap()).unwrap() {
        gst_video::NavigationEvent::MouseButtonPress { button, x, y, .. } => {
            assert_eq!((button, x, y), (1, 25.0, 6.5));
        }
        event => panic!("{event:?}"),
    }
}

#[test]
fn a_seek_backwards_is_refused_and_playback_goes_on() {
    common::init();
    let pipeline = gst::parse::launch(
        "videotestsrc num-buffers=5 ! video/x-raw,width=16,height=16,framerate=10/1 \
         ! venhance up-scale=1 target-fps=20 ! fakesink name=sink",
    )
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    pipeline.state(ClockTime::from_seconds(20)).0.unwrap();
    let seek = |rate| {
        let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
        let (start, end) = (gst::SeekType::Set, gst::SeekType::None);
        pipeline.seek(rate, flags, start, ClockTime::ZERO, end, ClockTime::NONE)
    };
    assert!(seek(-1.0).is_err());
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end =
        pipeline.bus().unwrap().timed_pop_filtered(ClockTime::from_seconds(20), &ends).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_seek_in_a_file_restarts_at_the_right_time() {
    common::init();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.mp4");
    common::run(&format!(
        "videotestsrc num-buffers=40 ! video/x-raw,width=64,height=48,framerate=10/1 ! x264enc tune=zerolatency key-int-max=5 \
         ! mp4mux ! filesink location={}",
        file.display()
    ));
    for flags in [
        gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE,
        gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE | gst::SeekFlags::SEGMENT,
    ] {
        let pipeline = gst::parse::launch(&format!(
            "filesrc location={} ! decodebin ! venhance name=v up-scale=2 target-fps=20 ! fakesink name=sink",
            file.display()
        ))
        .unwrap()
        .downcast::<gst::Pipeline>()
        .unwrap();
        let times = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = times.clone();
        let pad = pipeline.by_name("v").unwrap().static_pad("src").unwrap();
        pad.add_probe(
            gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_FLUSH,
            move |_, info| {
                match &info.data {
                    Some(gst::PadProbeData::Buffer(b)) => {
                        log.lock().unwrap().push(b.pts().unwrap().mseconds())
                    }
                    _ => log.lock().unwrap().clear(),
                }
                gst::PadProbeReturn::Ok
            },
        );
        pipeline.set_state(gst::State::Paused).unwrap();
        pipeline.state(ClockTime::from_seconds(20)).0.unwrap();
        pipeline
            .seek(
                1.0,
                flags,
                gst::SeekType::Set,
                ClockTime::from_seconds(2),
                gst::SeekType::Set,
                ClockTime::from_seconds(3),
            )
            .unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let ends = [gst::MessageType::Eos, gst::MessageType::SegmentDone, gst::MessageType::Error];
        let end =
            pipeline.bus().unwrap().timed_pop_filtered(ClockTime::from_seconds(30), &ends).unwrap();
        assert_ne!(end.type_(), gst::MessageType::Error, "{end:?}");
        let expected: Vec<u64> = (0..19).map(|j| 2000 + j * 50).collect();
        // A demuxer says that the segment is done when it has sent the last packet.
        wait_for("all frames", || times.lock().unwrap().len() >= expected.len());
        let times = times.lock().unwrap().clone();
        assert_eq!(times, expected, "{flags:?}");
        let position = pipeline.query_position::<ClockTime>().unwrap();
        assert!(
            position >= ClockTime::from_mseconds(2900) && position <= ClockTime::from_seconds(3),
            "{position}"
        );
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn a_query_tells_which_caps_are_refused() {
    let rig = Rig::new();
    let source = rig.harness.srcpad().unwrap();
    let accepts = |field: &str, value: &str| {
        let mut caps = caps("GRAY8", 32, 16, (10, 1));
        caps.make_mut().set(field, value);
        source.peer_query_accept_caps(&caps)
    };
    assert!(accepts("interlace-mode", "progressive"));
    assert_eq!(rig.warnings(), Vec::<String>::new());
    assert!(!accepts("interlace-mode", "interleaved"));
    assert!(!accepts("interlace-mode", "mixed"));
    assert!(accepts("multiview-mode", "mono"));
    assert!(!accepts("multiview-mode", "side-by-side"));
    let kinds = [gst::MessageType::Error, gst::MessageType::Warning];
    let messages = std::iter::from_fn(|| rig.bus.pop_filtered(&kinds));
    let kinds: Vec<_> = messages.map(|message| message.type_()).collect();
    assert_eq!(kinds, [gst::MessageType::Warning]);
}
