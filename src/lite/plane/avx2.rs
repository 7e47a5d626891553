// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights of cubic convolution with AVX2 and FMA.

use std::arch::x86_64::*;

use super::CUBIC;

/// [`cubic_weights`](super::cubic_weights) of four fractions: a register for each of the four pixels.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(in crate::lite) fn cubic_weights(fractions: __m128) -> [__m128; 4] {
    let one = _mm_set1_ps(1.0);
    let rest = _mm_sub_ps(one, fractions);
    let product = _mm_mul_ps(_mm_set1_ps(CUBIC), _mm_mul_ps(fractions, rest));
    let (first, fourth) = (_mm_mul_ps(product, rest), _mm_mul_ps(product, fractions));
    let line = _mm_fmsub_ps(_mm_set1_ps(CUBIC + 2.0), fractions, _mm_set1_ps(CUBIC + 3.0));
    let second = _mm_fmadd_ps(line, _mm_mul_ps(fractions, fractions), one);
    let third = _mm_sub_ps(_mm_sub_ps(one, second), _mm_add_ps(first, fourth));
    [first, second, third, fourth]
}
