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

use candle_core::{DType, Device, Result, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::{
    disk::{free_space, map_file, open_or_create, readable_size, with_suffix},
    keys::{self, Keys},
    lock,
    progress::{Progress, Reporter},
    reason, store,
    torch::TorchFile,
};
use crate::engine::{
    Cancel, Error,
    log::{self, Area},
    printable,
};

/// The magic number that a PyTorch file of before version 1.6 begins with, pickled: behind the protocol version and,
/// with newer protocols, a frame header. The first byte alone is not enough, since a safetensors file begins with the
/// length of its header.
const LEGACY_TORCH_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Maximum length of the header of a safetensors file in bytes. That of the denoiser has 0.3 MB.
const MAX_HEADER: u64 = 2 << 20;

/// The weights file of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// A safetensors file, or a PyTorch file of version 1.6 or newer.
    pub path: PathBuf,
    /// Prefixes of the names of tensors that the file may contain but the network does not use.
    pub ignored_prefixes: Vec<String>,
    /// Type of the converted copy of a PyTorch file, f16 or f32.
    pub copy_dtype: DType,
    /// What to do if the file is damaged or of another model, for errors.
    pub remedy: String,
}

/// The format of a weights file.
pub(super) enum FileFormat {
    Safetensors,
    /// Of version 1.6 or newer.
    Torch,
}

impl Checkpoint {
    /// A file of which all tensors are used. Its copy is in f16.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            ignored_prefixes: Vec::new(),
            copy_dtype: DType::F16,
            remedy: "replace it by the published file".into(),
        }
    }

    /// Maps the file and checks that its tensors are those in `needed`. Each tensor is converted to `dtype` and copied to
    /// `device` when it is requested from the `VarBuilder`.
    ///
    /// The first call for a PyTorch file writes a converted copy, which later calls map. The copy is next to the file or,
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
        let mapped = match self.format()? {
            FileFormat::Torch => self.map_copy(needed, cancel, progress)?,
            FileFormat::Safetensors => self.map(needed).map_err(|error| self.error(&error))?,
        };
        Ok(VarBuilder::from_backend(Box::new(mapped), dtype, device.clone()))
    }

    /// The format of the file, from its beginning.
    ///
    /// # Errors
    /// [`Error::Weights`] if the file cannot be read or is no weights file.
    pub(super) fn format(&self) -> std::result::Result<FileFormat, Error> {
        let failed = |error| self.error(&error);
        let file = File::open(&self.path).map_err(|error| failed(error.into()))?;
        let length = file.metadata().map_err(|error| failed(error.into()))?.len();
        let mut magic = Vec::new();
        file.take(32).read_to_end(&mut magic).map_err(|error| failed(error.into()))?;
        if magic.starts_with(b"PK\x03\x04") {
            return Ok(FileFormat::Torch);
        }
        if magic.windows(LEGACY_TORCH_MAGIC.len()).any(|bytes| bytes == LEGACY_TORCH_MAGIC) {
            return Err(Error::Weights {
                tried: format!("reading {}", self.path.display()),
                why: "it was saved before PyTorch 1.6".into(),
                instead: "load it with a newer PyTorch and save it again".into(),
            });
        }
        check_header(&magic, length).map_err(failed)?;
        Ok(FileFormat::Safetensors)
    }

    /// The error for a failure to read the file.
    fn error(&self, error: &candle_core::Error) -> Error {
        Error::Weights {
            tried: format!("reading {}", self.path.display()),
            why: reason(error),
            instead: match is_io(error) {
                true => "check that the file can be read".into(),
                false => self.remedy.clone(),
            },
        }
    }

    /// Maps a safetensors file.
    fn map(&self, needed: &Keys) -> Result<MmapedSafetensors> {
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
    ) -> std::result::Result<MmapedSafetensors, Error> {
        let failed = |error| self.error(&error);
        let source = source_metadata(&self.path).map_err(|error| failed(error.into()))?;
        let candidates = self.copy_paths().map_err(|error| failed(error.into()))?;
        if let Some(copy) = candidates.iter().find_map(|path| map_current(path, &source, needed)) {
            return Ok(copy);
        }
        let torch = TorchFile::open(&self.path).map_err(failed)?;
        self.check(needed, torch.keys()).map_err(failed)?;
        let mut errors = Vec::new();
        for path in &candidates {
            let lock_path = with_suffix(path, ".lock");
            let lock = match create_in_folder(&lock_path) {
                Ok(lock) => lock,
                Err(error) => {
                    errors.push(format!("{}: {error}", lock_path.display()));
                    continue;
                }
            };
            let advice = "move the weights to a file system with file locks";
            lock::acquire(&lock, &lock_path, cancel, advice)?;
            // Another process may have converted the file while this one waited for the lock.
            if let Some(copy) = map_current(path, &source, needed) {
                return Ok(copy);
            }
            self.convert(&torch, path, source, needed, cancel, progress).map_err(|error| {
                cancel.check().err().unwrap_or_else(|| match is_io(&error) {
                    true => not_written(path, reason(&error)),
                    false => failed(error),
                })
            })?;
            return map_safetensors(path).map_err(|error| not_written(path, reason(&error)));
        }
        Err(Error::Weights {
            tried: format!("converting {}", self.path.display()),
            why: format!("no folder for the converted copy is writable ({})", errors.join("; ")),
            instead: "make one of these folders writable, or move the weights to another folder"
                .into(),
        })
    }

    /// The paths where the copy may be, in order of preference.
    fn copy_paths(&self) -> io::Result<Vec<PathBuf>> {
        let suffix = format!(".{}.safetensors", self.copy_dtype.as_str());
        let beside = with_suffix(&self.path, &suffix);
        let Some(cache) = dirs::cache_dir() else { return Ok(vec![beside]) };
        // The hash keeps files of the same name in different folders apart.
        let path = std::path::absolute(&self.path)?;
        let hash = format!("{:x}", Sha256::digest(path.as_os_str().as_encoded_bytes()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let cached = cache.join("venhance").join(format!("{}-{name}{suffix}", &hash[..16]));
        Ok(vec![beside, cached])
    }

    /// Writes the tensors in `needed` to a safetensors file.
    fn convert(
        &self,
        torch: &TorchFile,
        path: &Path,
        source: HashMap<String, String>,
        needed: &Keys,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let dtype = self.copy_dtype;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let (need, free) = (store::bytes(needed, dtype), free_space(folder)?);
        if free < need {
            let [need, free] = [need, free].map(readable_size);
            let why = format!("it needs {need}, the disk has {free} free");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why).into());
        }
        let (mut reporter, mut done) = (Reporter::new(need, progress), 0);
        reporter.begin(path.display().to_string());
        log::info(Area::Weights, format_args!("Converting to {} ({need} bytes)", path.display()));
        store::write(path, needed, dtype, source, |name, _| {
            cancel.check().map_err(candle_core::Error::wrap)?;
            reporter.update(done);
            let tensor = torch.read(name, dtype)?;
            done += (tensor.elem_count() * dtype.size_in_bytes()) as u64;
            Ok(tensor)
        })?;
        reporter.end(done);
        Ok(())
    }
}

fn create_in_folder(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    open_or_create(path)
}

fn not_written(path: &Path, why: String) -> Error {
    Error::Weights {
        tried: format!("writing the converted copy {}", path.display()),
        why,
        instead: "free disk space there, or move the weights to another disk".into(),
    }
}

/// The metadata of a copy: size and modification time of its source. If they change, the copy is outdated.
fn source_metadata(path: &Path) -> io::Result<HashMap<String, String>> {
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
    check_header(&bytes, bytes.len() as u64).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    if header.metadata().as_ref() != Some(source) {
        return None;
    }
    let mapped = map_safetensors(path).ok()?;
    keys::check(needed, &keys_of(&mapped)).ok()?;
    Some(mapped)
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
    let bytes = map_file(&File::open(path)?)?;
    check_header(&bytes, bytes.len() as u64)?;
    // SAFETY: as for `map_file`.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    // The message may contain names of any length from the file.
    mapped.map_err(|error| candle_core::Error::msg(printable(&reason(&error))))
}

/// Checks the length of a safetensors header, which a file of `file_length` bytes begins with.
fn check_header(beginning: &[u8], file_length: u64) -> Result<()> {
    let length = beginning.first_chunk().map(|length| u64::from_le_bytes(*length));
    match length {
        Some(..=MAX_HEADER) => Ok(()),
        Some(length) if length < file_length => {
            candle_core::bail!("its header has {length} bytes; the limit is {MAX_HEADER}")
        }
        _ => candle_core::bail!("it is neither a safetensors file nor a PyTorch file"),
    }
}
