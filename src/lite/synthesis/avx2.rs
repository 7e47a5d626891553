// SPDX-License-Identifier: MIT OR Apache-2.0
//! A row of the interpolated frame with AVX2 and FMA: the four components of a pixel per 128 bits.
//!
//! No closures: they do not inherit the target features, so they would not be inlined.

use std::arch::x86_64::*;

use super::{Frame, Row};
use crate::lite::plane::CUBIC;

/// [`Row::write`] without alpha.
#[target_feature(enable = "avx2,fma")]
pub(super) fn write_row<const IS_CUBIC: bool>(row: Row, pixels: &mut [[u16; 4]]) {
    let [first, second] = row.neighbours;
    let stride = first.width() * Frame::COMPONENTS;
    let (w, h) = (first.width() as f32, first.height() as f32);
    let (first, second) = (first.pixels(), second.pixels());
    let (before, after) = (-row.time, 1.0 - row.time);
    // (x, y) in the first frame, then (x, y) in the second.
    let times: __m128 = bytemuck::cast([before, before, after, after]);
    // The last pixels that have two more after them.
    let ends: __m128 = bytemuck::cast([w - 3.0, h - 3.0, w - 3.0, h - 3.0]);
    let gains: [__m128; 2] = bytemuck::cast([row.tones[0].gain, row.tones[1].gain]);
    let offsets: [__m128; 2] = bytemuck::cast([row.tones[0].offset, row.tones[1].offset]);
    let mut origin: __m128 = bytemuck::cast([0.0, row.y, 0.0, row.y]);
    let next: __m128 = bytemuck::cast([1.0_f32, 0.0, 1.0, 0.0]);
    for (x, (out, column)) in pixels.iter_mut().zip(row.columns).enumerate() {
        let a: __m128 = bytemuck::cast(row.guide[column.lower]);
        let b: __m128 = bytemuck::cast(row.guide[column.upper]);
        let guide = _mm_fmadd_ps(_mm_set1_ps(column.weight), _mm_sub_ps(b, a), a);
        let positions = _mm_fmadd_ps(_mm_movelh_ps(guide, guide), times, origin);
        origin = _mm_add_ps(origin, next);
        let corners = _mm_floor_ps(positions);
        let inside =
            _mm_and_ps(_mm_cmpge_ps(corners, _mm_set1_ps(1.0)), _mm_cmple_ps(corners, ends));
        if _mm_movemask_ps(inside) != 0b1111 {
            *out = row.pixel(x);
            continue;
        }
        let fractions = _mm_sub_ps(positions, corners);
        let [ax, ay, bx, by]: [i32; 4] = bytemuck::cast(_mm_cvttps_epi32(corners));
        let corners = [(ax as usize, ay as usize), (bx as usize, by as usize)];
        let [a, b] = match IS_CUBIC {
            true => sample_cubic([first, second], stride, corners, fractions),
            false => sample_linear([first, second], stride, corners, fractions),
        };
        let (a, b) = (_mm_fmadd_ps(a, gains[0], offsets[0]), _mm_fmadd_ps(b, gains[1], offsets[1]));
        let mut weight = _mm_shuffle_ps::<0b10_10_10_10>(guide, guide);
        let mut still = 0.0;
        if let Some(overlay) = row.overlay
            && overlay.is_near(x)
        {
            let moving;
            (still, moving) = overlay.weigh(x, bytemuck::cast(positions), _mm_cvtss_f32(weight));
            weight = _mm_set1_ps(moving);
        }
        let mut blended = _mm_fmadd_ps(weight, _mm_sub_ps(a, b), b);
        if still > 0.0 {
            let [a, b]: [__m128; 2] = bytemuck::cast(row.pixels_at(x));
            let unmoved = _mm_fmadd_ps(_mm_set1_ps(row.time), _mm_sub_ps(b, a), a);
            blended = _mm_fmadd_ps(_mm_set1_ps(still), _mm_sub_ps(unmoved, blended), blended);
        }
        // Rounds to the nearest integer; packing saturates to 0..=65535.
        let rounded = _mm_cvtps_epi32(blended);
        *out = bytemuck::cast(_mm_cvtsi128_si64(_mm_packus_epi32(rounded, rounded)));
    }
}

/// [`cubic_weights`](crate::lite::plane::cubic_weights) of four fractions: those of the first two pixels in the lower and upper
/// half of the first register, those of the other two in the second.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn cubic_weights(fractions: __m128) -> [__m256; 2] {
    let one = _mm_set1_ps(1.0);
    let rest = _mm_sub_ps(one, fractions);
    let product = _mm_mul_ps(_mm_set1_ps(CUBIC), _mm_mul_ps(fractions, rest));
    let (first, fourth) = (_mm_mul_ps(product, rest), _mm_mul_ps(product, fractions));
    let line = _mm_fmsub_ps(_mm_set1_ps(CUBIC + 2.0), fractions, _mm_set1_ps(CUBIC + 3.0));
    let second = _mm_fmadd_ps(line, _mm_mul_ps(fractions, fractions), one);
    let third = _mm_sub_ps(_mm_sub_ps(one, second), _mm_add_ps(first, fourth));
    [_mm256_set_m128(second, first), _mm256_set_m128(fourth, third)]
}

/// Samples both frames with cubic convolution, `fractions` after the pixels `corners`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample_cubic(
    [first, second]: [&[u16]; 2],
    stride: usize,
    [a, b]: [(usize, usize); 2],
    fractions: __m128,
) -> [__m128; 2] {
    let weights = cubic_weights(fractions);
    [sample::<0, 1>(first, stride, a, &weights), sample::<2, 3>(second, stride, b, &weights)]
}

/// Samples both frames linearly, `fractions` after the pixels `corners`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample_linear(
    [first, second]: [&[u16]; 2],
    stride: usize,
    [a, b]: [(usize, usize); 2],
    fractions: __m128,
) -> [__m128; 2] {
    let fractions = _mm256_castps128_ps256(fractions);
    let a = lerp_rows(first, stride, a, splat(fractions, 1, 1));
    let b = lerp_rows(second, stride, b, splat(fractions, 3, 3));
    // The lower half is of the first frame, the upper half of the second.
    let left = _mm256_permute2f128_ps::<0x20>(a, b);
    let right = _mm256_permute2f128_ps::<0x31>(a, b);
    let both = _mm256_fmadd_ps(splat(fractions, 0, 2), _mm256_sub_ps(right, left), left);
    [_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both)]
}

/// Interpolates vertically between two pixels of the row of `corner` (x, y) and the two below them: the left pixel
/// in the lower half, the right one in the upper half.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn lerp_rows(pixels: &[u16], stride: usize, (x, y): (usize, usize), weight: __m256) -> __m256 {
    let at = y * stride + x * Frame::COMPONENTS;
    let pixels = &pixels[at..at + stride + PAIR];
    let (upper, lower) = (load_pair(pixels, 0), load_pair(pixels, stride));
    _mm256_fmadd_ps(weight, _mm256_sub_ps(lower, upper), upper)
}

/// Samples around the pixel `corner` (x, y), with the weights in lane `X` horizontally and in lane `Y` vertically.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample<const X: i32, const Y: i32>(
    pixels: &[u16],
    stride: usize,
    (x, y): (usize, usize),
    &[front, back]: &[__m256; 2],
) -> __m128 {
    let at = (y - 1) * stride + (x - 1) * Frame::COMPONENTS;
    let pixels = &pixels[at..at + 3 * stride + 4 * Frame::COMPONENTS];
    let rows = [
        splat(front, Y, Y),
        splat(front, Y + 4, Y + 4),
        splat(back, Y, Y),
        splat(back, Y + 4, Y + 4),
    ];
    let (mut left, mut right) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (n, weight) in rows.into_iter().enumerate() {
        left = _mm256_fmadd_ps(weight, load_pair(pixels, n * stride), left);
        right = _mm256_fmadd_ps(weight, load_pair(pixels, n * stride + PAIR), right);
    }
    let sums = _mm256_mul_ps(left, splat(front, X, X + 4));
    let sums = _mm256_fmadd_ps(right, splat(back, X, X + 4), sums);
    _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums))
}

/// Values of two pixels.
const PAIR: usize = 2 * Frame::COMPONENTS;

/// The values of two pixels from `at` on.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load_pair(pixels: &[u16], at: usize) -> __m256 {
    let mut values = [0; PAIR];
    values.copy_from_slice(&pixels[at..at + PAIR]);
    _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(bytemuck::cast(values)))
}

/// Copies lane `lower` to the lower half, and lane `upper` to the upper half.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn splat(values: __m256, lower: i32, upper: i32) -> __m256 {
    let (a, b) = (lower, upper);
    _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(a, a, a, a, b, b, b, b))
}
