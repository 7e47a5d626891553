// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame made of its two neighbours: each is fetched from where the motion leads, and they are mixed.

use rayon::prelude::*;

use super::{flow::Motion, plane::Place};
use crate::engine::{Cancel, Error, Frame};

/// Rows that a thread makes at a time.
const ROWS: usize = 16;

/// The frame at `time` between two frames of any one size.
pub(super) fn between(
    neighbours: [&Frame; 2],
    motion: &Motion,
    time: f32,
    alpha: bool,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let (w, h) = (neighbours[0].width(), neighbours[0].height());
    let mut out = Frame::new(w, h)?;
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
            let mut guide = vec![[0.0; 3]; motion.width];
            for (n, (pixels, line)) in pixels.chunks_exact_mut(stride).zip(lines).enumerate() {
                motion.line(*line, scale, &mut guide);
                let y = (band * ROWS + n) as f32;
                let row = Row { neighbours, guide: &guide, columns: &columns, y, time, alpha };
                mix(row, pixels);
            }
            Ok(())
        })?;
    Ok(out)
}

/// Where the pixels of a side lie on a coarser grid.
fn places(coarse: usize, fine: usize) -> Vec<Place> {
    let ratio = coarse as f32 / fine as f32;
    (0..fine).map(|n| Place::new((n as f32 + 0.5) * ratio - 0.5, coarse, 1)).collect()
}

impl Motion {
    /// Flow (x, y) times `scale`, and the first neighbour's share, along a line between two rows.
    fn line(&self, line: Place, scale: [f32; 2], guide: &mut [[f32; 3]]) {
        let row = |y: usize| y * self.width..(y + 1) * self.width;
        let (before, behind) = (row(line.before), row(line.behind));
        let flows = self.flow[before.clone()].iter().zip(&self.flow[behind.clone()]);
        let firsts = self.first[before].iter().zip(&self.first[behind]);
        for ((guide, (a, b)), (first, second)) in guide.iter_mut().zip(flows).zip(firsts) {
            let mix = |a: f32, b: f32| a + line.share * (b - a);
            *guide = [mix(a[0], b[0]) * scale[0], mix(a[1], b[1]) * scale[1], mix(*first, *second)];
        }
    }
}

/// A row to be made.
#[derive(Clone, Copy)]
struct Row<'a> {
    neighbours: [&'a Frame; 2],
    /// Flow (x, y) and the first neighbour's share, at the motion's columns.
    guide: &'a [[f32; 3]],
    columns: &'a [Place],
    y: f32,
    time: f32,
    alpha: bool,
}

impl Row<'_> {
    /// For pixel x of the row: where the motion leads in each neighbour, and the first one's share.
    #[inline(always)]
    fn look_up(&self, x: usize) -> ([[f32; 2]; 2], f32) {
        let column = self.columns[x];
        let (a, b) = (&self.guide[column.before], &self.guide[column.behind]);
        let between = |n: usize| a[n] + column.share * (b[n] - a[n]);
        let (vx, vy) = (between(0), between(1));
        let after = 1.0 - self.time;
        let x = x as f32;
        let first = [x - self.time * vx, self.y - self.time * vy];
        ([first, [x + after * vx, self.y + after * vy]], between(2))
    }
}

fn mix(row: Row, out: &mut [u16]) {
    let pixels = out.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
    #[cfg(target_arch = "x86_64")]
    if !row.alpha && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { fma::mix(row, pixels) };
    }
    let [first, second] = row.neighbours;
    for (x, out) in pixels.iter_mut().enumerate() {
        let ([a, b], share) = row.look_up(x);
        let (a, b) = (fetch(first, a), fetch(second, b));
        *out = match row.alpha {
            true => mix_with_alpha(a, b, share),
            false => std::array::from_fn(|i| round(b[i] + share * (a[i] - b[i]))),
        };
    }
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

    use super::{Frame, Row, fetch};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn mix(row: Row, pixels: &mut [[u16; 4]]) {
        let [first, second] = row.neighbours;
        for (x, out) in pixels.iter_mut().enumerate() {
            let ([a, b], share) = row.look_up(x);
            let (a, b) = (fetch_with_fma(first, a), fetch_with_fma(second, b));
            let mixed = _mm_fmadd_ps(_mm_set1_ps(share), _mm_sub_ps(a, b), b);
            // To the nearest; what is out of range becomes the nearest that is in it.
            let rounded = _mm_cvtps_epi32(mixed);
            *out = bytemuck::cast(_mm_cvtsi128_si64(_mm_packus_epi32(rounded, rounded)));
        }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn fetch_with_fma(frame: &Frame, [x, y]: [f32; 2]) -> __m128 {
        let (w, h) = (frame.width(), frame.height());
        let (left, top) = (x.floor(), y.floor());
        let inside = left >= 0.0 && top >= 0.0 && left < (w - 1) as f32 && top < (h - 1) as f32;
        if !inside {
            return bytemuck::cast(fetch(frame, [x, y]));
        }
        let at = (top as i32 as usize * w + left as i32 as usize) * Frame::COMPONENTS;
        let pixels = frame.pixels();
        let (Some(upper), Some(lower)) = (
            pixels[at..].first_chunk::<8>(),
            pixels[at + w * Frame::COMPONENTS..].first_chunk::<8>(),
        ) else {
            return bytemuck::cast(fetch(frame, [x, y]));
        };
        // Two pixels each.
        let upper = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(bytemuck::cast(*upper)));
        let lower = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(bytemuck::cast(*lower)));
        let along = _mm256_set1_ps(y - top);
        let pair = _mm256_fmadd_ps(along, _mm256_sub_ps(lower, upper), upper);
        let (left_one, right_one) =
            (_mm256_castps256_ps128(pair), _mm256_extractf128_ps::<1>(pair));
        _mm_fmadd_ps(_mm_set1_ps(x - left), _mm_sub_ps(right_one, left_one), left_one)
    }
}
