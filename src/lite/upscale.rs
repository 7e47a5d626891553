// SPDX-License-Identifier: MIT OR Apache-2.0
//! Larger frames: a Lanczos resize, and what a network adds to its brightness.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{memory::Memory, network::Sharpener, plane::Plane, resize::resize, weights::Networks};
use crate::{
    engine::{Cancel, Error, Format, Frame},
    ops::{Chain, band_rows},
};

/// Enlarges `frame`, whose brightness is `luma`, to the size of the output.
pub(super) fn upscale(
    networks: &Networks,
    memory: &Memory,
    frame: Frame,
    luma: &Plane,
    &Format { input: (w, h), output, alpha, .. }: &Format,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let scale = (output.0 as f64 / w as f64).max(output.1 as f64 / h as f64);
    let Some((sharpener, chain)) = networks.sharpener(scale).filter(|_| scale > 1.0) else {
        return resize(frame, memory.frame(output)?, alpha, cancel);
    };
    let whole = (w * sharpener.factor, h * sharpener.factor);
    let mut large = resize(frame, memory.frame(whole)?, alpha, cancel)?;
    sharpen(&mut large, luma, *sharpener, (chain, memory), cancel)?;
    match whole == output {
        true => Ok(large),
        false => resize(large, memory.frame(output)?, alpha, cancel),
    }
}

/// Adds what `chain` makes of `luma` to the colours of `large`.
fn sharpen(
    large: &mut Frame,
    luma: &Plane,
    Sharpener { factor, fold, .. }: Sharpener,
    (chain, memory): (&Chain, &Memory),
    cancel: &Cancel,
) -> Result<(), Error> {
    let size = (luma.width.div_ceil(fold), luma.height.div_ceil(fold));
    let square = fold * factor;
    let stride = large.width() * Frame::COMPONENTS;
    // Squares may reach beyond an odd side.
    let height = large.height();
    let band_rows = band_rows(size.1);
    large.pixels_mut().par_chunks_mut(band_rows * square * stride).enumerate().try_for_each(
        |(band, pixels)| {
            cancel.check()?;
            let first = band * band_rows;
            let rows = first..(first + band_rows).min(height.div_ceil(square));
            let input = |y: usize, row: &mut [f32]| folded(luma, fold, y, row);
            let output = |y: usize, row: &[f32]| {
                let lines = pixels.chunks_exact_mut(stride).skip((y - first) * square).take(square);
                for (dy, line) in lines.enumerate() {
                    add(line, row, square, dy);
                }
            };
            memory.with_room(|room| chain.rows(room, size, rows, input, output));
            Ok(())
        },
    )
}

/// Row y of the network's input: squares of fold×fold pixels. Beyond the border it is the border's.
fn folded(luma: &Plane, fold: usize, y: usize, row: &mut [f32]) {
    let Plane { width, height, values } = luma;
    if fold == 1 {
        row.copy_from_slice(&values[y * width..][..*width]);
        return;
    }
    for dy in 0..fold {
        let line = &values[(y * fold + dy).min(height - 1) * width..][..*width];
        for (x, square) in row.chunks_exact_mut(fold * fold).enumerate() {
            for (dx, value) in square[dy * fold..][..fold].iter_mut().enumerate() {
                *value = line[(x * fold + dx).min(width - 1)];
            }
        }
    }
}

/// Adds row `dy` of each square of `side`×`side` values to the colours of the pixels that it lies on.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add(line: &mut [u16], squares: &[f32], side: usize, dy: usize) {
    let squares = squares.chunks_exact(side * side);
    for (pixels, square) in line.chunks_mut(side * Frame::COMPONENTS).zip(squares) {
        let pixels = pixels.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        for (pixel, value) in pixels.iter_mut().zip(&square[dy * side..][..side]) {
            // Rounded to the nearest: the cast cuts, and what it cuts is positive.
            let change = (value.clamp(-1.0, 1.0) * 65535.0 + 65536.5) as i32 - 65536;
            for component in &mut pixel[..3] {
                *component = (i32::from(*component) + change).clamp(0, 65535) as u16;
            }
        }
    }
}
