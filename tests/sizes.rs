// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output sizes that `target-width` and `target-height` ask for, instead of `up-scale`.

mod common;

use common::{Rig, caps, frames, order, record, tripled, try_run, wait_for};
use gst::prelude::*;
use gst_video::VideoInfo;
use gstvenhance::VEnhance;
use proptest::prelude::*;

fn element(properties: &str) -> VEnhance {
    common::init();
    gst::parse::launch(&format!("venhance {properties}")).unwrap().downcast().unwrap()
}

/// The output size for a size, or the error.
fn size(properties: &str, input: (usize, usize)) -> Result<(usize, usize), String> {
    let output = element(properties).output(input, (25, 1));
    output.map(|output| output.size).map_err(|error| error.to_string())
}

/// Sides of inputs and targets: any, and those that meet at the ends of what is allowed.
fn input() -> impl Strategy<Value = usize> {
    prop_oneof![1..=40_usize, 1..=4320_usize]
}

fn target(side: usize) -> impl Strategy<Value = u32> {
    let side = side as u32;
    let near = |side: u32| (side.saturating_sub(3)..side + 4).boxed();
    prop_oneof![
        1 => Just(0).boxed(),
        2 => (side..=8 * side).boxed(),
        1 => (0..=9000_u32).boxed(),
        1 => near(side),
        1 => near(8 * side),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn the_output_is_the_largest_of_the_aspect_ratio_that_fits(
        (input, target) in (input(), input())
            .prop_flat_map(|input| (Just(input), (target(input.0), target(input.1))))
            .prop_filter("no target", |(_, target)| *target != (0, 0))
    ) {
        let element = element("model=lite");
        element.set_property("target-width", target.0);
        element.set_property("target-height", target.1);
        let output = element.output(input, (25, 1)).map(|output| output.size);

        let sides = [(input.0, target.0), (input.1, target.1)].map(|(side, most)| (side, most as usize));
        let limits: Vec<_> = sides.into_iter().filter(|(_, most)| *most > 0).collect();
        let even = |most: usize| most - most % 2;
        let too_small = limits.iter().any(|&(side, most)| most != side && even(most) < side);
        let too_large = limits.iter().all(|&(side, most)| even(most) > 8 * side);
        prop_assert_eq!(output.is_err(), too_small || too_large, "{:?}", output);
        let Ok(output) = output else { return Ok(()) };

        for (out, (side, most)) in [output.0, output.1].into_iter().zip(sides) {
            prop_assert!(out % 2 == 0 || output == input, "{:?}", output);
            prop_assert!(side <= out && out <= 8 * side, "{:?}", output);
            prop_assert!(most == 0 || out <= most, "{:?}", output);
        }
        let (width, height) = (output.0 as f64, output.1 as f64);
        let aspect = input.0 as f64 / input.1 as f64;
        let error = (width - height * aspect).abs().min((height - width / aspect).abs());
        prop_assert!(error < 1.0 + 1e-9, "{:?}", output);
        let full = [output.0, output.1].into_iter().zip(sides).any(|(out, (_, most))| out + 1 >= most && most > 0);
        prop_assert!(full, "{:?}", output);
    }
}

#[test]
fn known_sizes_come_out_as_players_want_them() {
    for (properties, input, output) in [
        ("target-height=1080", (640, 360), (1920, 1080)),
        ("target-height=1080", (720, 576), (1350, 1080)),
        ("target-height=1080", (360, 640), (608, 1080)),
        ("target-width=1920", (854, 480), (1920, 1080)),
        ("target-width=1920 target-height=1080", (854, 480), (1920, 1080)),
        ("target-width=1920 target-height=1080", (720, 576), (1350, 1080)),
        ("target-width=1920 target-height=1080", (1280, 536), (1920, 804)),
        ("target-width=1921 target-height=1081", (640, 360), (1920, 1080)),
        ("target-width=3840 target-height=2160", (480, 270), (3840, 2160)),
        ("target-width=1920 target-height=1080", (1920, 1080), (1920, 1080)),
        ("target-height=241", (321, 241), (321, 241)),
    ] {
        assert_eq!(size(&format!("model=lite {properties}"), input), Ok(output), "{properties}");
    }
}

#[test]
fn the_limits_of_the_diffusion_models_have_precedence() {
    let size = |properties: &str| size(&format!("model=v1 device=cpu {properties}"), (720, 480));
    assert_eq!(size("target-height=1080"), Ok((1620, 1080)));
    assert_eq!(size("target-height=720"), Ok((1080, 720)));
    assert_eq!(size("target-height=600"), Ok((1080, 720)), "min-height");
    assert_eq!(size("target-height=600 min-height=0"), Ok((900, 600)));
    assert_eq!(size("target-height=1920"), Ok((1982, 1320)), "max-pixels");
    assert_eq!(size("target-height=1920 max-pixels=0"), Ok((2880, 1920)));
    assert_eq!(size("target-height=1080 max-pixels=1749600"), Ok((1620, 1080)));
    assert_eq!(size("target-height=1080 max-pixels=1749599"), Ok((1618, 1078)));
    assert!(size("target-height=360").unwrap_err().contains("cannot be made smaller"));
}

/// The caps at the end of a pipeline of two frames, and its error.
fn end_of(pipeline: &str) -> (Option<VideoInfo>, Option<String>) {
    common::init();
    let pipeline = format!("videotestsrc num-buffers=2 ! {pipeline} ! fakesink name=sink");
    let pipeline = gst::parse::launch(&pipeline).unwrap().downcast::<gst::Pipeline>().unwrap();
    let recorded = record(&pipeline.by_name("sink").unwrap().static_pad("sink").unwrap());
    let bus = pipeline.bus().unwrap();
    let _ = pipeline.set_state(gst::State::Playing);
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let timeout = gst::ClockTime::try_from(common::TIMEOUT).unwrap();
    let end = bus.timed_pop_filtered(timeout, &ends).expect("the pipeline hangs");
    pipeline.set_state(gst::State::Null).unwrap();
    let error = match end.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string()),
        _ => None,
    };
    let caps = recorded.lock().unwrap().caps.take();
    (caps.map(|caps| VideoInfo::from_caps(&caps).unwrap()), error)
}

#[test]
fn pipelines_negotiate_the_target_size_with_and_without_caps_downstream() {
    for (pipeline, (width, height), par) in [
        ("video/x-raw,width=64,height=36 ! venhance target-height=108", (192, 108), (1, 1)),
        ("video/x-raw,width=36,height=64 ! venhance target-height=108", (60, 108), (1, 1)),
        ("video/x-raw,width=33,height=17 ! venhance target-height=100", (194, 100), (1, 1)),
        ("video/x-raw,width=33,height=17 ! venhance target-width=33", (33, 17), (1, 1)),
        // Shown as 192×108: the pixel aspect ratio stays.
        (
            "video/x-raw,width=72,height=58,pixel-aspect-ratio=64/45 ! venhance target-height=108",
            (134, 108),
            (64, 45),
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance target-height=108 ! video/x-raw,width=192",
            (192, 108),
            (1, 1),
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance target-width=192 target-height=400 \
             ! video/x-raw,width=[16,192],height=[16,108]",
            (192, 108),
            (1, 1),
        ),
        // The source gives 320×240 if it may.
        ("venhance target-height=480", (640, 480), (1, 1)),
        ("venhance target-height=480 ! video/x-raw,width=640,height=480", (640, 480), (1, 1)),
        // It may not, because that would be 10 times larger.
        ("venhance target-width=3200 ! video/x-raw,width=3200,height=2400", (3200, 2400), (1, 1)),
    ] {
        let (info, error) = end_of(pipeline);
        assert_eq!(error, None, "{pipeline}");
        let info = info.unwrap();
        assert_eq!((info.width(), info.height()), (width, height), "{pipeline}");
        assert_eq!(info.par(), gst::Fraction::new(par.0, par.1), "{pipeline}");
    }
    let other_size = "videotestsrc ! video/x-raw,width=64,height=36 ! venhance target-height=108 \
                      ! video/x-raw,width=190 ! fakesink";
    let error = gst::parse::launch_full(other_size, None, gst::ParseFlags::FATAL_ERRORS);
    assert!(error.unwrap_err().matches(gst::ParseError::Link));
}

#[test]
fn upstream_is_offered_the_sizes_that_can_become_what_downstream_takes() {
    common::init();
    let pipeline = gst::parse::bin_from_description(
        "venhance name=v model=lite target-height=108 ! video/x-raw,width=192,height=[54,108] ! fakesink",
        false,
    );
    let pipeline = pipeline.unwrap();
    let sink = pipeline.by_name("v").unwrap().static_pad("sink").unwrap();
    let offered = sink.query_caps(None);
    let accepts = |width: i32, height: i32| {
        offered.can_intersect(
            &gst::Caps::builder("video/x-raw")
                .field("width", width)
                .field("height", height)
                .build(),
        )
    };
    for size in [(192, 108), (24, 14), (64, 36)] {
        assert!(accepts(size.0, size.1), "{size:?}");
    }
    for size in [(194, 108), (22, 14), (64, 6), (64, 110)] {
        assert!(!accepts(size.0, size.1), "{size:?}");
    }
}

#[test]
fn what_cannot_be_made_is_an_error_that_says_what_to_do() {
    for (pipeline, parts) in [
        (
            "video/x-raw,width=64,height=36 ! venhance target-height=20",
            ["target-height=20", "36 pixels high", "target-height=36 or more"],
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance target-width=600",
            ["target-width=600", "up to 8 times", "target-width=512 or less"],
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance target-width=63 target-height=1080",
            ["target-width=63", "64 pixels wide", "target-width=64 or more"],
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance up-scale=2 target-height=72",
            ["up-scale=2 cannot", "target-height=72", "only one"],
        ),
        (
            "video/x-raw,width=64,height=36 ! venhance up-scale=4 target-width=128 target-height=72",
            ["up-scale=4 cannot", "target-width=128 target-height=72", "only one"],
        ),
    ] {
        let (_, error) = end_of(pipeline);
        let error = error.unwrap_or_else(|| panic!("no error: {pipeline}"));
        for part in parts {
            assert!(error.contains(part), "{pipeline}: {part:?} is not in {error:?}");
        }
    }
    // A target of 0 is none.
    let (_, error) = try_run(
        "videotestsrc num-buffers=2 ! video/x-raw,width=32,height=16 ! venhance up-scale=2 target-height=0 ! fakesink",
    );
    assert_eq!(error, None);
}

fn rig() -> Rig {
    Rig::with("target-height=32 target-fps=30", &caps("GRAY8", 32, 16, (10, 1)))
}

#[test]
fn a_change_of_the_target_while_playing_finishes_the_frames_held_then_sends_new_caps() {
    let mut rig = rig();
    rig.push(2);
    rig.element.set_property("target-height", 48u32);
    rig.push(2);
    let seen = rig.finish();
    let words = |times: &[u64]| times.iter().map(u64::to_string).collect::<Vec<_>>();
    let caps = vec!["caps".to_owned()];
    let end = vec!["eos".to_owned()];
    let expected = [words(&tripled(0, 2)), caps, words(&tripled(200, 2)), end].concat();
    assert_eq!(order(&seen), expected);
    let sizes: Vec<_> = frames(&seen).iter().map(|frame| frame.size()).collect();
    assert_eq!(sizes, [[64 * 32; 4], [96 * 48; 4]].concat());
}

#[test]
fn a_change_while_playing_to_what_cannot_be_made_is_an_error() {
    for (property, value, text) in [
        ("target-height", "8", "16 pixels high"),
        ("target-width", "16", "32 pixels wide"),
        ("target-height", "130", "up to 8 times"),
        // The size stays the same.
        ("up-scale", "2", "up-scale=2 cannot be used"),
    ] {
        let mut rig = rig();
        rig.push(2);
        rig.element.set_property_from_str(property, value);
        let frame = rig.frame();
        assert_eq!(rig.harness.push(frame), Err(gst::FlowError::NotNegotiated), "{property}");
        let error = rig.error().unwrap();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn new_caps_of_a_size_that_does_not_fit_are_an_error() {
    let mut rig = rig();
    rig.push(2);
    let caps = caps("GRAY8", 48, 48, (10, 1));
    rig.set_caps(&caps);
    let frame = rig.frame();
    assert_eq!(rig.harness.push(frame), Err(gst::FlowError::NotNegotiated));
    let error = rig.error().unwrap();
    assert!(error.contains("target-height=32") && error.contains("48 pixels high"), "{error}");
}

#[test]
fn the_pointer_is_scaled_from_the_target_size() {
    let mut rig = rig();
    rig.element.set_property("target-height", 48u32);
    rig.push(1);
    let event = gst_video::NavigationEvent::new_mouse_button_press(1, 48.0, 12.0);
    assert!(rig.harness.push_upstream_event(event.build()));
    let mut press = None;
    wait_for("the event", || {
        press = rig.harness.try_pull_upstream_event().and_then(|event| {
            match gst_video::NavigationEvent::parse(&event) {
                Ok(gst_video::NavigationEvent::MouseButtonPress { x, y, .. }) => Some((x, y)),
                _ => None,
            }
        });
        press.is_some()
    });
    assert_eq!(press, Some((16.0, 4.0)));
}
