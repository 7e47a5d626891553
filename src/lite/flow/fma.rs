// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a level sees, with a row of places in a register each.
//!
//! No closures: they would be calls, as they are not compiled for this processor.

use std::arch::x86_64::*;

use super::{FLOW_SCALE, Level, NOISE, TYPICAL};
use crate::lite::plane::Plane;

/// Places that are looked up together; the narrowest picture that this works for.
pub(super) const LANES: usize = 8;

/// As [`Level::see`] for all pixels of row y, each with `stride` numbers for itself. `COUNT` flows are tried
/// in a direction. It may also write what belongs to the state.
#[target_feature(enable = "avx2,fma")]
pub(super) fn see<const COUNT: usize>(level: &Level, y: usize, stride: usize, row: &mut [f32]) {
    let [first, second] = level.neighbours;
    let reach = COUNT / 2;
    let counted = _mm256_cmpgt_epi32(_mm256_set1_epi32(COUNT as i32), lanes());
    let flows = &level.flow[y * first.width..][..first.width];
    for (x, (seen, &[vx, vy])) in row.chunks_exact_mut(stride).zip(flows).enumerate() {
        let a = grid::<COUNT>(first, (x, y), (vx, vy), -level.time);
        let b = grid::<COUNT>(second, (x, y), (vx, vy), 1.0 - level.time);
        let mut differences = [_mm256_setzero_ps(); COUNT];
        let mut sums = _mm256_setzero_ps();
        for n in 0..COUNT {
            let sign = _mm256_set1_ps(-0.0);
            differences[n] = _mm256_andnot_ps(sign, _mm256_sub_ps(a[n], b[n]));
            sums = _mm256_add_ps(sums, differences[n]);
        }
        let sums: [f32; LANES] = bytemuck::cast(_mm256_and_ps(sums, _mm256_castsi256_ps(counted)));
        let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]) + sums[4];
        let scale = _mm256_set1_ps(TYPICAL / (sum / (COUNT * COUNT) as f32 + NOISE));
        // What lies behind the count is written over by what comes next.
        for n in 0..COUNT {
            let differences: [f32; LANES] = bytemuck::cast(_mm256_mul_ps(differences[n], scale));
            seen[n * COUNT..][..LANES].copy_from_slice(&differences);
        }
        let middle: [[f32; LANES]; 2] = [bytemuck::cast(a[reach]), bytemuck::cast(b[reach])];
        seen[COUNT * COUNT..][..4].copy_from_slice(&[
            middle[0][reach],
            middle[1][reach],
            vx * FLOW_SCALE,
            vy * FLOW_SCALE,
        ]);
    }
}

/// The values of a picture where `time` times the flow leads from a pixel, for `COUNT` flows in each
/// direction about this one. The first `COUNT` of a row count.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn grid<const COUNT: usize>(
    plane: &Plane,
    (x, y): (usize, usize),
    (vx, vy): (f32, f32),
    time: f32,
) -> [__m256; COUNT] {
    let (width, height) = (plane.width, plane.height);
    let (columns, across) = places::<COUNT>(x, vx, time, width);
    let (rows, down) = places::<COUNT>(y, vy, time, height);
    let (rows, down): ([i32; LANES], [f32; LANES]) = (bytemuck::cast(rows), bytemuck::cast(down));
    // All columns lie in a few: the places are less than a pixel apart.
    let ends: [i32; LANES] = bytemuck::cast(columns);
    let left = (ends[0].min(ends[COUNT - 1]) as usize).min(width - LANES);
    let before = _mm256_sub_epi32(columns, _mm256_set1_epi32(left as i32));
    let last = _mm256_set1_epi32((width - 1 - left) as i32);
    let behind = _mm256_min_epi32(_mm256_add_epi32(before, _mm256_set1_epi32(1)), last);
    let mut values = [_mm256_setzero_ps(); COUNT];
    for n in 0..COUNT {
        let upper = rows[n] as usize;
        let lower = (upper + 1).min(height - 1);
        let upper = window(plane, upper * width + left);
        let lower = window(plane, lower * width + left);
        let row = mix(upper, lower, _mm256_set1_ps(down[n]));
        let before = _mm256_permutevar8x32_ps(row, before);
        let behind = _mm256_permutevar8x32_ps(row, behind);
        values[n] = mix(before, behind, across);
    }
    values
}

/// Where `time` times the flow leads on a side of `size` pixels, for flows about this one: the pixels
/// before, and how near the places are to the ones behind.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn places<const COUNT: usize>(at: usize, flow: f32, time: f32, size: usize) -> (__m256i, __m256) {
    let changes = _mm256_sub_epi32(lanes(), _mm256_set1_epi32((COUNT / 2) as i32));
    let flows = _mm256_add_ps(_mm256_set1_ps(flow), _mm256_cvtepi32_ps(changes));
    let places = _mm256_fmadd_ps(_mm256_set1_ps(time), flows, _mm256_set1_ps(at as f32));
    // In this order a place that is no number is the first.
    let places = _mm256_max_ps(places, _mm256_setzero_ps());
    let places = _mm256_min_ps(places, _mm256_set1_ps((size - 1) as f32));
    let before = _mm256_cvttps_epi32(places);
    (before, _mm256_sub_ps(places, _mm256_cvtepi32_ps(before)))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn lanes() -> __m256i {
    _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn window(plane: &Plane, at: usize) -> __m256 {
    let mut window = [0.0; LANES];
    window.copy_from_slice(&plane.values[at..at + LANES]);
    bytemuck::cast(window)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn mix(a: __m256, b: __m256, share: __m256) -> __m256 {
    _mm256_fmadd_ps(share, _mm256_sub_ps(b, a), a)
}
