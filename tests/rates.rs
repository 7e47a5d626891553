// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frame rates: not named, wrong in the caps, and changed while the element plays.

mod common;

use std::sync::{Arc, Mutex};

use common::{Rig, Seen, caps, times, try_run, wait_for};
use gst::{ClockTime, prelude::*};

/// Pushes frames at these multiples of an interval.
fn push_each(rig: &mut Rig, interval: ClockTime, frames: std::ops::Range<u64>) {
    for n in frames {
        let frame = rig.frame_at(interval * n, interval);
        rig.harness.push(frame).unwrap();
    }
}

/// The intervals between the output frames, in microseconds, each with its number in sequence.
fn intervals(times: &[ClockTime]) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for pair in times.windows(2) {
        let interval = (pair[1] - pair[0]).useconds();
        match runs.last_mut() {
            Some((last, count)) if last.abs_diff(interval) <= 1 => *count += 1,
            _ => runs.push((interval, 1)),
        }
    }
    runs
}

fn exact_times(seen: &[Seen]) -> Vec<ClockTime> {
    common::frames(seen).iter().map(|frame| frame.pts().unwrap()).collect()
}

#[test]
fn a_stream_that_does_not_name_its_rate_is_measured() {
    for (interval, expected) in [(100, 22), (42, 8), (1000, 64)] {
        let mut rig = Rig::with("up-scale=1 target-fps=30", &caps("GRAY8", 32, 16, (0, 1)));
        for n in 0..8 {
            rig.push_at(n * interval);
        }
        let seen = rig.finish();
        assert_eq!(times(&seen).len(), expected, "{interval} ms");
        assert!(times(&seen).is_sorted());
        let caps = rig.element.static_pad("src").unwrap().current_caps().unwrap();
        let fps = caps.structure(0).unwrap().get::<gst::Fraction>("framerate");
        assert_eq!(fps, Ok(gst::Fraction::new(0, 1)));
    }
    // Measured where there is something to measure.
    let mut rig = Rig::with("up-scale=1 target-fps=30", &caps("GRAY8", 32, 16, (0, 1)));
    rig.push_at(0);
    rig.event(gst::event::Gap::builder(ClockTime::from_mseconds(100)).build());
    for ms in [5000, 5100, 5200] {
        rig.push_at(ms);
    }
    assert_eq!(times(&rig.finish()), [0, 5000, 5033, 5066, 5100, 5133, 5166, 5200]);
    // Too short to be measured, and with an event in between.
    let mut rig = Rig::with("up-scale=1 target-fps=30", &caps("GRAY8", 32, 16, (0, 1)));
    rig.push_at(0);
    rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("custom")));
    let seen = rig.finish();
    assert_eq!(common::order(&seen), ["0", "custom-downstream", "eos"]);
}

#[test]
fn rates_that_cannot_be_multiplied_stay_and_slow_ones_are_measured() {
    let (_, error) = try_run(
        "videotestsrc num-buffers=2 ! video/x-raw,width=16,height=16,framerate=1000000000/125000001 \
         ! venhance up-scale=1 target-fps=24 ! fakesink",
    );
    assert_eq!(error, None);
    let mut rig = Rig::with("up-scale=1 target-fps=1/5", &caps("GRAY8", 32, 16, (0, 1)));
    for n in 0..6 {
        rig.push_at(n * 10_000);
    }
    let expected: Vec<u64> = (0..11).map(|j| j * 5000).collect();
    assert_eq!(times(&rig.finish()), expected);
}

/// The frame rate of the caps before each frame, and the frame's duration.
fn rates(seen: &[Seen]) -> Vec<(gst::Fraction, ClockTime)> {
    let mut rate = gst::Fraction::new(0, 1);
    let mut rates = Vec::new();
    for seen in seen {
        match seen {
            Seen::Frame(frame) => rates.push((rate, frame.duration().unwrap())),
            Seen::Event(event) => {
                if let gst::EventView::Caps(e) = event.view() {
                    rate = e.caps().structure(0).unwrap().get("framerate").unwrap();
                }
            }
        }
    }
    rates
}

#[test]
fn frames_have_the_rate_of_their_caps_when_the_target_changes_during_a_drain() {
    let target = |fps| gst::Fraction::new(fps, 1);
    let mut rig = Rig::with("up-scale=1 target-fps=20", &caps("GRAY8", 32, 16, (10, 1)));
    let src = rig.element.static_pad("src").unwrap();
    let probe = src
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM | gst::PadProbeType::BUFFER, |_, _| {
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    rig.push(2);
    wait_for("downstream to block", || src.is_blocking());
    rig.element.set_property("target-fps", target(40));
    let frame = rig.frame();
    let sink = rig.element.static_pad("sink").unwrap();
    let pushed = std::thread::spawn(move || sink.chain(frame).unwrap());
    // The element chooses the new caps, and then drains.
    wait_for("the renegotiation", || !src.needs_reconfigure());
    rig.element.set_property("target-fps", target(10));
    src.remove_probe(probe);
    pushed.join().unwrap();
    rig.element.set_property("target-fps", target(40));
    rig.push(2);
    let rates = rates(&rig.finish());
    for (rate, duration) in &rates {
        let nominal = ClockTime::SECOND.mul_div_floor(1, rate.numer() as u64).unwrap();
        assert_eq!(duration, &nominal, "{rates:?}");
    }
    assert_eq!(rates.last().unwrap().0, target(40));
}

#[test]
fn a_change_of_the_target_acts_where_the_rate_is_measured() {
    let mut rig = Rig::with("up-scale=1 target-fps=20", &caps("GRAY8", 32, 16, (0, 1)));
    push_each(&mut rig, ClockTime::from_mseconds(100), 0..6);
    rig.element.set_property("target-fps", gst::Fraction::new(40, 1));
    push_each(&mut rig, ClockTime::from_mseconds(100), 6..8);
    let times = exact_times(&rig.finish());
    assert_eq!(intervals(&times), [(50_000, 10), (100_000, 1), (25_000, 4)]);
}

#[test]
fn where_the_timestamps_contradict_the_caps_the_measured_rate_is_followed_with_one_warning() {
    for (nominal, real, target, interpolated) in [
        // A camera in the dark; the headers of two cameras; a file at twice the rate that it names.
        ((30, 1), 15, 60, 4),
        ((30, 1), 15, 30, 2),
        ((50, 1), 25, 50, 2),
        ((15, 1), 30, 60, 2),
    ] {
        let properties = format!("up-scale=1 target-fps={target}");
        let mut rig = Rig::with(&properties, &caps("GRAY8", 32, 16, nominal));
        let interval = ClockTime::SECOND / real;
        push_each(&mut rig, interval, 0..20);
        let times = exact_times(&rig.finish());
        let runs = intervals(&times);
        // The rate is known with the fifth frame. The clip that begins there has 16 frames.
        let last = runs.last().unwrap();
        assert_eq!(*last, (interval.useconds() / interpolated, 15 * interpolated as usize));
        assert!(times.last().unwrap().absdiff(interval * 19) < ClockTime::from_useconds(1));
        let warnings = rig.warnings();
        assert_eq!(warnings.len(), 1, "{nominal:?} {warnings:?}");
        assert!(warnings[0].contains("contradict the frame rate of the caps"), "{warnings:?}");
    }
}

#[test]
fn rates_above_1000_are_those_of_a_clock_and_not_believed() {
    for numer in [1001, 90_000, i32::MAX] {
        let mut rig = Rig::with("up-scale=1 target-fps=60", &caps("GRAY8", 32, 16, (numer, 1)));
        push_each(&mut rig, ClockTime::SECOND / 30, 0..20);
        let times = exact_times(&rig.finish());
        assert_eq!(intervals(&times), [(16_666, 38)], "{numer}");
        let warnings = rig.warnings();
        assert_eq!(warnings.len(), 1, "{numer} {warnings:?}");
        assert!(warnings[0].contains("contradict the frame rate of the caps"), "{warnings:?}");
        // The application shows it, and has no pipeline to change.
        assert!(!warnings[0].contains("videorate"), "{warnings:?}");

        for mode in ["multiple", "exact"] {
            let properties = format!("up-scale=1 target-fps=50 rate-mode={mode}");
            let mut rig = Rig::with(&properties, &caps("GRAY8", 32, 16, (numer, 1)));
            for _ in 0..6 {
                let mut frame = rig.frame_at(ClockTime::ZERO, ClockTime::ZERO);
                frame.get_mut().unwrap().set_pts(None);
                frame.get_mut().unwrap().set_duration(None);
                rig.harness.push(frame).unwrap();
            }
            let times = exact_times(&rig.finish());
            let count = if mode == "exact" { 11 } else { 10 };
            assert_eq!(intervals(&times), [(20_000, count)], "{numer} {mode}");
        }
    }
}

#[test]
fn a_rate_that_falls_and_rises_again_is_followed() {
    let mut rig = Rig::with("up-scale=1 target-fps=60", &caps("GRAY8", 32, 16, (30, 1)));
    let frame = ClockTime::SECOND / 30;
    let mut time = ClockTime::ZERO;
    for n in 0..60 {
        rig.harness.push(rig.frame_at(time, frame)).unwrap();
        time += if (20..40).contains(&n) { frame * 2 } else { frame };
    }
    let times = exact_times(&rig.finish());
    let runs = intervals(&times);
    // Each change is known four frames later.
    assert_eq!(runs.first(), Some(&(16_666, 40)), "{runs:?}");
    assert!(runs.contains(&(16_666, 16 * 4)), "{runs:?}");
    let last = runs.last().unwrap();
    assert!(*last == (16_666, 15 * 2), "{runs:?}");
    assert_eq!(rig.warnings().len(), 1);
}

#[test]
fn output_times_increase_where_a_frame_comes_as_soon_as_the_one_before_it_ends() {
    let mut rig = Rig::with("up-scale=1 target-fps=120", &caps("GRAY8", 32, 16, (24, 1)));
    // The fourth frame repeats a time, and is shown 1 ns before that of the fifth.
    for ns in [0, 41_666_666, 83_333_333, 83_333_333, 125_000_001, 166_666_666] {
        let frame = rig.frame_at(ClockTime::from_nseconds(ns), ClockTime::ZERO);
        rig.harness.push(frame).unwrap();
    }
    let times = exact_times(&rig.finish());
    assert_eq!(times.len(), 26);
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    assert_eq!(times.last(), Some(&ClockTime::from_nseconds(166_666_666)));
}

#[test]
fn holes_and_jitter_are_no_other_rate() {
    for ms in [
        [0, 33, 67, 1100, 1133, 1167, 1200, 2200],
        [0, 5, 67, 72, 133, 140, 200, 206],
        [0, 66, 133, 166, 200, 266, 300, 333],
    ] {
        let mut rig = Rig::with("up-scale=1 target-fps=30", &caps("GRAY8", 32, 16, (30, 1)));
        ms.iter().for_each(|ms| rig.push_at(*ms));
        assert_eq!(times(&rig.finish()).len(), ms.len());
        assert_eq!(rig.warnings(), Vec::<String>::new());
    }
}

#[test]
fn images_without_rate_and_timestamps_are_interpolated_at_25_fps_with_a_warning() {
    common::init();
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("%02d.png");
    common::run(&format!(
        "videotestsrc num-buffers=7 pattern=ball ! video/x-raw,width=32,height=16 ! pngenc \
         ! multifilesink location={}",
        files.display()
    ));
    let pipeline = gst::parse::launch(&format!(
        "multifilesrc location={} ! pngdec ! venhance up-scale=1 target-fps=50 ! fakesink name=sink",
        files.display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let times = Arc::new(Mutex::new(Vec::new()));
    let log = times.clone();
    let pad = pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data {
            log.lock().unwrap().push((buffer.pts().unwrap(), buffer.duration().unwrap()));
        }
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut warnings = Vec::new();
    loop {
        match bus.timed_pop(ClockTime::from_seconds(30)).expect("the pipeline hangs").view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{e:?}"),
            gst::MessageView::Warning(e) => warnings.push(e.error().to_string()),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let frame = ClockTime::from_mseconds(20);
    let expected: Vec<_> = (0..13).map(|n| (frame * n, frame)).collect();
    assert_eq!(*times.lock().unwrap(), expected);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("25 frames per second"), "{warnings:?}");
}
