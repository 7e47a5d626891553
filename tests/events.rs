// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each event, flag and query does to the frames held. A test per row of the table.

mod common;

use common::{Rig, Seen, caps, frames, order, times, wait_for};
use gst::{ClockTime, prelude::*};

/// The times of `frames` input frames at 10 fps tripled, from `start` milliseconds.
fn tripled(start: u64, frames: u64) -> Vec<u64> {
    (0..frames * 3 - 2).map(|j| start + j * 100 / 3).collect()
}

fn words(times: &[u64]) -> Vec<String> {
    times.iter().map(u64::to_string).collect()
}

fn discont(buffer: &gst::Buffer) -> bool {
    buffer.flags().contains(gst::BufferFlags::DISCONT)
}

fn tag(title: &str) -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.get_mut().unwrap().add::<gst::tags::Title>(&title, gst::TagMergeMode::Append);
    gst::event::Tag::new(tags)
}

#[test]
fn tags_and_custom_events_come_after_the_frames_before_them_and_split_no_clip() {
    let mut rig = Rig::new();
    rig.push(2);
    rig.event(tag("one"));
    rig.push(1);
    rig.event(gst::event::CustomDownstream::new(gst::Structure::new_empty("custom")));
    rig.event(gst::event::StreamStart::new("the same frames"));
    rig.push(1);
    let seen = rig.finish();
    assert_eq!(times(&seen), tripled(0, 4));
    let order = order(&seen);
    let place = |word: &str| order.iter().position(|w| w == word).unwrap();
    assert!(place("100") < place("tag") && place("tag") < place("200"), "{order:?}");
    assert!(place("200") < place("custom-downstream") && place("stream-start") < place("300"));
    assert_eq!(frames(&seen).iter().filter(|f| discont(f)).count(), 1);
}

#[test]
fn caps_of_the_same_picture_pass_in_order_and_split_no_clip() {
    let mut rig = Rig::new();
    rig.push(2);
    let mut caps = caps("GRAY8", 32, 16, (10, 1));
    rig.event(gst::event::Caps::new(&caps));
    rig.push(1);
    caps.make_mut()
        .set("mastering-display-info", "17000:8500:13250:34500:7500:3000:15635:16450:10000000:1");
    rig.event(gst::event::Caps::new(&caps));
    rig.push(1);
    let seen = rig.finish();
    assert_eq!(times(&seen), tripled(0, 4));
    let order = order(&seen);
    let last = order.iter().rposition(|w| w == "caps").unwrap();
    assert!(order[..last].contains(&"200".into()) && order[last..].contains(&"300".into()));
    let out = rig.element.static_pad("src").unwrap().current_caps().unwrap();
    let out = out.structure(0).unwrap();
    assert!(out.has_field("mastering-display-info"));
    assert_eq!(out.get::<i32>("width"), Ok(64));
}

#[test]
fn other_caps_come_after_all_frames_of_the_old_ones_and_begin_a_clip() {
    let mut rig = Rig::new();
    rig.push(3);
    rig.set_caps(&caps("GRAY8", 48, 16, (10, 1)));
    rig.push(2);
    let seen = rig.finish();
    let mut expected = words(&tripled(0, 3));
    expected.push("caps".into());
    let order = order(&seen);
    assert_eq!(order[..expected.len()], expected);
    assert_eq!(times(&seen), [tripled(0, 3), tripled(300, 2)].concat());
    let sizes: Vec<_> = frames(&seen).iter().map(|frame| frame.size()).collect();
    assert_eq!(sizes, [[64 * 32; 7].as_slice(), &[96 * 32; 4]].concat());
}

#[test]
fn a_segment_that_continues_the_last_one_splits_no_clip() {
    let mut rig = Rig::new();
    rig.push(2);
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_position(ClockTime::from_mseconds(200));
    rig.event(gst::event::Segment::new(&segment));
    rig.push(2);
    let seen = rig.finish();
    assert_eq!(times(&seen), tripled(0, 4));
    let order = order(&seen);
    let segment = order.iter().position(|w| w == "segment").unwrap();
    assert!(order[..segment].contains(&"100".into()) && order[segment..].contains(&"200".into()));
}

#[test]
fn a_segment_that_corrects_where_the_stream_begins_splits_no_clip() {
    let mut rig = Rig::new();
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_start(ClockTime::from_mseconds(7));
    rig.event(gst::event::Segment::new(&segment));
    rig.push_at(7);
    segment.set_start(ClockTime::ZERO);
    rig.event(gst::event::Segment::new(&segment));
    rig.push_at(107);
    assert_eq!(times(&rig.finish()), [7, 40, 73, 107]);
}

#[test]
fn another_segment_ends_the_clip_and_comes_after_it() {
    let mut rig = Rig::new();
    rig.push(2);
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_base(ClockTime::from_mseconds(200));
    rig.event(gst::event::Segment::new(&segment));
    rig.push(2);
    let seen = rig.finish();
    let mut expected = words(&tripled(0, 2));
    expected.push("segment".into());
    expected.extend(words(&tripled(200, 2)));
    expected.push("eos".into());
    assert_eq!(order(&seen), expected);
}

#[test]
fn a_rate_other_than_one_passes_and_times_stay_those_of_the_segment() {
    let mut rig = Rig::new();
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_rate(2.0);
    rig.event(gst::event::Segment::new(&segment));
    rig.push(3);
    let seen = rig.finish();
    assert_eq!(times(&seen), tripled(0, 3));
    let passed = seen.iter().rev().find_map(|seen| match seen {
        Seen::Event(event) => match event.view() {
            gst::EventView::Segment(e) => Some(e.segment().rate()),
            _ => None,
        },
        Seen::Frame(_) => None,
    });
    assert_eq!(passed, Some(2.0));
}

#[test]
fn a_rate_below_zero_is_refused_with_an_error() {
    let mut rig = Rig::new();
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_rate(-1.0);
    rig.harness.push_event(gst::event::Segment::new(&segment));
    let error = rig.error().unwrap();
    assert!(error.contains("backwards") && error.contains("rate above 0"), "{error}");
}

#[test]
fn a_segment_that_is_not_in_time_is_refused_with_an_error() {
    let mut rig = Rig::new();
    rig.harness
        .push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
    assert!(rig.error().unwrap().contains("frames need times"));
}

#[test]
fn a_short_gap_passes_and_a_long_one_ends_the_clip() {
    let gap = |ms| {
        gst::event::Gap::builder(ClockTime::from_mseconds(200))
            .duration(ClockTime::from_mseconds(ms))
            .build()
    };
    for (length, clips) in [(150, 1), (151, 2)] {
        let mut rig = Rig::new();
        rig.push(2);
        rig.event(gap(length));
        rig.push(2);
        let seen = rig.finish();
        let expected = match clips {
            1 => tripled(0, 4),
            _ => [tripled(0, 2), tripled(200, 2)].concat(),
        };
        assert_eq!(times(&seen), expected, "a gap of {length} ms");
        let order = order(&seen);
        let gap = order.iter().position(|w| w == "gap").unwrap();
        assert!(order[..gap].contains(&"100".into()) && order[gap..].contains(&"200".into()));
    }
}

#[test]
fn a_hole_in_the_times_ends_the_clip_and_nothing_is_made_across() {
    let mut rig = Rig::new();
    for ms in [0, 100, 1100, 1200] {
        rig.push_at(ms);
    }
    let seen = rig.finish();
    assert_eq!(times(&seen), [tripled(0, 2), tripled(1100, 2)].concat());
    assert_eq!(frames(&seen).iter().filter(|f| discont(f)).count(), 1, "a hole is no DISCONT");
}

#[test]
fn a_discont_ends_the_clip_and_marks_its_first_output_and_nothing_else() {
    let mut rig = Rig::new();
    rig.push(2);
    let mut frame = rig.frame();
    frame.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
    rig.harness.push(frame).unwrap();
    rig.push(2);
    let seen = rig.finish();
    assert_eq!(times(&seen), [tripled(0, 2), tripled(200, 3)].concat());
    let marked: Vec<_> =
        frames(&seen).iter().filter(|f| discont(f)).map(|f| f.pts().unwrap().mseconds()).collect();
    assert_eq!(marked, [0, 200]);
}

#[test]
fn outputs_carry_their_number_in_the_clip_the_first_of_which_may_have_begun_before() {
    let mut rig =
        Rig::with("up-scale=2 target-fps=30 first-frame=5", &caps("GRAY8", 32, 16, (10, 1)));
    for ms in [0, 100, 1000, 1100] {
        rig.push_at(ms);
    }
    let offsets: Vec<_> = frames(&rig.finish()).iter().map(|frame| frame.offset()).collect();
    assert_eq!(offsets, [15, 16, 17, 18, 0, 1, 2, 3]);
}

#[test]
fn flagged_buffers_are_frames_and_corrupted_stays_on_the_key_frame() {
    let mut rig = Rig::new();
    let flags = [
        gst::BufferFlags::GAP,
        gst::BufferFlags::CORRUPTED,
        gst::BufferFlags::DROPPABLE,
        gst::BufferFlags::empty(),
    ];
    for flags in flags {
        let mut frame = rig.frame();
        frame.get_mut().unwrap().set_flags(flags);
        rig.harness.push(frame).unwrap();
    }
    let seen = rig.finish();
    assert_eq!(times(&seen), tripled(0, 4));
    for frame in frames(&seen) {
        let corrupted = frame.flags().contains(gst::BufferFlags::CORRUPTED);
        assert_eq!(corrupted, frame.pts() == Some(ClockTime::from_mseconds(100)));
        assert!(!frame.flags().intersects(gst::BufferFlags::GAP | gst::BufferFlags::DROPPABLE));
    }
}

#[test]
fn the_end_of_stream_or_segment_comes_after_a_clip_of_any_length() {
    for length in [0, 1, 2, 5] {
        let mut rig = Rig::new();
        rig.push(length);
        let seen = rig.finish();
        assert_eq!(times(&seen).len(), (length * 3).saturating_sub(2));
        assert!(matches!(seen.last(), Some(Seen::Event(e)) if e.type_() == gst::EventType::Eos));

        let mut rig = Rig::new();
        rig.push(length);
        rig.event(gst::event::SegmentDone::new(ClockTime::from_seconds(1)));
        rig.wait_for_event(gst::EventType::SegmentDone);
        assert_eq!(rig.frames().len(), (length * 3).saturating_sub(2));
    }
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
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
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
fn stopping_drops_everything_and_the_next_start_is_clean() {
    let mut rig = Rig::new();
    rig.push(3);
    rig.element.set_state(gst::State::Ready).unwrap();
    assert_eq!(
        {
            let frame = rig.frame();
            rig.harness.push(frame)
        },
        Err(gst::FlowError::Flushing)
    );
    let before = rig.seen().len();
    rig.element.set_state(gst::State::Playing).unwrap();
    rig.event(gst::event::StreamStart::new("again"));
    let caps = caps("GRAY8", 32, 16, (10, 1));
    rig.event(gst::event::Caps::new(&caps));
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    for ms in [0, 100] {
        rig.push_at(ms);
    }
    let seen = rig.finish();
    assert_eq!(times(&seen[before..]), tripled(0, 2));
    assert!(discont(&frames(&seen[before..])[0]));
}

#[test]
fn a_change_of_scale_or_rate_while_playing_finishes_the_frames_held_then_sends_new_caps() {
    let mut rig = Rig::new();
    rig.push(2);
    rig.element.set_property("up-scale", 3.0);
    rig.push(2);
    rig.element.set_property("target-fps", gst::Fraction::new(20, 1));
    rig.push(2);
    let seen = rig.finish();
    let mut expected = words(&tripled(0, 2));
    expected.push("caps".into());
    expected.extend(words(&tripled(200, 2)));
    expected.push("caps".into());
    expected.extend(words(&[400, 450, 500]));
    expected.push("eos".into());
    assert_eq!(order(&seen), expected);
    let sizes: Vec<_> = frames(&seen).iter().map(|frame| frame.size()).collect();
    assert_eq!(sizes, [[64 * 32; 4].as_slice(), &[96 * 48; 7]].concat());
}

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
fn metas_go_to_the_key_frame_once_regions_scaled_and_those_of_the_memory_are_left() {
    let mut rig = Rig::new();
    for n in 0..2u8 {
        let mut frame = rig.frame();
        let parent = gst::Buffer::with_size(4).unwrap();
        {
            let frame = frame.get_mut().unwrap();
            gst_video::VideoCaptionMeta::add(
                frame,
                gst_video::VideoCaptionType::Cea708Raw,
                &[n, 7, 8],
            );
            gst_video::VideoRegionOfInterestMeta::add(frame, "face", (4, 6, 10, 5));
            gst::ReferenceTimestampMeta::add(
                frame,
                &gst::Caps::new_empty_simple("timestamp/x-ntp"),
                ClockTime::SECOND,
                ClockTime::NONE,
            );
            gst::ParentBufferMeta::add(frame, &parent);
        }
        rig.harness.push(frame).unwrap();
        drop(rig.harness.try_pull());
        wait_for("the parent to be let go", || parent.is_writable());
    }
    let seen = rig.finish();
    let captions: Vec<_> = frames(&seen)
        .iter()
        .map(|frame| {
            frame
                .iter_meta::<gst_video::VideoCaptionMeta>()
                .map(|m| m.data().to_vec())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(captions, [vec![vec![0, 7, 8]], vec![], vec![], vec![vec![1, 7, 8]]]);
    let frames = frames(&seen);
    assert_eq!(
        frames[3].meta::<gst_video::VideoRegionOfInterestMeta>().unwrap().rect(),
        (8, 12, 20, 10)
    );
    assert!(frames[0].meta::<gst::ReferenceTimestampMeta>().is_some());
    assert!(frames[0].meta::<gst::ParentBufferMeta>().is_none());
    assert_eq!(
        frames[1].iter_meta::<gst::Meta>().count(),
        frames[2].iter_meta::<gst::Meta>().count()
    );
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
    let errors = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    rig.element.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        // The stream ends before the frame gets anywhere.
        while !errors.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(50));
            errors.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        info.flow_res = Err(gst::FlowError::Error);
        info.data = None;
        gst::PadProbeReturn::Handled
    });
    rig.push(2);
    rig.event(gst::event::Eos::new());
    wait_for("an error", || rig.error().is_some());
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
fn the_stream_goes_on_after_downstream_had_enough_of_the_last_one() {
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
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    let before = rig.frames().len();
    rig.push(2);
    rig.wait_for_frames(before + 4);
}

#[test]
fn a_sink_that_has_had_enough_gets_its_end_of_stream() {
    common::run(
        "videotestsrc ! video/x-raw,width=64,height=48 ! venhance up-scale=2 ! fakesink num-buffers=5",
    );
    common::run(
        "videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48,framerate=10/1 ! venhance up-scale=2 target-fps=90 ! fakesink num-buffers=4",
    );
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
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
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
    rig.push(2);
    rig.event(gst::event::FlushStop::new(true));
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    let before = rig.frames().len();
    rig.push_at(3000);
    rig.wait_for_frames(before + 1);
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
