// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network's file, mapped. What PyTorch wrote is copied once into the format that can be.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use candle_core::{DType, Device, Result, Tensor, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::{
    Progress, free_space,
    keys::{self, Keys},
    lock,
    meter::Meter,
    reason,
    store::{self, with_suffix},
    torch::Archive,
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
};

/// What the name of a copy ends in.
const COPY: &str = ".f16.safetensors";

/// A file with the weights of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where it is: safetensors or a PyTorch zip file.
    pub path: PathBuf,
    /// Beginnings of the names of tensors that may be there and are not used.
    pub unused: Vec<String>,
}

impl Checkpoint {
    /// Maps the file, if it holds the tensors `needed` and no other. A tensor is converted to `dtype` and
    /// brought to `device` when it is asked for.
    ///
    /// Of a PyTorch file, the first call writes a copy in f16 and later ones map that: beside the file, or
    /// in the user's cache folder if there it cannot be written. Copying takes seconds a gigabyte;
    /// `progress` is called a few times a second meanwhile, and `cancel` ends it.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read, is damaged, does not hold what is needed, or has no
    /// room for its copy; [`Error::Cancelled`].
    pub fn open(
        &self,
        needed: &Keys,
        dtype: DType,
        device: &Device,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> std::result::Result<VarBuilder<'static>, Error> {
        let mapped = self.map(needed, cancel, progress).map_err(|error| match cancel.check() {
            Err(cancelled) => cancelled,
            Ok(()) => self.unusable(&error),
        })?;
        Ok(VarBuilder::from_backend(Box::new(mapped), dtype, device.clone()))
    }

    fn unusable(&self, error: &candle_core::Error) -> Error {
        Error::Weights {
            tried: format!("reading {}", self.path.display()),
            why: reason(error),
            instead: match is_io(error) {
                true => "see that the file can be read, and that there is room for its copy".into(),
                false => {
                    "delete the file and let it be downloaded again, or set model-dir to a folder \
                          with the right one"
                        .into()
                }
            },
        }
    }

    fn map(
        &self,
        needed: &Keys,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<MmapedSafetensors> {
        let mut magic = Vec::new();
        File::open(&self.path)?.take(4).read_to_end(&mut magic)?;
        match magic.as_slice() {
            b"PK\x03\x04" => self.map_copy(needed, cancel, progress),
            // A pickle: what PyTorch wrote before version 1.6.
            [0x80, ..] => candle_core::bail!(
                "this is a PyTorch file of the old format; load and save it with PyTorch 1.6 or newer"
            ),
            _ => {
                let mapped = map(&self.path)?;
                self.check(needed, keys_of(&mapped))?;
                for name in needed.keys() {
                    match mapped.get(name)?.dtype() {
                        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => (),
                        other => candle_core::bail!("{name} is of {other:?}, which no weight is"),
                    }
                }
                Ok(mapped)
            }
        }
    }

    fn check(&self, needed: &Keys, mut found: Keys) -> Result<()> {
        let unused = |name: &String| self.unused.iter().any(|start| name.starts_with(start));
        found.retain(|name, _| needed.contains_key(name) || !unused(name));
        keys::check(needed, &found)
    }

    /// Maps the copy of a PyTorch file, which is made if there is none.
    fn map_copy(
        &self,
        needed: &Keys,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<MmapedSafetensors> {
        let stamp = stamp(&self.path)?;
        let places = self.places()?;
        if let Some(copy) = places.iter().find_map(|place| reuse(place, &stamp, needed)) {
            return Ok(copy);
        }
        let archive = Archive::open(&self.path)?;
        self.check(needed, archive.keys())?;
        let mut refused = Vec::new();
        for place in &places {
            let lock_path = with_suffix(place, ".lock");
            let lock = match create_in_folder(&lock_path) {
                Ok(lock) => lock,
                Err(error) => {
                    refused.push(format!("{}: {error}", place.display()));
                    continue;
                }
            };
            lock::wait(&lock, &lock_path, cancel).map_err(candle_core::Error::wrap)?;
            // Another process may have made it meanwhile.
            if let Some(copy) = reuse(place, &stamp, needed) {
                return Ok(copy);
            }
            copy(&archive, place, &stamp, needed, cancel, progress)?;
            return map(place);
        }
        let why = format!("its copy has no place: {}", refused.join("; "));
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why).into())
    }

    /// Where the copy may be.
    fn places(&self) -> Result<Vec<PathBuf>> {
        let beside = with_suffix(&self.path, COPY);
        let Some(cache) = dirs::cache_dir() else { return Ok(vec![beside]) };
        // Files of one name in two folders are two.
        let path = std::path::absolute(&self.path)?;
        let hash = format!("{:x}", Sha256::digest(path.as_os_str().as_encoded_bytes()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let elsewhere = cache.join("venhance").join(format!("{}-{name}{COPY}", &hash[..16]));
        Ok(vec![beside, elsewhere])
    }
}

fn create_in_folder(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    lock::create(path)
}

/// What changes when a file does.
fn stamp(path: &Path) -> Result<HashMap<String, String>> {
    let file = fs::metadata(path)?;
    let modified = file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = format!("{} bytes, changed at {} ns", file.len(), modified.as_nanos());
    Ok(HashMap::from([("source".into(), stamp)]))
}

/// A copy, if it is one of the file as it is now, and holds what is needed.
fn reuse(path: &Path, stamp: &HashMap<String, String>, needed: &Keys) -> Option<MmapedSafetensors> {
    let file = File::open(path).ok()?;
    let bytes = map_bytes(&file).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref() != Some(stamp) {
        return None;
    }
    let mapped = map(path).ok()?;
    keys::check(needed, &keys_of(&mapped)).ok()?;
    Some(mapped)
}

/// Writes the tensors that are needed, in f16.
fn copy(
    archive: &Archive,
    path: &Path,
    stamp: &HashMap<String, String>,
    needed: &Keys,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let (need, free) = (store::bytes(needed, DType::F16), free_space(folder)?);
    if free < need {
        let folder = folder.display();
        let why = format!("its copy needs {need} bytes in {folder}, whose disk has {free} free");
        return Err(io::Error::new(io::ErrorKind::StorageFull, why).into());
    }
    let (mut meter, mut done) = (Meter::new(need, progress), 0);
    meter.begin(path.display().to_string());
    log::info(Area::Weights, format_args!("Copying to {} ({need} bytes)", path.display()));
    store::write(path, needed, DType::F16, stamp.clone(), |name, shape| {
        cancel.check().map_err(candle_core::Error::wrap)?;
        meter.at(done);
        let tensor = Tensor::from_vec(archive.read(name)?, shape, &Device::Cpu)?;
        done += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        Ok(tensor)
    })?;
    meter.end(done);
    Ok(())
}

/// Whether it is the system that failed, not what the file holds.
fn is_io(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::WithPath { inner, .. } => is_io(inner),
        error => matches!(error, candle_core::Error::Io(_)),
    }
}

/// Names and shapes.
fn keys_of(mapped: &MmapedSafetensors) -> Keys {
    mapped.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect()
}

fn map(path: &Path) -> Result<MmapedSafetensors> {
    // SAFETY: as for `map_bytes`.
    unsafe { MmapedSafetensors::new(path) }
}

/// Maps a file to read.
pub(super) fn map_bytes(file: &File) -> io::Result<Mmap> {
    // SAFETY: files of weights are written under another name and never changed after; a user who writes
    // into one by hand while a model loads ends the process at worst.
    unsafe { Mmap::map(file) }
}
