// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds what stands still in front of moving content, such as subtitles and logos.
//!
//! The flow of a picture area carries thin still shapes along with what moves behind them. So each pixel gets a second
//! candidate, no motion. It is taken where the two frames are equal at the pixel but not along the flow, and where
//! such pixels are not scattered: there they are coincidences.

use rayon::prelude::*;

use super::{flow::Flow, plane::Plane};
use crate::engine::{Cancel, Error, zeroed};

/// Motion in pixels from which on the two candidates differ.
const MIN_MOTION: f32 = 0.5;
/// The luma of a still pixel differs by less than this: compression changes it.
const MAX_CHANGE: f32 = 0.027;
/// Along the flow, the difference is larger than this, and than [`MIN_RATIO`] times that of the pixel.
const MIN_COST: f32 = 0.11;
const MIN_RATIO: f32 = 2.0;
/// Side of the tiles in which still pixels are counted.
const TILE: usize = 16;
/// The part of the pixels of 3×3 tiles that must be still.
const MIN_DENSITY: f32 = 0.06;
/// Times that the still area grows to pixels that are equal in both frames.
const GROWTH: usize = 2;
/// Still pixels among the eight around one to which the area grows.
const MIN_STILL_NEIGHBOURS: usize = 3;

/// What stands still between two frames of (w, h), in front of what moves.
pub(super) struct Overlay {
    /// 1 where the picture stands still, else 0 [h, w].
    still: Plane,
    /// Whether a still pixel may be in a tile or in one around it, [h/16, w/16] rounded up.
    near: Vec<bool>,
}

/// The class of a pixel.
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(u8)]
enum Class {
    /// It moves, or it cannot be told apart.
    Moving,
    /// Both frames are equal; along the flow they may be so as well.
    Equal,
    Still,
}

impl Overlay {
    /// Finds what stands still between two frames; `flow` is [ceil(h/2), ceil(w/2)] in pixels of its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub(super) fn find(
        [a, b]: [&Plane; 2],
        flow: &Flow,
        cancel: &Cancel,
    ) -> Result<Option<Self>, Error> {
        let size @ (width, height) = (a.width, a.height);
        let mut classes: Vec<Class> = zeroed(size, 1)?;
        classes.par_chunks_mut(width).enumerate().try_for_each(|(y, classes)| {
            cancel.check()?;
            let flow = &flow[y / 2 * width.div_ceil(2)..];
            for (x, class) in classes.iter_mut().enumerate() {
                *class = classify([a, b], (x, y), flow[x / 2].map(|v| 2.0 * v));
            }
            Ok::<_, Error>(())
        })?;

        let tiles = (width.div_ceil(TILE), height.div_ceil(TILE));
        let dense = dense_tiles(&classes, size, tiles);
        if !dense.contains(&true) {
            return Ok(None);
        }
        for _ in 0..GROWTH {
            grow(&mut classes, size, &dense, cancel)?;
        }
        let mut still = Plane { width, height, values: zeroed(size, 1)? };
        for (n, (value, class)) in still.values.iter_mut().zip(&classes).enumerate() {
            let tile = n / width / TILE * tiles.0 + n % width / TILE;
            *value = f32::from(u8::from(*class == Class::Still && dense[tile]));
        }
        let near = (0..dense.len())
            .map(|n| around((n % tiles.0, n / tiles.0), tiles).any(|tile| dense[tile]));
        Ok(Some(Self { near: near.collect(), still }))
    }

    /// Row y of a frame of (w, h), unless nothing is still near it.
    pub(super) fn row(&self, y: usize, (w, h): (usize, usize)) -> Option<OverlayRow<'_>> {
        let Plane { width, height, .. } = self.still;
        let scale = [width as f32 / w as f32, height as f32 / h as f32];
        let columns = width.div_ceil(TILE);
        let near = &self.near[y * height / h / TILE * columns..][..columns];
        let row = OverlayRow { still: &self.still, near, scale, y: y as f32 };
        near.contains(&true).then_some(row)
    }
}

/// What of an [`Overlay`] is near a row of a frame of any size. Positions are in pixels of the frame.
#[derive(Clone, Copy)]
pub(super) struct OverlayRow<'a> {
    still: &'a Plane,
    near: &'a [bool],
    /// From pixels of the frame to those of the overlay.
    scale: [f32; 2],
    y: f32,
}

impl OverlayRow<'_> {
    /// Whether a still pixel may be near pixel x.
    pub(super) fn is_near(&self, x: usize) -> bool {
        self.near.get((x as f32 * self.scale[0]) as usize / TILE).copied().unwrap_or(false)
    }

    /// How still pixel x is, 0 to 1, and the blend weight of the first frame where it moves: `weight`, less what
    /// still pixels hide. `ends` are the positions (x, y) in both frames along the flow.
    pub(super) fn weigh(&self, x: usize, ends: [[f32; 2]; 2], weight: f32) -> (f32, f32) {
        // Where both ends are hidden, the weight stays.
        const LEAST: f32 = 1e-3;
        let [a, b] = ends.map(|end| 1.0 - self.stillness(end) + LEAST);
        let (a, b) = (weight * a, (1.0 - weight) * b);
        (self.stillness([x as f32, self.y]), if a + b > 0.0 { a / (a + b) } else { weight })
    }

    fn stillness(&self, [x, y]: [f32; 2]) -> f32 {
        let [sx, sy] = self.scale;
        self.still.sample((x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5)
    }
}

/// The class of pixel (x, y), whose flow (in pixels of the frames) is `flow`.
fn classify([a, b]: [&Plane; 2], (x, y): (usize, usize), [vx, vy]: [f32; 2]) -> Class {
    let at = y * a.width + x;
    let (first, second) = (a.values[at], b.values[at]);
    let change = (first - second).abs();
    if vx.abs().max(vy.abs()) < MIN_MOTION || change >= MAX_CHANGE {
        return Class::Moving;
    }
    let (x, y) = (x as f32, y as f32);
    let forward = (first - b.sample(x + vx, y + vy)).abs();
    let backward = (second - a.sample(x - vx, y - vy)).abs();
    match 0.5 * (forward + backward) > MIN_RATIO * change + MIN_COST {
        true => Class::Still,
        false => Class::Equal,
    }
}

/// The tiles around which many pixels are still.
fn dense_tiles(
    classes: &[Class],
    (width, height): (usize, usize),
    tiles: (usize, usize),
) -> Vec<bool> {
    let mut counts = vec![0_usize; tiles.0 * tiles.1];
    for (y, row) in classes.chunks_exact(width).enumerate() {
        let counts = &mut counts[y / TILE * tiles.0..];
        for (count, classes) in counts.iter_mut().zip(row.chunks(TILE)) {
            *count += classes.iter().filter(|class| **class == Class::Still).count();
        }
    }
    let side = |tile: usize, size: usize| TILE.min(size - tile * TILE);
    let is_dense = |n: usize| {
        let (mut still, mut pixels) = (0, 0);
        for tile in around((n % tiles.0, n / tiles.0), tiles) {
            still += counts[tile];
            pixels += side(tile % tiles.0, width) * side(tile / tiles.0, height);
        }
        still as f32 > MIN_DENSITY * pixels as f32
    };
    (0..counts.len()).map(is_dense).collect()
}

/// The indices of (x, y) and of those around it, in a grid of (w, h).
fn around((x, y): (usize, usize), (w, h): (usize, usize)) -> impl Iterator<Item = usize> {
    let range = |at: usize, size: usize| at.saturating_sub(1)..(at + 2).min(size);
    range(y, h).flat_map(move |y| range(x, w).map(move |x| y * w + x))
}

/// Makes pixels still that are equal in both frames and beside still ones, in dense tiles.
fn grow(
    classes: &mut [Class],
    size @ (width, _): (usize, usize),
    dense: &[bool],
    cancel: &Cancel,
) -> Result<(), Error> {
    let columns = width.div_ceil(TILE);
    let rows = classes.par_chunks(width).enumerate().map(|(y, row)| {
        cancel.check()?;
        let dense = &dense[y / TILE * columns..];
        let grows = |(x, class): (usize, &Class)| {
            let still = || around((x, y), size).filter(|n| classes[*n] == Class::Still).count();
            (*class == Class::Equal && dense[x / TILE] && still() >= MIN_STILL_NEIGHBOURS)
                .then_some(y * width + x)
        };
        Ok(row.iter().enumerate().filter_map(grows).collect::<Vec<_>>())
    });
    let grown: Vec<_> = rows.collect::<Result<_, Error>>()?;
    grown.into_iter().flatten().for_each(|n| classes[n] = Class::Still);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A texture that has moved right by `shift`; with `bars`, still ones stand in front of it.
    fn plane(shift: usize, bars: bool) -> Plane {
        let mut plane = Plane::new(160, 96);
        for (n, value) in plane.values.iter_mut().enumerate() {
            let (x, y) = (n % 160, n / 160);
            let bar = bars && (40..120).contains(&x) && (40..56).contains(&y) && x % 11 < 3;
            let cell = ((x + 8 - shift) / 3 * 7919) as u32 ^ (y / 3 * 104_729) as u32;
            let texture = (cell.wrapping_mul(0x9E37_79B1) >> 16) % 90;
            *value = if bar { 0.9 } else { texture as f32 / 150.0 };
        }
        plane
    }

    fn find(planes: [&Plane; 2], flow: [f32; 2]) -> Option<Overlay> {
        Overlay::find(planes, &vec![flow; 80 * 48], &Cancel::default()).unwrap()
    }

    #[test]
    fn bars_that_stand_still_are_found_and_hide_what_moves_behind_them() {
        let overlay = find([&plane(0, true), &plane(8, true)], [4.0, 0.0]).unwrap();
        let (mut bars, mut ground) = (0, 0);
        for n in 0..72 * 16 {
            let (x, y) = (44 + n % 72, 40 + n / 72);
            let still = usize::from(overlay.still.values[y * 160 + x] > 0.0);
            *if x % 11 < 3 { &mut bars } else { &mut ground } += still;
        }
        assert!(bars > 250, "{bars} of 336");
        assert!(ground < 160, "{ground} of 816");
        let size = (160, 96);
        assert!(overlay.row(3, size).is_none());
        let row = overlay.row(48, size).unwrap();
        assert!(row.is_near(80) && !row.is_near(3));
        let (still, weight) = row.weigh(78, [[78.0, 48.0], [94.0, 4.0]], 0.5);
        assert!(still > 0.9 && weight < 0.01, "{still} {weight}");
    }

    #[test]
    fn neither_what_moves_nor_a_still_picture_is_an_overlay() {
        assert!(find([&plane(0, false), &plane(8, false)], [4.0, 0.0]).is_none());
        assert!(find([&plane(0, true), &plane(0, true)], [0.0, 0.0]).is_none());
    }
}
