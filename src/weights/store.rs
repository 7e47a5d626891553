// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes safetensors files larger than memory, one tensor after the other.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use candle_core::{DType, Error, Result, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use super::keys::Keys;

/// Writes the tensors of `keys`, each when `make` has made it from its name and shape, and `notes` as the
/// file's metadata. The file gets its name when it is complete and on the disk.
///
/// # Errors
/// If the disk does, or `make`, or on a tensor of another type or shape.
pub fn write(
    path: &Path,
    keys: &Keys,
    dtype: DType,
    notes: HashMap<String, String>,
    mut make: impl FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<()> {
    let incomplete = with_suffix(path, ".incomplete");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&incomplete)?);
    let header = header(keys, dtype, notes)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, shape) in keys {
        let tensor = make(name, shape)?;
        if tensor.dims() != shape || tensor.dtype() != dtype {
            candle_core::bail!("{name} was made as {tensor:?}, not {dtype:?} {shape:?}");
        }
        file.write_all(&View::data(&tensor))?;
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    fs::rename(&incomplete, path)?;
    Ok(())
}

/// Bytes of the tensors.
pub(super) fn bytes(keys: &Keys, dtype: DType) -> u64 {
    let count = keys.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    (count * dtype.size_in_bytes()) as u64
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn header(keys: &Keys, dtype: DType, notes: HashMap<String, String>) -> Result<Vec<u8>> {
    let stored: Dtype = dtype.into();
    let mut end = 0;
    let infos = keys.iter().map(|(name, shape)| {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.size_in_bytes();
        let info = TensorInfo { dtype: stored, shape: shape.clone(), data_offsets: (begin, end) };
        (name.clone(), info)
    });
    let metadata = Metadata::new(Some(notes), infos.collect())?;
    let mut header = serde_json::to_vec(&metadata).map_err(Error::wrap)?;
    // So that the tensors begin where their type may be read.
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok(header)
}
