// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting, stopping, running long, running live. One test at a time: they look at clocks, threads
//! and memory.

mod common;

use std::{
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Rig, caps, wait_for};
use gst::{ClockTime, prelude::*};

/// Keeps the tests of this file apart.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A state of the element in which it is to be interrupted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Busy {
    WaitingForInput,
    Computing,
    Blocked,
    Draining,
}

/// Brings an element into a state: its streaming thread is the one returned.
fn busy(state: Busy) -> (Rig, std::thread::JoinHandle<()>, Arc<AtomicBool>) {
    let large = caps("I420", 960, 540, (1, 1));
    let mut rig = match state {
        Busy::WaitingForInput => Rig::new(),
        _ => Rig::with("up-scale=4 target-fps=9", &large),
    };
    let ended = Arc::new(AtomicBool::new(false));
    let src = rig.element.static_pad("src").unwrap();
    if matches!(state, Busy::Blocked | Busy::Draining) {
        src.add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM | gst::PadProbeType::BUFFER, |_, _| {
            gst::PadProbeReturn::Ok
        });
    }
    let pad = rig.element.static_pad("sink").unwrap();
    let new_caps = Arc::new(AtomicBool::new(false));
    let seen = new_caps.clone();
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, _| {
        seen.store(true, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
    let frames: Vec<gst::Buffer> = (0..12).map(|_| rig.frame()).collect();
    let thread = {
        let ended = ended.clone();
        std::thread::spawn(move || {
            if state == Busy::Draining {
                let _ = pad.chain(frames[0].clone());
                pad.send_event(gst::event::Caps::new(&caps("I420", 64, 64, (1, 1))));
            } else if state != Busy::WaitingForInput {
                for frame in frames {
                    if pad.chain(frame).is_err() {
                        break;
                    }
                }
            }
            ended.store(true, Ordering::Relaxed);
        })
    };
    match state {
        Busy::WaitingForInput => wait_for("the end of the input", || ended.load(Ordering::Relaxed)),
        // One in the model, four in the queue, and one that waits for room.
        Busy::Computing => wait_for("a full queue", || rig.frames_in() >= 6),
        // In the model there is one more, whose output waits for room.
        Busy::Blocked => {
            wait_for("a full queue behind a block", || src.is_blocking() && rig.frames_in() >= 7)
        }
        Busy::Draining => wait_for("caps behind a block", || {
            src.is_blocking() && new_caps.load(Ordering::Relaxed)
        }),
    }
    (rig, thread, ended)
}

/// The median of five times.
fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..5).map(|_| measure()).collect();
    times.sort();
    times[2]
}

#[test]
fn stopping_takes_less_than_100_ms_in_every_state() {
    let _alone = alone();
    for state in [Busy::WaitingForInput, Busy::Computing, Busy::Blocked, Busy::Draining] {
        let took = median(|| {
            let (rig, thread, ended) = busy(state);
            assert_eq!(ended.load(Ordering::Relaxed), state == Busy::WaitingForInput, "{state:?}");
            let start = Instant::now();
            rig.element.set_state(gst::State::Ready).unwrap();
            let took = start.elapsed();
            thread.join().unwrap();
            took
        });
        assert!(took < Duration::from_millis(100), "{state:?} took {took:?}");
    }
}

#[test]
fn flushing_takes_less_than_100_ms_in_every_state_and_the_stream_goes_on() {
    let _alone = alone();
    for state in [Busy::WaitingForInput, Busy::Computing, Busy::Blocked, Busy::Draining] {
        let took = median(|| {
            let (rig, thread, _) = busy(state);
            let pad = rig.element.static_pad("sink").unwrap();
            let start = Instant::now();
            pad.send_event(gst::event::FlushStart::new());
            thread.join().unwrap();
            pad.send_event(gst::event::FlushStop::new(true));
            let took = start.elapsed();
            if matches!(state, Busy::Blocked | Busy::Draining) {
                return took;
            }
            pad.send_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
            let before = rig.frames().len();
            pad.chain(rig.frame_at(ClockTime::ZERO, ClockTime::SECOND)).unwrap();
            rig.wait_for_frames(before + 1);
            took
        });
        assert!(took < Duration::from_millis(100), "{state:?} took {took:?}");
    }
}

/// A number that /proc/self/status gives, in its unit.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_starts_and_stops_leave_no_thread_behind() {
    let _alone = alone();
    let mut rig = Rig::new();
    let mut threads = 0;
    for cycle in 0..100 {
        // With frames in every place, or none.
        for ms in 0..cycle % 7 {
            rig.push_at(ms * 100);
        }
        rig.element.set_state(gst::State::Null).unwrap();
        rig.element.set_state(gst::State::Playing).unwrap();
        rig.begin_stream(&caps("GRAY8", 32, 16, (10, 1)));
        if cycle == 10 {
            threads = status("Threads:");
        }
    }
    wait_for("threads to end", || status("Threads:") <= threads);
    rig.push_at(0);
}

#[test]
fn three_thousand_frames_take_no_more_memory_than_two_hundred() {
    let _alone = alone();
    common::init();
    let pipeline = gst::parse::launch(
        "videotestsrc num-buffers=3000 ! video/x-raw,format=I420,width=160,height=120,framerate=12/1 \
         ! venhance up-scale=2 target-fps=24 ! fakesink name=sink sync=false",
    )
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let memory = Arc::new(Mutex::new((0, Vec::new())));
    let log = memory.clone();
    let sink = pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
    sink.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let mut log = log.lock().unwrap();
        log.0 += 1;
        if log.0 % 200 == 0 {
            log.1.push(status("VmRSS:"));
        }
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    loop {
        match bus.timed_pop(ClockTime::from_seconds(60)).unwrap().view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{e:?}"),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let (frames, memory) = std::mem::take(&mut *memory.lock().unwrap());
    assert_eq!(frames, 5999);
    let after_200 = memory[0];
    let most = *memory.iter().max().unwrap();
    // KiB; an output frame alone is 600 of them.
    assert!(most < after_200 + 4096, "{memory:?}");
}

#[test]
fn nothing_leaks() {
    const INNER: &str = "VENHANCE_TEST_INNER";
    if std::env::var_os(INNER).is_some() {
        let mut rig = Rig::new();
        rig.push(4);
        rig.event(gst::event::FlushStart::new());
        rig.event(gst::event::FlushStop::new(true));
        rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
        rig.push_at(0);
        rig.finish();
        rig.element.set_state(gst::State::Null).unwrap();
        drop(rig);
        // A stop with frames on the way.
        let mut rig = Rig::with("up-scale=8 target-fps=90", &caps("I420", 320, 240, (10, 1)));
        rig.push(4);
        rig.element.set_state(gst::State::Null).unwrap();
        drop(rig);
        // SAFETY: nothing of GStreamer is used after this.
        unsafe { gst::deinit() };
        return;
    }
    let _alone = alone();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_leaks", "--nocapture"])
        .env(INNER, "1")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("object-alive"), "the tracer has not run: {log}");
    let alive: Vec<_> =
        log.lines().filter(|line| line.contains("object-alive, type-name=(string)Gst")).collect();
    assert!(alive.is_empty(), "{alive:#?}");
}

#[test]
fn a_live_source_is_never_late_at_the_latency_reported() {
    let _alone = alone();
    live("identity", ClockTime::from_mseconds(200));
}

#[test]
fn the_latency_counts_the_frames_that_wait_until_the_rate_is_known() {
    let _alone = alone();
    live("capssetter caps=video/x-raw,framerate=0/1", ClockTime::from_mseconds(600));
}

/// Plays 25 frames of a live source at 10 fps through an element and an enhancer that triples the rate.
/// No frame must be late by the latency that is reported with the first one, which is at least `least`.
fn live(element: &str, least: ClockTime) {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "videotestsrc is-live=true num-buffers=25 ! video/x-raw,format=I420,width=160,height=120,framerate=10/1 \
         ! {element} ! venhance name=v up-scale=2 target-fps=30 ! queue name=q ! fakesink sync=true",
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let late = Arc::new(Mutex::new(Vec::new()));
    let log = late.clone();
    let weak = pipeline.downgrade();
    // In the sink itself, a frame arrives after the sink has waited for the one before.
    let sink = pipeline.by_name("q").unwrap().static_pad("sink").unwrap();
    sink.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let (Some(pipeline), Some(gst::PadProbeData::Buffer(buffer))) =
            (weak.upgrade(), &info.data)
        else {
            return gst::PadProbeReturn::Ok;
        };
        let now = pipeline.current_running_time().unwrap();
        let event = pad.sticky_event::<gst::event::Segment>(0).unwrap();
        let segment = event.segment().downcast_ref::<ClockTime>().unwrap().clone();
        let shown = segment.to_running_time(buffer.pts().unwrap()).unwrap();
        let mut latency = gst::query::Latency::new();
        assert!(pad.peer_query(&mut latency));
        log.lock().unwrap().push((now, shown, latency.result().1));
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    loop {
        let message = bus.timed_pop(ClockTime::from_seconds(30)).unwrap();
        match message.view() {
            gst::MessageView::Latency(_) => pipeline.recalculate_latency().unwrap(),
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{e:?}"),
            _ => {}
        }
    }
    let mut latency = gst::query::Latency::new();
    assert!(pipeline.query(&mut latency));
    let (live, min, max) = latency.result();
    assert!(live && min >= least && max.is_none_or(|max| max >= min), "{min} {max:?}");
    wait_for("all frames", || late.lock().unwrap().len() == 73);
    let seen = late.lock().unwrap().clone();
    // By the latency that was reported with the first frame.
    let reported = seen[0].2;
    assert!(seen.iter().all(|(now, shown, _)| *now <= *shown + reported), "{seen:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}
