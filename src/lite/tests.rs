// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the whole enhancer.

use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::*;
use crate::engine::{Cancel, Sink, multiple_times, output_frames};

/// Collects the output.
#[derive(Default)]
struct Collect(Mutex<Vec<Arc<Frame>>>);

impl Sink for Collect {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        self.0.lock().unwrap().push(frame);
        Ok(())
    }
    fn progress(&self, _: Progress) {}
}

/// A grey frame: pixel (x, y) has `value(x, y)`, 0 to 1.
fn image((width, height): (usize, usize), value: impl Fn(f32, f32) -> f32) -> Frame {
    let mut frame = Frame::new(width, height).unwrap();
    for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
        let value = value((n % width) as f32, (n / width) as f32).clamp(0.0, 1.0);
        pixel[..3].fill((value * 65535.0) as u16);
        pixel[3] = u16::MAX;
    }
    frame
}

/// The output for one clip.
fn enhance(frames: Vec<Frame>, format: Format) -> Vec<Arc<Frame>> {
    let sink = Arc::new(Collect::default());
    let mut lite = Lite::new().unwrap();
    lite.start(format, ClipContext { sink: sink.clone(), cancel: Cancel::default() }).unwrap();
    for (n, frame) in (0..).zip(frames) {
        let (time, outputs) = multiple_times(n, n == 0, format.interpolated);
        lite.push(frame, time, &outputs).unwrap();
    }
    lite.finish(&[]).unwrap();
    sink.0.lock().unwrap().clone()
}

/// Mean absolute difference of all components, 0 to 1.
fn difference(a: &Frame, b: &Frame) -> f64 {
    let differences = a.pixels().iter().zip(b.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / a.pixels().len() as f64 / 65535.0
}

/// Value noise with a period of 9 pixels: it has contrast everywhere and does not repeat.
fn texture(x: f32, y: f32) -> f32 {
    let height = |x: f32, y: f32| {
        let seed = (x as i32).wrapping_mul(0x1F12_3BB5) ^ (y as i32).wrapping_mul(0x0527_4A7B);
        (seed.wrapping_mul(0x2C1B_3C6D) >> 8 & 0xFFFF) as f32 / 65535.0
    };
    let smooth = |x: f32| x * x * (3.0 - 2.0 * x);
    let (x, y) = (x / 9.0, y / 9.0);
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (smooth(x - left), smooth(y - top));
    let row = |y: f32| height(left, y) * (1.0 - fx) + height(left + 1.0, y) * fx;
    0.2 + 0.6 * (row(top) * (1.0 - fy) + row(top + 1.0) * fy)
}

#[test]
fn n_frames_give_n_plus_k_times_n_minus_1_frames_and_flat_frames_fade_linearly() {
    for interpolated in [0, 1, 3, 8] {
        let format =
            Format { input: (14, 11), output: (28, 22), interpolated, exact: false, alpha: false };
        for length in 0..4usize {
            let brightness = |n: usize| 0.2 + 0.1 * n as f32;
            let frames = (0..length).map(|n| image((14, 11), |_, _| brightness(n))).collect();
            let output = enhance(frames, format);
            assert_eq!(output.len(), output_frames(length, interpolated));
            for (n, frame) in output.iter().enumerate() {
                let expected = 0.2 + 0.1 * n as f32 / (interpolated + 1) as f32;
                assert_eq!((frame.width(), frame.height()), format.output);
                let error = difference(frame, &image(format.output, |_, _| expected));
                assert!(error < 0.02, "frame {n} of k = {interpolated} has an error of {error}");
            }
        }
    }
}

#[test]
fn any_scale_and_size_gives_the_output_size_and_the_same_image() {
    for (input, output) in [
        ((32, 24), (64, 48)),
        ((31, 23), (62, 46)),
        ((31, 23), (92, 68)),
        ((30, 20), (120, 80)),
        ((33, 21), (82, 52)),
        ((16, 18), (128, 144)),
        ((1, 1), (8, 8)),
        ((3, 50), (12, 200)),
    ] {
        let format = Format { input, output, interpolated: 1, exact: false, alpha: false };
        let scale = output.0 as f32 / input.0 as f32;
        let source = |x: f32| (x + 0.5) / scale - 0.5;
        let smooth = |x: f32, y: f32| 0.5 + 0.3 * ((x + 2.0 * y) * 0.1).sin();
        let frames = vec![image(input, smooth), image(input, smooth)];
        for frame in enhance(frames, format) {
            let expected = image(output, |x, y| smooth(source(x), source(y)));
            let error = difference(&frame, &expected);
            assert!(error < 0.02, "{input:?} to {output:?}: {error}");
        }
    }
}

#[test]
fn flat_frames_get_no_pattern() {
    for factor in [2, 3, 4] {
        for code in (16..=235).step_by(3) {
            let luma = code as f32 / 255.0;
            let output = (20 * factor, 12 * factor);
            let format =
                Format { input: (20, 12), output, interpolated: 0, exact: false, alpha: false };
            let frame = image(format.input, |_, _| luma);
            let expected = frame.pixels()[0];
            for value in
                enhance(vec![frame], format)[0].pixels().iter().filter(|value| **value < u16::MAX)
            {
                let error = f32::from(value.abs_diff(expected)) / 257.0;
                assert!(error < 0.5, "×{factor}: {error} of 255 steps at {code}");
            }
        }
    }
}

#[test]
fn the_blocks_of_a_codec_are_resized_and_not_sharpened() {
    for factor in [2, 3, 4] {
        let (input, output) = ((64, 48), (64 * factor, 48 * factor));
        let format = Format { input, output, interpolated: 0, exact: false, alpha: false };
        // The same squares are blocks only where a codec has them.
        for (offset, are_blocks) in [(0.0, true), (4.0, false)] {
            let square = |at: f32| ((at + offset) / 8.0).floor() as i32;
            let frame = image(input, |x, y| 0.5 + 0.1 * ((square(x) + square(y)) % 2) as f32);
            let large = Frame::new(output.0, output.1).unwrap();
            let resized = resize::resize(&frame, large, false, &Cancel::default()).unwrap();
            let error = difference(&enhance(vec![frame], format)[0], &resized);
            assert_eq!(error == 0.0, are_blocks, "×{factor}, offset {offset}: {error}");
        }
    }
}

#[test]
fn a_moving_texture_is_displaced_and_not_cross_faded() {
    let size = (128, 96);
    let at = |shift: f32| image(size, |x, y| texture(x - shift, y - shift / 2.0));
    for interpolated in [1, 2, 4] {
        let format = Format { input: size, output: size, interpolated, exact: false, alpha: false };
        let output = enhance(vec![at(0.0), at(8.0)], format);
        for (n, frame) in output.iter().enumerate() {
            let time = n as f32 / (interpolated + 1) as f32;
            let error = difference(frame, &at(8.0 * time));
            let fade = image(size, |x, y| {
                let ghost = |shift: f32| texture(x - shift, y - shift / 2.0);
                ghost(0.0) * (1.0 - time) + ghost(8.0) * time
            });
            let faded = difference(&fade, &at(8.0 * time));
            assert!(
                error < 0.002 + faded / 3.0,
                "frame {n} of k = {interpolated}: {error}, cross-fade {faded}"
            );
        }
    }
}

#[test]
fn static_areas_are_bit_equal_in_interpolated_frames() {
    let size = (64, 48);
    let format = Format { input: size, output: size, interpolated: 2, exact: false, alpha: false };
    // A ball moves in front of a static texture.
    let at = |left: f32| {
        image(size, |x, y| {
            let inside = (x - left).hypot(y - 12.0) < 6.0;
            if inside { 0.95 } else { texture(x, y) }
        })
    };
    let output = enhance(vec![at(12.0), at(20.0)], format);
    let rows = 28 * 64 * 4..;
    for frame in &output {
        assert_eq!(frame.pixels()[rows.clone()], output[0].pixels()[rows.clone()]);
    }
}

/// The frames that are delivered for a clip with these input and output times, and last these output times.
fn enhance_at(inputs: Vec<(Frame, u64, &[u64])>, last: &[u64], format: Format) -> Vec<Arc<Frame>> {
    let sink = Arc::new(Collect::default());
    let mut lite = Lite::new().unwrap();
    lite.start(format, ClipContext { sink: sink.clone(), cancel: Cancel::default() }).unwrap();
    for (frame, time, outputs) in inputs {
        lite.push(frame, time, outputs).unwrap();
    }
    lite.finish(last).unwrap();
    sink.0.lock().unwrap().clone()
}

#[test]
fn output_at_any_time_equals_that_of_the_same_fraction_and_is_repeated_beyond_the_ends() {
    let size = (64, 48);
    let frames = || moving_clip_with_cut(size).into_iter().take(3);
    let thirds = Format { input: size, output: size, interpolated: 2, exact: false, alpha: false };
    let expected = enhance(frames().collect(), thirds);
    // In units of 1/3000 of the first interval; the second one is twice as long.
    let times = [7000, 10_000, 16_000];
    let outputs: [&[u64]; 3] = [&[0, 6999], &[8000, 9000], &[14_000, 16_000]];
    let inputs =
        frames().zip(times).zip(outputs).map(|((frame, time), outputs)| (frame, time, outputs));
    let exact = Format { interpolated: 0, exact: true, ..thirds };
    let actual = enhance_at(inputs.collect(), &[16_001, 99_999], exact);
    let same: Vec<_> = [0, 0, 1, 2, 5, 6, 6, 6].map(|n: usize| expected[n].clone()).into();
    assert!(actual == same);
}

#[test]
fn times_that_a_format_cannot_have_are_an_error() {
    let mut lite = Lite::new().unwrap();
    let size = (6, 4);
    let frame = || Frame::new(6, 4).unwrap();
    let format = Format { input: size, output: size, interpolated: 0, exact: false, alpha: false };
    let clip = ClipContext { sink: Arc::new(Collect::default()), cancel: Cancel::default() };
    for (time, outputs) in [(2, &[1, 2][..]), (0, &[]), (2, &[3])] {
        lite.start(format, clip.clone()).unwrap();
        lite.push(frame(), 0, &[0]).unwrap();
        assert!(matches!(lite.push(frame(), time, outputs), Err(Error::Internal { .. })));
    }
    lite.start(format, clip).unwrap();
    assert!(matches!(lite.finish(&[0]), Err(Error::Internal { .. })));
}

#[test]
fn black_and_white_are_preserved() {
    let size = (24, 16);
    for value in [0.0, 1.0] {
        let format =
            Format { input: size, output: (48, 32), interpolated: 2, exact: false, alpha: true };
        let frames = (0..2).map(|_| image(size, |_, _| value)).collect();
        for frame in enhance(frames, format) {
            assert!(difference(&frame, &image((48, 32), |_, _| value)) < 0.004);
        }
    }
}

#[test]
fn transparent_neighbours_do_not_change_the_colour() {
    let format =
        Format { input: (1, 1), output: (1, 1), interpolated: 1, exact: false, alpha: true };
    let mut red = Frame::new(1, 1).unwrap();
    red.pixels_mut().copy_from_slice(&[60000, 0, 0, u16::MAX]);
    let output = enhance(vec![Frame::new(1, 1).unwrap(), red], format);
    let [red, green, blue, alpha] = output[1].pixels()[..] else { panic!("one pixel") };
    assert_eq!([red, green, blue], [60000, 0, 0]);
    assert!((8192..57344).contains(&alpha), "{alpha}");
}

/// Three frames of a moving coloured texture, then two frames of another scene.
fn moving_clip_with_cut((width, height): (usize, usize)) -> Vec<Frame> {
    let frame = |scene: f32, shift: f32| {
        let mut frame = Frame::new(width, height).unwrap();
        for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
            let (x, y) = ((n % width) as f32 - shift, (n / width) as f32 + shift / 2.0);
            for (c, value) in pixel.iter_mut().enumerate() {
                let offset = 100.0 * scene + 7.0 * c as f32;
                *value = (texture(x + offset, y + offset) * 65535.0) as u16;
            }
        }
        frame
    };
    vec![frame(0.0, 0.0), frame(0.0, 3.0), frame(0.0, 6.0), frame(1.0, 0.0), frame(1.0, -4.0)]
}

/// Holds the output to the last bit: a change of speed or structure must not change any pixel. The hashes are those
/// of the output before the first such change.
///
/// There is a hash per code path, and a machine checks that of its own: the networks and the interpolation round
/// differently with AVX2 and FMA. None depends on the number of threads.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_output_is_bit_equal_to_the_recorded_hash() {
    let mut hash = Sha256::new();
    for (input, output, interpolated, alpha) in [
        ((48, 36), (96, 72), 1, false),
        ((33, 21), (98, 62), 3, false),
        ((32, 24), (128, 96), 1, true),
        ((30, 20), (74, 50), 2, false),
        ((64, 48), (64, 48), 3, false),
        ((16, 12), (128, 96), 0, false),
    ] {
        let format = Format { input, output, interpolated, exact: false, alpha };
        let mut clip = moving_clip_with_cut(input);
        let second = enhance(clip.split_off(3), format);
        let first = enhance(clip, format);
        // Between two shots, the nearer frame is repeated.
        let gap = |frame: &Arc<Frame>, count| vec![frame.clone(); count];
        let earlier = interpolated.div_ceil(2);
        let last = gap(&first[first.len() - 1], earlier);
        let next = gap(&second[0], interpolated - earlier);
        let frames = [first, last, next, second].concat();
        assert_eq!(frames.len(), 5 + 4 * interpolated);
        for frame in frames {
            frame.pixels().iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }
    let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let expected = match has_avx2 {
        true => "ebf5f2ac3e1de657a2ce6b20d7537c14e478d7e5a4ff287166f51f6cb5d620b6",
        false => "565e733b2798a7e14a4d9b6953a8772ca3fe3b7b2e78450adc39c24ee4706667",
    };
    assert_eq!(format!("{:x}", hash.finalize()), expected);
}

#[test]
fn a_cancelled_clip_ends_with_an_error_and_the_next_clip_works() {
    let format =
        Format { input: (6, 4), output: (12, 8), interpolated: 1, exact: false, alpha: false };
    let mut lite = Lite::new().unwrap();
    let clip = ClipContext { sink: Arc::new(Collect::default()), cancel: Cancel::default() };
    lite.start(format, clip.clone()).unwrap();
    clip.cancel.cancel();
    assert_eq!(lite.push(Frame::new(6, 4).unwrap(), 0, &[0]), Err(Error::Cancelled));
    lite.reset();
    let frames = (0..2).map(|_| Frame::new(6, 4).unwrap()).collect();
    assert_eq!(enhance(frames, format).len(), 3);
}
