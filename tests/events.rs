// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each event, flag and query does to the frames held. A test per row of the table.

mod common;

use common::{Rig, Seen, caps, discont, frames, order, tag, times, tripled, wait_for};
use gst::{ClockTime, prelude::*};

fn words(times: &[u64]) -> Vec<String> {
    times.iter().map(u64::to_string).collect()
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
fn a_gap_event_that_overtakes_a_frame_does_not_part_it_from_its_clip() {
    let mut rig = Rig::new();
    rig.push_at(0);
    rig.push_at(100);
    let start = ClockTime::from_mseconds(300);
    rig.event(gst::event::Gap::builder(start).duration(ClockTime::SECOND).build());
    for ms in [200, 1300, 1400] {
        rig.push_at(ms);
    }
    assert_eq!(times(&rig.finish()), [tripled(0, 3), tripled(1300, 2)].concat());
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
fn outputs_carry_their_number_in_the_clip_and_skipped_frames_count() {
    for (skipped, expected) in [
        (0, &[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6][..]),
        (1, &[3, 0, 1, 2, 3, 4, 5, 6]),
        (3, &[3, 4, 5, 6]),
    ] {
        let properties = format!("up-scale=2 target-fps=30 skip-frames={skipped}");
        let mut rig = Rig::with(&properties, &caps("GRAY8", 32, 16, (10, 1)));
        for ms in [0, 100, 1000, 1100, 1200] {
            rig.push_at(ms);
        }
        let offsets: Vec<_> = frames(&rig.finish()).iter().map(|frame| frame.offset()).collect();
        assert_eq!(offsets, expected, "{skipped} skipped");
    }
}

#[test]
fn flagged_buffers_are_frames_and_corrupted_stays_on_the_input_frame() {
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
    rig.begin_stream(&caps("GRAY8", 32, 16, (10, 1)));
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
fn metas_go_to_the_input_frame_once_regions_scaled_and_those_of_the_memory_are_left() {
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
    for interpolated in &frames[1..3] {
        assert!(interpolated.meta::<gst_video::VideoRegionOfInterestMeta>().is_none());
        assert!(interpolated.meta::<gst::ReferenceTimestampMeta>().is_none());
    }
}

#[test]
fn an_error_is_posted_once_however_often_upstream_sends_what_is_refused() {
    let mut interlaced = caps("GRAY8", 32, 16, (10, 1));
    interlaced.make_mut().set("interlace-mode", "interleaved");
    let mut backwards = gst::FormattedSegment::<ClockTime>::new();
    backwards.set_rate(-1.0);
    for event in [gst::event::Caps::new(&interlaced), gst::event::Segment::new(&backwards)] {
        let mut rig = Rig::new();
        rig.push(1);
        rig.harness.push_event(event);
        for _ in 0..3 {
            let frame = rig.frame();
            assert!(rig.harness.push(frame).is_err());
        }
        assert!(rig.error().is_some());
        assert_eq!(rig.error(), None);
    }
}

#[test]
fn every_output_frame_has_the_timecode_of_its_place_at_the_output_rate() {
    let timecodes = |fps: (i32, i32), target: &str, flags, start: (u32, u32, u32, u32)| {
        let caps = caps("GRAY8", 16, 16, fps);
        let mut rig = Rig::with(&format!("up-scale=1 target-fps={target}"), &caps);
        let (h, m, s, f) = start;
        let fps = gst::Fraction::new(fps.0, fps.1);
        let mut timecode =
            gst_video::ValidVideoTimeCode::new(fps, None, flags, h, m, s, f, 0).unwrap();
        for _ in 0..2 {
            let mut frame = rig.frame();
            gst_video::VideoTimeCodeMeta::add(frame.get_mut().unwrap(), &timecode);
            rig.harness.push(frame).unwrap();
            timecode.increment_frame();
        }
        frames(&rig.finish())
            .iter()
            .map(|frame| {
                let timecode = frame.meta::<gst_video::VideoTimeCodeMeta>().unwrap().tc();
                (timecode.to_string(), timecode.fps())
            })
            .collect::<Vec<_>>()
    };
    let expected = |fps: (i32, i32), times: &[&str]| {
        let fps = gst::Fraction::new(fps.0, fps.1);
        times.iter().map(|time| (time.to_string(), fps)).collect::<Vec<_>>()
    };
    let none = gst_video::VideoTimeCodeFlags::empty();
    assert_eq!(
        timecodes((25, 1), "75", none, (10, 59, 59, 24)),
        expected((75, 1), &["10:59:59:72", "10:59:59:73", "10:59:59:74", "11:00:00:00"])
    );
    // The first frames of a minute are dropped: two at 29.97 fps, four at 59.94.
    let drop = gst_video::VideoTimeCodeFlags::DROP_FRAME;
    assert_eq!(
        timecodes((30000, 1001), "60000/1001", drop, (1, 0, 59, 29)),
        expected((60000, 1001), &["01:00:59;58", "01:00:59;59", "01:01:00;04"])
    );
    // GStreamer's timecodes do not support 90000/1001.
    assert_eq!(
        timecodes((30000, 1001), "90000/1001", drop, (1, 0, 59, 29)),
        expected((90, 1), &["01:00:59:87", "01:00:59:88", "01:00:59:89", "01:01:00:06"])
    );
    assert_eq!(
        timecodes((25, 1), "0/1", none, (1, 2, 3, 4)),
        expected((25, 1), &["01:02:03:04", "01:02:03:05"])
    );
}

#[test]
fn progress_comes_at_most_ten_times_a_second_and_at_the_end() {
    let start = std::time::Instant::now();
    let messages = common::run(
        "videotestsrc num-buffers=1000 ! video/x-raw,format=GRAY8,width=16,height=16,framerate=10/1 \
         ! venhance up-scale=1 target-fps=20 ! fakesink",
    );
    let took = start.elapsed().as_secs_f64();
    let progress: Vec<_> = messages.iter().filter(|m| m.has_name("venhance-progress")).collect();
    assert!(progress.len() as f64 <= 10.0 + took * 10.0, "{} in {took} s", progress.len());
    let last = progress.last().unwrap();
    assert_eq!(last.get::<u64>("frames-in"), Ok(1000));
    assert_eq!(last.get::<u64>("frames-out"), Ok(1999));
}

#[test]
fn streams_of_one_frame_with_equal_segments_all_begin_at_the_start() {
    for pts in [None, Some(ClockTime::ZERO)] {
        let mut rig = Rig::new();
        for stream in 0..3 {
            if stream > 0 {
                rig.event(gst::event::StreamStart::new(&format!("stream {stream}")));
                rig.begin_segment();
            }
            let mut frame = rig.frame();
            frame.get_mut().unwrap().set_pts(pts);
            rig.harness.push(frame).unwrap();
            // The last but one ends without EOS.
            if stream != 1 {
                rig.event(gst::event::Eos::new());
            }
        }
        wait_for("three frames", || rig.frames().len() == 3);
        assert_eq!(times(&rig.seen()), [0, 0, 0], "{pts:?}");
    }
}
