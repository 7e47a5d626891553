// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flushes: what is dropped, what stays, and how the stream goes on.

mod common;

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use common::{Rig, Seen, caps, discont, frames, tag, times, tripled, wait_for};
use gst::{ClockTime, glib, prelude::*};

/// A fixed sequence of pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// What the sticky events on a pad say: the stream's id, the title in the caps, and the last tag.
fn sticky(pad: &gst::Pad) -> [String; 3] {
    let caps = pad.current_caps().unwrap();
    let stream = pad.sticky_event::<gst::event::StreamStart>(0);
    let tag = pad.sticky_event::<gst::event::Tag>(0);
    [
        stream.map_or(String::new(), |event| event.stream_id().to_string()),
        caps.structure(0).unwrap().get("title").unwrap(),
        tag.and_then(|event| event.tag().get::<gst::tags::Title>().map(|t| t.get().to_string()))
            .unwrap_or_default(),
    ]
}

/// Runs `streams` short streams at a frame rate. A thread flushes at random points of each. Every stream
/// that reaches its end must have its own STREAM_START, its last CAPS and its last TAG downstream.
fn storm(streams: u64, rate: (i32, i32)) {
    let mut rig = Rig::with("up-scale=1 target-fps=20", &caps("GRAY8", 16, 16, rate));
    let sink = rig.harness.sinkpad().unwrap();
    let ends = Arc::new(Mutex::new(Vec::new()));
    let log = ends.clone();
    sink.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data
            && event.type_() == gst::EventType::Eos
        {
            log.lock().unwrap().push(sticky(pad));
        }
        gst::PadProbeReturn::Ok
    });

    let source = rig.harness.srcpad().unwrap();
    let segment = gst::FormattedSegment::<ClockTime>::new();
    // Upstream pushes under this lock, and takes it for the second half of a flush.
    let streaming = Arc::new(Mutex::new(()));
    let (order, orders) = mpsc::channel::<(Duration, mpsc::Sender<()>)>();
    let flusher = {
        let (source, streaming, segment) = (source.clone(), streaming.clone(), segment.clone());
        std::thread::spawn(move || {
            for (delay, done) in orders {
                std::thread::sleep(delay);
                source.push_event(gst::event::FlushStart::new());
                let _streaming = streaming.lock().unwrap();
                source.push_event(gst::event::FlushStop::new(true));
                source.push_event(gst::event::Segment::new(&segment));
                done.send(()).unwrap();
            }
        })
    };
    let event = |event| {
        let _streaming = streaming.lock().unwrap();
        source.push_event(event)
    };
    let frame = |frame| {
        let _streaming = streaming.lock().unwrap();
        source.push(frame)
    };

    let mut random = Random(17);
    for stream in 0..streams {
        let (done, flushed) = mpsc::channel();
        order.send((Duration::from_micros(random.below(300)), done)).unwrap();
        event(gst::event::StreamStart::new(&format!("stream {stream}")));
        // Of the same picture as the caps before, or of another one.
        let width = 16 + 16 * random.below(2) as i32;
        let mut caps = caps("GRAY8", width, 16, rate);
        let title = format!("{stream} caps");
        caps.make_mut().set("title", &title);
        rig.info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        event(gst::event::Caps::new(&caps));
        event(gst::event::Segment::new(&segment));
        for n in 0..random.below(4) {
            event(tag(&format!("{stream} {n}")));
            if random.below(2) == 0 {
                let _ = frame(rig.frame_at(100 * n * ClockTime::MSECOND, 100 * ClockTime::MSECOND));
            }
        }
        let last = format!("{stream} last");
        event(tag(&last));
        flushed.recv().unwrap();
        frame(rig.frame_at(ClockTime::ZERO, 100 * ClockTime::MSECOND)).unwrap();
        assert!(event(gst::event::Eos::new()));
        wait_for("the end", || !ends.lock().unwrap().is_empty());
        let end = ends.lock().unwrap().pop().unwrap();
        assert_eq!(end, [format!("stream {stream}"), title, last]);
        while rig.harness.try_pull().is_some() {}
    }
    drop(order);
    flusher.join().unwrap();
    assert_eq!(rig.error(), None);
}

#[test]
fn no_sticky_event_is_lost_in_a_flush() {
    storm(2000, (10, 1));
}

#[test]
fn no_sticky_event_is_lost_in_a_flush_while_the_rate_is_measured() {
    storm(500, (0, 1));
}

#[test]
fn a_flush_drops_the_frames_and_the_stream_begins_anew() {
    let mut rig = Rig::new();
    rig.push(3);
    rig.event(gst::event::FlushStart::new());
    assert_eq!(
        {
            let frame = rig.frame();
            rig.harness.push(frame)
        },
        Err(gst::FlowError::Flushing)
    );
    rig.event(gst::event::FlushStop::new(true));
    rig.begin_segment();
    for ms in [5000, 5100] {
        rig.push_at(ms);
    }
    let seen = rig.finish();
    let after: Vec<_> = seen
        .iter()
        .skip_while(
            |seen| !matches!(seen, Seen::Event(e) if e.type_() == gst::EventType::FlushStop),
        )
        .cloned()
        .collect();
    assert_eq!(times(&after), tripled(5000, 2));
    let loads = std::iter::from_fn(|| rig.bus.pop_filtered(&[gst::MessageType::Progress])).count();
    assert_eq!(loads, 2, "one start, one complete: the model is kept");
    let marks: Vec<_> = frames(&after).iter().map(discont).collect();
    assert_eq!(marks, [true, false, false, false]);
}

#[test]
fn a_tag_that_waits_behind_frames_survives_a_flush() {
    let mut rig = Rig::new();
    let src = rig.element.static_pad("src").unwrap();
    let probe = src
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM | gst::PadProbeType::BUFFER, |_, _| {
            gst::PadProbeReturn::Ok
        });
    rig.push(3);
    rig.event(tag("kept"));
    rig.event(gst::event::FlushStart::new());
    src.remove_probe(probe.unwrap());
    rig.event(gst::event::FlushStop::new(true));
    rig.begin_segment();
    rig.push_at(0);
    let seen = rig.finish();
    let titles: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Event(event) => match event.view() {
                gst::EventView::Tag(e) => {
                    e.tag().get::<gst::tags::Title>().map(|title| title.get().to_string())
                }
                _ => None,
            },
            Seen::Frame(_) => None,
        })
        .collect();
    assert_eq!(titles, ["kept"]);
}

#[test]
fn a_flush_stop_without_its_start_is_a_flush() {
    let mut rig = Rig::new();
    let src = rig.element.static_pad("src").unwrap();
    let probe = src
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM | gst::PadProbeType::BUFFER, |_, _| {
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    rig.push(3);
    wait_for("downstream to block", || src.is_blocking());
    rig.event(gst::event::FlushStop::new(true));
    src.remove_probe(probe);
    rig.begin_segment();
    let before = rig.frames().len();
    rig.push_at(3000);
    let seen = rig.finish();
    let after = &frames(&seen)[before..];
    assert_eq!(
        after.iter().map(|f| f.pts()).collect::<Vec<_>>(),
        [Some(ClockTime::from_seconds(3))]
    );
    assert!(discont(&after[0]));
}

#[test]
fn a_stop_while_upstream_flushes_does_not_hang() {
    for _ in 0..50 {
        let mut rig = Rig::new();
        rig.push(2);
        let pad = rig.element.static_pad("sink").unwrap();
        let flushes = std::thread::spawn(move || {
            for _ in 0..5 {
                pad.send_event(gst::event::FlushStart::new());
                pad.send_event(gst::event::FlushStop::new(true));
            }
        });
        rig.element.set_state(gst::State::Null).unwrap();
        flushes.join().unwrap();
    }
}

#[test]
fn a_seek_while_the_stream_begins_stores_its_events_in_order() {
    common::init();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let log = warnings.clone();
    glib::log_set_handler(
        Some("GStreamer"),
        glib::LogLevels::LEVEL_WARNING,
        false,
        false,
        move |_, _, text| log.lock().unwrap().push(text.to_owned()),
    );
    let mut random = Random(3);
    for _ in 0..100 {
        let pipeline = gst::parse::launch(
            "videotestsrc ! video/x-raw,format=GRAY8,width=32,height=24,framerate=25/1 \
             ! venhance model=lite up-scale=1 ! fakesink",
        )
        .unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        let _ = pipeline.seek_simple(gst::SeekFlags::FLUSH, ClockTime::SECOND);
        let _ = pipeline.state(ClockTime::from_seconds(10));
        pipeline.set_state(gst::State::Null).unwrap();
    }
    let warnings = warnings.lock().unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}
