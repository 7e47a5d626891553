// SPDX-License-Identifier: MIT OR Apache-2.0
//! `rate-mode=exact`: output frames on the grid of target-fps.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use common::{Rig, Seen, caps, discont, frames, order, record, times, try_run, wait_for};
use gst::{ClockTime, prelude::*};

const SECOND: u128 = 1_000_000_000;

/// An element at the size of its input with an exact rate (numerator, denominator).
fn rig(target: (i32, i32), fps: (i32, i32)) -> Rig {
    let properties = format!("up-scale=1 rate-mode=exact target-fps={}/{}", target.0, target.1);
    Rig::with(&properties, &caps("GRAY8", 32, 16, fps))
}

fn total(frames: &[gst::Buffer]) -> ClockTime {
    frames.iter().map(|frame| frame.duration().unwrap()).sum()
}

#[test]
fn output_frames_lie_on_the_grid_and_last_as_long_as_the_input() {
    for (fps, target, inputs) in [
        ((24, 1), (60, 1), 25),
        ((25, 1), (60, 1), 26),
        ((24000, 1001), (60, 1), 100),
        ((60, 1), (24, 1), 61),
        ((60, 1), (24, 1), 60),
        ((30, 1), (25, 1), 31),
        ((30, 1), (30, 1), 10),
        ((30, 1), (7, 2), 40),
        ((1, 1), (240, 1), 2),
        ((24, 1), (60, 1), 1),
        ((60, 1), (24, 1), 1),
    ] {
        let mut rig = rig(target, fps);
        rig.push(inputs);
        let seen = rig.finish();
        let frames = frames(&seen);
        let [(n, d), (to_n, to_d)] = [fps, target].map(|(n, d)| (n as u128, d as u128));
        let expected = (inputs as u128 * d * to_n).div_ceil(n * to_d);
        assert_eq!(frames.len() as u128, expected, "{fps:?} to {target:?}");
        for (m, frame) in (0..).zip(&frames) {
            assert_eq!(u128::from(*frame.pts().unwrap()), m * to_d * SECOND / to_n);
            assert_eq!((u128::from(frame.offset()), u128::from(frame.offset_end())), (m, m + 1));
            assert_eq!(discont(frame), m == 0);
            let next = frames.get(m as usize + 1);
            let end = frame.pts().unwrap() + frame.duration().unwrap();
            assert!(next.is_none_or(|next| next.pts().unwrap() == end));
        }
        let input = inputs as u128 * d * SECOND / n;
        assert!(u128::from(*total(&frames)).abs_diff(input) <= 1, "{fps:?} to {target:?}");
        let caps = rig.element.static_pad("src").unwrap().current_caps().unwrap();
        let rate = caps.structure(0).unwrap().get::<gst::Fraction>("framerate").unwrap();
        assert_eq!((rate.numer(), rate.denom()), target);
    }
}

#[test]
fn variable_rate_becomes_constant_and_without_a_target_the_input_rate() {
    // Between 1/3 and 1.5 frames of 30 fps.
    let input = [0, 30, 70, 119, 140, 160, 171, 205, 245, 290];
    for (target, interval) in [((0, 1), SECOND / 30), ((50, 1), SECOND / 50)] {
        let mut rig = rig(target, (30, 1));
        for ms in input {
            let frame =
                rig.frame_at(ClockTime::from_mseconds(ms), ClockTime::from_useconds(33_333));
            rig.harness.push(frame).unwrap();
        }
        let frames = frames(&rig.finish());
        let end = 290_000_000 + SECOND / 30;
        assert_eq!(frames.len() as u128, end.div_ceil(interval));
        for (m, frame) in (0..).zip(&frames) {
            let pts = u128::from(*frame.pts().unwrap());
            assert!(pts.abs_diff(m * interval) <= m, "{target:?} {m}: {pts}");
        }
        assert!(u128::from(*total(&frames)).abs_diff(end) <= 2);
    }
}

#[test]
fn the_grid_goes_on_where_frames_are_missing_and_begins_anew_at_a_discont() {
    for lost in [false, true] {
        check_gap_and_discont(lost);
    }
}

/// `lost`: the frame after the gap has the flag DISCONT.
fn check_gap_and_discont(lost: bool) {
    // After three frames, eight are missing: the last one is repeated.
    let mut rig = rig((25, 1), (10, 1));
    for (ms, duration) in [(0, 100), (100, 100), (200, 810), (1010, 100), (1110, 100)] {
        let [pts, duration] = [ms, duration].map(ClockTime::from_mseconds);
        let mut frame = rig.frame_at(pts, duration);
        if lost && ms == 1010 {
            frame.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
        }
        rig.harness.push(frame).unwrap();
    }
    // DISCONT without a gap, and off the grid.
    let mut frame = rig.frame_at(ClockTime::from_mseconds(1210), ClockTime::from_mseconds(100));
    frame.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
    rig.harness.push(frame).unwrap();
    let seen = rig.finish();
    let clip = |start: u64, count: u64| (0..count).map(move |m| start + m * 40);
    let expected: Vec<u64> = clip(0, 31).chain(clip(1210, 3)).collect();
    assert_eq!(times(&seen), expected);
    let frames = frames(&seen);
    assert!(
        frames[..30].iter().all(|frame| frame.duration() == Some(ClockTime::from_mseconds(40)))
    );
    assert_eq!(frames[30].duration(), Some(ClockTime::from_mseconds(10)));
    assert_eq!(total(&frames), ClockTime::from_mseconds(1310));
    assert_eq!(frames[31].offset(), 0);
    let marked: Vec<_> = (0..frames.len()).filter(|n| discont(&frames[*n])).collect();
    // At 1040 ms is the first output frame after the gap.
    assert_eq!(marked, if lost { vec![0, 26, 31] } else { vec![0, 31] });
}

/// Checks that each frame ends where the next one begins.
fn assert_contiguous(frames: &[gst::Buffer], what: &str) {
    for pair in frames.windows(2) {
        let end = pair[0].pts().unwrap() + pair[0].duration().unwrap();
        assert!(pair[0].pts() < pair[1].pts(), "{what}: {:?}", pair[1]);
        assert_eq!(Some(end), pair[1].pts(), "{what}");
    }
}

#[test]
fn output_times_increase_and_meet_whatever_the_times_of_the_input() {
    // At 10 fps; each input frame is at a time, and may have the flag DISCONT.
    let inputs: [(&str, &[(u64, bool)]); 7] = [
        ("repeated", &[(0, false), (100, false), (100, false), (200, false), (300, false)]),
        ("backwards", &[(0, false), (200, false), (100, false), (300, false), (400, false)]),
        ("anew", &[(3000, false), (3100, false), (0, false), (100, false), (200, false)]),
        ("early", &[(0, false), (100, false), (160, true), (260, false), (360, false)]),
        ("at once", &[(0, false), (100, false), (100, true), (200, false), (300, false)]),
        ("just after", &[(0, false), (100, false), (101, true), (200, false), (300, false)]),
        ("back", &[(0, false), (100, false), (50, true), (150, false), (300, true)]),
    ];
    for (what, input) in inputs {
        for target in [(25, 1), (60, 1), (10, 1), (4, 1), (7, 3)] {
            let mut rig = rig(target, (10, 1));
            for (ms, discont) in input {
                let times = [*ms, 100].map(ClockTime::from_mseconds);
                let mut frame = rig.frame_at(times[0], times[1]);
                if *discont {
                    frame.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
                }
                rig.harness.push(frame).unwrap();
            }
            let frames = frames(&rig.finish());
            assert_contiguous(&frames, what);
            assert_eq!(frames[0].pts(), Some(ClockTime::from_mseconds(input[0].0)));
        }
    }
    // Two output frames for an input frame, a DISCONT within the first of them.
    let mut rig = Rig::with("up-scale=1 target-fps=20", &caps("GRAY8", 32, 16, (10, 1)));
    [0, 100, 100, 200, 300].into_iter().for_each(|ms| rig.push_at(ms));
    assert_eq!(times(&rig.finish()), [0, 50, 100, 150, 200, 225, 250, 275, 300]);
}

#[test]
fn the_last_output_before_a_clip_without_output_lasts_until_the_clip_after_that() {
    // Six frames, a gap, two frames between two output frames, and a DISCONT.
    let mut rig = rig((5, 1), (30, 1));
    let frame = ClockTime::SECOND / 30;
    for n in (0..6).chain(9..11) {
        rig.harness.push(rig.frame_at(frame * n, frame)).unwrap();
        rig.event(common::tag(&format!("after {n}")));
    }
    for n in 11..20 {
        let mut buffer = rig.frame_at(frame * n, frame);
        if n == 11 {
            buffer.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
        }
        rig.harness.push(buffer).unwrap();
    }
    let seen = rig.finish();
    let expected = [&["0"][..], &["tag"; 5], &["200"], &["tag"; 3], &["366", "566", "eos"]];
    assert_eq!(order(&seen), expected.concat());
    let frames = frames(&seen);
    assert_contiguous(&frames, "a clip without output");
    assert!(total(&frames).absdiff(frame * 20) < ClockTime::from_nseconds(50));
}

#[test]
fn a_clip_after_new_caps_or_a_gap_begins_after_the_last_output() {
    for target in [(25, 1), (4, 1)] {
        let mut rig = rig(target, (10, 1));
        rig.push(2);
        rig.event(gst::event::Gap::builder(ClockTime::from_mseconds(110)).build());
        let push = |rig: &mut Rig, ms: &[u64]| {
            for ms in ms {
                let [pts, duration] = [*ms, 100].map(ClockTime::from_mseconds);
                rig.harness.push(rig.frame_at(pts, duration)).unwrap();
            }
        };
        push(&mut rig, &[150, 260]);
        rig.set_caps(&caps("GRAY8", 48, 16, (10, 1)));
        push(&mut rig, &[310, 420]);
        let frames = frames(&rig.finish());
        assert_contiguous(&frames, &format!("{target:?}"));
        assert_eq!(total(&frames), ClockTime::from_mseconds(520), "{target:?}");
    }
}

#[test]
fn where_the_timestamps_contradict_the_caps_the_output_stays_on_its_grid() {
    for (nominal, real) in [((30, 1), 15), ((15, 1), 30), ((50, 1), 25), ((90000, 1), 30)] {
        for target in [(60, 1), (24, 1)] {
            let mut rig = rig(target, nominal);
            let interval = ClockTime::SECOND / real;
            for n in 0..20 {
                rig.harness.push(rig.frame_at(interval * n, interval)).unwrap();
            }
            let frames = frames(&rig.finish());
            assert_contiguous(&frames, &format!("{nominal:?} {real}"));
            assert!(total(&frames).absdiff(interval * 20) < ClockTime::from_nseconds(50));
            for (m, frame) in (0..).zip(&frames) {
                let on_grid = m * u128::from(target.1 as u64) * SECOND / target.0 as u128;
                assert_eq!(u128::from(*frame.pts().unwrap()), on_grid, "{nominal:?} {real}");
            }
        }
    }
}

#[test]
fn without_a_target_the_frames_stay_where_the_caps_name_another_rate() {
    for (nominal, real, others) in [((60, 1), 25, 4), ((90000, 1), 25, 0), ((24, 1), 50, 4)] {
        let mut rig = rig((0, 1), nominal);
        let interval = ClockTime::SECOND / real;
        for n in 0..20 {
            rig.harness.push(rig.frame_at(interval * n, interval)).unwrap();
        }
        let frames = frames(&rig.finish());
        assert_contiguous(&frames, &format!("{nominal:?} {real}"));
        // The rate is known with the fifth frame.
        let kept = &frames[frames.len() - (20 - others)..];
        for (n, frame) in (others as u64..).zip(kept) {
            assert_eq!(frame.pts(), Some(interval * n), "{nominal:?} {real}");
            assert_eq!(frame.duration(), Some(interval));
        }
    }
}

#[test]
fn after_a_seek_the_grid_begins_with_the_first_frame() {
    let mut rig = rig((60, 1), (24, 1));
    rig.push(5);
    rig.wait_for_frames(10);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    let before = rig.frames().len();
    rig.begin_segment();
    for n in 100..103u64 {
        let at = |n: u64| ClockTime::SECOND.mul_div_floor(n, 24).unwrap();
        let frame = rig.frame_at(at(n), at(n + 1) - at(n));
        rig.harness.push(frame).unwrap();
    }
    let seen = rig.finish();
    let after = &frames(&seen)[before..];
    assert_eq!(after.len(), 8);
    for (m, frame) in (0..).zip(after) {
        let start = ClockTime::SECOND.mul_div_floor(100, 24).unwrap();
        assert_eq!(frame.pts().unwrap(), start + ClockTime::SECOND.mul_div_floor(m, 60).unwrap());
    }
}

#[test]
fn a_rate_that_is_measured_needs_no_caps() {
    let mut rig = rig((60, 1), (0, 1));
    for n in 0..8 {
        rig.push_at(n * 100);
    }
    let seen = rig.finish();
    assert_eq!(frames(&seen).len(), 48);
    assert_eq!(total(&frames(&seen)), ClockTime::from_mseconds(800));
    // A single frame stays as it is.
    let mut rig = self::rig((60, 1), (0, 1));
    rig.push_at(0);
    let seen = rig.finish();
    assert_eq!(times(&seen), [0]);
    assert_eq!(total(&frames(&seen)), ClockTime::from_mseconds(100));
}

#[test]
fn every_meta_goes_to_the_first_output_frame_at_its_time_or_after_it() {
    for (target, inputs, expected) in [
        (
            (25, 1),
            4,
            vec![
                vec![0],
                vec![],
                vec![],
                vec![1],
                vec![],
                vec![2],
                vec![],
                vec![],
                vec![3],
                vec![],
            ],
        ),
        // At 0 and 250 ms; the last two frames are after the last output frame.
        ((4, 1), 5, vec![vec![0], vec![1, 2, 3, 4]]),
        ((20, 3), 3, vec![vec![0], vec![1, 2]]),
    ] {
        let mut rig = rig(target, (10, 1));
        for n in 0..inputs {
            let mut frame = rig.frame();
            let buffer = frame.get_mut().unwrap();
            gst_video::VideoCaptionMeta::add(buffer, gst_video::VideoCaptionType::Cea608Raw, &[n]);
            if n == 1 {
                buffer.set_flags(gst::BufferFlags::CORRUPTED);
            }
            rig.harness.push(frame).unwrap();
        }
        let frames = frames(&rig.finish());
        let captions = |frame: &gst::Buffer| {
            let metas = frame.iter_meta::<gst_video::VideoCaptionMeta>();
            metas.flat_map(|meta| meta.data().to_vec()).collect::<Vec<u8>>()
        };
        assert_eq!(frames.iter().map(captions).collect::<Vec<_>>(), expected, "{target:?}");
        for (frame, captions) in frames.iter().zip(&expected) {
            let corrupted = frame.flags().contains(gst::BufferFlags::CORRUPTED);
            assert_eq!(corrupted, captions.contains(&1));
        }
    }
}

#[test]
fn events_keep_their_place_among_the_output_frames() {
    let mut rig = rig((5, 1), (10, 1));
    for n in 0..4 {
        rig.push(1);
        rig.event(common::tag(&format!("after {n}")));
    }
    // The output frame at 200 ms stands for the input frames 1 and 2, and for the last one, which has none.
    let expected = ["0", "tag", "tag", "200", "tag", "tag", "eos"];
    assert_eq!(order(&rig.finish()), expected);
}

#[test]
fn timecodes_are_consecutive_at_the_output_rate() {
    let timecodes = |fps: (i32, i32), target: (i32, i32), inputs| {
        let mut rig = rig(target, fps);
        let fps = gst::Fraction::new(fps.0, fps.1);
        let none = gst_video::VideoTimeCodeFlags::empty();
        let mut timecode =
            gst_video::ValidVideoTimeCode::new(fps, None, none, 10, 59, 59, 20, 0).unwrap();
        for _ in 0..inputs {
            let mut frame = rig.frame();
            gst_video::VideoTimeCodeMeta::add(frame.get_mut().unwrap(), &timecode);
            rig.harness.push(frame).unwrap();
            timecode.increment_frame();
        }
        let frames = frames(&rig.finish());
        let timecode = |frame: &gst::Buffer| {
            let mut metas = frame.iter_meta::<gst_video::VideoTimeCodeMeta>();
            let timecode = metas.next().unwrap().tc();
            assert_eq!(timecode.fps(), gst::Fraction::new(target.0, target.1));
            assert!(metas.next().is_none());
            timecode.to_string()
        };
        frames.iter().map(timecode).collect::<Vec<_>>()
    };
    let expected: Vec<_> =
        (50..60).map(|n| format!("10:59:59:{n}")).chain(["11:00:00:00".into()]).collect();
    assert_eq!(timecodes((24, 1), (60, 1), 5)[..11], expected);
    assert_eq!(timecodes((60, 1), (24, 1), 6), ["10:59:59:08", "10:59:59:09", "10:59:59:10"]);
}

#[test]
fn frames_at_equal_times_are_bit_equal_to_those_of_a_multiple() {
    let frames = |properties: &str| {
        common::init();
        let pipeline = gst::parse::launch(&format!(
            "videotestsrc pattern=ball num-buffers=7 ! video/x-raw,format=GRAY8,width=48,height=32,framerate=24/1 \
             ! venhance model=lite up-scale=2 {properties} name=v ! fakesink"
        ));
        let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
        let recorded = record(&pipeline.by_name("v").unwrap().static_pad("src").unwrap());
        common::play(&pipeline);
        let frame = |buffer: &gst::Buffer| buffer.map_readable().unwrap().to_vec();
        let frames: Vec<_> = recorded.lock().unwrap().buffers.iter().map(frame).collect();
        frames
    };
    let fifths = frames("target-fps=120");
    let exact = frames("target-fps=60 rate-mode=exact");
    assert_eq!((fifths.len(), exact.len()), (31, 18));
    for n in 0..16 {
        assert!(exact[n] == fifths[2 * n], "frame {n} at 60 fps");
    }
    assert!(exact[16] == fifths[30] && exact[17] == fifths[30], "the last frame is repeated");
    let slow = frames("target-fps=20 rate-mode=exact");
    assert_eq!(slow.len(), 6);
    for n in 0..6 {
        assert!(slow[n] == fifths[6 * n], "frame {n} at 20 fps");
    }
}

#[test]
fn a_rate_far_above_that_of_the_input_is_an_error() {
    let (_, error) = try_run(
        "videotestsrc num-buffers=2 ! video/x-raw,width=16,height=16,framerate=1/10 \
         ! venhance model=lite up-scale=1 target-fps=60 rate-mode=exact ! fakesink",
    );
    let error = error.unwrap();
    assert!(error.contains("600 times the rate of the input"), "{error}");
}

#[test]
fn downstream_can_ask_for_the_target_rate_only() {
    common::init();
    let launch = |fps: &str| {
        gst::parse::launch(&format!(
            "videotestsrc num-buffers=3 ! video/x-raw,width=16,height=16,framerate=24/1 \
             ! venhance model=lite up-scale=1 target-fps=60 rate-mode=exact \
             ! video/x-raw,framerate={fps} ! fakesink"
        ))
    };
    let pipeline = launch("60/1").unwrap().downcast::<gst::Pipeline>().unwrap();
    common::play(&pipeline);
    assert!(launch("50/1").is_err());
}

#[test]
fn a_changed_target_is_followed_while_the_element_plays() {
    let mut rig = rig((60, 1), (24, 1));
    rig.push(4);
    rig.element.set_property("target-fps", gst::Fraction::new(48, 1));
    rig.push(4);
    let seen = rig.finish();
    let rates: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Event(event) => match event.view() {
                gst::EventView::Caps(e) => {
                    e.caps().structure(0)?.get::<gst::Fraction>("framerate").ok()
                }
                _ => None,
            },
            Seen::Frame(_) => None,
        })
        .collect();
    assert_eq!(rates, [60, 48].map(|rate| gst::Fraction::new(rate, 1)));
    assert_eq!(frames(&seen).len(), 10 + 8);
}

#[test]
fn the_latency_covers_the_wait_for_the_frames_that_decide_how_long_an_output_frame_lasts() {
    for (target, frames) in [((20, 1), 1), ((10, 1), 1), ((4, 1), 3)] {
        let mut rig = rig(target, (10, 1));
        rig.harness.set_upstream_latency(ClockTime::ZERO);
        rig.push(1);
        let latency = || {
            let mut query = gst::query::Latency::new();
            assert!(rig.element.static_pad("src").unwrap().query(query.query_mut()));
            query.result().1
        };
        // One more frame for the work.
        let expected = ClockTime::from_mseconds(100) * (frames + 1);
        wait_for("the format", || latency() == expected);
        rig.finish();
    }
}

#[test]
fn a_file_whose_video_begins_after_its_sound_is_one_clip() {
    common::init();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.mkv");
    let pipeline = |description: &str| {
        let description = description.replace("FILE", &file.display().to_string());
        gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap()
    };
    let mux = pipeline(
        "videotestsrc num-buffers=24 timestamp-offset=23000000 ! video/x-raw,width=16,height=16,framerate=24/1 \
         ! avenc_ffv1 ! matroskamux name=m ! filesink location=FILE \
         audiotestsrc num-buffers=40 ! avenc_aac ! aacparse ! queue name=sound ! m.",
    );
    // The video's first block comes before that of the sound, as where it has B-frames.
    let sound = mux.by_name("sound").unwrap().static_pad("src").unwrap();
    sound.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data else { unreachable!() };
        let later = buffer.pts().map(|pts| pts + ClockTime::from_mseconds(30));
        buffer.make_mut().set_dts(later);
        gst::PadProbeReturn::Ok
    });
    common::play(&mux);

    let play = pipeline(
        "filesrc location=FILE ! matroskademux name=d \
         d.audio_0 ! queue ! fakesink \
         d.video_0 ! queue ! avdec_ffv1 name=decoder \
         ! venhance model=lite up-scale=1 rate-mode=exact target-fps=30 shot-detection=false name=v ! fakesink",
    );
    let decoder = play.by_name("decoder").unwrap().static_pad("src").unwrap();
    let segments = Arc::new(AtomicUsize::new(0));
    let count = segments.clone();
    decoder.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data {
            count.fetch_add(usize::from(event.type_() == gst::EventType::Segment), Relaxed);
        }
        gst::PadProbeReturn::Ok
    });
    let recorded = record(&play.by_name("v").unwrap().static_pad("src").unwrap());
    common::play(&play);
    assert_eq!(segments.load(Relaxed), 2, "the demuxer corrects where the stream begins");
    let frames = &recorded.lock().unwrap().buffers;
    assert_eq!(frames.len(), 30);
    assert_contiguous(frames, "one clip");
}
