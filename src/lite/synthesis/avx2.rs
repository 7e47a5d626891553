// SPDX-License-Identifier: MIT OR Apache-2.0
//! A row of the interpolated frame with AVX2 and FMA: the four components of a pixel per 128 bits.
//!
//! No closures: they do not inherit the target features, so they would not be inlined.

use std::arch::x86_64::*;

use super::{Frame, OverlayRow, Row};
use crate::lite::plane::avx2::cubic_weights;

/// The mask of a register with every lane set.
const ALL: i32 = 0b1111_1111;

/// [`Row::write`] without alpha: two pixels at a time, the first one in the lower half of a register.
#[target_feature(enable = "avx2,fma")]
pub(super) fn write_row<const IS_CUBIC: bool>(row: Row, pixels: &mut [[u16; 4]]) {
    let [first, second] = row.neighbours;
    let stride = first.width() * Frame::COMPONENTS;
    let (w, h) = (first.width() as f32, first.height() as f32);
    let frames = [first.pixels(), second.pixels()];
    let (before, after) = (-row.time, 1.0 - row.time);
    // (x, y) in the first frame, then (x, y) in the second.
    let times: __m256 = bytemuck::cast([[before, before, after, after]; 2]);
    // The last pixels that have two more after them.
    let ends: __m256 = bytemuck::cast([[w - 3.0, h - 3.0]; 4]);
    let [first, second] = row.tones;
    let gains: [__m256; 2] = bytemuck::cast([[first.gain; 2], [second.gain; 2]]);
    let offsets: [__m256; 2] = bytemuck::cast([[first.offset; 2], [second.offset; 2]]);
    let mut origin: __m256 = bytemuck::cast([[0.0, row.y, 0.0, row.y], [1.0, row.y, 1.0, row.y]]);
    let next: __m256 = bytemuck::cast([[2.0_f32, 0.0]; 4]);
    let (pairs, last) = pixels.as_chunks_mut::<2>();
    let columns = row.columns.as_chunks::<2>().0;
    for (n, (out, columns)) in pairs.iter_mut().zip(columns).enumerate() {
        let x = 2 * n;
        let lower: __m256 =
            bytemuck::cast([row.guide[columns[0].lower], row.guide[columns[1].lower]]);
        let upper: __m256 =
            bytemuck::cast([row.guide[columns[0].upper], row.guide[columns[1].upper]]);
        let between =
            _mm256_set_m128(_mm_set1_ps(columns[1].weight), _mm_set1_ps(columns[0].weight));
        let guide = _mm256_fmadd_ps(between, _mm256_sub_ps(upper, lower), lower);
        let flows = _mm256_permute_ps::<0b01_00_01_00>(guide);
        let weights = _mm256_permute_ps::<0b10_10_10_10>(guide);
        let positions = _mm256_fmadd_ps(flows, times, origin);
        origin = _mm256_add_ps(origin, next);
        let is_zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(flows, _mm256_setzero_ps());
        let [first, second] = if _mm256_movemask_ps(is_zero) == ALL {
            // Both filters return the pixel itself.
            let at = row.y as usize * stride + x * Frame::COMPONENTS;
            [load_pair(frames[0], at), load_pair(frames[1], at)]
        } else {
            let corners = _mm256_floor_ps(positions);
            let inside = _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_GE_OQ>(corners, _mm256_set1_ps(1.0)),
                _mm256_cmp_ps::<_CMP_LE_OQ>(corners, ends),
            );
            if _mm256_movemask_ps(inside) != ALL {
                *out = [row.pixel(x), row.pixel(x + 1)];
                continue;
            }
            let fractions: [__m128; 2] = bytemuck::cast(_mm256_sub_ps(positions, corners));
            let corners: [[i32; 4]; 2] = bytemuck::cast(_mm256_cvttps_epi32(corners));
            let mut samples = [_mm256_setzero_ps(); 2];
            for n in 0..2 {
                samples[n] = match IS_CUBIC {
                    true => sample_cubic(frames, stride, corners[n], fractions[n]),
                    false => sample_linear(frames, stride, corners[n], fractions[n]),
                };
            }
            [
                _mm256_permute2f128_ps::<0x20>(samples[0], samples[1]),
                _mm256_permute2f128_ps::<0x31>(samples[0], samples[1]),
            ]
        };
        let a = _mm256_fmadd_ps(first, gains[0], offsets[0]);
        let b = _mm256_fmadd_ps(second, gains[1], offsets[1]);
        let blended = match row.overlay {
            Some(overlay) if overlay.is_near(x) || overlay.is_near(x + 1) => {
                let mut blended = [_mm_setzero_ps(); 2];
                let [a, b]: [[__m128; 2]; 2] = bytemuck::cast([a, b]);
                let positions: [[[f32; 2]; 2]; 2] = bytemuck::cast(positions);
                let weights: [[f32; 4]; 2] = bytemuck::cast(weights);
                for n in 0..2 {
                    let place = (x + n, positions[n], weights[n][0]);
                    blended[n] = blend_with_overlay(&row, overlay, place, [a[n], b[n]]);
                }
                bytemuck::cast(blended)
            }
            _ => _mm256_fmadd_ps(weights, _mm256_sub_ps(a, b), b),
        };
        // Rounds to the nearest integer; packing saturates to 0..=65535.
        let rounded = _mm256_cvtps_epi32(blended);
        let packed: [i64; 4] = bytemuck::cast(_mm256_packus_epi32(rounded, rounded));
        *out = bytemuck::cast([packed[0], packed[2]]);
    }
    if let [last] = last {
        *last = row.pixel(row.columns.len() - 1);
    }
}

/// Blends samples of both frames at pixel x near an overlay: see [`OverlayRow::weigh`].
#[target_feature(enable = "avx2,fma")]
fn blend_with_overlay(
    row: &Row,
    overlay: OverlayRow,
    (x, ends, weight): (usize, [[f32; 2]; 2], f32),
    [a, b]: [__m128; 2],
) -> __m128 {
    let (still, weight) =
        if overlay.is_near(x) { overlay.weigh(x, ends, weight) } else { (0.0, weight) };
    let moving = _mm_fmadd_ps(_mm_set1_ps(weight), _mm_sub_ps(a, b), b);
    if still == 0.0 {
        return moving;
    }
    let [a, b]: [__m128; 2] = bytemuck::cast(row.pixels_at(x));
    let unmoved = _mm_fmadd_ps(_mm_set1_ps(row.time), _mm_sub_ps(b, a), a);
    _mm_fmadd_ps(_mm_set1_ps(still), _mm_sub_ps(unmoved, moving), moving)
}

/// Samples both frames with cubic convolution, `fractions` after the pixels `corners`, each (x, y) in the first frame,
/// then in the second. The lower half of the result is of the first frame.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample_cubic(
    [first, second]: [&[u16]; 2],
    stride: usize,
    [ax, ay, bx, by]: [i32; 4],
    fractions: __m128,
) -> __m256 {
    let [before, lower, upper, after] = cubic_weights(fractions);
    let weights = [_mm256_set_m128(lower, before), _mm256_set_m128(after, upper)];
    let a = sample::<0, 1>(first, stride, (ax as usize, ay as usize), &weights);
    let b = sample::<2, 3>(second, stride, (bx as usize, by as usize), &weights);
    _mm256_set_m128(b, a)
}

/// [`sample_cubic`] with linear interpolation.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample_linear(
    [first, second]: [&[u16]; 2],
    stride: usize,
    [ax, ay, bx, by]: [i32; 4],
    fractions: __m128,
) -> __m256 {
    let fractions = _mm256_castps128_ps256(fractions);
    let a = lerp_rows(first, stride, (ax as usize, ay as usize), splat(fractions, 1, 1));
    let b = lerp_rows(second, stride, (bx as usize, by as usize), splat(fractions, 3, 3));
    let left = _mm256_permute2f128_ps::<0x20>(a, b);
    let right = _mm256_permute2f128_ps::<0x31>(a, b);
    _mm256_fmadd_ps(splat(fractions, 0, 2), _mm256_sub_ps(right, left), left)
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
