// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sub-pixel refinement of the flow: steps of Lucas and Kanade's method (Lucas and Kanade, "An Iterative Image
//! Registration Technique with an Application to Stereo Vision", 1981) on the finest level.
//!
//! The networks compare candidates that are whole pixels apart. A fraction of a pixel shows in the difference of the
//! warped frames: d + g·δ = 0, where d is that difference, g its derivative by the flow, and δ the correction. Each pixel
//! solves this for its neighbourhood by weighted least squares.

#[cfg(target_arch = "x86_64")]
mod avx2;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Plane;
use crate::{
    engine::{Cancel, Error, zeroed},
    ops::band_rows,
};

/// Steps, each of which warps the frames anew.
const STEPS: usize = 2;
/// Radius of the neighbourhood.
const RADIUS: usize = 3;
/// Added to the mean squares of the derivatives: where they are smaller, noise would decide.
const DAMPING: f32 = 8e-5;
/// Differences from here on count less: what is occluded does not match.
const OUTLIER: f32 = 0.018;
/// The longest correction of a step in pixels: the model holds only for small ones.
const MAX_CORRECTION: f32 = 0.5;

/// Terms of the least squares of a pixel: gx², gx·gy, gy², gx·d and gy·d.
const TERMS: usize = 5;

/// Refines the `flow` [h, w] at `time` between two planes.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Cancelled`].
pub(super) fn refine(
    flow: &mut [[f32; 2]],
    neighbours: [&Plane; 2],
    time: f32,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (width, height) = (neighbours[0].width, neighbours[0].height);
    let mut warped: Vec<[f32; 2]> = zeroed((width, height), 1)?;
    for _ in 0..STEPS {
        let rows = warped.par_chunks_mut(width).zip(flow.par_chunks(width)).enumerate();
        rows.try_for_each(|(y, (warped, flow))| {
            cancel.check()?;
            warp_row(neighbours, time, y, flow, warped);
            Ok::<_, Error>(())
        })?;
        let band_rows = band_rows(height);
        let bands = flow.par_chunks_mut(band_rows * width).enumerate();
        bands.try_for_each(|(band, flow)| {
            cancel.check()?;
            correct_rows(&warped, width, band * band_rows, flow);
            Ok::<_, Error>(())
        })?;
    }
    Ok(())
}

/// Warps row y of both planes to `time`: writes [`warp_pixel`] for each pixel.
fn warp_row(planes: [&Plane; 2], time: f32, y: usize, flow: &[[f32; 2]], row: &mut [[f32; 2]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { avx2::warp_row(planes, time, y, flow, row) };
    }
    for (x, (out, vector)) in row.iter_mut().zip(flow).enumerate() {
        *out = warp_pixel(planes, time, (x, y), *vector);
    }
}

/// Warps pixel (x, y) of both planes to `time`: see [`warped`].
fn warp_pixel(
    [first, second]: [&Plane; 2],
    time: f32,
    (x, y): (usize, usize),
    [vx, vy]: [f32; 2],
) -> [f32; 2] {
    let (x, y, after) = (x as f32, y as f32, 1.0 - time);
    let a = first.sample_cubic(x - time * vx, y - time * vy);
    let b = second.sample_cubic(x + after * vx, y + after * vy);
    warped([a, b], time)
}

/// From the samples `a` and `b` of both planes: a value whose gradient over the image is the derivative of the difference
/// by the flow, and the difference.
#[inline(always)]
fn warped([a, b]: [f32; 2], time: f32) -> [f32; 2] {
    [time * a + (1.0 - time) * b, b - a]
}

/// Corrects the flow of whole rows from `first_row` on.
#[multiversion(targets("x86_64+avx2+fma"))]
fn correct_rows(warped: &[[f32; 2]], width: usize, first_row: usize, flow: &mut [[f32; 2]]) {
    let height = warped.len() / width;
    let rows_before = first_row.min(RADIUS);
    let top = first_row - rows_before;
    let bottom = (first_row + flow.len() / width + RADIUS).min(height);
    let stride = width * TERMS;
    let mut terms = vec![0.0_f32; (bottom - top) * stride];
    for (n, terms) in terms.chunks_exact_mut(stride).enumerate() {
        write_terms(warped, width, top + n, terms.as_chunks_mut().0);
    }
    // Beyond the border on both sides, the terms are 0.
    const MARGIN: usize = RADIUS * TERMS;
    let mut columns = vec![0.0_f32; stride + 2 * MARGIN];
    let mut sums = vec![0.0_f32; stride];
    for (n, flow) in flow.chunks_exact_mut(width).enumerate() {
        let row = n + rows_before;
        let window =
            row.saturating_sub(RADIUS) * stride..((row + RADIUS + 1) * stride).min(terms.len());
        columns[MARGIN..MARGIN + stride].fill(0.0);
        for terms in terms[window].chunks_exact(stride) {
            let columns = columns[MARGIN..].iter_mut().zip(terms);
            columns.for_each(|(column, term)| *column += term);
        }
        sums.fill(0.0);
        for offset in 0..2 * RADIUS + 1 {
            let columns = sums.iter_mut().zip(&columns[offset * TERMS..]);
            columns.for_each(|(sum, column)| *sum += column);
        }
        for (flow, sums) in flow.iter_mut().zip(sums.as_chunks().0) {
            let [dx, dy] = correction(*sums);
            *flow = [flow[0] + dx, flow[1] + dy];
        }
    }
}

/// Writes the weighted terms of row y.
#[inline(always)]
fn write_terms(warped: &[[f32; 2]], width: usize, y: usize, terms: &mut [[f32; TERMS]]) {
    let row = |y: usize| &warped[y * width..][..width];
    let height = warped.len() / width;
    let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1)));
    // Pixels at the border have no central difference: their terms stay 0.
    for x in 1..width.saturating_sub(1) {
        let gx = 0.5 * (here[x + 1][0] - here[x - 1][0]);
        let gy = 0.5 * (below[x][0] - above[x][0]);
        let difference = here[x][1];
        let ratio = difference * (1.0 / OUTLIER);
        let weight = 1.0 / (1.0 + ratio * ratio);
        let (wx, wy) = (weight * gx, weight * gy);
        terms[x] = [wx * gx, wx * gy, wy * gy, wx * difference, wy * difference];
    }
}

/// Solves the least squares: the correction (x, y) of the flow.
#[inline(always)]
fn correction([xx, xy, yy, xd, yd]: [f32; TERMS]) -> [f32; 2] {
    const PIXELS: f32 = ((2 * RADIUS + 1) * (2 * RADIUS + 1)) as f32;
    let (xx, yy) = (xx + DAMPING * PIXELS, yy + DAMPING * PIXELS);
    let scale = 1.0 / (xx * yy - xy * xy);
    let (dx, dy) = (scale * (xy * yd - yy * xd), scale * (xy * xd - xx * yd));
    let length = (dx * dx + dy * dy).sqrt();
    let limit = MAX_CORRECTION / length.max(MAX_CORRECTION);
    [limit * dx, limit * dy]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (usize, usize) = (64, 48);

    /// A smooth texture that has moved by (x, y).
    fn plane([shift_x, shift_y]: [f32; 2]) -> Plane {
        let mut plane = Plane::new(SIZE.0, SIZE.1);
        for (n, value) in plane.values.iter_mut().enumerate() {
            let (x, y) = ((n % SIZE.0) as f32 - shift_x, (n / SIZE.0) as f32 - shift_y);
            *value = 0.5 + 0.2 * (0.6 * x + 0.2 * y).sin() + 0.2 * (0.7 * y - 0.3 * x).cos();
        }
        plane
    }

    /// The refined flow, without the pixels near the border.
    fn refined(planes: [&Plane; 2], start: [f32; 2], time: f32) -> Vec<[f32; 2]> {
        let mut flow = vec![start; SIZE.0 * SIZE.1];
        refine(&mut flow, planes, time, &Cancel::default()).unwrap();
        let rows = flow.chunks_exact(SIZE.0).skip(8).take(SIZE.1 - 16);
        rows.flat_map(|row| &row[8..SIZE.0 - 8]).copied().collect()
    }

    #[test]
    fn a_fraction_of_a_pixel_is_found_at_any_time() {
        let planes = [&plane([0.0, 0.0]), &plane([2.4, -1.3])];
        for time in [0.1, 0.5, 0.75] {
            for [x, y] in refined(planes, [2.0, -1.0], time) {
                assert!((x - 2.4).abs() < 0.05 && (y + 1.3).abs() < 0.05, "{x} {y} at {time}");
            }
        }
    }

    #[test]
    fn flat_planes_keep_the_flow_and_unrelated_ones_change_it_little() {
        let flat = Plane { values: vec![0.3; SIZE.0 * SIZE.1], ..Plane::new(SIZE.0, SIZE.1) };
        for flow in refined([&flat, &flat], [1.5, 0.5], 0.5) {
            assert_eq!(flow, [1.5, 0.5]);
        }
        for [x, y] in refined([&plane([0.0; 2]), &plane([9.0, 4.0])], [1.5, 0.5], 0.5) {
            let change = (x - 1.5).hypot(y - 0.5);
            assert!(change < STEPS as f32 * MAX_CORRECTION + 1e-3, "{x} {y}");
        }
    }

    #[test]
    fn warped_rows_equal_single_pixels() {
        let planes = [&plane([0.0; 2]), &plane([2.4, -1.3])];
        // Some vectors point outside the planes.
        let flow: Vec<_> =
            (0..SIZE.0).map(|x| [x as f32 % 17.3 - 8.0, x as f32 % 7.9 - 4.0]).collect();
        let mut row = vec![[0.0; 2]; SIZE.0];
        for y in 0..SIZE.1 {
            warp_row(planes, 0.3, y, &flow, &mut row);
            for (x, [plane, difference]) in row.iter().enumerate() {
                let expected = warp_pixel(planes, 0.3, (x, y), flow[x]);
                let error = (plane - expected[0]).abs().max((difference - expected[1]).abs());
                assert!(error < 1e-5, "{error} at ({x}, {y})");
            }
        }
    }

    #[test]
    fn planes_of_any_size_are_refined() {
        for (width, height) in [(1, 1), (1, 9), (2, 2), (5, 1), (3, 40)] {
            let mut plane = Plane::new(width, height);
            plane.values.iter_mut().enumerate().for_each(|(n, value)| *value = n as f32 * 0.01);
            let mut flow = vec![[0.7, -30.0]; width * height];
            refine(&mut flow, [&plane, &plane], 0.4, &Cancel::default()).unwrap();
            assert!(flow.iter().flatten().all(|value| value.is_finite()));
        }
    }
}
