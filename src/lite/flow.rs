// SPDX-License-Identifier: MIT OR Apache-2.0
//! Optical flow between two neighbouring frames, at a time between them.
//!
//! The estimate is refined from coarse to fine on an image pyramid. Each level upsamples the flow of the
//! coarser one, and builds a cost volume: for each pixel of the frame to interpolate and each candidate in a
//! search window around its flow, the absolute difference between the two frames at both ends of the motion
//! vector. A network reads the costs, refines the flow, and estimates occlusion: which of the two frames
//! shows the pixel. On the finest level, vectors that match better then spread to pixels nearby, and steps of Lucas and
//! Kanade's method correct the flow by fractions of a pixel. In a fade, the first frame is first matched to the tone of the second.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod lucas_kanade;
mod propagation;

use multiversion::multiversion;
use rayon::prelude::*;

use super::{
    network::{COARSE, FINE, FlowRefiner},
    overlay::Overlay,
    plane::{LinearTap, MAX_GRID, Plane},
    pool::FramePool,
    tone::Tone,
    weights::Networks,
};
use crate::{
    engine::{Cancel, Error, zeroed},
    ops::{ConvChain, band_rows},
};

/// Channels of the state that a level passes to the next finer one: the logit of the first frame's visibility,
/// then features that the network has learned.
pub const STATE_CHANNELS: usize = 14;

/// Output channels of a network: the flow residual (x, y), then the state.
pub const OUTPUT_CHANNELS: usize = 2 + STATE_CHANNELS;

/// Scale of the flow, in pixels, as an input feature.
const FLOW_SCALE: f32 = 0.1;

/// Costs are normalized to this mean per pixel.
const MEAN_COST: f32 = 0.05;

/// Added to the mean cost before the division, so that noise in flat areas is not amplified.
const COST_FLOOR: f32 = 0.01;

/// Motion vectors (x, y) [h, w] from the first frame to the second, in pixels of a level.
pub type Flow = Vec<[f32; 2]>;

/// Number of halvings in the pyramid of a frame of (w, h): the coarsest level has sides of 3 pixels or more,
/// where the frame allows it.
pub fn pyramid_levels((w, h): (usize, usize)) -> usize {
    ((w.min(h) / 3).max(1).ilog2() as usize).max(2)
}

/// The input of a network at one pyramid level.
#[derive(Debug)]
pub struct FlowLevel<'a> {
    /// The two frames at this level, each [h, w].
    pub neighbours: [&'a Plane; 2],
    /// Time of the interpolated frame: 0 is the first frame, 1 the second.
    pub time: f32,
    /// The flow to refine, [h, w].
    pub flow: Flow,
}

impl FlowLevel<'_> {
    /// Writes the features of pixel (x, y) except the state: the normalized cost of each candidate, the
    /// sample of each frame at the flow, and the scaled flow. `features` has [`FlowRefiner::features`] values.
    #[inline]
    pub fn write_features(&self, refiner: &FlowRefiner, x: usize, y: usize, features: &mut [f32]) {
        let [first, second] = self.neighbours;
        let radius = refiner.search_radius;
        let [vx, vy] = self.flow[y * first.width + x];
        let side = 2 * radius + 1;
        // The samples of one frame for all candidates, `time` being the fraction of the motion vector.
        let candidates = |plane: &Plane, time: f32| {
            let position =
                |at: usize, v: f32, n: usize| at as f32 + time * (v + n as f32 - radius as f32);
            let mut xs = [LinearTap::default(); MAX_GRID];
            let mut ys = [LinearTap::default(); MAX_GRID];
            for (n, (px, py)) in xs.iter_mut().zip(&mut ys).enumerate().take(side) {
                *px = LinearTap::new(position(x, vx, n), plane.width, 1);
                *py = LinearTap::new(position(y, vy, n), plane.height, plane.width);
            }
            plane.sample_grid(&xs[..side], &ys[..side])
        };
        let (a, b) = (candidates(first, -self.time), candidates(second, 1.0 - self.time));
        let (costs, rest) = features.split_at_mut(refiner.candidates());
        let mut sum = 0.0;
        for ((costs, a), b) in costs.chunks_exact_mut(side).zip(&a).zip(&b) {
            for ((cost, a), b) in costs.iter_mut().zip(a).zip(b) {
                *cost = (a - b).abs();
                sum += *cost;
            }
        }
        (rest[0], rest[1]) = (a[radius][radius], b[radius][radius]);
        // Makes the costs independent of the contrast.
        let scale = MEAN_COST / (sum / (side * side) as f32 + COST_FLOOR);
        costs.iter_mut().for_each(|cost| *cost *= scale);
        (rest[2], rest[3]) = (vx * FLOW_SCALE, vy * FLOW_SCALE);
    }

    /// [`write_features`](Self::write_features) for all pixels of row y: `row` is [w, features + state], and
    /// the state of each pixel is left undefined.
    fn write_feature_row(&self, refiner: &FlowRefiner, y: usize, row: &mut [f32]) {
        let stride = refiner.features() + STATE_CHANNELS;
        #[cfg(target_arch = "x86_64")]
        if self.neighbours[0].width >= avx2::LANES
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            match refiner.search_radius {
                // SAFETY: the CPU supports AVX2 and FMA.
                1 => return unsafe { avx2::write_feature_row::<3>(self, y, stride, row) },
                // SAFETY: as above.
                2 => return unsafe { avx2::write_feature_row::<5>(self, y, stride, row) },
                _ => {}
            }
        }
        for (x, pixel) in row.chunks_exact_mut(stride).enumerate() {
            self.write_features(refiner, x, y, &mut pixel[..refiner.features()]);
        }
    }
}

/// Upsamples a flow to the next finer level of size (w, h), bilinearly, and doubles its vectors. `flow` is
/// [ceil(h/2), ceil(w/2)].
pub fn upsample(flow: &[[f32; 2]], (w, h): (usize, usize)) -> Flow {
    let (from_w, from_h) = (w.div_ceil(2), h.div_ceil(2));
    // Pixel x lies at (x + ½)/2 − ½ of the coarser level: ¼ of a pixel from the nearest one.
    let taps = |x: usize, count: usize| {
        let near = x / 2;
        let far =
            if x.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(count - 1) };
        (near, far)
    };
    let mut upsampled = Vec::with_capacity(w * h);
    for y in 0..h {
        let (near_y, far_y) = taps(y, from_h);
        let (near_row, far_row) = (&flow[near_y * from_w..], &flow[far_y * from_w..]);
        for x in 0..w {
            let (near, far) = taps(x, from_w);
            upsampled.push(std::array::from_fn(|i| {
                // The bilinear weights 9/16, 3/16, 3/16 and 1/16, times 2 for the length of the vectors.
                1.125 * near_row[near][i]
                    + 0.375 * (near_row[far][i] + far_row[near][i])
                    + 0.125 * far_row[far][i]
            }));
        }
    }
    upsampled
}

/// An image pyramid: the plane at full size, then each level at half the size of the one before.
#[derive(Debug, Clone)]
pub struct Pyramid(pub Vec<Plane>);

impl Pyramid {
    /// Builds the [`pyramid_levels`] levels below `plane`.
    pub fn new(plane: Plane) -> Self {
        let levels = pyramid_levels((plane.width, plane.height));
        let mut planes = vec![plane];
        for n in 0..levels {
            planes.push(planes[n].halve());
        }
        Self(planes)
    }

    /// The plane at full size.
    pub(super) fn full_size(&self) -> &Plane {
        &self.0[0]
    }

    /// The coarsest level with sides of at least 12 pixels, or full size.
    fn thumbnail(&self) -> &Plane {
        let is_large = |plane: &&Plane| plane.width.min(plane.height) >= 12;
        self.0.iter().rev().find(is_large).unwrap_or(&self.0[0])
    }

    /// All levels in another tone.
    fn map(&self, tone: Tone) -> Self {
        let map = |plane: &Plane| Plane {
            values: plane.values.par_iter().map(|luma| tone.map(*luma)).collect(),
            ..*plane
        };
        Self(self.0.iter().map(map).collect())
    }
}

/// The motion between two frames at a time between them, on the finest level (half the size of the frames).
pub(super) struct Motion {
    pub width: usize,
    pub height: usize,
    /// Motion vectors (x, y) [h, w] from the first frame to the second, in pixels of this level.
    pub flow: Flow,
    /// Blend weight of the first frame [h, w], 0 to 1.
    pub first_weight: Vec<f32>,
    /// The maps of each frame to the tone of the interpolated frame.
    pub tones: [Tone; 2],
    /// What stands still in front of what moves.
    pub overlay: Option<Overlay>,
}

/// Estimates the motion between `neighbours` at `time`, 0 to 1.
pub(super) fn estimate(
    networks: &Networks,
    pool: &FramePool,
    neighbours: [&Pyramid; 2],
    time: f32,
    cancel: &Cancel,
) -> Result<Motion, Error> {
    let originals = neighbours;
    let tone = Tone::between(neighbours.map(Pyramid::thumbnail));
    let matched = tone.map(|tone| neighbours[0].map(tone));
    let neighbours = [matched.as_ref().unwrap_or(neighbours[0]), neighbours[1]];
    let tones = tone.map_or([Tone::IDENTITY; 2], |tone| tone.at(time));

    let mut output: Vec<f32> = Vec::new();
    let mut flow = Flow::new();
    for n in (1..neighbours[0].0.len()).rev() {
        cancel.check()?;
        let planes = neighbours.map(|pyramid| &pyramid.0[n]);
        let size = (planes[0].width, planes[0].height);
        flow = match flow.is_empty() {
            true => vec![[0.0; 2]; size.0 * size.1],
            false => upsample(&flow, size),
        };
        let (refiner, chain) = match n {
            1 => (FINE, &networks.fine),
            _ => (COARSE, &networks.coarse),
        };
        let level = FlowLevel { neighbours: planes, time, flow };
        output = run_level(&level, &refiner, (chain, pool), &output, cancel)?;
        flow = level.flow;
        for (flow, output) in flow.iter_mut().zip(output.chunks_exact(OUTPUT_CHANNELS)) {
            flow[0] += output[0];
            flow[1] += output[1];
        }
    }
    let finest = neighbours.map(|pyramid| &pyramid.0[1]);
    propagation::propagate(&mut flow, finest, time, cancel)?;
    lucas_kanade::refine(&mut flow, finest, time, cancel)?;
    // The nearer frame is preferred: the prior of the first frame is 1 − time. So is the one whose noise is amplified
    // less: the other factor is that of the inverse variances.
    let prior = ((1.0 - time) / time).ln() + 2.0 * (tones[1].gain / tones[0].gain).ln();
    let [a, b] = originals.map(|pyramid| &pyramid.0[1]);
    let mut first_weight = zeroed((a.width, a.height), 1)?;
    let weights = first_weight.par_chunks_mut(a.width);
    weights.zip(output.par_chunks(a.width * OUTPUT_CHANNELS)).for_each(
        |(weights, outputs): (&mut [f32], _)| {
            let outputs = outputs.as_chunks::<OUTPUT_CHANNELS>().0;
            for (weight, output) in weights.iter_mut().zip(outputs) {
                *weight = 1.0 / (1.0 + (-output[2] - prior).exp());
            }
        },
    );
    zero_static_areas(&mut flow, [a, b], cancel)?;
    let overlay = Overlay::find(neighbours.map(Pyramid::full_size), &flow, cancel)?;
    Ok(Motion { width: a.width, height: a.height, flow, first_weight, tones, overlay })
}

/// Runs the network of a level: its output is [h, w, [`OUTPUT_CHANNELS`]]. `coarser` is the output of the
/// coarser level, empty for the coarsest.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Cancelled`].
fn run_level(
    level: &FlowLevel,
    refiner: &FlowRefiner,
    (chain, pool): (&ConvChain, &FramePool),
    coarser: &[f32],
    cancel: &Cancel,
) -> Result<Vec<f32>, Error> {
    let (width, height) = (level.neighbours[0].width, level.neighbours[0].height);
    let features = refiner.features();
    let coarser = coarser.as_chunks::<OUTPUT_CHANNELS>().0;
    let input = |y: usize, row: &mut [f32]| {
        level.write_feature_row(refiner, y, row);
        for (x, pixel) in row.chunks_exact_mut(features + STATE_CHANNELS).enumerate() {
            let state = coarser.get(y / 2 * width.div_ceil(2) + x / 2);
            let state =
                state.and_then(|output| output.last_chunk()).unwrap_or(&[0.0; STATE_CHANNELS]);
            pixel[features..].copy_from_slice(state);
        }
    };
    let row_len = width * OUTPUT_CHANNELS;
    let mut output = zeroed((width, height), OUTPUT_CHANNELS)?;
    let band_rows = band_rows(height);
    output.par_chunks_mut(band_rows * row_len).enumerate().try_for_each(|(band, output)| {
        let first = band * band_rows;
        let rows = first..(first + band_rows).min(height);
        let write = |y: usize, row: &[f32]| {
            cancel.check()?;
            output[(y - first) * row_len..][..row_len].copy_from_slice(row);
            Ok(())
        };
        pool.with_scratch(|scratch| chain.run(scratch, (width, height), rows, input, write))
    })?;
    Ok(output)
}

/// Zeroes the flow of static areas.
fn zero_static_areas(
    flow: &mut [[f32; 2]],
    [a, b]: [&Plane; 2],
    cancel: &Cancel,
) -> Result<(), Error> {
    flow.par_chunks_mut(a.width).enumerate().try_for_each(|(y, flow)| {
        cancel.check()?;
        zero_static_flow(a, b, y, flow);
        Ok(())
    })
}

/// Zeroes the flow of the pixels of row y in whose 5×5 neighbourhood the frames are equal up to the rounding
/// of 8-bit video.
#[multiversion(targets("x86_64+avx2+fma"))]
fn zero_static_flow(a: &Plane, b: &Plane, y: usize, flow: &mut [[f32; 2]]) {
    const RADIUS: usize = 2;
    const ROUNDING: f32 = 1.2 / 255.0;
    let width = a.width;
    // The largest difference in each column; 0 beyond the border.
    let mut largest = vec![0.0_f32; width + 2 * RADIUS];
    for y in y.saturating_sub(RADIUS)..(y + RADIUS + 1).min(a.height) {
        let rows = a.values[y * width..][..width].iter().zip(&b.values[y * width..][..width]);
        for (largest, (a, b)) in largest[RADIUS..].iter_mut().zip(rows) {
            *largest = largest.max((a - b).abs());
        }
    }
    for (flow, largest) in flow.iter_mut().zip(largest.array_windows::<{ 2 * RADIUS + 1 }>()) {
        if largest.iter().all(|&difference| difference < ROUNDING) {
            *flow = [0.0; 2];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_rows_equal_the_features_of_single_pixels() {
        let image = |seed: usize, width: usize| {
            let mut plane = Plane::new(width, 9);
            let values = plane.values.iter_mut().enumerate();
            values.for_each(|(n, value)| *value = ((n + seed) * 7919 % 101) as f32 / 101.0);
            plane
        };
        for (refiner, width) in [(COARSE, 23), (FINE, 23), (COARSE, 8), (FINE, 5)] {
            let (first, second) = (image(0, width), image(50, width));
            // Some vectors point outside the planes.
            let flow = (0..width * 9).map(|n| [n as f32 % 17.3 - 8.0, n as f32 % 7.9 - 4.0]);
            let level =
                FlowLevel { neighbours: [&first, &second], time: 0.3, flow: flow.collect() };
            let stride = refiner.features() + STATE_CHANNELS;
            let mut row = vec![0.0; width * stride];
            for y in 0..9 {
                level.write_feature_row(&refiner, y, &mut row);
                for (x, pixel) in row.chunks_exact(stride).enumerate() {
                    let mut features = vec![0.0; refiner.features()];
                    level.write_features(&refiner, x, y, &mut features);
                    let error = features.iter().zip(pixel).map(|(a, b)| (a - b).abs());
                    assert!(error.fold(0.0, f32::max) < 1e-4, "at ({x}, {y}): {pixel:?}");
                }
            }
        }
    }
}
