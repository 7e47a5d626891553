// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts 16-bit frames to tensors and back, because the networks compute on planes in \[−1, 1\].
//!
//! Works row by row on all CPU cores.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{colour::LowFrequencies, geometry::Canvas, model::COLOURS};
use crate::engine::{self, Error};

/// Value of the padding around a frame: white.
const PADDING: f32 = 1.0;

/// Returns the colour planes of a frame, [3, h, w] in \[−1, 1\], f32.
///
/// # Errors
/// Out of memory.
pub fn planes(frame: &engine::Frame) -> Result<Tensor> {
    let (h, w) = (frame.height(), frame.width());
    let mut values = vec![0.0_f32; COLOURS * h * w];
    values.par_chunks_mut(w).enumerate().for_each(|(row, values)| {
        let (colour, y) = (row / h, row % h);
        let pixels = frame.pixels()[y * w * engine::Frame::COMPONENTS..]
            .chunks_exact(engine::Frame::COMPONENTS);
        for (value, pixel) in values.iter_mut().zip(pixels) {
            *value = f32::from(pixel[colour]) * (2.0 / f32::from(u16::MAX)) - 1.0;
        }
    });
    Tensor::from_vec(values, (COLOURS, h, w), &Device::Cpu)
}

/// Resizes planes [3, h, w] to the target size of the canvas and pads them: [1, 3, H, W].
///
/// # Errors
/// `planes` has another number of dimensions.
pub fn fit(planes: &Tensor, canvas: &Canvas) -> Result<Tensor> {
    let (colours, h, w) = planes.dims3()?;
    let values = planes.flatten_all()?.to_vec1::<f32>()?;
    let ((height, width), (top, left)) = (canvas.padded, canvas.origin);
    let mut out = vec![PADDING; colours * height * width];
    for (plane, out) in values.chunks_exact(h * w).zip(out.chunks_exact_mut(height * width)) {
        resize(plane, (h, w), &mut out[top * width + left..], canvas.target, width);
    }
    Tensor::from_vec(out, (1, colours, height, width), planes.device())
}

/// The two source pixels of an interpolated pixel, and the weight of the second.
pub(super) struct Neighbours(pub(super) usize, pub(super) usize, pub(super) f32);

/// Returns for each of `to` pixels its neighbours among `from` pixels. Pixel centres are at half-integers;
/// there is no antialiasing.
pub(super) fn neighbours(from: usize, to: usize) -> Vec<Neighbours> {
    let scale = from as f32 / to as f32;
    let neighbours = |n: usize| {
        let position = ((n as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (position as usize).min(from - 1);
        Neighbours(low, (low + 1).min(from - 1), position - low as f32)
    };
    (0..to).map(neighbours).collect()
}

/// Resizes a plane bilinearly into rows of `stride` values.
pub(super) fn resize(
    plane: &[f32],
    from: (usize, usize),
    out: &mut [f32],
    to: (usize, usize),
    stride: usize,
) {
    let (rows, columns) = (neighbours(from.0, to.0), neighbours(from.1, to.1));
    out.par_chunks_mut(stride).zip(rows).for_each(|(out, Neighbours(above, below, vertical))| {
        let row = |y: usize| &plane[y * from.1..][..from.1];
        let (above, below) = (row(above), row(below));
        for (out, Neighbours(left, right, horizontal)) in out.iter_mut().zip(&columns) {
            let mix = |row: &[f32]| row[*left] * (1.0 - horizontal) + row[*right] * horizontal;
            *out = mix(above) * (1.0 - vertical) + mix(below) * vertical;
        }
    });
}

/// Crops the frame out of planes [3, H, W] of the padded size, adds `correction` to it, and rounds it to 16 bits.
/// The frame is opaque.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(super) fn frame(
    planes: &[f32],
    correction: Option<&LowFrequencies>,
    canvas: &Canvas,
) -> std::result::Result<engine::Frame, Error> {
    let ((height, width), (top, left)) = (canvas.padded, canvas.origin);
    let (h, w) = canvas.target;
    let correction = correction.map(|correction| correction.rows(canvas));
    let mut frame = engine::Frame::new(w, h)?;
    frame.pixels_mut().par_chunks_mut(w * engine::Frame::COMPONENTS).enumerate().for_each(
        |(y, row)| {
            let corrections = correction.as_ref().map(|correction| correction(y));
            for colour in 0..COLOURS {
                let line = &planes[(colour * height + top + y) * width + left..][..w];
                let pixels = row.chunks_exact_mut(engine::Frame::COMPONENTS).zip(line);
                let round = |value: f32| ((value + 1.0) * (f32::from(u16::MAX) / 2.0)).round();
                match &corrections {
                    Some(corrections) => pixels
                        .zip(&corrections[colour * w..])
                        .for_each(|((pixel, v), c)| pixel[colour] = round(v + c) as u16),
                    None => pixels.for_each(|(pixel, v)| pixel[colour] = round(*v) as u16),
                }
            }
            row.chunks_exact_mut(engine::Frame::COMPONENTS)
                .for_each(|pixel| pixel[COLOURS] = u16::MAX);
        },
    );
    Ok(frame)
}
