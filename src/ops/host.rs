// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tensors in the CPU's memory as plain numbers.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};

/// A tensor as contiguous `f32`: itself if it is that, else a copy.
pub(super) struct Host(Tensor);

impl Host {
    pub(super) fn new(tensor: &Tensor) -> Result<Self> {
        Ok(Self(tensor.to_dtype(DType::F32)?.contiguous()?))
    }

    pub(super) fn values(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.0.storage_and_layout();
        let begin = layout.start_offset();
        let end = begin + layout.shape().elem_count();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, begin, end }),
            _ => candle_core::bail!("a tensor of the CPU was expected"),
        }
    }
}

/// The numbers of a [`Host`], for as long as this is kept.
struct Values<S> {
    storage: S,
    begin: usize,
    end: usize,
}

impl<S: Deref<Target = Storage>> Deref for Values<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.begin..self.end],
            // `Host::values` makes no other.
            _ => &[],
        }
    }
}

/// A new tensor from numbers, like `like` in device and type.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize], like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
}
