// SPDX-License-Identifier: MIT OR Apache-2.0
//! Upscaling: a Lanczos resize, plus a luma residual that a network predicts from the low-resolution luma.

use rayon::prelude::*;

use super::{network::Upscaler, plane::Plane, pool::FramePool, resize::resize, weights::Networks};
use crate::{
    engine::{Cancel, Error, Format, Frame},
    ops::{ConvChain, band_rows},
};

/// Resizes `frame` to the output size of `format`; `luma` is the luma of `frame`.
///
/// The network works for integer factors: it upscales by the next larger one, and a resize follows.
pub(super) fn upscale(
    networks: &Networks,
    pool: &FramePool,
    frame: Frame,
    luma: &Plane,
    &Format { input: (w, h), output, alpha, .. }: &Format,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let scale = (output.0 as f64 / w as f64).max(output.1 as f64 / h as f64);
    let Some((upscaler, chain)) = networks.upscaler(scale).filter(|_| scale > 1.0) else {
        return resize(frame, pool.frame(output)?, alpha, cancel);
    };
    let large_size = (w * upscaler.factor, h * upscaler.factor);
    let mut large = resize(frame, pool.frame(large_size)?, alpha, cancel)?;
    add_residual(&mut large, luma, *upscaler, (chain, pool), cancel)?;
    match large_size == output {
        true => Ok(large),
        false => resize(large, pool.frame(output)?, alpha, cancel),
    }
}

/// Runs `chain` on `luma` and adds its output to R', G' and B' of `large`.
fn add_residual(
    large: &mut Frame,
    luma: &Plane,
    Upscaler { factor, fold, .. }: Upscaler,
    (chain, pool): (&ConvChain, &FramePool),
    cancel: &Cancel,
) -> Result<(), Error> {
    let size = (luma.width.div_ceil(fold), luma.height.div_ceil(fold));
    let block = fold * factor;
    let stride = large.width() * Frame::COMPONENTS;
    // Blocks may extend beyond a side that is not a multiple of the block size.
    let height = large.height();
    let band_rows = band_rows(size.1);
    large.pixels_mut().par_chunks_mut(band_rows * block * stride).enumerate().try_for_each(
        |(band, pixels)| {
            let first = band * band_rows;
            let rows = first..(first + band_rows).min(height.div_ceil(block));
            let input = |y: usize, row: &mut [f32]| space_to_depth(luma, fold, y, row);
            let output = |y: usize, row: &[f32]| {
                cancel.check()?;
                let lines = pixels.chunks_exact_mut(stride).skip((y - first) * block).take(block);
                for (dy, line) in lines.enumerate() {
                    add_blocks(line, row, block, dy);
                }
                Ok(())
            };
            pool.with_scratch(|scratch| chain.run(scratch, size, rows, input, output))
        },
    )
}

/// Row y of the network's input, [ceil(w/fold), fold²]. Pixels beyond the border repeat it.
fn space_to_depth(luma: &Plane, fold: usize, y: usize, row: &mut [f32]) {
    let Plane { width, height, values } = luma;
    if fold == 1 {
        row.copy_from_slice(&values[y * width..][..*width]);
        return;
    }
    for dy in 0..fold {
        let line = &values[(y * fold + dy).min(height - 1) * width..][..*width];
        for (x, block) in row.chunks_exact_mut(fold * fold).enumerate() {
            for (dx, value) in block[dy * fold..][..fold].iter_mut().enumerate() {
                *value = line[(x * fold + dx).min(width - 1)];
            }
        }
    }
}

/// Adds row `dy` of each block to the R', G' and B' of the pixels below it: the depth-to-space transform of
/// one line. `blocks` is [n, side, side], `line` is [w, 4].
fn add_blocks(line: &mut [u16], blocks: &[f32], side: usize, dy: usize) {
    #[cfg(target_arch = "x86_64")]
    if side == avx2::SIDE && is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU supports AVX2.
        return unsafe { avx2::add_blocks(line, blocks, dy) };
    }
    add_blocks_portable(line, blocks, side, dy);
}

fn add_blocks_portable(line: &mut [u16], blocks: &[f32], side: usize, dy: usize) {
    let blocks = blocks.chunks_exact(side * side);
    for (pixels, block) in line.chunks_mut(side * Frame::COMPONENTS).zip(blocks) {
        let pixels = pixels.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        for (pixel, value) in pixels.iter_mut().zip(&block[dy * side..][..side]) {
            let residual = (value.clamp(-1.0, 1.0) * 65535.0).round_ties_even() as i32;
            for component in &mut pixel[..3] {
                *component = (i32::from(*component) + residual).clamp(0, 65535) as u16;
            }
        }
    }
}

/// The same with AVX2: a row of a block per register.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Frame, add_blocks_portable};

    /// Side of the blocks that this code supports.
    pub(super) const SIDE: usize = 4;

    #[target_feature(enable = "avx2")]
    pub(super) fn add_blocks(line: &mut [u16], blocks: &[f32], dy: usize) {
        let (whole, rest) = line.as_chunks_mut::<{ SIDE * Frame::COMPONENTS }>();
        let blocks = blocks.as_chunks::<{ SIDE * SIDE }>().0;
        for (pixels, block) in whole.iter_mut().zip(blocks) {
            let values: __m128 = bytemuck::cast(block.as_chunks::<SIDE>().0[dy]);
            let values = _mm_max_ps(_mm_min_ps(values, _mm_set1_ps(1.0)), _mm_set1_ps(-1.0));
            let residual = _mm_cvtps_epi32(_mm_mul_ps(values, _mm_set1_ps(65535.0)));
            // There is no saturating addition of i32 to u16: the positive parts (lower half) are added, the
            // negative parts (upper half) subtracted. Packing sets the other ones to zero.
            let parts = _mm_packus_epi32(residual, _mm_sub_epi32(_mm_setzero_si128(), residual));
            let (plus, minus) = (splat_rgb(parts), splat_rgb(_mm_srli_si128::<8>(parts)));
            let sums = _mm256_adds_epu16(bytemuck::cast(*pixels), plus);
            *pixels = bytemuck::cast(_mm256_subs_epu16(sums, minus));
        }
        // The last block may extend beyond the line.
        if let Some(last) = blocks.get(whole.len()) {
            add_blocks_portable(rest, last, SIDE, dy);
        }
    }

    /// Copies each of the first four u16 to R', G' and B' of a pixel; its alpha is 0.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn splat_rgb(values: __m128i) -> __m256i {
        let bytes = _mm256_setr_epi64x(
            0x8080_0100_0100_0100_u64 as i64,
            0x8080_0302_0302_0302_u64 as i64,
            0x8080_0504_0504_0504_u64 as i64,
            0x8080_0706_0706_0706_u64 as i64,
        );
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_blocks_equals_the_portable_code() {
        let blocks: Vec<_> = (0..10 * 16).map(|n| (n * 7919 % 401) as f32 / 150.0 - 1.3).collect();
        let values = |n: usize| (n * 40_503 % 65_536) as u16;
        for dy in 0..4 {
            let mut line: Vec<_> = (0..37 * Frame::COMPONENTS).map(values).collect();
            let mut expected = line.clone();
            add_blocks(&mut line, &blocks, 4, dy);
            add_blocks_portable(&mut expected, &blocks, 4, dy);
            assert_eq!(line, expected);
        }
    }
}
