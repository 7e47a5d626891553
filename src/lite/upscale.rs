// SPDX-License-Identifier: MIT OR Apache-2.0
//! Upscaling: a Lanczos resize, plus a luma residual that a network predicts from the low-resolution luma and its
//! statistics.

use rayon::prelude::*;

use super::{
    network::Upscaler,
    plane::Plane,
    pool::FramePool,
    resize::{Resizer, resize},
    statistics::Statistics,
    weights::Networks,
};
use crate::{
    engine::{Cancel, Components, Error, Format, Frame},
    ops::{ConvChain, band_rows},
};

/// Resizes `frame` to the output size of `format`; `luma` is the luma of `frame`.
///
/// The network works for integer factors: it upscales by the next larger one, and a resize follows.
pub(super) fn upscale(
    networks: &Networks,
    pool: &FramePool,
    frame: &Frame,
    luma: &Plane,
    &Format { input: (w, h), output, alpha, .. }: &Format,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let scale = (output.0 as f64 / w as f64).max(output.1 as f64 / h as f64);
    let Some((upscaler, chain)) = networks.upscaler(scale).filter(|_| scale > 1.0) else {
        return resize(frame, pool.frame(output)?, alpha, cancel);
    };
    let large_size = (w * upscaler.factor, h * upscaler.factor);
    let mut large = pool.frame(large_size)?;
    large.set_components(frame.components());
    let resizer = Resizer::new(frame, large_size, alpha);
    write_upscaled(&mut large, &resizer, luma, *upscaler, (chain, pool), cancel)?;
    match large_size == output {
        true => Ok(large),
        false => resize(&large, pool.frame(output)?, alpha, cancel),
    }
}

/// Writes to `large` what `resizer` makes, plus the output of `chain` for `luma`.
fn write_upscaled(
    large: &mut Frame,
    resizer: &Resizer,
    luma: &Plane,
    upscaler: Upscaler,
    (chain, pool): (&ConvChain, &FramePool),
    cancel: &Cancel,
) -> Result<(), Error> {
    let Upscaler { factor, fold, .. } = upscaler;
    let statistics = Statistics::of(luma);
    let chain = chain.with_constants(&Upscaler::statistics_input(statistics));
    let scale = Upscaler::residual_scale(statistics);
    let size = (luma.width.div_ceil(fold), luma.height.div_ceil(fold));
    let block = fold * factor;
    let stride = large.width() * Frame::COMPONENTS;
    // Blocks may extend beyond a side that is not a multiple of the block size.
    let height = large.height();
    let (count, units) = luma_components(large.components());
    let luma_units = (count, scale * units);
    let band_rows = band_rows(size.1);
    large.pixels_mut().par_chunks_mut(band_rows * block * stride).enumerate().try_for_each(
        |(band, pixels)| {
            let first = band * band_rows;
            resizer.write_rows(first * block, pixels, cancel)?;
            let rows = first..(first + band_rows).min(height.div_ceil(block));
            let input = |y: usize, row: &mut [f32]| write_input(luma, fold, y, row);
            let output = |y: usize, row: &[f32]| {
                cancel.check()?;
                let lines = pixels.chunks_exact_mut(stride).skip((y - first) * block).take(block);
                for (dy, line) in lines.enumerate() {
                    add_blocks(line, row, (block, dy), luma_units);
                }
                Ok(())
            };
            pool.with_scratch(|scratch| chain.run(scratch, size, rows, input, output))
        },
    )
}

/// Row y of the network's input without the statistics, [ceil(w/fold), fold²]. The border is replicated.
fn write_input(luma: &Plane, fold: usize, y: usize, row: &mut [f32]) {
    let Plane { width, height, values } = luma;
    for (x, block) in row.chunks_exact_mut(fold * fold).enumerate() {
        for dy in 0..fold {
            let line = &values[(y * fold + dy).min(height - 1) * width..][..*width];
            for dx in 0..fold {
                block[dy * fold + dx] = line[(x * fold + dx).min(width - 1)];
            }
        }
    }
}

/// The components that hold luma, from the first on, and their units per unit of luma.
fn luma_components(components: Components) -> (usize, f32) {
    match components {
        Components::Rgb => (3, 65535.0),
        Components::Ycbcr { black, white, .. } => (1, f32::from(white) - f32::from(black)),
    }
}

/// Adds row `dy` of each block of `side` to the luma of the pixels below it: the depth-to-space transform of
/// one line. `blocks` is [n, side, side], `line` is [w, 4]. The first `count` components get `units` for a unit of
/// `blocks`.
fn add_blocks(
    line: &mut [u16],
    blocks: &[f32],
    (side, dy): (usize, usize),
    (count, units): (usize, f32),
) {
    #[cfg(target_arch = "x86_64")]
    if side == avx2::SIDE && is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU supports AVX2.
        return unsafe { avx2::add_blocks(line, blocks, dy, (count, units)) };
    }
    add_blocks_portable(line, blocks, (side, dy), (count, units));
}

fn add_blocks_portable(
    line: &mut [u16],
    blocks: &[f32],
    (side, dy): (usize, usize),
    (count, units): (usize, f32),
) {
    let blocks = blocks.chunks_exact(side * side);
    for (pixels, block) in line.chunks_mut(side * Frame::COMPONENTS).zip(blocks) {
        let pixels = pixels.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        for (pixel, value) in pixels.iter_mut().zip(&block[dy * side..][..side]) {
            let residual = (value.clamp(-1.0, 1.0) * units).round_ties_even() as i32;
            for component in &mut pixel[..count] {
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
    pub(super) fn add_blocks(
        line: &mut [u16],
        blocks: &[f32],
        dy: usize,
        (count, units): (usize, f32),
    ) {
        // The index of both bytes of a value for each component that holds luma; others get 0.
        let pixel = |n: i64| match count {
            1 => 0x8080_8080_8080_0100_u64 as i64 + 0x0202 * n,
            _ => 0x8080_0100_0100_0100_u64 as i64 + 0x0202_0202_0202 * n,
        };
        let lanes = _mm256_setr_epi64x(pixel(0), pixel(1), pixel(2), pixel(3));
        let (whole, rest) = line.as_chunks_mut::<{ SIDE * Frame::COMPONENTS }>();
        let blocks = blocks.as_chunks::<{ SIDE * SIDE }>().0;
        for (pixels, block) in whole.iter_mut().zip(blocks) {
            let values: __m128 = bytemuck::cast(block.as_chunks::<SIDE>().0[dy]);
            let values = _mm_max_ps(_mm_min_ps(values, _mm_set1_ps(1.0)), _mm_set1_ps(-1.0));
            let residual = _mm_cvtps_epi32(_mm_mul_ps(values, _mm_set1_ps(units)));
            // There is no saturating addition of i32 to u16: the positive parts (lower half) are added, the
            // negative parts (upper half) subtracted. Packing sets the other ones to zero.
            let parts = _mm_packus_epi32(residual, _mm_sub_epi32(_mm_setzero_si128(), residual));
            let plus = splat(parts, lanes);
            let minus = splat(_mm_srli_si128::<8>(parts), lanes);
            let sums = _mm256_adds_epu16(bytemuck::cast(*pixels), plus);
            *pixels = bytemuck::cast(_mm256_subs_epu16(sums, minus));
        }
        // The last block may extend beyond the line.
        if let Some(last) = blocks.get(whole.len()) {
            add_blocks_portable(rest, last, (SIDE, dy), (count, units));
        }
    }

    /// Copies the first four u16 to the components of a pixel each, as `lanes` says.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn splat(values: __m128i, lanes: __m256i) -> __m256i {
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_blocks_equals_the_portable_code() {
        let blocks: Vec<_> = (0..10 * 16).map(|n| (n * 7919 % 401) as f32 / 150.0 - 1.3).collect();
        let values = |n: usize| (n * 40_503 % 65_536) as u16;
        let luma_units = [(1, 56_283.0), (3, 65_535.0)];
        for (dy, luma_units) in (0..4).zip(luma_units.into_iter().cycle()) {
            let mut line: Vec<_> = (0..37 * Frame::COMPONENTS).map(values).collect();
            let mut expected = line.clone();
            add_blocks(&mut line, &blocks, (4, dy), luma_units);
            add_blocks_portable(&mut expected, &blocks, (4, dy), luma_units);
            assert_eq!(line, expected);
        }
    }
}
