// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of a file that is here already, and its checksum, counted as the bytes come.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{client::Failure, disk};
use crate::engine::Cancel;

/// A file that is not complete.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Partial {
    /// Reads what is there, to go on with.
    pub(super) fn open(path: PathBuf, cancel: &Cancel) -> Result<Self, Failure> {
        let failed = |error: io::Error| disk(&path, &error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            cancel.check()?;
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
        Ok(Self { path, file, hash, length })
    }

    /// Bytes that are here.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// As hexadecimal digits.
    pub(super) fn sha256(&self) -> String {
        format!("{:x}", self.hash.clone().finalize())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| disk(&self.path, &error))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Drops what is here.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|error| disk(&self.path, &error))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Gives the file its name, once it is on the disk.
    pub(super) fn finish(self, name: &Path) -> Result<(), Failure> {
        let named = self.file.sync_all().and_then(|()| fs::rename(&self.path, name));
        named.map_err(|error| disk(name, &error))
    }
}
