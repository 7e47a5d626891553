// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes safetensors files tensor by tensor, so that they may be larger than memory.

use std::{
    collections::HashMap,
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use candle_core::{DType, Error, Result, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, View};

use super::{
    disk::{create_new, with_suffix},
    keys::Keys,
};

/// Writes the tensors of `keys` in `dtype`. `tensor` returns each one, given its name and shape; it is dropped once
/// it is written. `metadata` goes to the header. The file is written under a temporary name, synced, and renamed.
///
/// # Errors
/// If the file cannot be written, `tensor` fails, or a tensor has another shape or dtype.
pub(crate) fn write(
    path: &Path,
    keys: &Keys,
    dtype: DType,
    metadata: HashMap<String, String>,
    mut tensor: impl FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<()> {
    let incomplete = with_suffix(path, ".incomplete");
    let mut file = BufWriter::with_capacity(1 << 20, create_new(&incomplete)?);
    let header = header(keys, dtype, metadata)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, shape) in keys {
        let tensor = tensor(name, shape)?;
        if tensor.dims() != shape || tensor.dtype() != dtype {
            candle_core::bail!("{name} is {tensor:?}, expected {dtype:?} {shape:?}");
        }
        file.write_all(&View::data(&tensor))?;
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    fs::rename(&incomplete, path)?;
    Ok(())
}

/// Size of the tensors in bytes.
pub(super) fn bytes(keys: &Keys, dtype: DType) -> u64 {
    let count = keys.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    (count * dtype.size_in_bytes()) as u64
}

fn header(keys: &Keys, dtype: DType, metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let stored: Dtype = dtype.into();
    let mut end = 0;
    let infos = keys.iter().map(|(name, shape)| {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.size_in_bytes();
        let info = TensorInfo { dtype: stored, shape: shape.clone(), data_offsets: (begin, end) };
        (name.clone(), info)
    });
    let metadata = Metadata::new(Some(metadata), infos.collect())?;
    let mut header = serde_json::to_vec(&metadata).map_err(Error::wrap)?;
    // Aligns the tensors, so that they can be used where they are mapped.
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    Ok(header)
}
