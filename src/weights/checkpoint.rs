// SPDX-License-Identifier: MIT OR Apache-2.0
//! Opens the weights file of a network. Safetensors files are mapped; PyTorch files are converted once to a safetensors
//! copy, which is mapped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use candle_core::{DType, Device, Result, Tensor, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::{
    disk::{free_space, map_file, with_suffix},
    error::reason,
    keys::{self, Keys},
    lock,
    progress::{Progress, Reporter},
    store,
    torch::TorchFile,
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
};

/// The magic number that a PyTorch file of before version 1.6 begins with, pickled: behind the protocol version and,
/// with newer protocols, a frame header. The first byte alone is not enough, since a safetensors file begins with the
/// length of its header.
const LEGACY_TORCH_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Suffix of a converted copy.
const COPY_SUFFIX: &str = ".f16.safetensors";

/// The weights file of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// A safetensors file, or a PyTorch file of version 1.6 or newer.
    pub path: PathBuf,
    /// Prefixes of the names of tensors that the file may contain but the network does not use.
    pub ignored_prefixes: Vec<String>,
}

impl Checkpoint {
    /// Maps the file and checks that its tensors are those in `needed`. Each tensor is converted to `dtype` and copied to
    /// `device` when it is requested from the `VarBuilder`.
    ///
    /// The first call for a PyTorch file writes a copy in f16, which later calls map. The copy is next to the file or,
    /// if its folder is read-only, in the user's cache folder. The conversion takes seconds per gigabyte; `progress` is
    /// called a few times a second meanwhile.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read, is damaged, does not match `needed`, or there is no space for the
    /// copy; [`Error::Cancelled`].
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
            Ok(()) => self.error(&error),
        })?;
        Ok(VarBuilder::from_backend(Box::new(mapped), dtype, device.clone()))
    }

    fn error(&self, error: &candle_core::Error) -> Error {
        let instead = match is_io(error) {
            true => "check that the file can be read and that there is disk space for a copy of it",
            false => {
                "delete the file to download it again, or set model-dir to a folder with the right file"
            }
        };
        Error::Weights {
            tried: format!("reading {}", self.path.display()),
            why: reason(error),
            instead: instead.into(),
        }
    }

    fn map(
        &self,
        needed: &Keys,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<MmapedSafetensors> {
        let mut magic = Vec::new();
        File::open(&self.path)?.take(32).read_to_end(&mut magic)?;
        if magic.starts_with(b"PK\x03\x04") {
            return self.map_copy(needed, cancel, progress);
        }
        if magic.windows(LEGACY_TORCH_MAGIC.len()).any(|bytes| bytes == LEGACY_TORCH_MAGIC) {
            candle_core::bail!(
                "this is a PyTorch file of the old format; load and save it with PyTorch 1.6 or newer"
            );
        }
        let mapped = map_safetensors(&self.path)?;
        self.check(needed, keys_of(&mapped))?;
        for name in needed.keys() {
            match mapped.get(name)?.dtype() {
                Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => (),
                other => candle_core::bail!("{name} has dtype {other:?}, expected a float"),
            }
        }
        Ok(mapped)
    }

    /// Compares the tensors of the file with `needed`.
    fn check(&self, needed: &Keys, mut found: Keys) -> Result<()> {
        let ignored =
            |name: &String| self.ignored_prefixes.iter().any(|prefix| name.starts_with(prefix));
        found.retain(|name, _| needed.contains_key(name) || !ignored(name));
        keys::check(needed, &found)
    }

    /// Maps the copy of a PyTorch file, and converts the file if there is no current copy.
    fn map_copy(
        &self,
        needed: &Keys,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<MmapedSafetensors> {
        let source = source_metadata(&self.path)?;
        let candidates = self.copy_paths()?;
        if let Some(copy) = candidates.iter().find_map(|path| map_current(path, &source, needed)) {
            return Ok(copy);
        }
        let torch = TorchFile::open(&self.path)?;
        self.check(needed, torch.keys())?;
        let mut errors = Vec::new();
        for path in &candidates {
            let lock_path = with_suffix(path, ".lock");
            let lock = match create_in_folder(&lock_path) {
                Ok(lock) => lock,
                Err(error) => {
                    errors.push(format!("{}: {error}", path.display()));
                    continue;
                }
            };
            lock::acquire(&lock, &lock_path, cancel).map_err(candle_core::Error::wrap)?;
            // Another process may have converted the file while this one waited for the lock.
            if let Some(copy) = map_current(path, &source, needed) {
                return Ok(copy);
            }
            convert(&torch, path, source, needed, cancel, progress)?;
            return map_safetensors(path);
        }
        let why = format!("no folder for the converted copy is writable: {}", errors.join("; "));
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why).into())
    }

    /// The paths where the copy may be, in order of preference.
    fn copy_paths(&self) -> Result<Vec<PathBuf>> {
        let beside = with_suffix(&self.path, COPY_SUFFIX);
        let Some(cache) = dirs::cache_dir() else { return Ok(vec![beside]) };
        // The hash keeps files of the same name in different folders apart.
        let path = std::path::absolute(&self.path)?;
        let hash = format!("{:x}", Sha256::digest(path.as_os_str().as_encoded_bytes()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let cached = cache.join("venhance").join(format!("{}-{name}{COPY_SUFFIX}", &hash[..16]));
        Ok(vec![beside, cached])
    }
}

fn create_in_folder(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    lock::create(path)
}

/// The metadata of a copy: size and modification time of its source. If they change, the copy is outdated.
fn source_metadata(path: &Path) -> Result<HashMap<String, String>> {
    let file = fs::metadata(path)?;
    let modified = file.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let source = format!("{} bytes, changed at {} ns", file.len(), modified.as_nanos());
    Ok(HashMap::from([("source".into(), source)]))
}

/// Maps a copy if it is up to date and contains the tensors in `needed`.
fn map_current(
    path: &Path,
    source: &HashMap<String, String>,
    needed: &Keys,
) -> Option<MmapedSafetensors> {
    let file = File::open(path).ok()?;
    let bytes = map_file(&file).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref() != Some(source) {
        return None;
    }
    let mapped = map_safetensors(path).ok()?;
    keys::check(needed, &keys_of(&mapped)).ok()?;
    Some(mapped)
}

/// Writes the tensors in `needed` to a safetensors file, in f16.
fn convert(
    torch: &TorchFile,
    path: &Path,
    source: HashMap<String, String>,
    needed: &Keys,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let (need, free) = (store::bytes(needed, DType::F16), free_space(folder)?);
    if free < need {
        let folder = folder.display();
        let why =
            format!("the converted copy needs {need} bytes in {folder}, the disk has {free} free");
        return Err(io::Error::new(io::ErrorKind::StorageFull, why).into());
    }
    let (mut reporter, mut done) = (Reporter::new(need, progress), 0);
    reporter.begin(path.display().to_string());
    log::info(Area::Weights, format_args!("Converting to {} ({need} bytes)", path.display()));
    store::write(path, needed, DType::F16, source, |name, shape| {
        cancel.check().map_err(candle_core::Error::wrap)?;
        reporter.update(done);
        let tensor = Tensor::from_vec(torch.read(name)?, shape, &Device::Cpu)?;
        done += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        Ok(tensor)
    })?;
    reporter.end(done);
    Ok(())
}

/// Whether the error is one of the system and not of the contents of the file.
fn is_io(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::WithPath { inner, .. } => is_io(inner),
        error => matches!(error, candle_core::Error::Io(_)),
    }
}

/// Names and shapes of the tensors of a file.
fn keys_of(mapped: &MmapedSafetensors) -> Keys {
    mapped.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect()
}

fn map_safetensors(path: &Path) -> Result<MmapedSafetensors> {
    // SAFETY: as for `map_file`.
    unsafe { MmapedSafetensors::new(path) }
}
