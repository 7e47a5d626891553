// SPDX-License-Identifier: MIT OR Apache-2.0
//! `duplicates`: runs of repeated frames, as in animation on twos.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use common::{Rig, bytes, caps, discont, frames, times};
use gst::{ClockTime, prelude::*};
use tiny_model::TinyModel;

const SIZE: (usize, usize) = (96, 48);

/// A soft white bar at `position`, on black or on white.
fn bar(position: f64, is_inverted: bool) -> Vec<u8> {
    let value = |at: usize| {
        let distance = ((at % SIZE.0) as f64 - position).abs();
        let luma = (220.0 * (8.0 - distance).clamp(0.0, 4.0) / 4.0) as u8;
        if is_inverted { 255 - luma } else { luma }
    };
    (0..SIZE.0 * SIZE.1).map(value).collect()
}

/// Where a bar on black is.
fn position(picture: &[u8]) -> f64 {
    let weighted =
        picture.iter().enumerate().map(|(at, luma)| (at % SIZE.0) as f64 * f64::from(*luma));
    weighted.sum::<f64>() / picture.iter().map(|luma| f64::from(*luma)).sum::<f64>()
}

/// Drawings of a bar that moves by 2 pixels a frame: each lasts as many frames as `lengths` say.
fn drawings(lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut pictures = Vec::new();
    for length in lengths {
        let drawing = bar(16.0 + 2.0 * pictures.len() as f64, false);
        pictures.resize(pictures.len() + length, drawing);
    }
    pictures
}

/// Takes GRAY8 at 10 fps; the size stays.
fn rig(properties: &str) -> Rig {
    let caps = caps("GRAY8", SIZE.0 as i32, SIZE.1 as i32, (10, 1));
    Rig::with(&format!("up-scale=1 {properties}"), &caps)
}

/// The output of a stream of these pictures, with `properties` for both values of `duplicates`: that of `merge`. Numbers
/// and times are those of `keep`.
fn merge(properties: &str, pictures: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let [merged, kept] = ["merge", "keep"].map(|duplicates| {
        let mut rig = rig(&format!("{properties} duplicates={duplicates}"));
        rig.push_pictures(pictures);
        let seen = rig.finish();
        assert_eq!(rig.error(), None);
        frames(&seen)
    });
    let times = |buffers: &[gst::Buffer]| -> Vec<_> {
        buffers.iter().map(|buffer| (buffer.pts(), buffer.duration(), buffer.offset())).collect()
    };
    assert_eq!(times(&merged), times(&kept), "{properties}");
    merged.iter().map(bytes).collect()
}

/// Checks where the bar is, in output frames that are `step` pixels apart: it moves until `last`.
fn check_motion(output: &[Vec<u8>], step: f64, last: f64) {
    let positions: Vec<f64> = output.iter().map(|picture| position(picture)).collect();
    for (n, position) in positions.iter().enumerate() {
        let expected = (16.0 + step * n as f64).min(last);
        assert!((position - expected).abs() < 0.35, "frame {n}, {expected}: {positions:.2?}");
    }
}

#[test]
fn motion_on_twos_threes_and_fours_is_linear() {
    for lengths in [&[2; 8][..], &[3; 5], &[4; 4], &[2, 3, 1, 4, 2, 1, 1, 2]] {
        let pictures = drawings(lengths);
        let last = position(pictures.last().unwrap());
        for (rate, step) in [
            ("target-fps=20", 1.0),
            ("target-fps=30", 2.0 / 3.0),
            ("target-fps=10", 2.0),
            ("target-fps=25 rate-mode=exact", 0.8),
        ] {
            let output = merge(&format!("model=lite {rate}"), &pictures);
            check_motion(&output, step, last);
        }
    }
}

#[test]
fn repeated_frames_are_kept_by_default() {
    let mut rig = rig("model=lite target-fps=10");
    let pictures = drawings(&[2; 8]);
    rig.push_pictures(&pictures);
    let output: Vec<_> = frames(&rig.finish()).iter().map(bytes).collect();
    assert!(output == pictures);
}

#[test]
fn a_still_picture_stays_and_moves_on_at_its_end() {
    let pictures = drawings(&[12, 1, 1]);
    let output = merge("model=lite target-fps=20", &pictures);
    let positions: Vec<f64> = output.iter().map(|picture| position(picture)).collect();
    for (n, position) in positions.iter().enumerate() {
        let expected = match n {
            0..=22 => 16.0,
            23 => 28.0,
            _ => 40.0 + (n - 24) as f64,
        };
        assert!((position - expected).abs() < 2.0, "frame {n}: {positions:.2?}");
    }
    // Of the still picture, every frame is bit-equal.
    assert!(output[..=22].iter().all(|picture| *picture == pictures[0]));
    // A clip that is one picture.
    let pictures = drawings(&[9]);
    let output = merge("model=lite target-fps=20", &pictures);
    assert!(output.iter().all(|picture| *picture == pictures[0]));
}

#[test]
fn small_motion_is_no_repetition() {
    // A spot of 3×3 pixels that moves by a pixel a frame.
    let picture = |n: usize| -> Vec<u8> {
        let is_spot = |at: usize| {
            (20 + n..23 + n).contains(&(at % SIZE.0)) && (20..23).contains(&(at / SIZE.0))
        };
        (0..SIZE.0 * SIZE.1).map(|at| if is_spot(at) { 255 } else { 40 }).collect()
    };
    let pictures: Vec<_> = (0..12).map(picture).collect();
    assert!(merge("model=lite target-fps=10", &pictures) == pictures);
}

#[test]
fn a_cut_after_a_repeated_frame_repeats_the_nearer_drawing() {
    let mut pictures = drawings(&[2, 2, 2, 2]);
    let before = pictures.len();
    pictures.extend((0..4).map(|n| bar(60.0 - 4.0 * (n / 2) as f64, true)));
    let output = merge("model=lite target-fps=20 shot-detection=true", &pictures);
    // The last drawing of the first shot begins two frames before the cut.
    let last = 2 * (before - 2);
    assert!(output[last..2 * before].iter().all(|picture| *picture == pictures[before - 1]));
    assert!(output[2 * before] == pictures[before]);
    // It moves until then.
    check_motion(&output[..last], 1.0, f64::INFINITY);
}

#[test]
fn compression_noise_does_not_hide_a_repeated_frame() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("in.raw");
    let pictures = drawings(&[2; 12]);
    std::fs::write(&raw, pictures.concat()).unwrap();
    let out = folder.path().join("out.raw");
    for quantizer in [18, 28] {
        common::run(&format!(
            "filesrc location={} blocksize={} ! rawvideoparse format=gray8 width={} height={} framerate=10/1 \
             ! videoconvert ! video/x-raw,format=I420 ! x264enc pass=quant quantizer={quantizer} ! avdec_h264 \
             ! venhance model=lite up-scale=1 target-fps=20 duplicates=merge ! videoconvert \
             ! video/x-raw,format=GRAY8 ! filesink location={}",
            raw.display(),
            SIZE.0 * SIZE.1,
            SIZE.0,
            SIZE.1,
            out.display()
        ));
        let output = std::fs::read(&out).unwrap();
        let output: Vec<_> = output.chunks(SIZE.0 * SIZE.1).map(<[u8]>::to_vec).collect();
        assert_eq!(output.len(), 2 * pictures.len() - 1);
        check_motion(&output, 1.0, position(pictures.last().unwrap()));
    }
}

#[test]
fn the_latency_is_the_longest_run_that_is_merged() {
    let mut rig = rig("model=lite target-fps=20 duplicates=merge");
    rig.harness.set_upstream_latency(ClockTime::ZERO);
    let pictures = drawings(&[4, 1]);
    rig.push_pictures(&pictures[..4]);
    rig.wait_for_frames(1);
    // The frame at 50 ms needs that at 400 ms.
    assert_eq!(times(&rig.seen()), [0]);
    rig.push_pictures(&pictures[4..]);
    rig.wait_for_frames(9);
    let mut query = gst::query::Latency::new();
    assert!(rig.element.static_pad("src").unwrap().query(query.query_mut()));
    // One more frame for the work.
    assert_eq!(query.result().1, ClockTime::from_mseconds(100) * (4 + 1));
    rig.finish();
}

#[test]
fn repeated_frames_at_the_end_of_a_clip_are_not_lost() {
    let mut rig = rig("model=lite target-fps=20 duplicates=merge");
    // A DISCONT frame in a run of repeated frames.
    rig.push_pictures(&drawings(&[2, 2]));
    let mut buffer = rig.frame();
    buffer.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
    let repeated = drawings(&[2, 2]).pop().unwrap();
    buffer.get_mut().unwrap().map_writable().unwrap().copy_from_slice(&repeated);
    rig.harness.push(buffer).unwrap();
    rig.push_pictures(&drawings(&[3]));
    // A flush drops the frames that are held, and the run begins anew.
    rig.wait_for_frames(7 + 3);
    let before = rig.frames().len();
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.begin_segment();
    rig.push_pictures(&drawings(&[3]));
    rig.push_pictures(&[bar(22.0, false)]);
    let seen = rig.finish();
    assert_eq!(rig.error(), None);
    let buffers = frames(&seen);
    let clip = |start: u64, frames: u64| (0..2 * frames - 1).map(move |n| start + n * 50);
    let expected: Vec<u64> = clip(0, 4).chain(clip(400, 4)).collect();
    assert_eq!(times(&seen)[..before], expected[..before]);
    let marked: Vec<_> = (0..before).filter(|n| discont(&buffers[*n])).collect();
    assert_eq!(marked, [0, 7]);
    assert_eq!(times(&seen)[before..], clip(800, 4).collect::<Vec<_>>());
    check_motion(&buffers[before..].iter().map(bytes).collect::<Vec<_>>(), 1.0, 22.0);
}

#[test]
fn diffusion_merges_and_resumes_with_the_same_frames() {
    let folder = TinyModel::with_model((16, 64), &[1, 2]);
    let properties = "min-height=0 target-fps=20 solver=normal steps=1 shot-detection=true";
    let element = folder.element("v1", properties);
    let properties = element.strip_prefix("venhance ").unwrap();
    let mut pictures = drawings(&[2, 2, 1]);
    let shot = pictures.len();
    pictures.extend((0..5).map(|n| bar(60.0 - 4.0 * (n / 2) as f64, true)));
    let properties = format!("{properties} duplicates=merge");
    let mut whole = rig(&properties);
    let points = whole.resume_points();
    whole.push_pictures(&pictures);
    let expected: Vec<_> = frames(&whole.finish()).iter().map(bytes).collect();
    assert_eq!(expected.len(), 2 * pictures.len() - 1);
    // It goes back to the start of the shot.
    let points = points.lock().unwrap().clone();
    assert_eq!(points.last(), Some(&(shot as u64)));

    let mut resumed = rig(&format!("{properties} skip-frames={shot}"));
    resumed.push_pictures(&pictures);
    let output: Vec<_> = frames(&resumed.finish()).iter().map(bytes).collect();
    assert_eq!(output.len(), 2 * (pictures.len() - shot) - 1);
    assert!(output == expected[expected.len() - output.len()..]);
}

#[test]
fn a_change_of_a_column_at_the_right_edge_is_no_repetition() {
    for width in [1, 9] {
        let caps = caps("GRAY8", width, 8, (10, 1));
        let mut rig = Rig::with("up-scale=1 target-fps=0/1 duplicates=merge", &caps);
        for n in 0..4 {
            let mut frame = rig.frame();
            let mut pixels = frame.get_mut().unwrap().map_writable().unwrap();
            let stride = pixels.len() / 8;
            pixels.chunks_mut(stride).for_each(|row| row[width as usize - 1] = 100 + 20 * n);
            drop(pixels);
            rig.harness.push(frame).unwrap();
        }
        let frames = frames(&rig.finish());
        let column = |frame: &gst::Buffer| bytes(frame)[width as usize - 1];
        assert_eq!(frames.iter().map(column).collect::<Vec<_>>(), [100, 120, 140, 160], "{width}");
    }
}
