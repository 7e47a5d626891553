// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `model=lite` wins over what any scaler does: through the element, on a scene unlike those that it
//! has learnt from.

mod common;

use common::{Rig, caps, frames};

/// Size of the input; the scene is `scale` times as large.
const SMALL: (usize, usize) = (160, 96);

/// A street at a time in frames: houses with windows that pass at several speeds, a wheel, a wall of
/// waves. Brightness of [h, w], 0 to 255, without aliasing: a pixel is the mean of 3×3 places.
fn scene((w, h): (usize, usize), time: f64) -> Vec<f64> {
    let scale = w as f64 / SMALL.0 as f64;
    let place = |n: usize, part: f64| (n as f64 + (part + 0.5) / 3.0) / scale;
    let pixel = |n: usize| {
        let parts = (0..9).map(|part| {
            let (px, py) = (f64::from(part % 3), f64::from(part / 3));
            brightness(place(n % w, px), place(n / w, py), time)
        });
        parts.sum::<f64>() / 9.0
    };
    (0..w * h).map(pixel).collect()
}

fn brightness(x: f64, y: f64, time: f64) -> f64 {
    let (dx, dy) = (x - 118.0, y - 30.0);
    let (radius, angle) = (dx.hypot(dy), dy.atan2(dx) + 0.1 * time);
    if radius < 20.0 {
        return if (angle * 4.0).sin() > 0.0 || radius > 17.0 { 225.0 } else { 40.0 };
    }
    for (speed, top, period, bright) in [(3.0, 62.0, 53.0, 90.0), (1.5, 40.0, 37.0, 170.0)] {
        let along = (x + speed * time).rem_euclid(period);
        if y > top + 9.0 * (along / period) && along < period * 0.7 {
            let window = (along % 19.0 > 10.0) && ((y - top) % 13.0 > 6.0);
            return if window { 255.0 - bright } else { bright };
        }
    }
    128.0 + 50.0 * (0.35 * (x - time) + 0.2 * y).sin() * (0.17 * y).cos()
}

/// Means of squares of pixels.
fn shrink(large: &[f64], scale: usize) -> Vec<u8> {
    let width = SMALL.0 * scale;
    let pixel = |n: usize| {
        let (x, y) = (n % SMALL.0 * scale, n / SMALL.0 * scale);
        let rows = (y..y + scale).flat_map(|y| &large[y * width + x..][..scale]);
        (rows.sum::<f64>() / (scale * scale) as f64).round() as u8
    };
    (0..SMALL.0 * SMALL.1).map(pixel).collect()
}

/// Mean over frames, in dB, of all but 4 pixels of the border.
fn psnr<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a Vec<f64>)>, width: usize) -> f64 {
    let mut figures = Vec::new();
    for (frame, ideal) in pairs {
        let height = ideal.len() / width;
        let inner = |n: &usize| {
            (4..width - 4).contains(&(n % width)) && (4..height - 4).contains(&(n / width))
        };
        let inner: Vec<_> = (0..ideal.len()).filter(inner).collect();
        let square = |n: &usize| (f64::from(frame[*n]) - ideal[*n].round()).powi(2);
        let error = inner.iter().map(square).sum::<f64>() / inner.len() as f64;
        figures.push(10.0 * (255.0 * 255.0 / error).log10());
    }
    figures.iter().sum::<f64>() / figures.len() as f64
}

/// Enlarges with GStreamer's own scaler.
fn lanczos(small: &[u8], scale: usize) -> Vec<u8> {
    let (w, h) = (SMALL.0 * scale, SMALL.1 * scale);
    let mut scaler = gst_check::Harness::new_parse(&format!(
        "videoscale method=lanczos ! capsfilter caps=video/x-raw,width={w},height={h}"
    ));
    scaler.set_src_caps(caps("GRAY8", SMALL.0 as i32, SMALL.1 as i32, (10, 1)));
    scaler.push(gst::Buffer::from_slice(small.to_vec())).unwrap();
    scaler.pull().unwrap().map_readable().unwrap().to_vec()
}

#[test]
fn kept_frames_beat_lanczos_and_made_frames_beat_fades() {
    for (scale, kept_gain, made_gain) in [(2, 0.3, 2.5), (3, 1.0, 2.5), (4, 1.0, 2.5)] {
        let size = (SMALL.0 * scale, SMALL.1 * scale);
        let ideal: Vec<_> = (0..7).map(|n| scene(size, f64::from(n))).collect();
        let small: Vec<_> = ideal.iter().step_by(2).map(|frame| shrink(frame, scale)).collect();

        let properties = format!("model=lite up-scale={scale} target-fps=20");
        let mut rig =
            Rig::with(&properties, &caps("GRAY8", SMALL.0 as i32, SMALL.1 as i32, (10, 1)));
        for small in &small {
            let mut buffer = rig.frame();
            buffer.make_mut().map_writable().unwrap().copy_from_slice(small);
            rig.harness.push(buffer).unwrap();
        }
        let ours: Vec<_> = frames(&rig.finish())
            .iter()
            .map(|buffer| buffer.map_readable().unwrap().to_vec())
            .collect();
        assert_eq!(ours.len(), ideal.len());

        let plain: Vec<_> = small.iter().map(|small| lanczos(small, scale)).collect();
        let fades: Vec<Vec<u8>> = plain
            .windows(2)
            .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a.midpoint(*b)).collect())
            .collect();
        let score = |frames: &[Vec<u8>], first: usize, step: usize| {
            let frames = frames.iter().map(Vec::as_slice);
            psnr(frames.zip(ideal.iter().skip(first).step_by(step)), size.0)
        };
        let every_other =
            |first: usize| ours.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>();
        let kept = (score(&every_other(0), 0, 2), score(&plain, 0, 2));
        let made = (score(&every_other(1), 1, 2), score(&fades, 1, 2));
        println!("×{scale}: kept {kept:.2?}, made {made:.2?}");
        assert!(kept.0 > kept.1 + kept_gain, "×{scale}: kept {kept:?}");
        assert!(made.0 > made.1 + made_gain, "×{scale}: made {made:?}");
    }
}
