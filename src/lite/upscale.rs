// SPDX-License-Identifier: MIT OR Apache-2.0
//! Larger frames: a Lanczos resize, and what a network adds to its brightness.

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
fn add(line: &mut [u16], squares: &[f32], side: usize, dy: usize) {
    #[cfg(target_arch = "x86_64")]
    if side == avx2::SIDE && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { avx2::add(line, squares, dy) };
    }
    add_one_by_one(line, squares, side, dy);
}

fn add_one_by_one(line: &mut [u16], squares: &[f32], side: usize, dy: usize) {
    let squares = squares.chunks_exact(side * side);
    for (pixels, square) in line.chunks_mut(side * Frame::COMPONENTS).zip(squares) {
        let pixels = pixels.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        for (pixel, value) in pixels.iter_mut().zip(&square[dy * side..][..side]) {
            let change = (value.clamp(-1.0, 1.0) * 65535.0).round_ties_even() as i32;
            for component in &mut pixel[..3] {
                *component = (i32::from(*component) + change).clamp(0, 65535) as u16;
            }
        }
    }
}

/// The same with a row of a square in a register.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Frame, add_one_by_one};

    pub(super) const SIDE: usize = 4;

    #[target_feature(enable = "avx2")]
    pub(super) fn add(line: &mut [u16], squares: &[f32], dy: usize) {
        let (whole, rest) = line.as_chunks_mut::<{ SIDE * Frame::COMPONENTS }>();
        let squares = squares.as_chunks::<{ SIDE * SIDE }>().0;
        for (pixels, square) in whole.iter_mut().zip(squares) {
            let values: __m128 = bytemuck::cast(square.as_chunks::<SIDE>().0[dy]);
            let values = _mm_max_ps(_mm_min_ps(values, _mm_set1_ps(1.0)), _mm_set1_ps(-1.0));
            let change = _mm_cvtps_epi32(_mm_mul_ps(values, _mm_set1_ps(65535.0)));
            // What a change adds in the lower half, what it takes in the upper: one of them is zero.
            let parts = _mm_packus_epi32(change, _mm_sub_epi32(_mm_setzero_si128(), change));
            let (more, less) = (colours(parts), colours(_mm_srli_si128::<8>(parts)));
            let sums = _mm256_adds_epu16(bytemuck::cast(*pixels), more);
            *pixels = bytemuck::cast(_mm256_subs_epu16(sums, less));
        }
        // Squares may reach beyond an odd side.
        if let Some(last) = squares.get(whole.len()) {
            add_one_by_one(rest, last, SIDE, dy);
        }
    }

    /// The first four of eight numbers, each for all colours of a pixel, and zero for its alpha.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn colours(numbers: __m128i) -> __m256i {
        let bytes = _mm256_setr_epi64x(
            0x8080_0100_0100_0100_u64 as i64,
            0x8080_0302_0302_0302_u64 as i64,
            0x8080_0504_0504_0504_u64 as i64,
            0x8080_0706_0706_0706_u64 as i64,
        );
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(numbers), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_in_registers_change_what_they_change_one_by_one() {
        let squares: Vec<_> = (0..10 * 16).map(|n| (n * 7919 % 401) as f32 / 150.0 - 1.3).collect();
        let values = |n: usize| (n * 40_503 % 65_536) as u16;
        for dy in 0..4 {
            let mut line: Vec<_> = (0..37 * Frame::COMPONENTS).map(values).collect();
            let mut ideal = line.clone();
            add(&mut line, &squares, 4, dy);
            add_one_by_one(&mut ideal, &squares, 4, dy);
            assert_eq!(line, ideal);
        }
    }
}
