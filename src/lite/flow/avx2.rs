// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features of a pyramid level with AVX2 and FMA: one row of candidates per register.
//!
//! No closures: they do not inherit the target features, so they would not be inlined.

use std::arch::x86_64::*;

use super::{COST_FLOOR, FLOW_SCALE, FlowLevel, MEAN_COST};
use crate::lite::plane::Plane;

/// Lanes of a register, and the smallest width of a plane that this code supports.
pub(super) const LANES: usize = 8;

/// [`FlowLevel::write_features`] for all pixels of row y, for a search window of `SIDE`×`SIDE`. `row` is
/// [w, `stride`]; values behind the features of a pixel may be overwritten.
#[target_feature(enable = "avx2,fma")]
pub(super) fn write_feature_row<const SIDE: usize>(
    level: &FlowLevel,
    y: usize,
    stride: usize,
    row: &mut [f32],
) {
    let [first, second] = level.neighbours;
    let radius = SIDE / 2;
    let valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(SIDE as i32), lane_indices());
    let flows = &level.flow[y * first.width..][..first.width];
    for (x, (features, &[vx, vy])) in row.chunks_exact_mut(stride).zip(flows).enumerate() {
        let a = sample_grid::<SIDE>(first, (x, y), (vx, vy), -level.time);
        let b = sample_grid::<SIDE>(second, (x, y), (vx, vy), 1.0 - level.time);
        let mut costs = [_mm256_setzero_ps(); SIDE];
        let mut sums = _mm256_setzero_ps();
        for n in 0..SIDE {
            let sign = _mm256_set1_ps(-0.0);
            costs[n] = _mm256_andnot_ps(sign, _mm256_sub_ps(a[n], b[n]));
            sums = _mm256_add_ps(sums, costs[n]);
        }
        let sums: [f32; LANES] = bytemuck::cast(_mm256_and_ps(sums, _mm256_castsi256_ps(valid)));
        let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]) + sums[4];
        let scale = _mm256_set1_ps(MEAN_COST / (sum / (SIDE * SIDE) as f32 + COST_FLOOR));
        // Stores whole registers: the next store overwrites the invalid lanes.
        for n in 0..SIDE {
            let costs: [f32; LANES] = bytemuck::cast(_mm256_mul_ps(costs[n], scale));
            features[n * SIDE..][..LANES].copy_from_slice(&costs);
        }
        let centre: [[f32; LANES]; 2] = [bytemuck::cast(a[radius]), bytemuck::cast(b[radius])];
        features[SIDE * SIDE..][..4].copy_from_slice(&[
            centre[0][radius],
            centre[1][radius],
            vx * FLOW_SCALE,
            vy * FLOW_SCALE,
        ]);
    }
}

/// Samples `plane` for the `SIDE`×`SIDE` candidates around the flow (vx, vy) of pixel (x, y), at `time` times
/// the motion vector. The first `SIDE` lanes of each row are valid.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sample_grid<const SIDE: usize>(
    plane: &Plane,
    (x, y): (usize, usize),
    (vx, vy): (f32, f32),
    time: f32,
) -> [__m256; SIDE] {
    let (width, height) = (plane.width, plane.height);
    let (columns, x_weights) = taps::<SIDE>(x, vx, time, width);
    let (rows, y_weights) = taps::<SIDE>(y, vy, time, height);
    let rows: [i32; LANES] = bytemuck::cast(rows);
    let y_weights: [f32; LANES] = bytemuck::cast(y_weights);
    // Candidates are less than a pixel apart, so 8 columns hold all of them.
    let ends: [i32; LANES] = bytemuck::cast(columns);
    let left = (ends[0].min(ends[SIDE - 1]) as usize).min(width - LANES);
    let lower = _mm256_sub_epi32(columns, _mm256_set1_epi32(left as i32));
    let last = _mm256_set1_epi32((width - 1 - left) as i32);
    let upper = _mm256_min_epi32(_mm256_add_epi32(lower, _mm256_set1_epi32(1)), last);
    let mut values = [_mm256_setzero_ps(); SIDE];
    for n in 0..SIDE {
        let top = rows[n] as usize;
        let bottom = (top + 1).min(height - 1);
        let top = load(plane, top * width + left);
        let bottom = load(plane, bottom * width + left);
        let row = lerp(top, bottom, _mm256_set1_ps(y_weights[n]));
        let lower = _mm256_permutevar8x32_ps(row, lower);
        let upper = _mm256_permutevar8x32_ps(row, upper);
        values[n] = lerp(lower, upper, x_weights);
    }
    values
}

/// The linear taps of all candidates along an axis of `size` pixels: the index of the pixel before each
/// position, and the weight of the pixel after it.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn taps<const SIDE: usize>(at: usize, flow: f32, time: f32, size: usize) -> (__m256i, __m256) {
    let offsets = _mm256_sub_epi32(lane_indices(), _mm256_set1_epi32((SIDE / 2) as i32));
    let flows = _mm256_add_ps(_mm256_set1_ps(flow), _mm256_cvtepi32_ps(offsets));
    let positions = _mm256_fmadd_ps(_mm256_set1_ps(time), flows, _mm256_set1_ps(at as f32));
    // This order of the operands turns NaN into 0.
    let positions = _mm256_max_ps(positions, _mm256_setzero_ps());
    let positions = _mm256_min_ps(positions, _mm256_set1_ps((size - 1) as f32));
    let lower = _mm256_cvttps_epi32(positions);
    (lower, _mm256_sub_ps(positions, _mm256_cvtepi32_ps(lower)))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn lane_indices() -> __m256i {
    _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn load(plane: &Plane, at: usize) -> __m256 {
    let mut values = [0.0; LANES];
    values.copy_from_slice(&plane.values[at..at + LANES]);
    bytemuck::cast(values)
}

/// `a + weight·(b − a)`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn lerp(a: __m256, b: __m256, weight: __m256) -> __m256 {
    _mm256_fmadd_ps(weight, _mm256_sub_ps(b, a), a)
}
