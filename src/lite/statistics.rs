// SPDX-License-Identifier: MIT OR Apache-2.0
//! Statistics of a whole frame: the upscalers read them, so that they sharpen neither noise nor sharp detail.

use std::f32::consts::FRAC_PI_2;

use multiversion::multiversion;
use rayon::prelude::*;

use super::plane::Plane;

/// Statistics of a luma plane.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    /// The standard deviation of the noise, in units of the luma.
    pub noise: f32,
    /// How much the finest detail weighs, relative to that of twice its size: 0.4 in soft or strongly compressed
    /// frames, 0.5 in sharp ones, up to 1 with noise.
    pub sharpness: f32,
}

impl Statistics {
    /// The statistics of a frame.
    pub fn of(luma: &Plane) -> Self {
        Self { noise: noise_level(luma), sharpness: sharpness(luma) }
    }
}

/// The sharpness of a plane without detail.
const TYPICAL_SHARPNESS: f32 = 0.5;

/// The mean magnitude of the second differences of neighbours, relative to those of pixels at twice the distance.
fn sharpness(luma: &Plane) -> f32 {
    let fine = mean_second_difference(luma, 1);
    let coarse = mean_second_difference(luma, 2);
    // Less is rounding.
    const LEAST: f32 = 1e-5;
    if coarse > LEAST { fine / coarse } else { TYPICAL_SHARPNESS }
}

/// The mean magnitude of the second differences by x and y of pixels at `distance`.
fn mean_second_difference(luma: &Plane, distance: usize) -> f32 {
    let (width, height) = (luma.width, luma.height);
    let line = |y: usize| &luma.values[y * width..][..width];
    let rows = (0..height).into_par_iter().map(|y| {
        let middle = line(y);
        let by_x = match middle.get(2 * distance..) {
            Some(after) => sum_of_second_differences(middle, &middle[distance..], after),
            None => 0.0,
        };
        let by_y = match (y.checked_sub(distance), y + distance < height) {
            (Some(above), true) => {
                sum_of_second_differences(line(above), middle, line(y + distance))
            }
            _ => 0.0,
        };
        f64::from(by_x + by_y)
    });
    // The order of the additions must not depend on the number of threads.
    let sum: f64 = rows.collect::<Vec<_>>().into_iter().sum();
    (sum / (2 * width * height) as f64) as f32
}

/// The sum of |a − 2b + c|, as long as the shortest slice.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_of_second_differences(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    /// Sums side by side.
    const LANES: usize = 8;
    let mut sums = [0.0_f32; LANES];
    let parts = a.chunks(LANES).zip(b.chunks(LANES)).zip(c.chunks(LANES));
    for ((a, b), c) in parts {
        for (((sum, a), b), c) in sums.iter_mut().zip(a).zip(b).zip(c) {
            *sum += (a - 2.0 * b + c).abs();
        }
    }
    sums.iter().sum()
}

/// Side of the blocks.
const BLOCK: usize = 8;
/// Blocks darker than this do not count: black bars have no noise.
const MIN_LUMA: f32 = 0.02;
/// One block in so many has less noise than the estimate: most others have texture as well.
const QUANTILE: usize = 10;

/// The standard deviation of the noise in the flattest parts of a plane, in units of the luma.
///
/// It is that of the second differences by x and y, which smooth content has none of: see Immerkær, "Fast noise variance
/// estimation", 1996.
fn noise_level(luma: &Plane) -> f32 {
    let rows = luma.height.saturating_sub(2) / BLOCK;
    let mut levels: Vec<f32> =
        (0..rows).into_par_iter().flat_map_iter(|row| block_levels(luma, row)).collect();
    if levels.is_empty() {
        return 0.0;
    }
    let quantile = levels.len() / QUANTILE;
    let (_, level, _) = levels.select_nth_unstable_by(quantile, f32::total_cmp);
    // The squares of the weights of a second difference by x and y sum up to 6². The mean magnitude of a normal
    // distribution is √(2/π) of its standard deviation.
    *level * FRAC_PI_2.sqrt() / 6.0
}

/// The mean magnitude of the second difference by x and y in each block of a row of blocks that is not black.
fn block_levels(luma: &Plane, row: usize) -> Vec<f32> {
    let columns = luma.width.saturating_sub(2) / BLOCK;
    let mut magnitudes = vec![0.0; columns];
    let mut lumas = vec![0.0; columns];
    let mut vertical = vec![0.0; luma.width];
    for y in row * BLOCK..(row + 1) * BLOCK {
        let line = |n: usize| &luma.values[(y + n) * luma.width..][..luma.width];
        let (above, middle, below) = (line(0), line(1), line(2));
        for (x, difference) in vertical.iter_mut().enumerate() {
            *difference = above[x] - 2.0 * middle[x] + below[x];
        }
        let blocks = magnitudes.iter_mut().zip(&mut lumas).enumerate();
        for (column, (magnitude, luma)) in blocks {
            let x = column * BLOCK;
            for at in vertical[x..x + BLOCK + 2].array_windows::<3>() {
                *magnitude += (at[0] - 2.0 * at[1] + at[2]).abs();
            }
            *luma += middle[x + 1..][..BLOCK].iter().sum::<f32>();
        }
    }
    let pixels = (BLOCK * BLOCK) as f32;
    let levels = magnitudes.into_iter().zip(lumas);
    levels
        .filter(|(_, luma)| *luma > MIN_LUMA * pixels)
        .map(|(magnitude, _)| magnitude / pixels)
        .collect()
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
    use rand_distr::{Distribution, Normal};

    use super::*;

    /// A ramp with an edge and black bars, and noise outside of the bars.
    fn scene(std: f32) -> Plane {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let noise = Normal::new(0.0, std).unwrap();
        let mut plane = Plane::new(150, 300);
        for (n, value) in plane.values.iter_mut().enumerate() {
            let (x, y) = ((n % 150) as f32, n / 150);
            if (16..284).contains(&y) {
                let edge = if x > 70.5 { 0.3 } else { 0.0 };
                *value = 0.2 + 0.002 * x + edge + noise.sample(&mut random);
            }
        }
        plane
    }

    #[test]
    fn noise_is_measured_and_edges_and_black_bars_are_not() {
        for code_values in [0.5, 2.0, 8.0] {
            let std = code_values / 255.0;
            let ratio = noise_level(&scene(std)) / std;
            assert!((0.65..1.0).contains(&ratio), "{code_values}: {ratio}");
        }
        assert!(noise_level(&scene(0.0)) < 1e-5);
    }

    #[test]
    fn noise_is_sharper_than_an_edge_and_a_blurred_edge_is_less_sharp() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let normal = Normal::new(0.0, 0.1_f32).unwrap();
        let plane = |value: &mut dyn FnMut(usize) -> f32| {
            let mut plane = Plane::new(60, 40);
            let values = plane.values.iter_mut().enumerate();
            values.for_each(|(n, luma)| *luma = value(n % 60));
            sharpness(&plane)
        };
        let noise = plane(&mut |_| normal.sample(&mut random));
        assert!((0.95..1.05).contains(&noise), "{noise}");
        // The edge is in two differences of neighbours, and in four at twice the distance.
        let edge = plane(&mut |x| if x < 30 { 0.2 } else { 0.8 });
        assert!((edge - 0.5).abs() < 1e-5, "{edge}");
        let blurred = plane(&mut |x| 1.0 / (1.0 + (29.5 - x as f32).exp()));
        assert!((0.2..0.35).contains(&blurred), "{blurred}");
    }

    #[test]
    fn planes_without_a_block_have_no_noise_and_flat_ones_are_typical() {
        for size in [(1, 1), (2, 1), (9, 40), (40, 9), (16, 16)] {
            let Statistics { noise, sharpness } = Statistics::of(&Plane::new(size.0, size.1));
            assert_eq!((noise, sharpness), (0.0, TYPICAL_SHARPNESS));
        }
    }
}
