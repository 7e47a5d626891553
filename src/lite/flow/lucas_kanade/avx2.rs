// SPDX-License-Identifier: MIT OR Apache-2.0
//! A row of the warped planes with AVX2 and FMA: the first plane in the lower half of a register, the second in the
//! upper half.
//!
//! No closures: they do not inherit the target features, so they would not be inlined.

use std::arch::x86_64::*;

use super::{Plane, warp_pixel, warped};
use crate::lite::plane::avx2::cubic_weights;

/// [`warp_row`](super::warp_row).
#[target_feature(enable = "avx2,fma")]
pub(super) fn warp_row(
    planes: [&Plane; 2],
    time: f32,
    y: usize,
    flow: &[[f32; 2]],
    row: &mut [[f32; 2]],
) {
    let (width, height) = (planes[0].width, planes[0].height);
    let (before, after) = (-time, 1.0 - time);
    // (x, y) in the first plane, then (x, y) in the second.
    let times: __m128 = bytemuck::cast([before, before, after, after]);
    // The last pixels that have two more after them.
    let ends = [width as f32 - 3.0, height as f32 - 3.0];
    let ends: __m128 = bytemuck::cast([ends, ends]);
    let y_position = y as f32;
    for (x, (out, &vector)) in row.iter_mut().zip(flow).enumerate() {
        let vectors: __m128 = bytemuck::cast([vector, vector]);
        let origin: __m128 = bytemuck::cast([[x as f32, y_position]; 2]);
        let positions = _mm_fmadd_ps(vectors, times, origin);
        let corners = _mm_floor_ps(positions);
        let inside =
            _mm_and_ps(_mm_cmpge_ps(corners, _mm_set1_ps(1.0)), _mm_cmple_ps(corners, ends));
        if _mm_movemask_ps(inside) != 0b1111 {
            *out = warp_pixel(planes, time, (x, y), vector);
            continue;
        }
        let [ax, ay, bx, by]: [i32; 4] = bytemuck::cast(_mm_cvttps_epi32(corners));
        let a = &planes[0].values[(ay as usize - 1) * width + ax as usize - 1..][..3 * width + 4];
        let b = &planes[1].values[(by as usize - 1) * width + bx as usize - 1..][..3 * width + 4];
        let [w0, w1, w2, w3] = cubic_weights(_mm_sub_ps(positions, corners));
        // From a register per pixel to one per axis.
        let (low, high) = (_mm_unpacklo_ps(w0, w1), _mm_unpacklo_ps(w2, w3));
        let (columns_a, rows_a) = (_mm_movelh_ps(low, high), _mm_movehl_ps(high, low));
        let (low, high) = (_mm_unpackhi_ps(w0, w1), _mm_unpackhi_ps(w2, w3));
        let (columns_b, rows_b) = (_mm_movelh_ps(low, high), _mm_movehl_ps(high, low));
        let rows = _mm256_set_m128(rows_b, rows_a);
        let mut sums = _mm256_mul_ps(_mm256_permute_ps::<0b00_00_00_00>(rows), load(a, b, 0));
        sums = _mm256_fmadd_ps(_mm256_permute_ps::<0b01_01_01_01>(rows), load(a, b, width), sums);
        sums =
            _mm256_fmadd_ps(_mm256_permute_ps::<0b10_10_10_10>(rows), load(a, b, 2 * width), sums);
        sums =
            _mm256_fmadd_ps(_mm256_permute_ps::<0b11_11_11_11>(rows), load(a, b, 3 * width), sums);
        let products = _mm256_mul_ps(sums, _mm256_set_m128(columns_b, columns_a));
        let pairs = _mm256_hadd_ps(products, products);
        let samples = _mm256_hadd_ps(pairs, pairs);
        let a = _mm256_cvtss_f32(samples);
        let b = _mm_cvtss_f32(_mm256_extractf128_ps::<1>(samples));
        *out = warped([a, b], time);
    }
}

/// Four pixels of each plane from `at` on.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn load(a: &[f32], b: &[f32], at: usize) -> __m256 {
    let mut values = [[0.0; 4]; 2];
    values[0].copy_from_slice(&a[at..at + 4]);
    values[1].copy_from_slice(&b[at..at + 4]);
    bytemuck::cast(values)
}
