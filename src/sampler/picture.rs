// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts 16-bit frames to tensors and back, because the networks compute on planes in \[−1, 1\].
//!
//! Works row by row on all CPU cores.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{geometry::Canvas, model::COLOURS};
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
struct Neighbours(usize, usize, f32);

/// Returns for each of `to` pixels its neighbours among `from` pixels. Pixel centres are at half-integers;
/// there is no antialiasing.
fn neighbours(from: usize, to: usize) -> Vec<Neighbours> {
    let scale = from as f32 / to as f32;
    let neighbours = |n: usize| {
        let position = ((n as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (position as usize).min(from - 1);
        Neighbours(low, (low + 1).min(from - 1), position - low as f32)
    };
    (0..to).map(neighbours).collect()
}

/// Resizes a plane bilinearly into rows of `stride` values.
fn resize(plane: &[f32], from: (usize, usize), out: &mut [f32], to: (usize, usize), stride: usize) {
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

/// Crops the frame out of planes [3, H, W] of the padded size and rounds it to 16 bits. Without `alpha`,
/// the frame is opaque; otherwise the alpha plane of the input size is resized to the frame. An alpha plane
/// is a tensor of little-endian u16 as pairs of bytes, [h, 2w].
///
/// # Errors
/// [`Error::OutOfMemory`], and [`Error::Compute`] if a tensor cannot be read.
pub fn frame(
    planes: &Tensor,
    alpha: Option<&Tensor>,
    canvas: &Canvas,
) -> std::result::Result<engine::Frame, Error> {
    let failed = |error: candle_core::Error| Error::Compute {
        what: "converting a decoded image to a frame".into(),
        why: error.to_string(),
    };
    let ((height, width), (top, left)) = (canvas.padded, canvas.origin);
    let values = planes.flatten_all().and_then(|planes| planes.to_vec1::<f32>()).map_err(failed)?;
    let (h, w) = canvas.target;
    let mut frame = engine::Frame::new(w, h)?;
    frame.pixels_mut().par_chunks_mut(w * engine::Frame::COMPONENTS).enumerate().for_each(
        |(y, row)| {
            let first = (top + y) * width + left;
            for (x, pixel) in row.chunks_exact_mut(engine::Frame::COMPONENTS).enumerate() {
                for (colour, out) in pixel[..COLOURS].iter_mut().enumerate() {
                    let value = values[colour * height * width + first + x];
                    *out = ((value + 1.0) * (f32::from(u16::MAX) / 2.0)).round() as u16;
                }
                pixel[COLOURS] = u16::MAX;
            }
        },
    );
    if let Some(alpha) = alpha {
        set_alpha(&mut frame, alpha).map_err(failed)?;
    }
    Ok(frame)
}

fn set_alpha(frame: &mut engine::Frame, alpha: &Tensor) -> Result<()> {
    let (h, w) = alpha.dims2()?;
    let plane: Vec<f32> = alpha_values(alpha)?.into_iter().map(f32::from).collect();
    let to = (frame.height(), frame.width());
    let mut values = vec![0.0; to.0 * to.1];
    resize(&plane, (h, w / 2), &mut values, to, to.1);
    let pixels = frame.pixels_mut().chunks_exact_mut(engine::Frame::COMPONENTS);
    for (pixel, value) in pixels.zip(values) {
        pixel[COLOURS] = value.round() as u16;
    }
    Ok(())
}

/// Returns the alpha plane of a frame, u16 as pairs of bytes: [h, 2w].
///
/// # Errors
/// Out of memory.
pub fn alpha(frame: &engine::Frame) -> Result<Tensor> {
    let values = frame.pixels().chunks_exact(engine::Frame::COMPONENTS).map(|p| p[COLOURS]);
    alpha_plane(values, frame.height(), frame.width())
}

/// Returns (1 − weight)·a + weight·b of two alpha planes [h, 2w], rounded to the nearest value.
///
/// # Errors
/// `a` or `b` is not a plane of bytes.
pub fn blend_alpha(a: &Tensor, b: &Tensor, weight: f64) -> Result<Tensor> {
    let (h, w) = a.dims2()?;
    let (a, b) = (alpha_values(a)?, alpha_values(b)?);
    let mix = |(a, b)| (f64::from(a) * (1.0 - weight) + f64::from(b) * weight).round() as u16;
    alpha_plane(a.into_iter().zip(b).map(mix), h, w / 2)
}

fn alpha_plane(values: impl Iterator<Item = u16>, h: usize, w: usize) -> Result<Tensor> {
    let bytes: Vec<u8> = values.flat_map(u16::to_le_bytes).collect();
    Tensor::from_vec(bytes, (h, 2 * w), &Device::Cpu)
}

fn alpha_values(plane: &Tensor) -> Result<Vec<u16>> {
    let bytes = plane.flatten_all()?.to_vec1::<u8>()?;
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}
