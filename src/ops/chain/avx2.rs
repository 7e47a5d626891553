// SPDX-License-Identifier: MIT OR Apache-2.0
//! The algorithm with AVX2 and FMA.
//!
//! No closures for `map` and `from_fn`: those functions do not have the target features, so closures are not inlined in them.

use std::{arch::x86_64::*, ops::Range};

use super::winograd::{DEPTH, Group, LANES, Lanes, Pixel, Products, SIDE, TILE, Values};

/// [`transform_input`](super::winograd::transform_input).
#[target_feature(enable = "avx2,fma")]
pub fn transform_input(rows: [&[Pixel]; SIDE], tiles: Range<usize>, out: &mut [Values]) {
    let span = rows[0].len() / out.len();
    for (block, out) in out.iter_mut().enumerate() {
        let [a, b, c, d, e, f] = rows;
        let at = block * span;
        let rows = [&a[at..], &b[at..], &c[at..], &d[at..], &e[at..], &f[at..]];
        for (n, tile) in tiles.clone().enumerate() {
            let [a, b, c, d, e, f] = rows;
            let at = TILE * tile;
            let rows = [
                transform_pixels(&a[at..]),
                transform_pixels(&b[at..]),
                transform_pixels(&c[at..]),
                transform_pixels(&d[at..]),
                transform_pixels(&e[at..]),
                transform_pixels(&f[at..]),
            ];
            for x in 0..SIDE {
                let column = transform_values(element(&rows, x));
                for y in 0..SIDE {
                    out[y * SIDE + x][n] = bytemuck::cast(column[y]);
                }
            }
        }
    }
}

/// Transforms six pixels.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transform_pixels(pixels: &[Pixel]) -> [__m256; SIDE] {
    transform_values(bytemuck::cast(pixels.as_chunks::<SIDE>().0[0]))
}

/// Element n of each array.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn element<const N: usize>(arrays: &[[__m256; N]; SIDE], n: usize) -> [__m256; SIDE] {
    let [a, b, c, d, e, f] = arrays;
    [a[n], b[n], c[n], d[n], e[n], f[n]]
}

/// The transform of six input values (Bᵀd of Lavin and Gray).
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transform_values(d: [__m256; SIDE]) -> [__m256; SIDE] {
    let (two, four, five) = (_mm256_set1_ps(2.0), _mm256_set1_ps(4.0), _mm256_set1_ps(5.0));
    let a = _mm256_fnmadd_ps(four, d[2], d[4]);
    let b = _mm256_fnmadd_ps(four, d[1], d[3]);
    let e = _mm256_sub_ps(d[4], d[2]);
    let f = _mm256_sub_ps(d[3], d[1]);
    [
        _mm256_fmadd_ps(four, d[0], _mm256_fnmadd_ps(five, d[2], d[4])),
        _mm256_add_ps(a, b),
        _mm256_sub_ps(a, b),
        _mm256_fmadd_ps(two, f, e),
        _mm256_fnmadd_ps(two, f, e),
        _mm256_fmadd_ps(four, d[1], _mm256_fnmadd_ps(five, d[3], d[5])),
    ]
}

/// The transform of six products to four outputs (Aᵀm of Lavin and Gray).
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transform_products(m: [__m256; SIDE]) -> [__m256; TILE] {
    let (two, four, eight) = (_mm256_set1_ps(2.0), _mm256_set1_ps(4.0), _mm256_set1_ps(8.0));
    let a = _mm256_add_ps(m[1], m[2]);
    let b = _mm256_add_ps(m[3], m[4]);
    let e = _mm256_sub_ps(m[1], m[2]);
    let f = _mm256_sub_ps(m[3], m[4]);
    [
        _mm256_add_ps(m[0], _mm256_add_ps(a, b)),
        _mm256_fmadd_ps(two, f, e),
        _mm256_fmadd_ps(four, b, a),
        _mm256_fmadd_ps(eight, f, _mm256_add_ps(e, m[5])),
    ]
}

/// [`multiply`](super::winograd::multiply) for one group, with the sums of some tiles in registers.
#[target_feature(enable = "avx2,fma")]
pub fn multiply(values: &[Values], group: &Group, tiles: usize, out: &mut Products) {
    for (point, out) in out.iter_mut().enumerate() {
        let weights = group.point(point);
        let mut first = 0;
        while first < tiles {
            // 12 sums of six tiles and the weights fill the 16 registers. Eight sums still hide the latency of the additions.
            first += match tiles - first {
                4 | 8 => multiply_tiles::<4>(values, weights, (point, first), &mut out[first..]),
                6.. => multiply_tiles::<6>(values, weights, (point, first), &mut out[first..]),
                _ => multiply_tiles::<2>(values, weights, (point, first), &mut out[first..]),
            };
        }
    }
}

/// Writes the sums of a point of `N` tiles from the tile `first` on, and returns `N`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn multiply_tiles<const N: usize>(
    values: &[Values],
    weights: &[Lanes],
    (point, first): (usize, usize),
    out: &mut [Lanes],
) -> usize {
    let mut sums = [[_mm256_setzero_ps(); LANES / 8]; N];
    for (values, weights) in values.iter().zip(weights.chunks(DEPTH)) {
        let values = &values[point][first..][..N];
        // A constant number of channels lets the compiler unroll the loop.
        match weights.as_array::<DEPTH>() {
            Some(weights) => add_products(values, weights, &mut sums),
            None => add_products(values, weights, &mut sums),
        }
    }
    for (out, sums) in out[..N].iter_mut().zip(sums) {
        *out = Lanes(bytemuck::cast(sums));
    }
    N
}

/// Adds the products of up to eight channels.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_products<const N: usize>(
    values: &[Pixel],
    weights: &[Lanes],
    sums: &mut [[__m256; LANES / 8]; N],
) {
    for (k, weights) in weights.iter().enumerate() {
        let weights: [__m256; LANES / 8] = bytemuck::cast(weights.0);
        for p in 0..N {
            let value = _mm256_set1_ps(values[p][k]);
            sums[p][0] = _mm256_fmadd_ps(value, weights[0], sums[p][0]);
            sums[p][1] = _mm256_fmadd_ps(value, weights[1], sums[p][1]);
        }
    }
}

/// [`transform_output`](super::winograd::transform_output).
#[target_feature(enable = "avx2,fma")]
pub fn transform_output(
    products: &Products,
    group: &Group,
    slope: f32,
    tiles: Range<usize>,
    (blocks, span): (Range<usize>, usize),
    lines: &mut [Vec<Pixel>],
) {
    let (slope, zero) = (_mm256_set1_ps(slope), _mm256_setzero_ps());
    for (half, block) in blocks.enumerate() {
        let bias = bytemuck::cast(group.bias.0.as_chunks::<DEPTH>().0[half]);
        for (n, tile) in tiles.clone().enumerate() {
            let columns = [
                transform_column(products, 0, (n, half), zero),
                transform_column(products, 1, (n, half), bias),
                transform_column(products, 2, (n, half), zero),
                transform_column(products, 3, (n, half), zero),
                transform_column(products, 4, (n, half), zero),
                transform_column(products, 5, (n, half), zero),
            ];
            let at = block * span + TILE * tile + 1;
            for (y, line) in lines.iter_mut().enumerate() {
                let mut pixels = transform_products(element(&columns, y));
                for pixel in &mut pixels {
                    *pixel = _mm256_max_ps(*pixel, _mm256_mul_ps(*pixel, slope));
                }
                line[at..].as_chunks_mut::<TILE>().0[0] = bytemuck::cast(pixels);
            }
        }
    }
}

/// Transforms the products of column x of half of the channels of a tile. `bias` is added to that of row 1: that of row 1
/// and column 1 is part of each output once.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn transform_column(
    products: &Products,
    x: usize,
    (tile, half): (usize, usize),
    bias: __m256,
) -> [__m256; TILE] {
    let mut values = [_mm256_setzero_ps(); SIDE];
    for y in 0..SIDE {
        let Lanes(lanes) = &products[y * SIDE + x][tile];
        values[y] = bytemuck::cast(lanes.as_chunks::<DEPTH>().0[half]);
    }
    values[1] = _mm256_add_ps(values[1], bias);
    transform_products(values)
}
