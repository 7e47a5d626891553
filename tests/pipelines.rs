// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real files of real codecs, through the pipelines that people write.

mod common;

use std::path::{Path, PathBuf};

use common::{Video, decode, play, record, run, try_run, wait_for, wait_for_end};
use gst::{ClockTime, prelude::*};
use gst_video::VideoFormat;

/// A folder with a file made by `pipeline`, which ends in a muxer.
fn sample(pipeline: &str, name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    run(&format!("{pipeline} ! filesink location={}", file.display()));
    (dir, file)
}

/// 20 frames at 8 fps in a format.
fn source(format: &str) -> String {
    format!(
        "videotestsrc num-buffers=20 pattern=ball ! video/x-raw,format={format},width=160,height=120,framerate=8/1"
    )
}

/// The README's line with these elements in its middle.
fn enhance(file: &Path, elements: &str) -> (Video, Vec<gst::Structure>) {
    let out = file.with_extension("out.mp4");
    let messages = run(&format!(
        "filesrc location={} ! decodebin ! {elements} ! x264enc ! mp4mux ! filesink location={}",
        file.display(),
        out.display()
    ));
    (decode(&out), messages)
}

fn launch(pipeline: &str) -> gst::Pipeline {
    common::init();
    gst::parse::launch(pipeline).unwrap().downcast().unwrap()
}

/// 20 frames at 8 fps have become 58 at 24, each four times as wide and as high.
fn assert_enhanced(video: &Video, format: VideoFormat) {
    let info = video.info();
    assert_eq!((info.width(), info.height(), info.format()), (640, 480, format));
    assert_eq!(info.fps(), gst::Fraction::new(24, 1));
    assert_eq!(video.times.len(), 58);
    let first = video.times[0];
    for (n, time) in video.times.iter().enumerate() {
        let exact = ClockTime::SECOND.mul_div_floor(n as u64, 24).unwrap();
        let off = (*time - first).nseconds().abs_diff(exact.nseconds());
        assert!(off < 20_000, "frame {n} at {time}: a muxer's clock is not that coarse");
    }
}

#[test]
fn h264_of_8_bits() {
    let (_dir, file) = sample(&format!("{} ! x264enc ! mp4mux", source("I420")), "in.mp4");
    let (video, messages) = enhance(&file, "venhance up-scale=4 target-fps=24");
    assert_enhanced(&video, VideoFormat::I420);
    let mut progress = messages.iter().filter(|m| m.has_name("venhance-progress"));
    let last = progress.next_back().unwrap();
    assert_eq!(last.get::<u64>("frames-in"), Ok(20));
    assert_eq!(last.get::<&str>("unit"), Ok("frame"));
    assert!(last.get::<f64>("seconds-per-unit").unwrap() > 0.0);
    assert!(last.get::<f64>("eta-seconds").unwrap() >= 0.0);
}

#[test]
fn h264_of_10_bits() {
    let (_dir, file) = sample(&format!("{} ! x264enc ! mp4mux", source("I420_10LE")), "in.mp4");
    let (video, _) = enhance(&file, "venhance up-scale=4 target-fps=24");
    assert_enhanced(&video, VideoFormat::I42010le);
}

#[test]
fn h264_with_full_chroma() {
    let (_dir, file) = sample(&format!("{} ! x264enc ! mp4mux", source("Y444")), "in.mp4");
    let (video, _) = enhance(&file, "venhance up-scale=4 target-fps=24");
    assert_enhanced(&video, VideoFormat::Y444);
}

#[test]
fn vp9_in_webm() {
    let (_dir, file) =
        sample(&format!("{} ! vp9enc deadline=1 ! webmmux", source("I420")), "in.webm");
    let (video, _) = enhance(&file, "venhance up-scale=4 target-fps=24");
    assert_enhanced(&video, VideoFormat::I420);
}

#[test]
fn gif_becomes_h264_of_4_2_0() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.gif");
    common::gif(&file, (64, 48), 10, |n, column| column / 4 == n);
    // GStreamer 1.22 with ffmpeg 5.1 never ends a GIF, with or without this element.
    let out = file.with_extension("mp4");
    let pipeline = launch(&format!(
        "filesrc location={} ! decodebin ! venhance name=v up-scale=2 target-fps=20 ! x264enc ! mp4mux \
         ! filesink location={}",
        file.display(),
        out.display()
    ));
    let element = pipeline.by_name("v").unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    // GStreamer 1.22 with ffmpeg 5.1 never ends a GIF, with or without this element.
    wait_for("ten frames", || {
        element.property::<gst::Structure>("progress").get::<u64>("frames-in") == Ok(10)
    });
    assert!(element.static_pad("sink").unwrap().send_event(gst::event::Eos::new()));
    wait_for_end(&pipeline);
    let video = decode(&out);
    let info = video.info();
    assert_eq!((info.width(), info.height(), info.format()), (128, 96, VideoFormat::I420));
    assert_eq!(video.times.len(), 19);
}

#[test]
fn odd_sizes_come_out_even_and_can_be_encoded() {
    let (_dir, file) = sample(
        "videotestsrc num-buffers=5 ! video/x-raw,format=Y444,width=51,height=37,framerate=8/1 ! x264enc ! mp4mux",
        "in.mp4",
    );
    let (video, _) = enhance(&file, "venhance up-scale=2.5 target-fps=0/1");
    assert_eq!((video.info().width(), video.info().height()), (126, 92));
    assert_eq!((video.info().fps(), video.times.len()), (gst::Fraction::new(8, 1), 5));
}

#[test]
fn sound_stays_in_sync_beside_an_element_that_holds_frames() {
    let (_dir, file) = sample(
        &format!(
            "{} ! x264enc ! queue ! mp4mux name=m \
             audiotestsrc num-buffers=107 ! audio/x-raw,rate=44100,channels=2 ! avenc_aac ! queue ! m. m.",
            source("I420")
        ),
        "in.mp4",
    );
    let out = file.with_extension("out.mp4");
    run(&format!(
        "filesrc location={} ! decodebin name=d \
         d. ! venhance up-scale=2 target-fps=24 ! x264enc ! mp4mux name=m ! filesink location={} \
         d. ! queue max-size-time=0 max-size-bytes=0 max-size-buffers=0 ! audioconvert ! avenc_aac ! m.",
        file.display(),
        out.display()
    ));
    let (before, after) = (decode(&file), decode(&out));
    assert_eq!((before.times.len(), after.times.len()), (20, 58));
    // How far the sound is behind the picture, where both begin.
    let lag = |video: &Video| video.audio[0].0.nseconds() as i64 - video.times[0].nseconds() as i64;
    let frame = (ClockTime::SECOND / 24).nseconds() as i64;
    assert!((lag(&before) - lag(&after)).abs() <= frame, "{} {}", lag(&before), lag(&after));
    let end =
        |video: &Video| video.audio.iter().map(|(start, length)| *start + *length).max().unwrap();
    assert!(end(&before).nseconds().abs_diff(end(&after).nseconds()) < 100_000_000);
}

#[test]
fn a_variable_rate_keeps_the_time_of_every_input_frame() {
    // Intervals around and far from the nominal 1/30 s, with a jump of a second.
    let intervals = [33, 33, 45, 21, 33, 47, 40, 1000, 33, 70, 33, 28, 33, 33];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.mp4");
    common::init();
    let pipeline = launch(&format!(
        "videotestsrc num-buffers={} ! video/x-raw,format=I420,width=64,height=48,framerate=30/1 \
         ! identity name=i ! x264enc tune=zerolatency ! mp4mux ! filesink location={}",
        intervals.len() + 1,
        file.display()
    ));
    let times: Vec<ClockTime> = std::iter::once(0)
        .chain(intervals)
        .scan(0, |time, interval| {
            *time += interval;
            Some(ClockTime::from_mseconds(*time))
        })
        .collect();
    let pad = pipeline.by_name("i").unwrap().static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data {
            let n = buffer.offset() as usize;
            let buffer = buffer.make_mut();
            buffer.set_pts(times[n]);
            buffer.set_duration(
                times.get(n + 1).map_or(ClockTime::from_mseconds(33), |next| *next - times[n]),
            );
        }
        gst::PadProbeReturn::Ok
    });
    play(&pipeline);

    // Not through an encoder and a muxer, whose clocks round: as they leave the element.
    let inputs = decode(&file).times;
    assert_eq!(inputs.len(), intervals.len() + 1);
    let pipeline = launch(&format!(
        "filesrc location={} ! decodebin ! venhance name=v up-scale=1 target-fps=60 ! fakesink",
        file.display()
    ));
    let element = pipeline.by_name("v").unwrap();
    let input = record(&element.static_pad("sink").unwrap());
    let output = record(&element.static_pad("src").unwrap());
    play(&pipeline);
    let times: Vec<_> =
        output.lock().unwrap().buffers.iter().map(|buffer| buffer.pts().unwrap()).collect();
    let caps = input.lock().unwrap().caps.clone().unwrap();
    let fps = gst_video::VideoInfo::from_caps(&caps).unwrap().fps();
    let frame = ClockTime::SECOND.mul_div_floor(fps.denom() as u64, fps.numer() as u64).unwrap();
    assert!(times.is_sorted() && times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    let rounding = ClockTime::from_mseconds(1);
    for input in &inputs {
        let off = times.iter().map(|time| *time.max(input) - *time.min(input)).min().unwrap();
        assert!(off <= rounding, "the input frame at {input} has moved by {off}: {times:?}");
    }
    // One frame is interpolated in every interval of at most 1.5 frames, none in the others.
    let interpolated =
        inputs.windows(2).filter(|pair| (pair[1] - pair[0]) * 2 <= frame * 3).count();
    assert!(interpolated > 5 && interpolated < intervals.len());
    assert_eq!(times.len(), inputs.len() + interpolated, "{fps} {times:?}");
}

#[test]
fn two_elements_work_in_one_pipeline() {
    let (_dir, file) = sample(&format!("{} ! x264enc ! mp4mux", source("I420")), "in.mp4");
    let out = file.with_extension("out.mp4");
    run(&format!(
        "filesrc location={} ! decodebin ! venhance up-scale=2 target-fps=16 ! venhance up-scale=2 target-fps=32 \
         ! x264enc ! mp4mux ! filesink location={}",
        file.display(),
        out.display()
    ));
    let video = decode(&out);
    assert_eq!((video.info().width(), video.info().fps()), (640, gst::Fraction::new(32, 1)));
    assert_eq!(video.times.len(), 77);
}

#[test]
fn upstream_learns_the_size_and_rate_that_downstream_wants() {
    let pipeline = launch(
        "videotestsrc num-buffers=3 ! venhance name=v up-scale=2.5 target-fps=24 \
         ! video/x-raw,width=400,height=300,framerate=24/1 ! fakesink",
    );
    let input = record(&pipeline.by_name("v").unwrap().static_pad("sink").unwrap());
    play(&pipeline);
    let caps = input.lock().unwrap().caps.clone().unwrap();
    let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
    assert_eq!((info.width(), info.height()), (160, 120));
}

#[test]
fn interlaced_and_multiview_video_is_refused_with_what_to_do() {
    // The decoder sends the caps: an error. capssetter asks first, and its upstream posts the error.
    for (source, kind, advice) in [
        (
            "interlace ! x264enc interlaced=true ! h264parse ! avdec_h264",
            gst::MessageType::Error,
            "put deinterlace before",
        ),
        (
            "capssetter caps=video/x-raw,interlace-mode=mixed",
            gst::MessageType::Warning,
            "put deinterlace before",
        ),
        (
            "capssetter caps=video/x-raw,multiview-mode=side-by-side",
            gst::MessageType::Warning,
            "multiview",
        ),
    ] {
        let pipeline = launch(&format!(
            "videotestsrc num-buffers=3 ! video/x-raw,format=I420,width=64,height=64 ! {source} ! venhance ! fakesink"
        ));
        let _ = pipeline.set_state(gst::State::Playing);
        let kinds = [gst::MessageType::Error, gst::MessageType::Warning];
        let message =
            pipeline.bus().unwrap().timed_pop_filtered(ClockTime::from_seconds(30), &kinds);
        pipeline.set_state(gst::State::Null).unwrap();
        let message = message.expect("the pipeline hangs");
        assert_eq!(message.type_(), kind, "{source}: {message:?}");
        let text = match message.view() {
            gst::MessageView::Error(error) => error.error().to_string(),
            gst::MessageView::Warning(warning) => warning.error().to_string(),
            _ => unreachable!(),
        };
        assert!(text.contains(advice), "{source}: {text}");
    }
}

#[test]
fn the_readable_part_of_a_truncated_file_is_enhanced() {
    let (_dir, file) = sample(
        &format!("{} ! x264enc key-int-max=4 tune=zerolatency ! matroskamux", source("I420")),
        "in.mkv",
    );
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let out = file.with_extension("out.mkv");
    // Whether its end is an error is up to the demuxer.
    try_run(&format!(
        "filesrc location={} ! decodebin ! venhance up-scale=2 target-fps=24 ! x264enc ! matroskamux ! filesink location={}",
        file.display(),
        out.display()
    ));
    let frames = decode(&out).times.len();
    assert!(frames > 20, "{frames}");
}
