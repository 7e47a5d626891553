// SPDX-License-Identifier: MIT OR Apache-2.0
//! Estimates the noise of a frame, so that the upscalers do not sharpen it.

use std::f32::consts::FRAC_PI_2;

use rayon::prelude::*;

use super::plane::Plane;

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
pub fn noise_level(luma: &Plane) -> f32 {
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
    fn planes_without_a_block_have_no_noise() {
        for size in [(1, 1), (9, 40), (40, 9), (16, 16)] {
            assert_eq!(noise_level(&Plane::new(size.0, size.1)), 0.0);
        }
    }
}
