// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the tensors of a PyTorch file: a zip archive with a pickle that describes them, and one entry per storage.
//!
//! Files are not trusted: all offsets and sizes are checked against the file before memory is allocated.

use std::{collections::BTreeMap, fs::File, ops::Range, path::Path};

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;

use super::{
    archive::Archive,
    disk::{MAX_HEADER, map_file},
    keys::Keys,
    pickle::{self, TensorView},
    reason,
};
use crate::engine::printable;

/// A memory-mapped PyTorch file.
pub(super) struct TorchFile {
    bytes: Mmap,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor in the file.
struct StoredTensor {
    dtype: DType,
    /// Offset of the first element in the file, in bytes.
    start: usize,
    shape: Vec<usize>,
    /// Stride of each dimension, in elements.
    strides: Vec<usize>,
}

impl TorchFile {
    /// Maps a file and reads its state dict.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = map_file(&File::open(path)?)?;
        let tensors = read_tensors(&bytes)?;
        Ok(Self { bytes, tensors })
    }

    /// Names and shapes of the tensors.
    pub(super) fn keys(&self) -> Keys {
        let key = |(name, tensor): (&String, &StoredTensor)| (name.clone(), tensor.shape.clone());
        self.tensors.iter().map(key).collect()
    }

    /// Reads a tensor as f16 or f32, in row-major order.
    pub(super) fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else {
            candle_core::bail!("{} is missing", printable(name));
        };
        let read = match dtype {
            DType::F16 => tensor
                .read(&self.bytes, |value| Some(f16::from_f32(value)).filter(|v| v.is_finite())),
            DType::F32 => tensor.read(&self.bytes, |value| Some(value).filter(|v| v.is_finite())),
            other => candle_core::bail!("PyTorch files are not converted to {other:?}"),
        };
        read.map_err(|error| with_name(name, &error))
    }
}

/// Reads the state dict and locates its tensors in the file.
fn read_tensors(bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>> {
    let archive = Archive::open(bytes)?;
    let mut pickles = archive.names().filter_map(|name| name.strip_suffix(b"/data.pkl"));
    let (Some(folder), None) = (pickles.next(), pickles.next()) else {
        candle_core::bail!("the archive does not have exactly one entry named data.pkl");
    };
    let find = |name: &str| archive.entry(&[folder, b"/", name.as_bytes()].concat());
    let pickle = find("data.pkl")?;
    if pickle.len() as u64 > MAX_HEADER {
        candle_core::bail!("the pickle has {} bytes; the limit is {MAX_HEADER}", pickle.len());
    }
    if archive.names().any(|name| name.strip_prefix(folder) == Some(b"/byteorder"))
        && &bytes[find("byteorder")?] != b"little"
    {
        candle_core::bail!("the tensors are not little-endian");
    }
    let tensors = pickle::state_dict(&bytes[pickle])?;
    let located = tensors.into_iter().map(|(name, view)| {
        let storage = find(&format!("data/{}", view.storage))?;
        let tensor = StoredTensor::new(view, &storage);
        Ok((name.to_owned(), tensor.map_err(|error| with_name(name, &error))?))
    });
    located.collect()
}

fn with_name(name: &str, error: &Error) -> Error {
    Error::msg(format!("{}: {}", printable(name), reason(error)))
}

impl StoredTensor {
    /// Checks that the view lies within its storage, a range of the file.
    fn new(view: TensorView, storage: &Range<usize>) -> Result<Self> {
        let size = view.dtype.size_in_bytes();
        let count = view.shape.iter().try_fold(1_usize, |n, &side| n.checked_mul(side));
        let last =
            view.shape.iter().zip(&view.strides).try_fold(view.offset, |last, (&side, &stride)| {
                last.checked_add(side.saturating_sub(1).checked_mul(stride)?)
            });
        let end = match count {
            Some(0) => Some(0),
            Some(_) => last.and_then(|last| last.checked_add(1)?.checked_mul(size)),
            None => None,
        };
        if end.is_none_or(|end| end > storage.len()) {
            let TensorView { dtype, offset, shape, strides, .. } = view;
            candle_core::bail!(
                "{dtype:?} {shape:?} with strides {strides:?} at {offset} exceeds its storage of {} bytes",
                storage.len()
            );
        }
        let TensorView { dtype, offset, shape, strides, .. } = view;
        // Beyond the file only if the tensor is empty.
        let start = storage.start.saturating_add(offset.saturating_mul(size));
        Ok(Self { dtype, start, shape, strides })
    }

    /// Reads all elements. `round` converts to the type of the result, unless the value is not finite there.
    fn read<T: WithDType>(
        &self,
        bytes: &[u8],
        round: impl Fn(f32) -> Option<T> + Sync,
    ) -> Result<Tensor> {
        let values = match self.dtype {
            DType::F16 => self.decode(bytes, |bytes| round(f16::from_le_bytes(bytes).to_f32())),
            DType::BF16 => self.decode(bytes, |bytes| round(bf16::from_le_bytes(bytes).to_f32())),
            DType::F32 => self.decode(bytes, |bytes| round(f32::from_le_bytes(bytes))),
            DType::F64 => self.decode(bytes, |bytes| round(f64::from_le_bytes(bytes) as f32)),
            other => candle_core::bail!("it has dtype {other:?}, expected a float"),
        };
        Tensor::from_vec(values?, self.shape.as_slice(), &Device::Cpu)
    }

    /// Decodes all elements. A value that is not finite is an error: it cannot be a weight.
    fn decode<T: WithDType, const SIZE: usize>(
        &self,
        bytes: &[u8],
        decode: impl Fn([u8; SIZE]) -> Option<T> + Sync,
    ) -> Result<Vec<T>> {
        let Self { shape, strides, .. } = self;
        let mut values = vec![T::zero(); shape.iter().product()];
        let row = shape.last().copied().unwrap_or(1).max(1);
        let stride = strides.last().copied().unwrap_or(1);
        values.par_chunks_mut(row).enumerate().try_for_each(|(index, row)| {
            // Offset of the first element of the row, from the indices of all dimensions but the last.
            let (mut rest, mut first) = (index, 0);
            for (side, stride) in shape.iter().zip(strides).rev().skip(1) {
                first += rest % side * stride;
                rest /= side;
            }
            for (n, value) in row.iter_mut().enumerate() {
                let start = self.start + (first + n * stride) * SIZE;
                let mut element = [0; SIZE];
                element.copy_from_slice(&bytes[start..start + SIZE]);
                let Some(decoded) = decode(element) else {
                    candle_core::bail!("a value is not finite in {:?}", T::DTYPE);
                };
                *value = decoded;
            }
            Ok(())
        })?;
        Ok(values)
    }
}
