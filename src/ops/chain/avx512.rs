// SPDX-License-Identifier: MIT OR Apache-2.0
//! The products with AVX-512: a register holds all output channels of a group.

use std::arch::x86_64::*;

use super::winograd::{DEPTH, Group, Lanes, POINTS, Pixel, Products, Values};

/// [`multiply`](super::winograd::multiply). Each sum adds the same products in the same order as with AVX2, so the
/// results are equal.
#[target_feature(enable = "avx512f")]
pub fn multiply(values: &[Values], groups: &[Group], tiles: usize, out: &mut [Products]) {
    match (groups, out) {
        ([a, b], [first, second]) => multiply_groups(values, [a, b], tiles, [first, second]),
        ([group], [out]) => multiply_groups(values, [group], tiles, [out]),
        (groups, out) => unreachable!("{} groups for {} sums", groups.len(), out.len()),
    }
}

#[target_feature(enable = "avx512f")]
fn multiply_groups<const GROUPS: usize>(
    values: &[Values],
    groups: [&Group; GROUPS],
    tiles: usize,
    mut out: [&mut Products; GROUPS],
) {
    for point in 0..POINTS {
        let mut weights = [groups[0].point(point); GROUPS];
        for (weights, group) in weights.iter_mut().zip(groups) {
            *weights = group.point(point);
        }
        let mut first = 0;
        while first < tiles {
            let (at, out) = ((point, first), &mut out);
            // With two groups, the sums of at least four tiles hide the latency of the additions.
            first += match tiles - first {
                12 => multiply_tiles::<12, _>(values, weights, at, out),
                4 | 8 => multiply_tiles::<4, _>(values, weights, at, out),
                6.. => multiply_tiles::<6, _>(values, weights, at, out),
                _ => multiply_tiles::<2, _>(values, weights, at, out),
            };
        }
    }
}

/// Writes the sums of a point of `N` tiles from the tile `first` on, and returns `N`.
#[target_feature(enable = "avx512f")]
#[inline]
fn multiply_tiles<const N: usize, const GROUPS: usize>(
    values: &[Values],
    weights: [&[Lanes]; GROUPS],
    (point, first): (usize, usize),
    out: &mut [&mut Products; GROUPS],
) -> usize {
    let mut sums = [[_mm512_setzero_ps(); N]; GROUPS];
    for (block, values) in values.iter().enumerate() {
        let values = &values[point][first..][..N];
        let channels = (weights[0].len() - block * DEPTH).min(DEPTH);
        let mut weights = weights;
        for weights in &mut weights {
            *weights = &weights[block * DEPTH..][..channels];
        }
        // A constant number of channels lets the compiler unroll the loop.
        if channels == DEPTH {
            add_products(values, weights, DEPTH, &mut sums);
        } else {
            add_products(values, weights, channels, &mut sums);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sums) in out[point][first..][..N].iter_mut().zip(sums) {
            *out = Lanes(bytemuck::cast(sums));
        }
    }
    N
}

/// Adds the products of up to eight `channels`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_products<const N: usize, const GROUPS: usize>(
    values: &[Pixel],
    weights: [&[Lanes]; GROUPS],
    channels: usize,
    sums: &mut [[__m512; N]; GROUPS],
) {
    for k in 0..channels {
        for p in 0..N {
            let value = _mm512_set1_ps(values[p][k]);
            for g in 0..GROUPS {
                let weights: __m512 = bytemuck::cast(weights[g][k].0);
                sums[g][p] = _mm512_fmadd_ps(value, weights, sums[g][p]);
            }
        }
    }
}
