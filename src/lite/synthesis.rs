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
    (0..fine).map(|n| Place::new((n as f32 + 0.5) * ratio - 0.5, coarse)).collect()
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

/// Places between two pixels that weights are known for.
const PHASES: usize = 256;

/// The weights of four neighbours for each place between the middle two: Catmull and Rom's cubic.
static CUBIC: [[f32; 4]; PHASES + 1] = {
    let mut table = [[0.0; 4]; PHASES + 1];
    let mut phase = 0;
    while phase <= PHASES {
        let x = phase as f32 / PHASES as f32;
        table[phase] = [
            ((-0.5 * x + 1.0) * x - 0.5) * x,
            (1.5 * x - 2.5) * x * x + 1.0,
            ((-1.5 * x + 2.0) * x + 0.5) * x,
            (0.5 * x - 0.5) * x * x,
        ];
        phase += 1;
    }
    table
};

/// Where the 4×4 pixels begin that a place lies in the middle of, and the weights of columns and rows.
#[inline(always)]
fn split([x, y]: [f32; 2]) -> ([i32; 2], [&'static [f32; 4]; 2]) {
    let (left, top) = (x.floor(), y.floor());
    let weights = |x: f32| &CUBIC[((x * PHASES as f32 + 0.5) as i32 as usize).min(PHASES)];
    ([left as i32 - 1, top as i32 - 1], [weights(x - left), weights(y - top)])
}

/// A frame's components between its pixels. Beyond the border they are the border's.
fn fetch(frame: &Frame, place: [f32; 2]) -> [f32; 4] {
    let ([left, top], [columns, rows]) = split(place);
    let (w, h) = (frame.width() as i32, frame.height() as i32);
    let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
    let mut sums = [0.0; Frame::COMPONENTS];
    for (dy, wy) in (0..).zip(rows) {
        let row = (top + dy).clamp(0, h - 1) * w;
        for (dx, wx) in (0..).zip(columns) {
            let pixel = pixels[(row + (left + dx).clamp(0, w - 1)) as usize];
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += wy * wx * f32::from(value);
            }
        }
    }
    sums
}

/// The same with all sums in registers.
#[cfg(target_arch = "x86_64")]
mod fma {
    use std::arch::x86_64::*;

    use super::{Frame, Row, fetch, split};

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
    fn fetch_with_fma(frame: &Frame, place: [f32; 2]) -> __m128 {
        let ([left, top], [columns, rows]) = split(place);
        let (w, h) = (frame.width() as i32, frame.height() as i32);
        if left < 0 || top < 0 || left + 4 > w || top + 4 > h {
            return bytemuck::cast(fetch(frame, place));
        }
        let stride = w as usize * Frame::COMPONENTS;
        let mut at = (top * w + left) as usize * Frame::COMPONENTS;
        // Two columns each.
        let mut sums = [_mm256_setzero_ps(); 2];
        for weight in rows {
            let Some((halves, _)) = frame.pixels()[at..].split_first_chunk::<16>() else { break };
            let weight = _mm256_set1_ps(*weight);
            let [low, high]: [__m128i; 2] = bytemuck::cast(*halves);
            let values = [_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high)];
            sums[0] = _mm256_fmadd_ps(weight, _mm256_cvtepi32_ps(values[0]), sums[0]);
            sums[1] = _mm256_fmadd_ps(weight, _mm256_cvtepi32_ps(values[1]), sums[1]);
            at += stride;
        }
        let [a, b, c, d] = columns.map(|weight| _mm_set1_ps(weight));
        let sum = _mm256_mul_ps(_mm256_set_m128(b, a), sums[0]);
        let sum = _mm256_fmadd_ps(_mm256_set_m128(d, c), sums[1], sum);
        _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum))
    }
}
