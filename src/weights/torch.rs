// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the tensors of a PyTorch file: a zip archive with a pickle that describes them, and an entry for
//! each storage of their numbers. Nothing is taken on trust: what a header says is checked against the
//! file before memory is asked for.

use std::{collections::BTreeMap, fs::File, io::BufReader, ops::Range, path::Path};

use candle_core::{DType, Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use zip::{CompressionMethod, ZipArchive};

use super::{
    checkpoint::map_bytes,
    keys::Keys,
    pickle::{self, View},
    reason,
};

/// The longest pickle that is read, in bytes. That of 2180 tensors has half a million.
const LONGEST_PICKLE: u64 = 8 << 20;

/// A PyTorch file, mapped.
pub(super) struct Archive {
    bytes: Mmap,
    tensors: BTreeMap<String, Array>,
}

/// A tensor's numbers in the file.
struct Array {
    /// Position in bytes of the first.
    start: usize,
    view: View,
}

impl Archive {
    /// Reads names and shapes.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let bytes = map_bytes(&file)?;
        let mut zip = ZipArchive::new(BufReader::new(file))?;
        let pickles: Vec<_> = zip
            .file_names()
            .filter_map(|name| name.ok()?.strip_suffix("/data.pkl").map(str::to_owned))
            .collect();
        let [folder] = pickles.as_slice() else {
            candle_core::bail!("{} entries are named data.pkl, not one", pickles.len());
        };
        let pickle = entry(&mut zip, &format!("{folder}/data.pkl"), &bytes)?;
        if pickle.len() as u64 > LONGEST_PICKLE {
            candle_core::bail!("its pickle has {} bytes, more than {LONGEST_PICKLE}", pickle.len());
        }
        if zip.index_for_name(&format!("{folder}/byteorder")).is_some() {
            let order = entry(&mut zip, &format!("{folder}/byteorder"), &bytes)?;
            if &bytes[order] != b"little" {
                candle_core::bail!("its numbers are not little-endian");
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in pickle::state_dict(&bytes[pickle])? {
            let storage = entry(&mut zip, &format!("{folder}/data/{}", view.storage), &bytes)?;
            let array = Array::new(view, storage.start, storage.len());
            tensors.insert(name.clone(), array.map_err(|error| named(&name, &error))?);
        }
        Ok(Self { bytes, tensors })
    }

    /// Names and shapes.
    pub(super) fn keys(&self) -> Keys {
        self.tensors.iter().map(|(name, array)| (name.clone(), array.view.shape.clone())).collect()
    }

    /// The numbers of a tensor, in the order of its dimensions.
    pub(super) fn read(&self, name: &str) -> Result<Vec<f16>> {
        let Some(array) = self.tensors.get(name) else {
            candle_core::bail!("{name} is missing");
        };
        let numbers = match array.view.dtype {
            DType::F16 => array.read(&self.bytes, f16::from_le_bytes),
            DType::BF16 => {
                array.read(&self.bytes, |bytes| f16::from_f32(bf16::from_le_bytes(bytes).to_f32()))
            }
            DType::F32 => array.read(&self.bytes, |bytes| f16::from_f32(f32::from_le_bytes(bytes))),
            DType::F64 => array.read(&self.bytes, |bytes| f16::from_f64(f64::from_le_bytes(bytes))),
            other => candle_core::bail!("{name} is of {other:?}, which no weight is"),
        };
        numbers.map_err(|error| named(name, &error))
    }
}

fn named(name: &str, error: &Error) -> Error {
    Error::msg(format!("{name}: {}", reason(error)))
}

/// Where an entry's bytes are. They must lie in the file as they are: an archive that unpacks to more than
/// itself has no way in.
fn entry(zip: &mut ZipArchive<BufReader<File>>, name: &str, bytes: &[u8]) -> Result<Range<usize>> {
    let Some(index) = zip.index_for_name(name) else {
        candle_core::bail!("the entry {name} is missing");
    };
    let entry = zip.by_index_raw(index)?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        candle_core::bail!("the entry {name} is compressed or encrypted; PyTorch stores as it is");
    }
    let (start, size) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
    let end = start.checked_add(size).filter(|&end| end <= bytes.len() as u64);
    match end {
        Some(end) if entry.compressed_size() == size => Ok(start as usize..end as usize),
        _ => candle_core::bail!(
            "the entry {name} has {size} bytes from {start}, the file only {}",
            bytes.len()
        ),
    }
}

impl Array {
    /// Checks that all numbers of the view lie in its storage, of `length` bytes from `start`.
    fn new(view: View, start: usize, length: usize) -> Result<Self> {
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
            candle_core::bail!("{view:?} reaches beyond its {length} bytes");
        }
        // Within the file, unless the tensor is empty.
        let start = start.saturating_add(view.offset.saturating_mul(size));
        Ok(Self { start, view })
    }

    /// The numbers in f16. One that is not finite there is an error: as a weight it makes no sense.
    fn read<const SIZE: usize>(
        &self,
        bytes: &[u8],
        convert: impl Fn([u8; SIZE]) -> f16 + Sync,
    ) -> Result<Vec<f16>> {
        let View { shape, strides, .. } = &self.view;
        let mut numbers = vec![f16::ZERO; shape.iter().product()];
        let row = shape.last().copied().unwrap_or(1).max(1);
        let stride = strides.last().copied().unwrap_or(1);
        numbers.par_chunks_mut(row).enumerate().try_for_each(|(index, row)| {
            // Where the row's first number is: the last dimension has no part in it.
            let (mut rest, mut first) = (index, 0);
            for (side, stride) in shape.iter().zip(strides).rev().skip(1) {
                first += rest % side * stride;
                rest /= side;
            }
            for (n, number) in row.iter_mut().enumerate() {
                let start = self.start + (first + n * stride) * SIZE;
                let mut piece = [0; SIZE];
                piece.copy_from_slice(&bytes[start..start + SIZE]);
                *number = convert(piece);
                if !number.is_finite() {
                    candle_core::bail!("a number is not finite in f16");
                }
            }
            Ok(())
        })?;
        Ok(numbers)
    }
}
