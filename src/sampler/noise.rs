// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates noise that depends only on the seed, the purpose and the frame, so that results are the same
//! for any batch size, thread, device and resume point.

use std::{fmt, sync::Arc};

use candle_core::{Device, Result, Tensor};
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use rand_distr::{Distribution, StandardNormal};

/// The use of the noise. Each purpose has independent noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Sampling the latents of a frame from the encoder's distribution.
    Encode,
    /// Diffusing the hint for the ControlNet.
    Hint,
    /// Diffusing the latents that sampling starts from.
    Start,
    /// The stochastic term of this solver step.
    Step(usize),
}

/// A source of standard normal noise.
pub trait Noise: fmt::Debug + Send + Sync {
    /// Returns noise of unit variance for output frame `frame`, [1, 4, h, w] in f32 on the CPU.
    ///
    /// # Errors
    /// Out of memory.
    fn normal(&self, purpose: Purpose, frame: usize, size: (usize, usize)) -> Result<Tensor>;
}

/// Noise from a seed. The same seed gives the same noise on every machine.
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
        // Each purpose has its own ChaCha key, each frame its own stream.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.0.to_le_bytes());
        key[8..16].copy_from_slice(&purpose.to_le_bytes());
        let mut generator = ChaCha12Rng::from_seed(key);
        generator.set_stream(frame as u64);
        let values = values(&mut generator, 4 * h * w);
        Tensor::from_vec(values, (1, 4, h, w), &Device::Cpu)
    }
}

/// Noise for a run that starts at output frame `first`: shifts the frame index of the inner source.
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
    fn noise_is_independent_by_seed_purpose_step_and_frame_and_reproducible() {
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
                // 10,240 products: the limit is four standard deviations, six for the squares.
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
