// SPDX-License-Identifier: MIT OR Apache-2.0
//! Randomness that depends on nothing but the seed, its purpose and the frame: not on batches, threads,
//! devices, or where a run began.

use std::{fmt, sync::Arc};

use candle_core::{Device, Result, Tensor};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use rand_distr::{Distribution, StandardNormal};

/// What noise is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A sample of a frame's latents.
    Encode,
    /// The key frame as the ControlNet sees it.
    Hint,
    /// What sampling starts from.
    Start,
    /// This step of the sampler.
    Step(usize),
}

/// Normal variates.
pub trait Noise: fmt::Debug + Send + Sync {
    /// Latents [1, 4, h, w] of unit variance for output frame `frame` of the clip, f32, on the CPU.
    ///
    /// # Errors
    /// If there is no memory.
    fn normal(&self, purpose: Purpose, frame: usize, size: (usize, usize)) -> Result<Tensor>;
}

/// The same noise for the same seed, on every machine.
#[derive(Debug, Clone, Copy)]
pub struct Seeded(pub u64);

impl Noise for Seeded {
    fn normal(&self, purpose: Purpose, frame: usize, (h, w): (usize, usize)) -> Result<Tensor> {
        let purpose = match purpose {
            Purpose::Encode => 0,
            Purpose::Hint => 1,
            Purpose::Start => 2,
            Purpose::Step(step) => 3 + step as u64,
        };
        // Each purpose has a key, each frame a stream of its own.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.0.to_le_bytes());
        key[8..16].copy_from_slice(&purpose.to_le_bytes());
        let mut generator = ChaCha12Rng::from_seed(key);
        generator.set_stream(frame as u64);
        let values = values(&mut generator, 4 * h * w);
        Tensor::from_vec(values, (1, 4, h, w), &Device::Cpu)
    }
}

/// The noise of a part of a clip that begins with output frame `first` of the inner.
#[derive(Debug)]
pub(super) struct OffsetNoise {
    pub(super) inner: Arc<dyn Noise>,
    pub(super) first: usize,
}

impl Noise for OffsetNoise {
    fn normal(&self, purpose: Purpose, frame: usize, size: (usize, usize)) -> Result<Tensor> {
        self.inner.normal(purpose, self.first + frame, size)
    }
}

fn values(generator: &mut impl RngCore, count: usize) -> Vec<f32> {
    StandardNormal.sample_iter(generator).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, purpose: Purpose, frame: usize) -> Vec<f32> {
        let noise = Seeded(seed).normal(purpose, frame, (40, 64)).unwrap();
        noise.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_seed_purpose_step_and_frame_has_noise_of_its_own_that_never_changes() {
        let all = [
            (1, Purpose::Encode, 0),
            (2, Purpose::Encode, 0),
            (1, Purpose::Hint, 0),
            (1, Purpose::Start, 0),
            (1, Purpose::Step(0), 0),
            (1, Purpose::Step(1), 0),
            (1, Purpose::Step(1), 1),
            (1, Purpose::Step(1), usize::MAX),
        ];
        let all: Vec<_> = all.iter().map(|&(seed, purpose, n)| noise(seed, purpose, n)).collect();
        let product = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / a.len() as f64
        };
        for (n, a) in all.iter().enumerate() {
            for (m, b) in all.iter().enumerate() {
                // Of 10,240 products: four deviations, six for the squares.
                let (expected, error) = if n == m { (1.0, 0.06) } else { (0.0, 0.04) };
                assert!((product(a, b) - expected).abs() < error, "{n} {m}");
            }
            let mean = product(a, &vec![1.0; a.len()]);
            let kurtosis = a.iter().map(|a| f64::from(*a).powi(4)).sum::<f64>() / a.len() as f64;
            assert!(mean.abs() < 0.04 && (kurtosis - 3.0).abs() < 0.4, "{n}: {mean} {kurtosis}");
        }
        assert_eq!(noise(1, Purpose::Step(1), 1), all[6]);
    }
}
