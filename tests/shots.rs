// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shots through the element: each is enhanced separately.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use common::{Rig, Seen, bytes, caps, discont, frames};
use gst::prelude::*;
use tiny_model::TinyModel;

const SIZE: (usize, usize) = (64, 48);

/// Frame `n` of moving tiles of random brightness, GRAY8. Scenes are unrelated.
fn picture(scene: usize, n: usize) -> Vec<u8> {
    let value = |at: usize| {
        let (x, y) = ((at % SIZE.0 + n) / 6, at / SIZE.0 / 6);
        let mix = |hash: u32, value: usize| {
            (hash ^ value as u32)
                .wrapping_mul(0x9E37_79B1)
                .rotate_left(15)
                .wrapping_mul(0x85EB_CA6B)
        };
        (50 + mix(mix(mix(1, scene), x), y) % 160) as u8
    };
    (0..SIZE.0 * SIZE.1).map(value).collect()
}

/// The frames of shots of these lengths.
fn shots(lengths: &[usize]) -> Vec<Vec<u8>> {
    lengths
        .iter()
        .enumerate()
        .flat_map(|(scene, length)| (0..*length).map(move |n| picture(scene % 3, n)))
        .collect()
}

/// An element with shot detection that takes GRAY8 at 10 fps.
fn rig(properties: &str) -> Rig {
    let caps = caps("GRAY8", SIZE.0 as i32, SIZE.1 as i32, (10, 1));
    Rig::with(&format!("shot-detection=true {properties}"), &caps)
}

/// The output of a stream of these pictures.
fn enhance(properties: &str, pictures: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut rig = rig(properties);
    rig.push_pictures(pictures);
    let seen = rig.finish();
    assert_eq!(rig.error(), None);
    frames(&seen).iter().map(bytes).collect()
}

/// The messages `venhance-shot`: running time and frame.
fn messages(rig: &Rig) -> Vec<(gst::ClockTime, u64)> {
    std::iter::from_fn(|| rig.bus.pop_filtered(&[gst::MessageType::Element]))
        .filter_map(|message| {
            let shot = message.structure().filter(|s| s.name() == "venhance-shot")?;
            Some((shot.get("running-time").unwrap(), shot.get("frame").unwrap()))
        })
        .collect()
}

/// The numbers of the output frames before which a key frame is requested.
fn key_frames(seen: &[Seen]) -> Vec<usize> {
    let (mut frames, mut keys) = (0, Vec::new());
    for seen in seen {
        match seen {
            Seen::Frame(_) => frames += 1,
            Seen::Event(event) => {
                let structure = event.structure().filter(|s| s.name() == "GstForceKeyUnit");
                keys.extend(structure.map(|_| frames));
            }
        }
    }
    keys
}

/// Two shots in a clip give each of them as if it were alone, and the nearer frame between them.
fn check_two_shots(properties: &str, interpolated: usize, lengths: [usize; 2]) {
    let pictures = shots(&lengths);
    let both = enhance(properties, &pictures);
    let alone = [&pictures[..lengths[0]], &pictures[lengths[0]..]]
        .map(|pictures| enhance(properties, pictures));
    let mut expected = alone[0].clone();
    // Half-way, the earlier frame is repeated.
    let earlier = interpolated.div_ceil(2);
    expected.extend(vec![alone[0].last().unwrap().clone(); earlier]);
    expected.extend(vec![alone[1][0].clone(); interpolated - earlier]);
    expected.extend(alone[1].clone());
    let inputs = pictures.len();
    assert_eq!(both.len(), inputs + interpolated * (inputs - 1), "{properties}, {lengths:?}");
    assert!(both == expected, "{properties}, {lengths:?}");
}

#[test]
fn lite_enhances_each_shot_for_itself() {
    for (fps, interpolated) in [(10, 0), (20, 1), (30, 2), (40, 3)] {
        for lengths in [[7, 6], [1, 5], [5, 1], [2, 2]] {
            let properties = format!("model=lite up-scale=2 target-fps={fps}");
            check_two_shots(&properties, interpolated, lengths);
        }
    }
}

#[test]
fn diffusion_enhances_each_shot_for_itself() {
    let folder = TinyModel::with_model((16, 64), &[1, 2]);
    for (model, lengths) in [("v1", [3, 4]), ("v2", [3, 2]), ("v2", [1, 3])] {
        let properties = "up-scale=1 min-height=0 target-fps=20 seed=3 solver=normal steps=1";
        let element = folder.element(model, properties);
        check_two_shots(element.strip_prefix("venhance ").unwrap(), 1, lengths);
    }
}

/// Runs that skip what they can, for the output from a frame on, give the output of a run over all frames.
fn check_resumed_runs(properties: &str, lengths: &[usize], frames_to_resume: &[usize]) {
    let pictures = shots(lengths);
    let mut whole = rig(properties);
    let points = whole.resume_points();
    whole.push_pictures(&pictures);
    let expected = frames(&whole.finish());
    let points = points.lock().unwrap().clone();
    assert_eq!(points.len(), expected.len());
    for &from in frames_to_resume {
        let mut rig = rig(&format!("{properties} skip-frames={}", points[from]));
        rig.push_pictures(&pictures);
        let mut output = frames(&rig.finish());
        output.retain(|buffer| buffer.pts() >= expected[from].pts());
        let expected = &expected[from..];
        assert_eq!(output.len(), expected.len(), "{properties}: frame {from}");
        for (n, (output, expected)) in output.iter().zip(expected).enumerate() {
            assert_eq!(output.pts(), expected.pts());
            assert!(bytes(output) == bytes(expected), "{properties}: {n} after frame {from}");
        }
    }
    // The last shot needs none of those before it.
    let before = pictures.len() - lengths[lengths.len() - 1];
    assert!(points[points.len() - 1] >= before as u64, "{properties}: {points:?}");
}

#[test]
fn a_run_resumed_in_any_shot_gives_the_same_frames() {
    for rate in ["target-fps=20", "target-fps=25 rate-mode=exact"] {
        let properties = format!("model=lite up-scale=1 {rate}");
        check_resumed_runs(&properties, &[4, 3, 1, 5], &[0, 5, 7, 9, 13, 17, 22]);
    }
    let folder = TinyModel::with_model((16, 64), &[1, 2]);
    let properties = "up-scale=1 min-height=0 target-fps=20 solver=normal steps=1";
    let element = folder.element("v1", properties);
    check_resumed_runs(element.strip_prefix("venhance ").unwrap(), &[3, 4], &[5, 6, 9]);
}

#[test]
fn shots_are_announced_with_times_that_go_on() {
    let mut rig = rig("model=lite up-scale=1 target-fps=30");
    rig.push_pictures(&shots(&[6, 3, 5]));
    let seen = rig.finish();
    let buffers = frames(&seen);
    assert_eq!(buffers.len(), 14 + 2 * 13);
    for (n, buffer) in buffers.iter().enumerate() {
        assert_eq!(buffer.pts(), Some(gst::ClockTime::SECOND * n as u64 / 30));
        assert_eq!(buffer.offset(), n as u64);
        assert_eq!(discont(buffer), n == 0);
    }
    // Of the two frames between two shots, the second shows the new one.
    assert_eq!(key_frames(&seen), [17, 26]);
    let expected = [17, 26].map(|n| (gst::ClockTime::SECOND * n / 30, n));
    assert_eq!(messages(&rig), expected);
}

#[test]
fn without_shot_detection_frames_between_two_shots_are_interpolated() {
    let mut rig = rig("model=lite up-scale=1 target-fps=20 shot-detection=false");
    rig.push_pictures(&shots(&[6, 6]));
    let seen = rig.finish();
    let buffers: Vec<_> = frames(&seen).iter().map(bytes).collect();
    assert!(buffers[11] != buffers[10] && buffers[11] != buffers[12]);
    assert_eq!(key_frames(&seen), [0; 0]);
    assert!(messages(&rig).is_empty());
}

#[test]
fn a_frame_that_awaits_the_decision_is_not_lost() {
    let caps = caps("GRAY8", SIZE.0 as i32, SIZE.1 as i32, (10, 1));
    let larger = common::caps("GRAY8", 2 * SIZE.0 as i32, SIZE.1 as i32, (10, 1));
    let mut rig = rig("model=lite up-scale=1 target-fps=20");
    // DISCONT.
    rig.push_pictures(&shots(&[4]));
    let mut buffer = rig.frame();
    buffer.get_mut().unwrap().set_flags(gst::BufferFlags::DISCONT);
    rig.harness.push(buffer).unwrap();
    rig.push_pictures(&shots(&[2]));
    // New caps.
    rig.set_caps(&larger);
    rig.push(2);
    rig.set_caps(&caps);
    // A flush drops what is held.
    rig.push_pictures(&shots(&[3]));
    rig.wait_for_frames(7 + 5 + 3 + 3);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.begin_segment();
    rig.push_pictures(&shots(&[2, 4]));
    let seen = rig.finish();
    assert_eq!(rig.error(), None);
    assert_eq!(frames(&seen).len(), 7 + 5 + 3 + 3 + 11);
}

#[test]
fn shot_detection_adds_a_frame_to_the_latency() {
    let latency = |properties: &str| {
        let mut rig = rig(&format!("model=lite up-scale=1 target-fps=20 {properties}"));
        rig.push_pictures(&shots(&[4]));
        rig.wait_for_frames(3);
        let mut query = gst::query::Latency::new();
        rig.harness.play();
        assert!(rig.element.static_pad("src").unwrap().query(&mut query));
        query.result().1
    };
    let (with, without) = (latency(""), latency("shot-detection=false"));
    assert_eq!(with - without, gst::ClockTime::from_mseconds(100));
}
