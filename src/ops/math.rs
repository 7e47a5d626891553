// SPDX-License-Identifier: MIT OR Apache-2.0
//! Element-wise functions over slices, written without calls and branches so that the compiler
//! vectorises them.

use multiversion::multiversion;

/// e^x with a relative error below 2e-7. x is clamped to \[−87.3, 88.3\], so the result is finite.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 2^n · e^r with |r| ≤ ln 2 / 2; Cephes' polynomial for e^r.
    let x = x.clamp(-87.3, 88.3);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_2e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

/// erf(x) with an absolute error below 2e-7: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / 0.327_591_1_f32.mul_add(a, 1.0);
    let p = 1.061_405_4_f32
        .mul_add(t, -1.453_152_1)
        .mul_add(t, 1.421_413_8)
        .mul_add(t, -0.284_496_72)
        .mul_add(t, 0.254_829_6);
    (1.0 - p * t * exp(-a * a)).copysign(x)
}

/// `x ← a·x + b`, then SiLU if `silu`, for each row. Rows are as long as `a` and `b`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn affine(rows: &mut [f32], a: &[f32], b: &[f32], silu: bool) {
    for row in rows.chunks_exact_mut(a.len()) {
        for ((x, a), b) in row.iter_mut().zip(a).zip(b) {
            let y = x.mul_add(*a, *b);
            *x = if silu { y / (1.0 + exp(-y)) } else { y };
        }
    }
}

/// `out ← x·GELU(gate)`, with exact GELU. Each row of `rows` holds x, then the gate.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn geglu(rows: &[f32], width: usize, out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (x, gate) = row.split_at(width);
        for ((out, x), gate) in out.iter_mut().zip(x).zip(gate) {
            *out = x * gate * 0.5 * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// `x ← GELU(x)`, exact.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn gelu(values: &mut [f32]) {
    for x in values {
        *x *= 0.5 * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// `x ← e^(x − max)`. Returns the sum.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn exp_sum(row: &mut [f32], max: f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        for (x, sum) in block.iter_mut().zip(&mut sums) {
            *x = exp(*x - max);
            *sum += *x;
        }
    }
    let mut sum = sums.iter().sum();
    for x in rest {
        *x = exp(*x - max);
        sum += *x;
    }
    sum
}

/// The maximum of a row.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn max(row: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut best = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (x, best) in block.iter().zip(&mut best) {
            *best = if *x > *best { *x } else { *best };
        }
    }
    best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `sums\[c\] += Σ (x − centre\[c\])`, `squares\[c\] += Σ (x − centre\[c\])²` over rows.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
pub(super) fn moments(rows: &[f32], centre: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    for row in rows.chunks_exact(centre.len()) {
        for (((x, centre), sum), square) in
            row.iter().zip(centre).zip(&mut *sums).zip(&mut *squares)
        {
            let d = x - centre;
            *sum += d;
            *square = d.mul_add(d, *square);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_have_single_precision() {
        for n in -800..800 {
            let x = n as f32 / 10.0;
            let relative = exp(x) / (x as f64).exp() as f32 - 1.0;
            assert!(relative.abs() < 3e-7, "exp({x}) has a relative error of {relative}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(100.0).is_finite());
        // Values from tables.
        for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3)] {
            assert!((erf(x) - y).abs() < 3e-7 && (erf(-x) + y).abs() < 3e-7);
        }
    }
}
