// SPDX-License-Identifier: MIT OR Apache-2.0
//! The quality of `model=lite`, through the element, on a scene unlike its training data: its PSNR must exceed that of
//! Lanczos scaling and of cross-fades.

mod common;

use common::{Rig, caps, frames};
use gst::prelude::*;

/// Size of the input; the scene is `scale` times as large.
const SMALL: (usize, usize) = (160, 96);

/// Renders the luma, [h, w], 0 to 255, of a scene at `time` in frames: two rows of houses that move at different speeds,
/// a rotating wheel, and waves behind them. Each pixel is the mean of 3×3 samples, so there is little aliasing.
fn scene((w, h): (usize, usize), time: f64) -> Vec<f64> {
    let scale = w as f64 / SMALL.0 as f64;
    let position = |n: usize, part: f64| (n as f64 + (part + 0.5) / 3.0) / scale;
    let pixel = |n: usize| {
        let parts = (0..9).map(|part| {
            let (px, py) = (f64::from(part % 3), f64::from(part / 3));
            luma(position(n % w, px), position(n / w, py), time)
        });
        parts.sum::<f64>() / 9.0
    };
    (0..w * h).map(pixel).collect()
}

/// The luma at (x, y) in pixels of the input.
fn luma(x: f64, y: f64, time: f64) -> f64 {
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

/// Downscales with a box filter.
fn downscale(large: &[f64], scale: usize) -> Vec<u8> {
    let width = SMALL.0 * scale;
    let pixel = |n: usize| {
        let (x, y) = (n % SMALL.0 * scale, n / SMALL.0 * scale);
        let rows = (y..y + scale).flat_map(|y| &large[y * width + x..][..scale]);
        (rows.sum::<f64>() / (scale * scale) as f64).round() as u8
    };
    (0..SMALL.0 * SMALL.1).map(pixel).collect()
}

/// The mean PSNR of frames in dB, without 4 pixels at the border.
fn psnr<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a Vec<f64>)>, width: usize) -> f64 {
    let mut values = Vec::new();
    for (frame, expected) in pairs {
        let height = expected.len() / width;
        let inner = |n: &usize| {
            (4..width - 4).contains(&(n % width)) && (4..height - 4).contains(&(n / width))
        };
        let inner: Vec<_> = (0..expected.len()).filter(inner).collect();
        let square = |n: &usize| (f64::from(frame[*n]) - expected[*n].round()).powi(2);
        let error = inner.iter().map(square).sum::<f64>() / inner.len() as f64;
        values.push(10.0 * (255.0 * 255.0 / error).log10());
    }
    values.iter().sum::<f64>() / values.len() as f64
}

/// Upscales with videoscale.
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
fn input_frames_beat_lanczos_and_interpolated_frames_beat_cross_fades() {
    for (scale, input_gain, interpolated_gain) in [(2, 0.3, 2.5), (3, 1.0, 2.5), (4, 1.0, 2.5)] {
        let size = (SMALL.0 * scale, SMALL.1 * scale);
        let expected: Vec<_> = (0..7).map(|n| scene(size, f64::from(n))).collect();
        let small: Vec<_> =
            expected.iter().step_by(2).map(|frame| downscale(frame, scale)).collect();

        let properties = format!("model=lite up-scale={scale} target-fps=20");
        let mut rig =
            Rig::with(&properties, &caps("GRAY8", SMALL.0 as i32, SMALL.1 as i32, (10, 1)));
        for small in &small {
            let mut buffer = rig.frame();
            buffer.make_mut().map_writable().unwrap().copy_from_slice(small);
            rig.harness.push(buffer).unwrap();
        }
        let output: Vec<_> = frames(&rig.finish())
            .iter()
            .map(|buffer| buffer.map_readable().unwrap().to_vec())
            .collect();
        assert_eq!(output.len(), expected.len());

        let upscaled: Vec<_> = small.iter().map(|small| lanczos(small, scale)).collect();
        let fades: Vec<Vec<u8>> = upscaled
            .windows(2)
            .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a.midpoint(*b)).collect())
            .collect();
        let score = |frames: &[Vec<u8>], first: usize, step: usize| {
            let frames = frames.iter().map(Vec::as_slice);
            psnr(frames.zip(expected.iter().skip(first).step_by(step)), size.0)
        };
        let every_other =
            |first: usize| output.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>();
        let input = (score(&every_other(0), 0, 2), score(&upscaled, 0, 2));
        let interpolated = (score(&every_other(1), 1, 2), score(&fades, 1, 2));
        println!("×{scale}: input frames {input:.2?}, interpolated frames {interpolated:.2?}");
        assert!(input.0 > input.1 + input_gain, "×{scale}: {input:?}");
        assert!(interpolated.0 > interpolated.1 + interpolated_gain, "×{scale}: {interpolated:?}");
    }
}

#[test]
fn any_size_can_be_enlarged_by_any_scale() {
    for (width, height, scale, size) in [
        // The first five failed: a band of the resize ended beyond the frame.
        (720, 480, 5.0, (3600, 2400)),
        (64, 48, 7.8, (498, 374)),
        (160, 120, 1.32, (210, 158)),
        (33, 21, 1.81, (58, 38)),
        (176, 144, 2.24, (394, 322)),
        (1, 1, 8.0, (8, 8)),
        (1, 300, 3.7, (2, 1110)),
        (513, 2, 1.01, (518, 2)),
    ] {
        let caps = caps("I420", width, height, (10, 1));
        let mut rig = Rig::with(&format!("model=lite up-scale={scale} target-fps=20"), &caps);
        rig.push(2);
        assert_eq!(frames(&rig.finish()).len(), 3, "{width}×{height}, {scale}: {:?}", rig.error());
        let caps = rig.element.static_pad("src").unwrap().current_caps().unwrap();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        assert_eq!((info.width(), info.height()), size, "{width}×{height}, {scale}");
    }
}
