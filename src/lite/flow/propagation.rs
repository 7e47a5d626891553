// SPDX-License-Identifier: MIT OR Apache-2.0
//! Propagation of the flow: where the frames do not match along the vector of a pixel, it is replaced by the vector of a
//! pixel nearby along which they match better. This is the propagation step of PatchMatch (Barnes et al., "PatchMatch: A
//! Randomized Correspondence Algorithm", 2009).
//!
//! The networks search a small window on each level. Where they miss a fast object in a part of it, they often find it in
//! another.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{LinearTap, MAX_GRID, Plane};
use crate::engine::{Cancel, Error, zeroed};

/// Each round spreads vectors over at most the largest distance.
const ROUNDS: usize = 2;
/// Distances, horizontally and vertically, of the pixels whose vectors are tried.
const DISTANCES: [isize; 4] = [4, 10, 20, 40];
/// Side of a block: its centre chooses a vector, and each of its pixels takes it or keeps its own.
const BLOCK: usize = 4;
/// The rows and columns of a patch, relative to its centre.
const OFFSETS: [f32; 3] = [-2.0, 0.0, 2.0];
/// Patches whose mean difference is at least this do not match.
const MISMATCH: f32 = 0.015;
/// A vector replaces another one if its difference is less than this fraction of the other's.
const MAX_REST: f32 = 0.8;

/// Replaces vectors of the `flow` [h, w] at `time` between two planes.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Cancelled`].
pub(super) fn propagate(
    flow: &mut [[f32; 2]],
    neighbours: [&Plane; 2],
    time: f32,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (width, height) = (neighbours[0].width, neighbours[0].height);
    let mut before = Field { flow: zeroed((width, height), 1)?, neighbours, time };
    for _ in 0..ROUNDS {
        before.flow.copy_from_slice(flow);
        flow.par_chunks_mut(BLOCK * width).enumerate().try_for_each(|(row, flow)| {
            cancel.check()?;
            propagate_row(&before, row * BLOCK, flow);
            Ok::<_, Error>(())
        })?;
    }
    Ok(())
}

/// Replaces vectors of a row of blocks, `flow` from row `top` on.
#[multiversion(targets("x86_64+avx2+fma"))]
fn propagate_row(before: &Field, top: usize, flow: &mut [[f32; 2]]) {
    let (width, height) = (before.neighbours[0].width, before.neighbours[0].height);
    for left in (0..width).step_by(BLOCK) {
        let centre = ((left + BLOCK / 2).min(width - 1), (top + BLOCK / 2).min(height - 1));
        let Some(better) = before.better_nearby(centre) else { continue };
        for (n, row) in flow.chunks_exact_mut(width).enumerate() {
            let right = (left + BLOCK).min(width);
            for (x, vector) in (left..right).zip(&mut row[left..right]) {
                let difference = |vector| before.difference((x, top + n), vector);
                if difference(better) < MAX_REST * difference(*vector) {
                    *vector = better;
                }
            }
        }
    }
}

/// A flow [h, w] at `time` between two planes.
struct Field<'a> {
    flow: Vec<[f32; 2]>,
    neighbours: [&'a Plane; 2],
    time: f32,
}

impl Field<'_> {
    /// Of the vectors nearby, the one along which the planes match best around the pixel; `None` if the pixel's own is
    /// good enough or none is better.
    #[inline(always)]
    fn better_nearby(&self, (x, y): (usize, usize)) -> Option<[f32; 2]> {
        let (width, height) = (self.neighbours[0].width, self.neighbours[0].height);
        let own = self.difference((x, y), self.flow[y * width + x]);
        if own < MISMATCH {
            return None;
        }
        let (mut least, mut best) = (MAX_REST * own, None);
        for distance in DISTANCES {
            for (dx, dy) in [(distance, 0), (-distance, 0), (0, distance), (0, -distance)] {
                let (near_x, near_y) = (x.wrapping_add_signed(dx), y.wrapping_add_signed(dy));
                if near_x < width && near_y < height {
                    let vector = self.flow[near_y * width + near_x];
                    let difference = self.difference((x, y), vector);
                    if difference < least {
                        (least, best) = (difference, Some(vector));
                    }
                }
            }
        }
        best
    }

    /// The mean difference of both planes along `vector` in the patch around a pixel.
    #[inline(always)]
    fn difference(&self, (x, y): (usize, usize), [vx, vy]: [f32; 2]) -> f32 {
        let [first, second] = self.neighbours;
        let a = samples(first, (x as f32 - self.time * vx, y as f32 - self.time * vy));
        let rest = 1.0 - self.time;
        let b = samples(second, (x as f32 + rest * vx, y as f32 + rest * vy));
        let mut sum = 0.0;
        for (a, b) in a.iter().zip(&b).take(OFFSETS.len()) {
            for (a, b) in a.iter().zip(b).take(OFFSETS.len()) {
                sum += (a - b).abs();
            }
        }
        sum / (OFFSETS.len() * OFFSETS.len()) as f32
    }
}

/// Samples the patch around (x, y).
#[inline(always)]
fn samples(plane: &Plane, (x, y): (f32, f32)) -> [[f32; MAX_GRID]; MAX_GRID] {
    let xs = OFFSETS.map(|dx| LinearTap::new(x + dx, plane.width, 1));
    let ys = OFFSETS.map(|dy| LinearTap::new(y + dy, plane.height, plane.width));
    plane.sample_grid(&xs, &ys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (usize, usize) = (64, 48);

    /// A texture without repetition that has moved to the right.
    fn plane(motion: usize) -> Plane {
        let mut plane = Plane::new(SIZE.0, SIZE.1);
        for (n, value) in plane.values.iter_mut().enumerate() {
            let (x, y) = (n % SIZE.0 + SIZE.0 - motion, n / SIZE.0);
            *value = ((x / 3 * 7919 + y / 3 * 104_729) % 101) as f32 / 101.0;
        }
        plane
    }

    #[test]
    fn the_flow_of_matching_pixels_spreads() {
        let planes = [&plane(0), &plane(12)];
        // Found in the left half only.
        let mut flow: Vec<_> =
            (0..SIZE.0 * SIZE.1).map(|n| [if n % SIZE.0 < 32 { 12.0 } else { 0.0 }, 0.0]).collect();
        propagate(&mut flow, planes, 0.5, &Cancel::default()).unwrap();
        let found = flow.iter().filter(|[x, _]| *x == 12.0).count();
        assert!(found * 100 > flow.len() * 90, "{found} of {}", flow.len());
    }

    #[test]
    fn a_flow_along_which_the_planes_match_stays() {
        let planes = [&plane(0), &plane(0)];
        let mut flow: Vec<_> = (0..SIZE.0 * SIZE.1).map(|n| [0.0, (n % 2) as f32 * 0.01]).collect();
        let before = flow.clone();
        propagate(&mut flow, planes, 0.3, &Cancel::default()).unwrap();
        assert_eq!(flow, before);
    }

    #[test]
    fn planes_of_any_size_are_accepted() {
        for (width, height) in [(1, 1), (1, 9), (5, 1), (3, 40)] {
            let mut planes = [Plane::new(width, height), Plane::new(width, height)];
            planes[1].values.fill(1.0);
            let mut flow = vec![[0.7, -30.0]; width * height];
            propagate(&mut flow, planes.each_ref(), 0.4, &Cancel::default()).unwrap();
        }
    }
}
