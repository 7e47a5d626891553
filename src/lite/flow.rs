// SPDX-License-Identifier: MIT OR Apache-2.0
//! Motion between two neighbours, seen from a time between them.
//!
//! From coarse to fine, each level takes the flow of the one before. For a pixel of the frame to be made,
//! and for every small change of its flow, it compares the two places that the flow leads to, one in each
//! neighbour. A network sees these differences, improves the flow, and says which neighbour shows what is
//! seen here.

#[cfg(target_arch = "x86_64")]
mod fma;

use multiversion::multiversion;
use rayon::prelude::*;

use super::{
    memory::Memory,
    network::{COARSE, FINE, Matcher},
    plane::{MOST, Place, Plane},
    weights::Networks,
};
use crate::{
    engine::{Cancel, Error},
    ops::{Chain, band_rows},
};

/// Numbers that a level hands to the next beside the flow: which neighbour to trust, and what the network
/// wants to remember.
pub const STATE: usize = 14;

/// The flow of a pixel counts this much in what a network sees.
const FLOW_SCALE: f32 = 0.1;

/// What a network gives for a pixel: a change of the flow, then the state.
pub const GIVEN: usize = 2 + STATE;

/// Differences are scaled to about this mean, but those about as small as noise less.
const TYPICAL: f32 = 0.05;
const NOISE: f32 = 0.01;

/// Displacements (x, y) of each pixel from the first neighbour to the second, in pixels of a level.
pub type Flow = Vec<[f32; 2]>;

/// How many times a picture of (w, h) is halved: the smallest is still large enough to see shapes in.
pub fn levels((w, h): (usize, usize)) -> usize {
    ((w.min(h) / 3).max(1).ilog2() as usize).max(2)
}

/// What is known at a level before its network has seen it.
#[derive(Debug)]
pub struct Level<'a> {
    /// The neighbours, as large as the level.
    pub neighbours: [&'a Plane; 2],
    /// Between 0, the first neighbour, and 1.
    pub time: f32,
    /// [h, w].
    pub flow: Flow,
}

impl Level<'_> {
    /// Writes what `matcher` sees at a pixel: differences for all changes of the flow, both neighbours, the
    /// flow. All but the state.
    #[inline]
    pub fn see(&self, matcher: &Matcher, x: usize, y: usize, seen: &mut [f32]) {
        let [first, second] = self.neighbours;
        let (before, after) = (-self.time, 1.0 - self.time);
        let [vx, vy] = self.flow[y * first.width + x];
        let count = 2 * matcher.reach + 1;
        let looked_up = |plane: &Plane, time: f32| {
            let place = |at: usize, v: f32, n: usize| {
                at as f32 + time * (v + n as f32 - matcher.reach as f32)
            };
            let (mut xs, mut ys) = ([Place::default(); MOST], [Place::default(); MOST]);
            for (n, (px, py)) in xs.iter_mut().zip(&mut ys).enumerate().take(count) {
                *px = Place::new(place(x, vx, n), plane.width, 1);
                *py = Place::new(place(y, vy, n), plane.height, plane.width);
            }
            plane.grid(&xs[..count], &ys[..count])
        };
        let (a, b) = (looked_up(first, before), looked_up(second, after));
        let (differences, rest) = seen.split_at_mut(matcher.changes());
        let mut sum = 0.0;
        for ((differences, a), b) in differences.chunks_exact_mut(count).zip(&a).zip(&b) {
            for ((difference, a), b) in differences.iter_mut().zip(a).zip(b) {
                *difference = (a - b).abs();
                sum += *difference;
            }
        }
        (rest[0], rest[1]) = (a[matcher.reach][matcher.reach], b[matcher.reach][matcher.reach]);
        // Which of them is the smallest counts, not how strong the contrast is.
        let scale = TYPICAL / (sum / (count * count) as f32 + NOISE);
        differences.iter_mut().for_each(|difference| *difference *= scale);
        (rest[2], rest[3]) = (vx * FLOW_SCALE, vy * FLOW_SCALE);
    }

    /// Writes what `matcher` sees at the pixels of row y; behind each is room for the state.
    fn see_row(&self, matcher: &Matcher, y: usize, row: &mut [f32]) {
        let stride = matcher.seen() + STATE;
        #[cfg(target_arch = "x86_64")]
        if self.neighbours[0].width >= fma::LANES
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            match matcher.reach {
                // SAFETY: the processor has what the function is compiled for.
                1 => return unsafe { fma::see::<3>(self, y, stride, row) },
                // SAFETY: as above.
                2 => return unsafe { fma::see::<5>(self, y, stride, row) },
                _ => {}
            }
        }
        for (x, pixel) in row.chunks_exact_mut(stride).enumerate() {
            self.see(matcher, x, y, &mut pixel[..matcher.seen()]);
        }
    }
}

/// The flow at twice the size (w, h), from (w/2, h/2) rounded up: bilinear.
pub fn double(flow: &[[f32; 2]], (w, h): (usize, usize)) -> Flow {
    let (from_w, from_h) = (w.div_ceil(2), h.div_ceil(2));
    // Pixel x of the finer level lies at (x + ½)/2 − ½ of the coarser.
    let place = |x: usize, count: usize| {
        let near = x / 2;
        let far =
            if x.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(count - 1) };
        (near, far)
    };
    let mut doubled = Vec::with_capacity(w * h);
    for y in 0..h {
        let (near_y, far_y) = place(y, from_h);
        let (near_row, far_row) = (&flow[near_y * from_w..], &flow[far_y * from_w..]);
        for x in 0..w {
            let (near, far) = place(x, from_w);
            doubled.push(std::array::from_fn(|i| {
                // Twice 9/16, 3/16, 3/16, 1/16: a pixel is half as long.
                1.125 * near_row[near][i]
                    + 0.375 * (near_row[far][i] + far_row[near][i])
                    + 0.125 * far_row[far][i]
            }));
        }
    }
    doubled
}

/// A picture, and smaller ones, each half as large as the one before.
#[derive(Debug)]
pub struct Pyramid(pub Vec<Plane>);

impl Pyramid {
    /// As many as a flow needs levels.
    pub fn new(plane: Plane) -> Self {
        let levels = levels((plane.width, plane.height));
        let mut planes = vec![plane];
        for n in 0..levels {
            planes.push(planes[n].halve());
        }
        Self(planes)
    }

    /// The picture itself.
    pub(super) fn base(&self) -> &Plane {
        &self.0[0]
    }
}

/// How a frame is to be made of its neighbours, at half their size.
pub(super) struct Motion {
    pub width: usize,
    pub height: usize,
    /// Displacements (x, y) from the first to the second, in pixels of this size.
    pub flow: Flow,
    /// The share of the first neighbour, 0 to 1.
    pub first: Vec<f32>,
    /// Whether the neighbours have nothing in common, wherever the flow leads.
    pub cut: bool,
}

/// Motion between `neighbours` as seen at `time`.
pub(super) fn estimate(
    networks: &Networks,
    memory: &Memory,
    neighbours: [&Pyramid; 2],
    time: f32,
    cancel: &Cancel,
) -> Result<Motion, Error> {
    let mut given: Vec<f32> = Vec::new();
    let mut flow = Flow::new();
    for n in (1..neighbours[0].0.len()).rev() {
        cancel.check()?;
        let planes = neighbours.map(|pyramid| &pyramid.0[n]);
        let size = (planes[0].width, planes[0].height);
        flow = match flow.is_empty() {
            true => vec![[0.0; 2]; size.0 * size.1],
            false => double(&flow, size),
        };
        let (matcher, chain) = match n {
            1 => (FINE, &networks.fine),
            _ => (COARSE, &networks.coarse),
        };
        let level = Level { neighbours: planes, time, flow };
        given = run(&level, &matcher, (chain, memory), &given);
        flow = level.flow;
        for (flow, given) in flow.iter_mut().zip(given.chunks_exact(GIVEN)) {
            flow[0] += given[0];
            flow[1] += given[1];
        }
    }
    let prior = ((1.0 - time) / time).ln();
    let first = given.chunks_exact(GIVEN).map(|given| 1.0 / (1.0 + (-given[2] - prior).exp()));
    let [a, b] = neighbours.map(|pyramid| &pyramid.0[1]);
    let (width, height) = (a.width, a.height);
    let mut motion = Motion { width, height, first: first.collect(), flow, cut: false };
    motion.look(a, b, time);
    Ok(motion)
}

/// What a network gives for a level; `before` is what it gave for the coarser one.
fn run(
    level: &Level,
    matcher: &Matcher,
    (chain, memory): (&Chain, &Memory),
    before: &[f32],
) -> Vec<f32> {
    let (width, height) = (level.neighbours[0].width, level.neighbours[0].height);
    let seen = matcher.seen();
    let coarser = before.as_chunks::<GIVEN>().0;
    let input = |y: usize, row: &mut [f32]| {
        level.see_row(matcher, y, row);
        for (x, pixel) in row.chunks_exact_mut(seen + STATE).enumerate() {
            let state = coarser.get(y / 2 * width.div_ceil(2) + x / 2);
            let state = state.and_then(|given| given.last_chunk()).unwrap_or(&[0.0; STATE]);
            pixel[seen..].copy_from_slice(state);
        }
    };
    let mut given = vec![0.0; width * height * GIVEN];
    let band_rows = band_rows(height);
    given.par_chunks_mut(band_rows * width * GIVEN).enumerate().for_each(|(band, given)| {
        let first = band * band_rows;
        let rows = first..(first + band_rows).min(height);
        let output = |y: usize, row: &[f32]| {
            given[(y - first) * width * GIVEN..][..width * GIVEN].copy_from_slice(row);
        };
        memory.with_room(|room| chain.rows(room, (width, height), rows, input, output));
    });
    given
}

impl Motion {
    /// Compares the neighbours where the flow leads: stops it where they are the same without it, and
    /// notices a cut.
    fn look(&mut self, a: &Plane, b: &Plane, time: f32) {
        let width = self.width;
        let rows = self.flow.par_chunks_mut(width).enumerate().map(|(y, flow)| {
            stop(a, b, y, flow);
            let mut sums = Sums::default();
            for (x, &[vx, vy]) in flow.iter().enumerate() {
                let (x, y) = (x as f32, y as f32);
                sums.add(
                    a.sample(x - time * vx, y - time * vy),
                    b.sample(x + (1.0 - time) * vx, y + (1.0 - time) * vy),
                );
            }
            sums
        });
        // In a fixed order, whatever the threads.
        let mut sums = Sums::default();
        rows.collect::<Vec<_>>().into_iter().for_each(|row| sums.join(row));
        self.cut = sums.is_cut();
    }
}

/// Stops the flow of row y where nothing happens about a pixel: no difference beyond rounding.
#[multiversion(targets("x86_64+avx2+fma"))]
fn stop(a: &Plane, b: &Plane, y: usize, flow: &mut [[f32; 2]]) {
    const REACH: usize = 2;
    const ROUNDING: f32 = 1.2 / 255.0;
    let width = a.width;
    // The largest difference of a column; beyond the border there is none.
    let mut off = vec![0.0_f32; width + 2 * REACH];
    for y in y.saturating_sub(REACH)..(y + REACH + 1).min(a.height) {
        let rows = a.values[y * width..][..width].iter().zip(&b.values[y * width..][..width]);
        for (off, (a, b)) in off[REACH..].iter_mut().zip(rows) {
            *off = off.max((a - b).abs());
        }
    }
    for (flow, off) in flow.iter_mut().zip(off.array_windows::<{ 2 * REACH + 1 }>()) {
        if off.iter().all(|&off| off < ROUNDING) {
            *flow = [0.0; 2];
        }
    }
}

/// Of pairs of values.
#[derive(Default)]
struct Sums {
    count: f64,
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
    off: f64,
}

impl Sums {
    fn add(&mut self, a: f32, b: f32) {
        let (a, b) = (f64::from(a), f64::from(b));
        self.join(Self { count: 1.0, a, b, aa: a * a, bb: b * b, ab: a * b, off: (a - b).abs() });
    }

    fn join(&mut self, other: Self) {
        self.count += other.count;
        self.a += other.a;
        self.b += other.b;
        self.aa += other.aa;
        self.bb += other.bb;
        self.ab += other.ab;
        self.off += other.off;
    }

    /// Pictures of two scenes differ much, and not by light alone: they hardly correlate.
    fn is_cut(&self) -> bool {
        const DIFFERENCE: f64 = 0.04;
        const CORRELATION: f64 = 0.6;
        let mean = |sum: f64| sum / self.count;
        let spread = |square: f64, value: f64| (mean(square) - mean(value).powi(2)).max(0.0);
        let covariance = mean(self.ab) - mean(self.a) * mean(self.b);
        let most = (spread(self.aa, self.a) * spread(self.bb, self.b)).sqrt();
        // What has no contrast correlates with nothing, and fades well.
        mean(self.off) > DIFFERENCE && most > 1e-4 && covariance < CORRELATION * most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_seen_as_its_pixels_are_one_by_one() {
        let picture = |seed: usize, width: usize| {
            let mut plane = Plane::new(width, 9);
            let values = plane.values.iter_mut().enumerate();
            values.for_each(|(n, value)| *value = ((n + seed) * 7919 % 101) as f32 / 101.0);
            plane
        };
        for (matcher, width) in [(COARSE, 23), (FINE, 23), (COARSE, 8), (FINE, 5)] {
            let (first, second) = (picture(0, width), picture(50, width));
            // Some lead beyond the borders.
            let flow = (0..width * 9).map(|n| [n as f32 % 17.3 - 8.0, n as f32 % 7.9 - 4.0]);
            let level = Level { neighbours: [&first, &second], time: 0.3, flow: flow.collect() };
            let mut row = vec![0.0; width * (matcher.seen() + STATE)];
            for y in 0..9 {
                level.see_row(&matcher, y, &mut row);
                for (x, pixel) in row.chunks_exact(matcher.seen() + STATE).enumerate() {
                    let mut seen = vec![0.0; matcher.seen()];
                    level.see(&matcher, x, y, &mut seen);
                    let off = seen.iter().zip(pixel).map(|(a, b)| (a - b).abs());
                    assert!(off.fold(0.0, f32::max) < 1e-4, "at ({x}, {y}): {pixel:?}");
                }
            }
        }
    }
}
