// SPDX-License-Identifier: MIT OR Apache-2.0
//! Statistics of a whole frame. The upscalers read noise and sharpness, so that they sharpen neither noise nor sharp detail;
//! blockiness scales their residuals.

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
    /// How much the borders of 8×8 blocks stand out: 1 in uncompressed frames, mostly 1 to 1.05 after H.264, whose
    /// decoder smooths them, 1.1 and more after JPEG.
    pub blockiness: f32,
}

impl Statistics {
    /// The statistics of a frame.
    pub fn of(luma: &Plane) -> Self {
        let [fine, coarse] = [1, 2].map(|distance| SecondDifferences::of(luma, distance));
        Self {
            noise: noise_level(luma),
            sharpness: sharpness(&fine, &coarse),
            blockiness: blockiness(&fine),
        }
    }
}

/// The sharpness of a plane without detail.
const TYPICAL_SHARPNESS: f32 = 0.5;

/// The mean magnitude of the second differences of neighbours, relative to those of pixels at twice the distance.
fn sharpness(fine: &SecondDifferences, coarse: &SecondDifferences) -> f32 {
    // Less is rounding.
    const LEAST: f32 = 1e-5;
    let (fine, coarse) = (fine.mean(), coarse.mean());
    if coarse > LEAST { fine / coarse } else { TYPICAL_SHARPNESS }
}

/// The mean magnitude of the second differences of neighbours at the borders of blocks, relative to that elsewhere, by x or
/// by y: the smaller one, because black bars and stripes may lie on borders in one direction. Magnitudes are limited to
/// [`LIMIT`].
fn blockiness(fine: &SecondDifferences) -> f32 {
    // Added to both, so that flat planes give 1.
    const LEAST: f64 = 1e-4;
    let height = fine.rows.len();
    let [by_x, by_y] = [0, 1].map(|direction| {
        // The sum and the number of the differences at borders, and elsewhere.
        let (mut borders, mut others) = ((0.0, 0.0), (0.0, 0.0));
        let mut add = |at: usize, sum: f32, count: usize| {
            let part = if matches!(at % BLOCK, 0 | 7) { &mut borders } else { &mut others };
            part.0 += f64::from(sum);
            part.1 += count as f64;
        };
        for (y, sums) in fine.rows.iter().map(|row| &row[direction].limited).enumerate() {
            match direction {
                // The first difference is that of column 1.
                0 => sums.iter().enumerate().for_each(|(n, sum)| {
                    add(n + 1, *sum, fine.width.saturating_sub(2 + n).div_ceil(BLOCK));
                }),
                _ if y == 0 || y + 1 == height => {}
                _ => add(y, sums.iter().sum(), fine.width),
            }
        }
        match borders.1 > 0.0 {
            true => (borders.0 / borders.1 + LEAST) / (others.0 / others.1 + LEAST),
            false => 1.0,
        }
    });
    f64::min(by_x, by_y) as f32
}

/// The side of the blocks in which noise is measured, and of those of codecs.
const BLOCK: usize = 8;
/// In units of the luma, 3 of 255 steps: the edges of objects must not outweigh the borders of blocks.
const LIMIT: f32 = 0.012;

/// The magnitudes of the second differences of the pixels of a plane at some distance.
struct SecondDifferences {
    width: usize,
    /// Sums by x and by y of each row.
    rows: Vec<[Sums; 2]>,
}

/// Sums of magnitudes n, n + [`BLOCK`], n + 2·[`BLOCK`] and so on in lane n.
#[derive(Default)]
struct Sums {
    total: [f32; BLOCK],
    /// The same with each magnitude limited to [`LIMIT`].
    limited: [f32; BLOCK],
}

impl SecondDifferences {
    fn of(luma: &Plane, distance: usize) -> Self {
        let line = |y: usize| &luma.values[y * luma.width..][..luma.width];
        let row = |y: usize| {
            let middle = line(y);
            let by_x = match middle.get(2 * distance..) {
                Some(after) => sum_second_differences(middle, &middle[distance..], after),
                None => Sums::default(),
            };
            let by_y = match (y.checked_sub(distance), y + distance < luma.height) {
                (Some(above), true) => {
                    sum_second_differences(line(above), middle, line(y + distance))
                }
                _ => Sums::default(),
            };
            [by_x, by_y]
        };
        Self { width: luma.width, rows: (0..luma.height).into_par_iter().map(row).collect() }
    }

    fn mean(&self) -> f32 {
        let sums = self.rows.iter().flatten().map(|sums| f64::from(sums.total.iter().sum::<f32>()));
        // The order of the additions does not depend on the number of threads.
        (sums.sum::<f64>() / (2 * self.width * self.rows.len()) as f64) as f32
    }
}

/// The sums of |a − 2b + c|, as long as the shortest slice.
#[multiversion(targets("x86_64+avx2+fma"))]
fn sum_second_differences(a: &[f32], b: &[f32], c: &[f32]) -> Sums {
    let mut sums = Sums::default();
    let parts = a.chunks(BLOCK).zip(b.chunks(BLOCK)).zip(c.chunks(BLOCK));
    for ((a, b), c) in parts {
        let lanes = sums.total.iter_mut().zip(&mut sums.limited);
        for ((((total, limited), a), b), c) in lanes.zip(a).zip(b).zip(c) {
            let magnitude = (a - 2.0 * b + c).abs();
            *total += magnitude;
            *limited += magnitude.min(LIMIT);
        }
    }
    sums
}

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
            Statistics::of(&plane).sharpness
        };
        let noise = plane(&mut |_| normal.sample(&mut random));
        assert!((0.95..1.05).contains(&noise), "{noise}");
        // The edge is in two differences of neighbours, and in four at twice the distance.
        let edge = plane(&mut |x| if x < 30 { 0.2 } else { 0.8 });
        assert!((edge - 0.5).abs() < 1e-5, "{edge}");
        let blurred = plane(&mut |x| 1.0 / (1.0 + (29.5 - x as f32).exp()));
        assert!((0.2..0.35).contains(&blurred), "{blurred}");
    }

    /// A chessboard of blocks of 8×8 that differ by 4 of 255 steps, in noise. The first block ends in column and row
    /// `8 − offset`.
    fn chessboard([dx, dy]: [usize; 2], (width, height): (usize, usize)) -> Plane {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let noise = Normal::new(0.0, 0.002).unwrap();
        let mut plane = Plane::new(width, height);
        for (n, luma) in plane.values.iter_mut().enumerate() {
            let (x, y) = (n % width + dx, n / width + dy);
            let step = if (x / 8 + y / 8).is_multiple_of(2) { 0.0 } else { 4.0 / 255.0 };
            *luma = 0.4 + step + noise.sample(&mut random);
        }
        plane
    }

    #[test]
    fn only_steps_at_the_borders_of_blocks_in_both_directions_are_blocks() {
        let measure = |offset, size| Statistics::of(&chessboard(offset, size)).blockiness;
        let blocks = measure([0, 0], (123, 77));
        assert!(blocks > 2.5, "{blocks}");
        for offset in [[0, 4], [4, 0], [0, 1], [0, 7], [1, 0], [7, 0], [4, 4]] {
            let ratio = measure(offset, (123, 77));
            assert!(ratio < 0.7 * blocks, "{offset:?}: {ratio}, {blocks}");
        }
        assert!(measure([4, 4], (123, 77)) < 1.0);
        // Too small for a border in both directions.
        for size in [(3, 1), (1, 3), (3, 3), (8, 8)] {
            assert_eq!(measure([0, 0], size), 1.0);
        }
    }

    #[test]
    fn planes_without_a_block_have_no_noise_and_flat_ones_are_typical() {
        for size in [(1, 1), (2, 1), (9, 40), (40, 9), (16, 16)] {
            let statistics = Statistics::of(&Plane::new(size.0, size.1));
            let Statistics { noise, sharpness, blockiness } = statistics;
            assert_eq!((noise, sharpness, blockiness), (0.0, TYPICAL_SHARPNESS, 1.0));
        }
    }
}
