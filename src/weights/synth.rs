// SPDX-License-Identifier: MIT OR Apache-2.0
//! Synthetic weights and inputs: pseudo-random values seeded by the tensor name, so that tests and benchmarks need no
//! files and can be repeated in other languages.
//!
//! Element i of the tensor `name` is u = 2⁻²⁴ · the upper 24 bits of splitmix64(fnv1a64(name) + (i + 1)·γ), uniform in
//! \[0, 1), and s = 2u − 1.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use half::{bf16, f16};
use rayon::prelude::*;

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Elements per task of the thread pool.
const BLOCK: usize = 1 << 14;

/// 64-bit FNV-1a.
fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The value s of element `index`.
#[inline]
fn uniform(seed: u64, index: usize) -> f32 {
    let z = seed.wrapping_add((index as u64 + 1).wrapping_mul(GAMMA));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let z = z ^ (z >> 31);
    (z >> 40) as f32 * (2.0 / (1 << 24) as f32) - 1.0
}

/// The distribution of the elements of a tensor: uniform, `offset + s · factor`.
struct Distribution {
    offset: f32,
    factor: f32,
}

impl Distribution {
    /// The distribution of a weight, from its name and shape.
    fn of_weight(name: &str, shape: &[usize]) -> Self {
        match shape {
            [_, inputs @ ..] if !inputs.is_empty() => {
                let inputs = inputs.iter().product::<usize>() as f64;
                Self { offset: 0.0, factor: (3.0 / inputs).sqrt() as f32 }
            }
            _ if name.ends_with("bias") => Self { offset: 0.0, factor: 0.05 },
            _ => Self { offset: 1.0, factor: 0.1 },
        }
    }

    /// Samples a tensor in `dtype` on the CPU and copies it to the device.
    fn sample(&self, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let seed = fnv1a64(name);
        let value = |index: usize| {
            let s = uniform(seed, index);
            if self.offset == 0.0 { s * self.factor } else { self.offset + s * self.factor }
        };
        let count = shape.elem_count();
        match dtype {
            DType::F32 => Tensor::from_vec(fill(count, value), shape, device),
            DType::F16 => Tensor::from_vec(fill(count, |n| f16::from_f32(value(n))), shape, device),
            DType::BF16 => {
                Tensor::from_vec(fill(count, |n| bf16::from_f32(value(n))), shape, device)
            }
            dtype => candle_core::bail!(
                "synthetic weights are f32, f16 or bf16; {dtype:?} is not supported"
            ),
        }
    }
}

fn fill<T: Send + Default + Clone>(count: usize, value: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut values = vec![T::default(); count];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        for (n, slot) in values.iter_mut().enumerate() {
            *slot = value(block * BLOCK + n);
        }
    });
    values
}

/// The weight `name`. With two or more dimensions its variance is 1/fan-in; with one, a bias is near 0 and a scale
/// near 1.
///
/// # Errors
/// If `dtype` is not f32, f16 or bf16, or the device is out of memory.
pub fn weight(
    name: &str,
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    Distribution::of_weight(name, shape.dims()).sample(name, &shape, dtype, device)
}

/// The noise tensor `name`: uniform, unit variance, f32.
///
/// # Errors
/// If the device is out of memory.
pub fn noise(name: &str, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    let distribution = Distribution { offset: 0.0, factor: 3.0_f64.sqrt() as f32 };
    distribution.sample(name, &shape.into(), DType::F32, device)
}

/// All weights of a network; `prefix` is prepended to their names.
pub fn weights(prefix: &str, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let backend = Box::new(Weights { prefix: prefix.to_owned() });
    VarBuilder::from_backend(backend, dtype, device.clone())
}

/// A `VarBuilder` backend of synthetic weights.
struct Weights {
    prefix: String,
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        weight(&format!("{}{name}", self.prefix), shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is requested without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_dtypes_hold_the_same_values_up_to_rounding() {
        let make = |dtype| weight("a.weight", (64, 3), dtype, &Device::Cpu).unwrap();
        let exact = make(DType::F32).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (dtype, error) in [(DType::F16, 6e-4), (DType::BF16, 5e-3)] {
            let wide = make(dtype).to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            for (a, b) in wide.to_vec1::<f32>().unwrap().iter().zip(&exact) {
                assert!((a - b).abs() <= error * b.abs(), "{a} {b}");
            }
        }
        assert!(weight("a", 3, DType::U8, &Device::Cpu).is_err());
    }
}
