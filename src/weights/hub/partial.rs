// SPDX-License-Identifier: MIT OR Apache-2.0
//! A partially downloaded file and its running checksum.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::failure::Failure;
use crate::{engine::Cancel, weights::disk::open_or_create};

/// The SHA-256 of a file in hexadecimal.
pub(super) fn sha256(path: &Path, cancel: &Cancel) -> Result<String, Failure> {
    let mut file = File::open(path).map_err(|error| Failure::disk(path, &error))?;
    let (hash, _) = hashed(&mut file, path, cancel)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// The hash of the contents of a file, and their length.
fn hashed(file: &mut File, path: &Path, cancel: &Cancel) -> Result<(Sha256, u64), Failure> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match file.read(&mut buffer).map_err(|error| Failure::disk(path, &error))? {
            0 => return Ok((hash, length)),
            count => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

/// A file that is being downloaded.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    /// The hash of the first `length` bytes.
    hash: Sha256,
    length: u64,
    /// The greatest length so far.
    longest: u64,
}

impl Partial {
    /// Opens or creates the file, and hashes what it contains.
    pub(super) fn open(path: PathBuf, cancel: &Cancel) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::disk(&path, &error);
        let mut file = open_or_create(&path).map_err(failed)?;
        let (hash, length) = hashed(&mut file, &path, cancel)?;
        Ok(Self { path, file, hash, length, longest: length })
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The greatest length so far: a download that starts over makes no progress until it exceeds it.
    pub(super) fn longest(&self) -> u64 {
        self.longest
    }

    /// The SHA-256 of the contents in hexadecimal.
    pub(super) fn sha256(&self) -> String {
        format!("{:x}", self.hash.clone().finalize())
    }

    /// Appends to the end of the file.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::disk(&self.path, &error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.longest = self.longest.max(self.length);
        Ok(())
    }

    /// Truncates the file to zero bytes.
    pub(super) fn clear(&mut self) -> Result<(), Failure> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|error| Failure::disk(&self.path, &error))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Syncs the file and renames it to `target`.
    pub(super) fn finish(self, target: &Path) -> Result<(), Failure> {
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.path, target));
        renamed.map_err(|error| Failure::disk(target, &error))
    }
}
