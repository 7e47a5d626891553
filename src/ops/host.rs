// SPDX-License-Identifier: MIT OR Apache-2.0
//! Access to tensors in CPU memory as slices of `f32`.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};

/// A tensor as contiguous `f32` values. Copies only if the tensor is of another type or not
/// contiguous.
pub(super) struct Host(Tensor);

impl Host {
    pub(super) fn new(tensor: &Tensor) -> Result<Self> {
        Ok(Self(tensor.to_dtype(DType::F32)?.contiguous()?))
    }

    /// Borrows the values.
    pub(super) fn values(&self) -> Result<impl Deref<Target = [f32]> + '_> {
        let (storage, layout) = self.0.storage_and_layout();
        let begin = layout.start_offset();
        let end = begin + layout.shape().elem_count();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, begin, end }),
            _ => candle_core::bail!("expected a tensor on the CPU"),
        }
    }
}

/// A read lock on the values of a [`Host`].
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
            // `Host::values` returns no other storage.
            _ => &[],
        }
    }
}

/// Creates a tensor with the device and the type of `like`.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize], like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())
}
