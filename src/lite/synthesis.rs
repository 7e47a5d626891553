// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frame interpolation: both neighbours are warped backward along the flow, and blended by their visibility.

use rayon::prelude::*;

use super::{flow::Motion, plane::LinearTap};
use crate::engine::{Cancel, Error, Frame};

/// Rows per task of the thread pool.
const BAND_ROWS: usize = 16;

/// Writes to `out` the frame at `time`, 0 to 1, between two frames of the same size. With `alpha`, colours are
/// blended by their alpha.
pub(super) fn interpolate(
    neighbours: [&Frame; 2],
    motion: &Motion,
    (time, alpha): (f32, bool),
    out: &mut Frame,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (w, h) = (out.width(), out.height());
    let stride = w * Frame::COMPONENTS;
    let columns = upsampling_taps(motion.width, w);
    let lines = upsampling_taps(motion.height, h);
    let scale = [w as f32 / motion.width as f32, h as f32 / motion.height as f32];
    out.pixels_mut()
        .par_chunks_mut(BAND_ROWS * stride)
        .zip(lines.par_chunks(BAND_ROWS))
        .enumerate()
        .try_for_each(|(band, (pixels, lines))| {
            cancel.check()?;
            let mut guide = vec![[0.0; 4]; motion.width];
            for (n, (pixels, line)) in pixels.chunks_exact_mut(stride).zip(lines).enumerate() {
                motion.write_guide(*line, scale, &mut guide);
                let y = (band * BAND_ROWS + n) as f32;
                Row { neighbours, guide: &guide, columns: &columns, y, time, alpha }.write(pixels);
            }
            Ok(())
        })
}

/// The taps that upsample an axis of `from` pixels to `to` pixels.
fn upsampling_taps(from: usize, to: usize) -> Vec<LinearTap> {
    let ratio = from as f32 / to as f32;
    (0..to).map(|n| LinearTap::new((n as f32 + 0.5) * ratio - 0.5, from, 1)).collect()
}

impl Motion {
    /// Interpolates one row vertically at `line`: for each column, the flow (x, y) times `scale`, the blend
    /// weight of the first frame, and 0.
    fn write_guide(&self, line: LinearTap, scale: [f32; 2], guide: &mut [[f32; 4]]) {
        let row = |y: usize| y * self.width..(y + 1) * self.width;
        let (upper, lower) = (row(line.lower), row(line.upper));
        let flows = self.flow[upper.clone()].iter().zip(&self.flow[lower.clone()]);
        let weights = self.first_weight[upper].iter().zip(&self.first_weight[lower]);
        for ((guide, (a, b)), (wa, wb)) in guide.iter_mut().zip(flows).zip(weights) {
            let lerp = |a: f32, b: f32| a + line.weight * (b - a);
            let (x, y) = (lerp(a[0], b[0]) * scale[0], lerp(a[1], b[1]) * scale[1]);
            *guide = [x, y, lerp(*wa, *wb), 0.0];
        }
    }
}

/// A row of the interpolated frame.
#[derive(Clone, Copy)]
struct Row<'a> {
    neighbours: [&'a Frame; 2],
    /// For each column of the motion: the flow (x, y) in pixels of the frame, the blend weight of the first
    /// frame, and 0.
    guide: &'a [[f32; 4]],
    /// For each column of the frame: its tap in `guide`.
    columns: &'a [LinearTap],
    y: f32,
    time: f32,
    alpha: bool,
}

impl Row<'_> {
    /// Writes the row, [w, 4].
    fn write(self, out: &mut [u16]) {
        let pixels = out.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        #[cfg(target_arch = "x86_64")]
        if !self.alpha && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU supports AVX2 and FMA.
            return unsafe { avx2::write_row(self, pixels) };
        }
        pixels.iter_mut().enumerate().for_each(|(x, out)| *out = self.pixel(x));
    }

    /// Computes pixel x of the row.
    fn pixel(&self, x: usize) -> [u16; 4] {
        let column = self.columns[x];
        let (a, b) = (&self.guide[column.lower], &self.guide[column.upper]);
        let lerp = |n: usize| a[n] + column.weight * (b[n] - a[n]);
        let (vx, vy, weight) = (lerp(0), lerp(1), lerp(2));
        let [first, second] = self.neighbours;
        let (before, after) = (-self.time, 1.0 - self.time);
        let a = sample(first, [x as f32 + before * vx, self.y + before * vy]);
        let b = sample(second, [x as f32 + after * vx, self.y + after * vy]);
        match self.alpha {
            true => blend_with_alpha(a, b, weight),
            false => std::array::from_fn(|i| round(b[i] + weight * (a[i] - b[i]))),
        }
    }
}

#[inline(always)]
fn round(value: f32) -> u16 {
    (value.clamp(0.0, 65535.0) + 0.5) as i32 as u16
}

/// Blends two pixels whose alpha is not premultiplied; `weight` is that of `a`.
fn blend_with_alpha(a: [f32; 4], b: [f32; 4], weight: f32) -> [u16; 4] {
    let (wa, wb) = (weight * a[3].max(0.0), (1.0 - weight) * b[3].max(0.0));
    let alpha = wa + wb;
    let colour = |i: usize| if alpha > 0.0 { (wa * a[i] + wb * b[i]) / alpha } else { 0.0 };
    [round(colour(0)), round(colour(1)), round(colour(2)), round(alpha)]
}

/// Samples a frame with bilinear interpolation. Coordinates outside the frame are clamped.
fn sample(frame: &Frame, [x, y]: [f32; 2]) -> [f32; 4] {
    let (w, h) = (frame.width(), frame.height());
    let (x, y) = (LinearTap::new(x, w, 1), LinearTap::new(y, h, w));
    let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
    let (top, bottom) = ((1.0 - y.weight), y.weight);
    let corners = [
        (y.lower + x.lower, top * (1.0 - x.weight)),
        (y.lower + x.upper, top * x.weight),
        (y.upper + x.lower, bottom * (1.0 - x.weight)),
        (y.upper + x.upper, bottom * x.weight),
    ];
    let mut sums = [0.0; Frame::COMPONENTS];
    for (at, weight) in corners {
        for (sum, value) in sums.iter_mut().zip(pixels[at]) {
            *sum += weight * f32::from(value);
        }
    }
    sums
}

/// The same with AVX2 and FMA: the four components of a pixel per 128 bits.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Frame, Row};

    /// [`Row::write`] without alpha.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn write_row(row: Row, pixels: &mut [[u16; 4]]) {
        let [first, second] = row.neighbours;
        let stride = first.width() * Frame::COMPONENTS;
        let (w, h) = ((first.width() - 1) as f32, (first.height() - 1) as f32);
        let (first, second) = (first.pixels(), second.pixels());
        let (before, after) = (-row.time, 1.0 - row.time);
        // (x, y) in the first frame, then (x, y) in the second.
        let times: __m128 = bytemuck::cast([before, before, after, after]);
        let ends: __m128 = bytemuck::cast([w, h, w, h]);
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
                _mm_and_ps(_mm_cmpge_ps(corners, _mm_setzero_ps()), _mm_cmplt_ps(corners, ends));
            if _mm_movemask_ps(inside) != 0b1111 {
                *out = row.pixel(x);
                continue;
            }
            let weights = _mm256_castps128_ps256(_mm_sub_ps(positions, corners));
            let [ax, ay, bx, by]: [i32; 4] = bytemuck::cast(_mm_cvttps_epi32(corners));
            let a = lerp_rows(first, stride, (ax as usize, ay as usize), splat::<1, 1>(weights));
            let b = lerp_rows(second, stride, (bx as usize, by as usize), splat::<3, 3>(weights));
            // The lower half is of the first frame, the upper half of the second.
            let left = _mm256_permute2f128_ps::<0x20>(a, b);
            let right = _mm256_permute2f128_ps::<0x31>(a, b);
            let both = _mm256_fmadd_ps(splat::<0, 2>(weights), _mm256_sub_ps(right, left), left);
            let (a, b) = (_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
            let weight = _mm_shuffle_ps::<0b10_10_10_10>(guide, guide);
            let blended = _mm_fmadd_ps(weight, _mm_sub_ps(a, b), b);
            // Rounds to the nearest integer; packing saturates to 0..=65535.
            let rounded = _mm_cvtps_epi32(blended);
            *out = bytemuck::cast(_mm_cvtsi128_si64(_mm_packus_epi32(rounded, rounded)));
        }
    }

    /// Interpolates vertically between two pixels of the row of `corner` (x, y) and the two below them: the
    /// left pixel in the lower half, the right one in the upper half.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn lerp_rows(pixels: &[u16], stride: usize, corner: (usize, usize), weight: __m256) -> __m256 {
        const PAIR: usize = 2 * Frame::COMPONENTS;
        let at = corner.1 * stride + corner.0 * Frame::COMPONENTS;
        let pixels = &pixels[at..at + stride + PAIR];
        let (mut upper, mut lower) = ([0; PAIR], [0; PAIR]);
        upper.copy_from_slice(&pixels[..PAIR]);
        lower.copy_from_slice(&pixels[stride..]);
        let (upper, lower): (__m128i, __m128i) = (bytemuck::cast(upper), bytemuck::cast(lower));
        let upper = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(upper));
        let lower = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(lower));
        _mm256_fmadd_ps(weight, _mm256_sub_ps(lower, upper), upper)
    }

    /// Broadcasts lane `A` of the lower half to the lower half, and lane `B` to the upper half.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn splat<const A: i32, const B: i32>(values: __m256) -> __m256 {
        _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(A, A, A, A, B, B, B, B))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_equal_single_pixels_up_to_rounding() {
        let image = |seed: usize| {
            let mut frame = Frame::new(37, 5).unwrap();
            let values = frame.pixels_mut().iter_mut().enumerate();
            values.for_each(|(n, value)| *value = ((n + seed) * 40_503 % 65_536) as u16);
            frame
        };
        let (first, second) = (image(1), image(77));
        // Some vectors point outside the frames.
        let guide: Vec<[f32; 4]> = (0..10)
            .map(|n| [n as f32 * 1.7 - 6.0, 2.9 - n as f32 * 0.6, 0.1 * n as f32, 0.0])
            .collect();
        let columns = upsampling_taps(10, 37);
        for y in 0..5 {
            let neighbours = [&first, &second];
            let (y, time) = (y as f32, 0.3);
            let row = Row { neighbours, guide: &guide, columns: &columns, y, time, alpha: false };
            let mut out = vec![0; 37 * Frame::COMPONENTS];
            row.write(&mut out);
            for (x, pixel) in out.as_chunks::<{ Frame::COMPONENTS }>().0.iter().enumerate() {
                let error = pixel.iter().zip(row.pixel(x)).map(|(a, b)| a.abs_diff(b)).max();
                assert!(error <= Some(2), "at ({x}, {y}): {error:?} of 65535");
            }
        }
    }
}
