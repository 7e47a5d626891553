// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the tensors of a PyTorch file: a zip archive with a pickle that describes them, and one entry per storage.
//!
//! Files are not trusted: all offsets and sizes are checked against the file before memory is allocated.

use std::{collections::BTreeMap, fs::File, io::BufReader, ops::Range, path::Path};

use candle_core::{DType, Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use zip::{CompressionMethod, ZipArchive};

use super::{
    disk::map_file,
    error::reason,
    keys::Keys,
    pickle::{self, TensorView},
};

/// Maximum size of the pickle in bytes. That of the denoiser, with 2180 tensors, has half a megabyte.
const MAX_PICKLE: u64 = 8 << 20;

/// A memory-mapped PyTorch file.
pub(super) struct TorchFile {
    bytes: Mmap,
    tensors: BTreeMap<String, StoredTensor>,
}

/// A tensor in the file.
struct StoredTensor {
    /// Offset of the first element in the file, in bytes.
    start: usize,
    view: TensorView,
}

impl TorchFile {
    /// Maps a file and reads its state dict.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let bytes = map_file(&file)?;
        let mut zip = ZipArchive::new(BufReader::new(file))?;
        let pickles: Vec<_> = zip
            .file_names()
            .filter_map(|name| name.ok()?.strip_suffix("/data.pkl").map(str::to_owned))
            .collect();
        let [folder] = pickles.as_slice() else {
            candle_core::bail!(
                "the archive has {} entries named data.pkl, expected 1",
                pickles.len()
            );
        };
        let pickle = entry(&mut zip, &format!("{folder}/data.pkl"), &bytes)?;
        if pickle.len() as u64 > MAX_PICKLE {
            candle_core::bail!("the pickle has {} bytes; the limit is {MAX_PICKLE}", pickle.len());
        }
        if zip.index_for_name(&format!("{folder}/byteorder")).is_some() {
            let order = entry(&mut zip, &format!("{folder}/byteorder"), &bytes)?;
            if &bytes[order] != b"little" {
                candle_core::bail!("the tensors are not little-endian");
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in pickle::state_dict(&bytes[pickle])? {
            let storage = entry(&mut zip, &format!("{folder}/data/{}", view.storage), &bytes)?;
            let tensor = StoredTensor::new(view, storage.start, storage.len());
            tensors.insert(name.clone(), tensor.map_err(|error| with_name(&name, &error))?);
        }
        Ok(Self { bytes, tensors })
    }

    /// Names and shapes of the tensors.
    pub(super) fn keys(&self) -> Keys {
        let key =
            |(name, tensor): (&String, &StoredTensor)| (name.clone(), tensor.view.shape.clone());
        self.tensors.iter().map(key).collect()
    }

    /// Reads a tensor as f16, in row-major order.
    pub(super) fn read(&self, name: &str) -> Result<Vec<f16>> {
        let Some(tensor) = self.tensors.get(name) else {
            candle_core::bail!("{name} is missing");
        };
        let values = match tensor.view.dtype {
            DType::F16 => tensor.read(&self.bytes, f16::from_le_bytes),
            DType::BF16 => {
                tensor.read(&self.bytes, |bytes| f16::from_f32(bf16::from_le_bytes(bytes).to_f32()))
            }
            DType::F32 => {
                tensor.read(&self.bytes, |bytes| f16::from_f32(f32::from_le_bytes(bytes)))
            }
            DType::F64 => {
                tensor.read(&self.bytes, |bytes| f16::from_f64(f64::from_le_bytes(bytes)))
            }
            other => candle_core::bail!("{name} has dtype {other:?}, expected a float"),
        };
        values.map_err(|error| with_name(name, &error))
    }
}

fn with_name(name: &str, error: &Error) -> Error {
    Error::msg(format!("{name}: {}", reason(error)))
}

/// The byte range of an entry. The entry must be stored without compression, so that an archive cannot expand to more
/// than its size.
fn entry(zip: &mut ZipArchive<BufReader<File>>, name: &str, bytes: &[u8]) -> Result<Range<usize>> {
    let Some(index) = zip.index_for_name(name) else {
        candle_core::bail!("the archive has no entry {name}");
    };
    let entry = zip.by_index_raw(index)?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        candle_core::bail!("the entry {name} is compressed or encrypted, which PyTorch never does");
    }
    let (start, size) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
    let end = start.checked_add(size).filter(|&end| end <= bytes.len() as u64);
    match end {
        Some(end) if entry.compressed_size() == size => Ok(start as usize..end as usize),
        _ => candle_core::bail!(
            "the entry {name} has {size} bytes at offset {start}, but the file has {} bytes",
            bytes.len()
        ),
    }
}

impl StoredTensor {
    /// Checks that the view lies within its storage of `length` bytes at `start`.
    fn new(view: TensorView, start: usize, length: usize) -> Result<Self> {
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
        if end.is_none_or(|end| end > length) {
            candle_core::bail!("{view:?} exceeds its storage of {length} bytes");
        }
        // Beyond the file only if the tensor is empty.
        let start = start.saturating_add(view.offset.saturating_mul(size));
        Ok(Self { start, view })
    }

    /// Reads all elements as f16. A value that is not finite in f16 is an error: it cannot be a weight.
    fn read<const SIZE: usize>(
        &self,
        bytes: &[u8],
        convert: impl Fn([u8; SIZE]) -> f16 + Sync,
    ) -> Result<Vec<f16>> {
        let TensorView { shape, strides, .. } = &self.view;
        let mut values = vec![f16::ZERO; shape.iter().product()];
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
                *value = convert(element);
                if !value.is_finite() {
                    candle_core::bail!("a value is not finite in f16");
                }
            }
            Ok(())
        })?;
        Ok(values)
    }
}
