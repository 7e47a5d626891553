// SPDX-License-Identifier: MIT OR Apache-2.0
//! The detector on made clips.

use super::ShotDetector;
use crate::engine::Frame;

const SIZE: (usize, usize) = (160, 90);

/// Value noise of several periods in 0..1, of scene `scene`: it has contrast everywhere and does not repeat.
fn texture(scene: u32, x: f32, y: f32) -> f32 {
    let height = |x: f32, y: f32, octave: u32| {
        let seed = (x as i32 as u32).wrapping_mul(0x1F12_3BB5)
            ^ (y as i32 as u32).wrapping_mul(0x0527_4A7B)
            ^ (scene * 8 + octave).wrapping_mul(0x9E37_79B1);
        let seed = (seed ^ seed >> 15).wrapping_mul(0x2C1B_3C6D);
        (seed >> 8 & 0xFFFF) as f32 / 65535.0
    };
    let smooth = |x: f32| x * x * (3.0 - 2.0 * x);
    let octave = |octave: u32, period: f32| {
        let (x, y) = (x / period, y / period);
        let (left, top) = (x.floor(), y.floor());
        let (fx, fy) = (smooth(x - left), smooth(y - top));
        let row =
            |y: f32| height(left, y, octave) * (1.0 - fx) + height(left + 1.0, y, octave) * fx;
        row(top) * (1.0 - fy) + row(top + 1.0) * fy
    };
    0.6 * octave(0, 48.0) + 0.3 * octave(1, 17.0) + 0.1 * octave(2, 6.0)
}

/// A grey frame of scene `scene`, moved by `shift` pixels, in `light`.
fn frame(scene: u32, shift: f32, light: f32) -> Vec<f32> {
    (0..SIZE.0 * SIZE.1)
        .map(|at| {
            let (x, y) = ((at % SIZE.0) as f32 + shift, (at / SIZE.0) as f32 + shift / 3.0);
            (light * texture(scene, x + 1000.0, y + 1000.0)).min(1.0)
        })
        .collect()
}

/// `count` frames of a scene that moves by `speed` pixels a frame.
fn pan(scene: u32, count: usize, speed: f32) -> Vec<Vec<f32>> {
    (0..count).map(|n| frame(scene, n as f32 * speed, 0.8)).collect()
}

fn black(count: usize) -> Vec<Vec<f32>> {
    vec![vec![0.0; SIZE.0 * SIZE.1]; count]
}

fn mix(a: &[f32], b: &[f32], weight: f32) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + weight * (b - a)).collect()
}

fn to_frame(luma: &[f32]) -> Frame {
    let mut frame = Frame::new(SIZE.0, SIZE.1).unwrap();
    for (pixel, luma) in frame.pixels_mut().chunks_exact_mut(4).zip(luma) {
        pixel[..3].fill((luma.clamp(0.0, 1.0) * 65535.0) as u16);
    }
    frame
}

/// The frames that begin a shot.
fn cuts(clip: &[Vec<f32>]) -> Vec<usize> {
    let mut detector = ShotDetector::default();
    let mut decisions: Vec<bool> =
        clip.iter().filter_map(|luma| detector.push(&to_frame(luma))).collect();
    decisions.extend(detector.finish());
    assert_eq!(decisions.len(), clip.len());
    (0..clip.len()).filter(|n| decisions[*n]).collect()
}

#[test]
fn cuts_are_found_in_static_shots_and_in_pans() {
    for speed in [0.0, 1.5, 6.0, 12.0] {
        let clip = [pan(1, 12, speed), pan(2, 9, speed), pan(3, 12, -speed)].concat();
        assert_eq!(cuts(&clip), [12, 21], "speed {speed}");
    }
}

#[test]
fn short_shots_are_found() {
    let clip = [pan(1, 9, 1.0), pan(2, 3, 1.0), pan(3, 3, 1.0), pan(4, 2, 1.0), pan(5, 9, 1.0)];
    assert_eq!(cuts(&clip.concat()), [9, 12, 15, 17]);
    // The shot of one frame, and the one after it.
    let clip = [pan(1, 9, 1.0), pan(2, 1, 1.0), pan(3, 9, 1.0)].concat();
    assert_eq!(cuts(&clip), [9, 10]);
    // The last frame.
    assert_eq!(cuts(&[pan(1, 9, 1.0), pan(2, 1, 1.0)].concat()), [9]);
    assert_eq!(cuts(&[pan(1, 1, 1.0), pan(2, 1, 1.0)].concat()), [1]);
}

#[test]
fn a_cut_to_black_and_one_from_black_are_found() {
    let clip = [pan(1, 9, 2.0), black(5), pan(2, 9, 2.0)].concat();
    assert_eq!(cuts(&clip), [9, 14]);
    assert_eq!(cuts(&black(5)), [0; 0]);
}

#[test]
fn a_fade_is_no_cut() {
    for steps in [5, 12, 25] {
        let faded = |scene: u32, gain: &dyn Fn(f32) -> f32| {
            let gain = |n: usize| gain((n + 1) as f32 / (steps + 1) as f32);
            (0..steps).map(|n| frame(scene, n as f32, 0.8 * gain(n))).collect::<Vec<_>>()
        };
        let clip = [
            pan(1, 8, 1.0),
            faded(1, &|part| 1.0 - part),
            black(4),
            faded(2, &|part| part),
            pan(2, 8, 1.0),
        ];
        assert_eq!(cuts(&clip.concat()), [0; 0], "{steps} steps");
    }
}

#[test]
fn a_dissolve_is_no_cut() {
    for steps in [6, 15] {
        let (old, new) = (pan(1, 10 + steps, 1.0), pan(2, 10 + steps, 1.0));
        let mixed =
            (0..steps).map(|n| mix(&old[10 + n], &new[n], (n + 1) as f32 / (steps + 1) as f32));
        let clip: Vec<_> =
            old[..10].iter().cloned().chain(mixed).chain(new[steps..].iter().cloned()).collect();
        assert_eq!(cuts(&clip), [0; 0], "{steps} steps");
    }
}

#[test]
fn a_flash_is_no_cut() {
    for light in [1.6, 3.0] {
        for decay in [0.0_f32, 0.5] {
            let clip: Vec<_> = (0..30)
                .map(|n| {
                    let flash = if n < 12 { 0.0 } else { (light - 0.8) * decay.powi(n - 12) };
                    frame(1, n as f32, 0.8 + if n == 12 { light - 0.8 } else { flash })
                })
                .collect();
            assert_eq!(cuts(&clip), [0; 0], "light {light}, decay {decay}");
        }
    }
    let mut clip = pan(1, 20, 1.0);
    clip[9] = vec![1.0; SIZE.0 * SIZE.1];
    assert_eq!(cuts(&clip), [0; 0], "a white frame");
}

#[test]
fn a_flash_shortly_before_hides_no_cut() {
    for gap in 1..4 {
        let mut clip = [pan(1, 12, 2.0), pan(2, 9, 2.0)].concat();
        clip[11 - gap] = frame(1, 2.0 * (11 - gap) as f32, 3.0);
        assert_eq!(cuts(&clip), [12], "{gap} frames between");
    }
}

#[test]
fn light_that_grows_to_white_and_stays_is_no_cut() {
    let white = vec![vec![1.0; SIZE.0 * SIZE.1]; 5];
    assert_eq!(cuts(&[pan(1, 9, 1.0), white].concat()), [0; 0]);
}

#[test]
fn sudden_and_fast_motion_is_no_cut() {
    let speeds = [0.0, 0.0, 0.0, 14.0, 14.0, 14.0, 14.0, 2.0, 0.0, 0.0, 18.0, 18.0, 18.0, 0.0];
    let positions = speeds.iter().scan(0.0, |position, speed| {
        *position += speed;
        Some(*position)
    });
    let clip: Vec<_> = positions.map(|position| frame(1, position, 0.8)).collect();
    assert_eq!(cuts(&clip), [0; 0]);
    // Animation on twos.
    let clip: Vec<_> = (0..24).map(|n| frame(1, (n / 2) as f32 * 9.0, 0.8)).collect();
    assert_eq!(cuts(&clip), [0; 0]);
}

#[test]
fn grain_hides_no_cut_and_makes_none() {
    let mut seed = 1_u32;
    let mut noise = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed as f32 / u32::MAX as f32 - 0.5
    };
    for (scenes, expected) in [([1, 1], &[][..]), ([1, 2], &[12])] {
        let mut clip = [pan(scenes[0], 12, 0.0), pan(scenes[1], 12, 0.0)].concat();
        clip.iter_mut().flatten().for_each(|luma| *luma += 0.3 * noise());
        assert_eq!(cuts(&clip), expected);
    }
}
