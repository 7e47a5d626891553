// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame made of its two neighbours: each is fetched from where the motion leads, and they are mixed.

use rayon::prelude::*;

use super::{flow::Motion, plane::Place};
use crate::engine::{Cancel, Error, Frame};

/// Rows that a thread makes at a time.
const ROWS: usize = 16;

/// Makes `out`, the frame at `time` between two of its size.
pub(super) fn between(
    neighbours: [&Frame; 2],
    motion: &Motion,
    (time, alpha): (f32, bool),
    out: &mut Frame,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (w, h) = (out.width(), out.height());
    let stride = w * Frame::COMPONENTS;
    let columns = places(motion.width, w);
    let lines = places(motion.height, h);
    let scale = [w as f32 / motion.width as f32, h as f32 / motion.height as f32];
    out.pixels_mut()
        .par_chunks_mut(ROWS * stride)
        .zip(lines.par_chunks(ROWS))
        .enumerate()
        .try_for_each(|(band, (pixels, lines))| {
            cancel.check()?;
            let mut guide = vec![[0.0; 4]; motion.width];
            for (n, (pixels, line)) in pixels.chunks_exact_mut(stride).zip(lines).enumerate() {
                motion.line(*line, scale, &mut guide);
                let y = (band * ROWS + n) as f32;
                let row = Row { neighbours, guide: &guide, columns: &columns, y, time, alpha };
                mix(row, pixels);
            }
            Ok(())
        })
}

/// Where the pixels of a side lie on a coarser grid.
fn places(coarse: usize, fine: usize) -> Vec<Place> {
    let ratio = coarse as f32 / fine as f32;
    (0..fine).map(|n| Place::new((n as f32 + 0.5) * ratio - 0.5, coarse, 1)).collect()
}

impl Motion {
    /// Flow (x, y) times `scale`, and the first neighbour's share, along a line between two rows.
    fn line(&self, line: Place, scale: [f32; 2], guide: &mut [[f32; 4]]) {
        let row = |y: usize| y * self.width..(y + 1) * self.width;
        let (before, behind) = (row(line.before), row(line.behind));
        let flows = self.flow[before.clone()].iter().zip(&self.flow[behind.clone()]);
        let firsts = self.first[before].iter().zip(&self.first[behind]);
        for ((guide, (a, b)), (first, second)) in guide.iter_mut().zip(flows).zip(firsts) {
            let mix = |a: f32, b: f32| a + line.share * (b - a);
            let (x, y) = (mix(a[0], b[0]) * scale[0], mix(a[1], b[1]) * scale[1]);
            *guide = [x, y, mix(*first, *second), 0.0];
        }
    }
}

/// A row to be made.
#[derive(Clone, Copy)]
struct Row<'a> {
    neighbours: [&'a Frame; 2],
    /// Flow (x, y), the first neighbour's share, and nothing, at the motion's columns.
    guide: &'a [[f32; 4]],
    columns: &'a [Place],
    y: f32,
    time: f32,
    alpha: bool,
}

impl Row<'_> {
    /// Pixel x of the row.
    fn pixel(&self, x: usize) -> [u16; 4] {
        let column = self.columns[x];
        let (a, b) = (&self.guide[column.before], &self.guide[column.behind]);
        let between = |n: usize| a[n] + column.share * (b[n] - a[n]);
        let (vx, vy, share) = (between(0), between(1), between(2));
        let [first, second] = self.neighbours;
        let (before, after) = (-self.time, 1.0 - self.time);
        let a = fetch(first, [x as f32 + before * vx, self.y + before * vy]);
        let b = fetch(second, [x as f32 + after * vx, self.y + after * vy]);
        match self.alpha {
            true => mix_with_alpha(a, b, share),
            false => std::array::from_fn(|i| round(b[i] + share * (a[i] - b[i]))),
        }
    }
}

fn mix(row: Row, out: &mut [u16]) {
    let pixels = out.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
    #[cfg(target_arch = "x86_64")]
    if !row.alpha && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { fma::mix(row, pixels) };
    }
    pixels.iter_mut().enumerate().for_each(|(x, out)| *out = row.pixel(x));
}

#[inline(always)]
fn round(value: f32) -> u16 {
    (value.clamp(0.0, 65535.0) + 0.5) as i32 as u16
}

/// Colours count by their alpha.
fn mix_with_alpha(a: [f32; 4], b: [f32; 4], share: f32) -> [u16; 4] {
    let (wa, wb) = (share * a[3].max(0.0), (1.0 - share) * b[3].max(0.0));
    let alpha = wa + wb;
    let colour = |i: usize| if alpha > 0.0 { (wa * a[i] + wb * b[i]) / alpha } else { 0.0 };
    [round(colour(0)), round(colour(1)), round(colour(2)), round(alpha)]
}

/// A frame's components between its pixels: bilinear. Beyond the border they are the border's.
fn fetch(frame: &Frame, [x, y]: [f32; 2]) -> [f32; 4] {
    let (w, h) = (frame.width(), frame.height());
    let (x, y) = (Place::new(x, w, 1), Place::new(y, h, w));
    let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
    let (upper, lower) = ((1.0 - y.share), y.share);
    let corners = [
        (y.before + x.before, upper * (1.0 - x.share)),
        (y.before + x.behind, upper * x.share),
        (y.behind + x.before, lower * (1.0 - x.share)),
        (y.behind + x.behind, lower * x.share),
    ];
    let mut sums = [0.0; Frame::COMPONENTS];
    for (at, weight) in corners {
        for (sum, value) in sums.iter_mut().zip(pixels[at]) {
            *sum += weight * f32::from(value);
        }
    }
    sums
}

/// The same with whole pixels in registers.
#[cfg(target_arch = "x86_64")]
mod fma {
    use std::arch::x86_64::*;

    use super::{Frame, Row};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn mix(row: Row, pixels: &mut [[u16; 4]]) {
        let [first, second] = row.neighbours;
        let stride = first.width() * Frame::COMPONENTS;
        let (w, h) = ((first.width() - 1) as f32, (first.height() - 1) as f32);
        let (first, second) = (first.pixels(), second.pixels());
        let (before, after) = (-row.time, 1.0 - row.time);
        // x and y, for both neighbours.
        let times: __m128 = bytemuck::cast([before, before, after, after]);
        let ends: __m128 = bytemuck::cast([w, h, w, h]);
        let mut here: __m128 = bytemuck::cast([0.0, row.y, 0.0, row.y]);
        let next: __m128 = bytemuck::cast([1.0_f32, 0.0, 1.0, 0.0]);
        for (x, (out, column)) in pixels.iter_mut().zip(row.columns).enumerate() {
            let a: __m128 = bytemuck::cast(row.guide[column.before]);
            let b: __m128 = bytemuck::cast(row.guide[column.behind]);
            let guide = _mm_fmadd_ps(_mm_set1_ps(column.share), _mm_sub_ps(b, a), a);
            let places = _mm_fmadd_ps(_mm_movelh_ps(guide, guide), times, here);
            here = _mm_add_ps(here, next);
            let corners = _mm_floor_ps(places);
            let inside =
                _mm_and_ps(_mm_cmpge_ps(corners, _mm_setzero_ps()), _mm_cmplt_ps(corners, ends));
            if _mm_movemask_ps(inside) != 0b1111 {
                *out = row.pixel(x);
                continue;
            }
            let shares = _mm256_castps128_ps256(_mm_sub_ps(places, corners));
            let [ax, ay, bx, by]: [i32; 4] = bytemuck::cast(_mm_cvttps_epi32(corners));
            let a = pair(first, stride, (ax as usize, ay as usize), every::<1, 1>(shares));
            let b = pair(second, stride, (bx as usize, by as usize), every::<3, 3>(shares));
            // The first neighbour's in the lower half, the second's in the upper.
            let left = _mm256_permute2f128_ps::<0x20>(a, b);
            let right = _mm256_permute2f128_ps::<0x31>(a, b);
            let both = _mm256_fmadd_ps(every::<0, 2>(shares), _mm256_sub_ps(right, left), left);
            let (a, b) = (_mm256_castps256_ps128(both), _mm256_extractf128_ps::<1>(both));
            let share = _mm_shuffle_ps::<0b10_10_10_10>(guide, guide);
            let mixed = _mm_fmadd_ps(share, _mm_sub_ps(a, b), b);
            // To the nearest; what is out of range becomes the nearest that is in it.
            let rounded = _mm_cvtps_epi32(mixed);
            *out = bytemuck::cast(_mm_cvtsi128_si64(_mm_packus_epi32(rounded, rounded)));
        }
    }

    /// The pixels left and right of a place, both between the rows above and below it. `corner` is the upper
    /// left of the four.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn pair(pixels: &[u16], stride: usize, corner: (usize, usize), share: __m256) -> __m256 {
        const PAIR: usize = 2 * Frame::COMPONENTS;
        let at = corner.1 * stride + corner.0 * Frame::COMPONENTS;
        let pixels = &pixels[at..at + stride + PAIR];
        let (mut upper, mut lower) = ([0; PAIR], [0; PAIR]);
        upper.copy_from_slice(&pixels[..PAIR]);
        lower.copy_from_slice(&pixels[stride..]);
        let (upper, lower): (__m128i, __m128i) = (bytemuck::cast(upper), bytemuck::cast(lower));
        let upper = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(upper));
        let lower = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(lower));
        _mm256_fmadd_ps(share, _mm256_sub_ps(lower, upper), upper)
    }

    /// Number `A` of four everywhere in the lower half, number `B` in the upper.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn every<const A: i32, const B: i32>(numbers: __m256) -> __m256 {
        _mm256_permutevar8x32_ps(numbers, _mm256_setr_epi32(A, A, A, A, B, B, B, B))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_in_registers_are_those_that_are_computed_one_by_one() {
        let picture = |seed: usize| {
            let mut frame = Frame::new(37, 5).unwrap();
            let values = frame.pixels_mut().iter_mut().enumerate();
            values.for_each(|(n, value)| *value = ((n + seed) * 40_503 % 65_536) as u16);
            frame
        };
        let (first, second) = (picture(1), picture(77));
        // Some lead beyond the borders.
        let guide: Vec<[f32; 4]> = (0..10)
            .map(|n| [n as f32 * 1.7 - 6.0, 2.9 - n as f32 * 0.6, 0.1 * n as f32, 0.0])
            .collect();
        let columns = places(10, 37);
        for y in 0..5 {
            let neighbours = [&first, &second];
            let (y, time) = (y as f32, 0.3);
            let row = Row { neighbours, guide: &guide, columns: &columns, y, time, alpha: false };
            let mut out = vec![0; 37 * Frame::COMPONENTS];
            mix(row, &mut out);
            for (x, pixel) in out.as_chunks::<{ Frame::COMPONENTS }>().0.iter().enumerate() {
                let off = pixel.iter().zip(row.pixel(x)).map(|(a, b)| a.abs_diff(b)).max();
                assert!(off <= Some(2), "at ({x}, {y}): {off:?} of 65535");
            }
        }
    }
}
