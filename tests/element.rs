// SPDX-License-Identifier: MIT OR Apache-2.0
//! Properties, messages, times and errors of the element.

mod common;

use std::sync::{Arc, Mutex};

use common::{Rig, caps, run, times, try_run};
use gst::{ClockTime, glib, prelude::*};

fn element() -> gst::Element {
    common::init();
    gst::ElementFactory::make("venhance").build().unwrap()
}

#[test]
fn properties_have_the_names_defaults_and_ranges_that_the_readme_says() {
    let element = element();
    let readme = include_str!("../README.md");
    for pspec in element.list_properties() {
        let name = pspec.name();
        if matches!(name, "name" | "parent" | "qos") {
            continue;
        }
        assert!(readme.contains(&format!("| `{name}` |")), "the README has no row for {name}");
        assert!(!pspec.blurb().unwrap_or("").is_empty());
    }
    assert_eq!(element.property::<gstvenhance::Model>("model"), gstvenhance::Model::Auto);
    assert_eq!(element.property::<f64>("up-scale"), 4.0);
    assert_eq!(element.property::<u32>("target-width"), 0);
    assert_eq!(element.property::<u32>("target-height"), 0);
    assert_eq!(element.property::<gst::Fraction>("target-fps"), gst::Fraction::new(24, 1));
    let rate_mode = element.property::<gstvenhance::RateMode>("rate-mode");
    assert_eq!(rate_mode, gstvenhance::RateMode::Multiple);
    assert!(element.property::<bool>("shot-detection"));
    let duplicates = element.property::<gstvenhance::Duplicates>("duplicates");
    assert_eq!(duplicates, gstvenhance::Duplicates::Keep);
    assert_eq!(element.property::<i32>("noise-aug"), 200);
    assert_eq!(element.property::<gstvenhance::Solver>("solver"), gstvenhance::Solver::Fast);
    assert_eq!(element.property::<i32>("steps"), 15);
    assert_eq!(element.property::<f64>("guidance-scale"), 7.5);
    assert_eq!(element.property::<i32>("downscale-cond"), 8);
    assert_eq!(element.property::<String>("prompt"), "a good video");
    assert!(
        element.property::<String>("negative-prompt").ends_with("deformed, lowres, over-smooth")
    );
    assert_eq!(element.property::<u64>("seed"), 666);
    assert_eq!(element.property::<u32>("skip-frames"), 0);
    assert_eq!(element.property::<u32>("min-height"), 720);
    assert_eq!(element.property::<u32>("max-pixels"), 2_621_440);
    assert_eq!(element.property::<Option<String>>("model-dir"), None);
    assert_eq!(element.property::<String>("device"), "auto");

    let range = |name: &str| {
        let pspec = element.find_property(name).unwrap();
        let pspec = pspec.downcast_ref::<glib::ParamSpecInt>().unwrap().clone();
        (pspec.minimum(), pspec.maximum())
    };
    assert_eq!(range("noise-aug"), (0, 300));
    assert_eq!(range("steps"), (1, 1000));
    assert_eq!(range("downscale-cond"), (1, 8));
    let target_fps = element.find_property("target-fps").unwrap();
    assert!(target_fps.blurb().unwrap().contains("24000/1001"));
}

#[test]
fn every_property_that_can_be_written_reads_back() {
    let element = element();
    for (name, value) in [
        ("model", "lite"),
        ("up-scale", "2.5"),
        ("target-width", "1920"),
        ("target-height", "1080"),
        ("target-fps", "24000/1001"),
        ("rate-mode", "exact"),
        ("duplicates", "merge"),
        ("noise-aug", "300"),
        ("solver", "heun"),
        ("steps", "30"),
        ("guidance-scale", "3"),
        ("downscale-cond", "4"),
        ("prompt", "a cat"),
        ("negative-prompt", "dogs"),
        ("seed", "18446744073709551615"),
        ("min-height", "0"),
        ("max-pixels", "0"),
        ("model-dir", "/weights"),
        ("device", "cpu"),
    ] {
        element.set_property_from_str(name, value);
        let pspec = element.find_property(name).unwrap();
        let expected = glib::Value::deserialize_with_pspec(value, &pspec).unwrap();
        let got = element.property_value(name);
        assert_eq!(got.serialize().unwrap(), expected.serialize().unwrap(), "{name}");
    }
}

/// Another value of a property than its current one.
fn other_value(element: &gst::Element, pspec: &glib::ParamSpec) -> glib::Value {
    let value = element.property_value(pspec.name());
    if let Ok(on) = value.get::<bool>() {
        (!on).to_value()
    } else if value.is::<u32>() {
        64u32.to_value()
    } else if let Ok(number) = value.get::<i32>() {
        (number % 8 + 1).to_value()
    } else if value.is::<u64>() {
        3u64.to_value()
    } else if value.is::<f64>() {
        2.0.to_value()
    } else if value.is::<gst::Fraction>() {
        gst::Fraction::new(20, 1).to_value()
    } else if value.is::<String>() {
        "none".to_value()
    } else {
        let class = glib::EnumClass::with_type(value.type_()).unwrap();
        let (_, current) = glib::EnumValue::from_value(&value).unwrap();
        let other = class.values().iter().find(|other| *other != current).unwrap();
        class.to_value(other.value()).unwrap()
    }
}

/// Changes a property, and for new caps `up-scale`, while a clip plays.
fn frames_after_a_change(name: Option<&str>) -> Vec<(Option<ClockTime>, Vec<u8>)> {
    let mut rig = Rig::with("target-fps=30", &caps("GRAY8", 32, 16, (10, 1)));
    let pspec = name.map(|name| rig.element.find_property(name).unwrap());
    rig.push(3);
    if let Some(pspec) = &pspec {
        let other = other_value(&rig.element, pspec);
        let before = rig.element.property_value(pspec.name());
        assert_ne!(format!("{other:?}"), format!("{before:?}"), "{name:?}");
        rig.element.set_property_from_value(pspec.name(), &other);
    }
    if !pspec.is_some_and(|pspec| pspec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING)) {
        rig.element.set_property("up-scale", 3.0);
    }
    rig.push(3);
    let frames = common::frames(&rig.finish());
    assert_eq!(rig.error(), None, "{name:?}");
    frames.iter().map(|frame| (frame.pts(), common::bytes(frame))).collect()
}

#[test]
fn a_property_set_while_playing_waits_for_the_next_start_unless_it_may_change() {
    let expected = frames_after_a_change(None);
    for pspec in element().list_properties() {
        let flags = pspec.flags();
        if pspec.owner_type().name() != "GstVEnhance" || !flags.contains(glib::ParamFlags::WRITABLE)
        {
            continue;
        }
        let frames = frames_after_a_change(Some(pspec.name()));
        let may_change = flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING);
        assert_eq!(frames != expected, may_change, "{}", pspec.name());
    }
}

#[test]
fn the_model_that_runs_is_announced_with_the_reason_before_caps() {
    let rig = Rig::without_caps("");
    let message =
        rig.bus.timed_pop_filtered(ClockTime::from_seconds(10), &[gst::MessageType::Element]);
    let message = message.unwrap();
    let structure = message.structure().unwrap();
    assert_eq!(structure.name(), "venhance-model");
    assert_eq!(structure.get::<&str>("model"), Ok("lite"));
    let reason = structure.get::<&str>("reason").unwrap();
    assert!(reason.contains("model=auto") && reason.contains("CUDA"), "{reason}");
    assert_eq!(
        rig.element.property::<gstvenhance::Model>("active-model"),
        gstvenhance::Model::Lite
    );
}

#[test]
fn loading_is_reported_complete_before_the_first_frame() {
    let mut rig = Rig::new();
    rig.push(2);
    rig.wait_for_frames(4);
    let kinds: Vec<_> = std::iter::from_fn(|| rig.bus.pop())
        .filter_map(|message| match message.view() {
            gst::MessageView::Progress(progress) => Some(format!("{:?}", progress.get().0)),
            gst::MessageView::Element(e) if e.has_name("venhance-progress") => Some("unit".into()),
            _ => None,
        })
        .collect();
    assert_eq!(kinds[..3], ["Start", "Complete", "unit"], "{kinds:?}");
}

#[test]
fn the_model_stays_loaded_in_ready_and_goes_with_it() {
    let mut rig = Rig::new();
    let mut loads = |state| {
        rig.element.set_state(state).unwrap();
        rig.element.set_state(gst::State::Playing).unwrap();
        rig.begin_stream(&caps("GRAY8", 32, 16, (10, 1)));
        let before = rig.frames().len();
        rig.push(2);
        rig.wait_for_frames(before + 4);
        std::iter::from_fn(|| rig.bus.pop_filtered(&[gst::MessageType::Progress])).count()
    };
    // A start and a completion, or nothing; at first also those of the rig.
    assert_eq!(loads(gst::State::Null), 4);
    assert_eq!(loads(gst::State::Ready), 0);
    assert_eq!(loads(gst::State::Null), 2);
}

#[test]
fn devices_that_are_not_there_or_not_for_the_model_say_so_and_what_to_use() {
    for (device, why) in
        [("cuda:4095", "device=cuda:4095 cannot be used: "), ("tpu", "unknown device")]
    {
        let (_, error) =
            try_run(&format!("videotestsrc num-buffers=3 ! venhance device={device} ! fakesink"));
        let error = error.unwrap();
        assert!(error.contains(why) && error.contains("auto"), "{error}");
    }
    run("videotestsrc num-buffers=3 ! venhance up-scale=1 device=cpu ! fakesink");
}

#[test]
fn a_frame_that_no_memory_can_hold_is_an_error_that_says_what_to_do() {
    const INNER: &str = "VENHANCE_TEST_INNER";
    if std::env::var_os(INNER).is_some() {
        let (_, error) = try_run(
            "videotestsrc num-buffers=2 ! video/x-raw,format=GRAY8,width=2000,height=2000 ! venhance up-scale=8 ! fakesink",
        );
        let error = error.unwrap();
        assert!(error.contains("16000×16000") && error.contains("smaller up-scale"), "{error}");
        return;
    }
    let test = "a_frame_that_no_memory_can_hold_is_an_error_that_says_what_to_do";
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 2000000 && exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INNER, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Enhances so many black frames of this rate, and checks that the output frames are at exact times of the rate of
/// `target`, up to `end`. Returns their number.
fn exact_frames(
    inputs: u64,
    fps: &str,
    properties: &str,
    target: (u64, u64),
    end: ClockTime,
) -> u64 {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "videotestsrc num-buffers={inputs} pattern=black ! video/x-raw,format=GRAY8,width=2,height=2,framerate={fps} \
         ! venhance up-scale=1 {properties} ! fakesink name=sink"
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let wrong = Arc::new(Mutex::new((0u64, Vec::new())));
    let log = wrong.clone();
    let sink = pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
    sink.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data {
            let mut log = log.lock().unwrap();
            let exact = |n: u64| {
                let (numer, denom) = (u128::from(target.0), u128::from(target.1));
                let time = u128::from(n) * denom * 1_000_000_000 / numer;
                end.min(ClockTime::from_nseconds(time as u64))
            };
            let times = (buffer.pts(), buffer.duration().map(|d| exact(log.0) + d));
            if times != (Some(exact(log.0)), Some(exact(log.0 + 1))) {
                let n = log.0;
                log.1.push((n, times));
            }
            log.0 += 1;
        }
        gst::PadProbeReturn::Ok
    });
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    loop {
        match bus.timed_pop(ClockTime::from_seconds(60)).expect("the pipeline hangs").view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{e:?}"),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let (count, wrong) = std::mem::take(&mut *wrong.lock().unwrap());
    assert_eq!(wrong, []);
    count
}

/// Takes more than 10 s: an hour has 216,000 frames at this rate.
#[test]
fn times_at_30000_1001_are_exact_for_more_than_an_hour() {
    let target = "target-fps=60000/1001";
    let count = exact_frames(108_010, "30000/1001", target, (60_000, 1001), ClockTime::MAX);
    assert_eq!(count, 216_019);
}

/// Takes more than 10 s: an hour has 216,000 frames at this rate.
#[test]
fn an_hour_of_24000_1001_becomes_exactly_60() {
    let target = "rate-mode=exact target-fps=60/1";
    let end = ClockTime::from_nseconds(86_314 * 1_001_000_000_000 / 24_000);
    assert_eq!(exact_frames(86_314, "24000/1001", target, (60, 1), end), 216_001);
}

#[test]
fn frames_without_times_get_those_of_the_rate() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        let mut frame = rig.frame();
        frame.get_mut().unwrap().set_pts(ClockTime::NONE);
        frame.get_mut().unwrap().set_duration(ClockTime::NONE);
        rig.harness.push(frame).unwrap();
    }
    // Also across a cut.
    rig.element.set_property("up-scale", 3.0);
    for _ in 0..2 {
        let mut frame = rig.frame();
        frame.get_mut().unwrap().set_pts(ClockTime::NONE);
        rig.harness.push(frame).unwrap();
    }
    assert_eq!(times(&rig.finish()), [0, 33, 66, 100, 133, 166, 200, 300, 333, 366, 400]);
}

#[test]
fn the_time_left_is_known_from_the_first_segment_on() {
    let messages = run(
        "videotestsrc num-buffers=10 ! video/x-raw,width=16,height=16 ! venhance up-scale=1 ! fakesink",
    );
    let mut progress = messages.iter().filter(|m| m.has_name("venhance-progress"));
    assert!(progress.next_back().unwrap().get::<f64>("eta-seconds").unwrap() >= 0.0);
}

#[test]
fn frames_before_caps_are_refused() {
    let mut rig = Rig::without_caps("");
    let frame = rig.frame_at(ClockTime::ZERO, ClockTime::SECOND);
    rig.harness.push_event(gst::event::StreamStart::new("x"));
    rig.harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    assert_eq!(rig.harness.push(frame), Err(gst::FlowError::NotNegotiated));
}

#[test]
fn upstream_may_use_any_stride() {
    let rig = Rig::new();
    let caps = caps("GRAY8", 32, 16, (10, 1));
    let mut query = gst::query::Allocation::new(Some(&caps), true);
    assert!(rig.harness.srcpad().unwrap().peer_query(&mut query));
    assert!(query.find_allocation_meta::<gst_video::VideoMeta>().is_some());
}
