// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small helpers for files.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

/// The free space of the disk that `folder` is on, in bytes.
///
/// # Errors
/// If the folder does not exist, or the system call fails.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Appends `suffix` to the file name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Maps a file for reading.
pub(super) fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: weights files are written under a temporary name and not changed after the rename. If another
    // program changes one while it is mapped, this process may read wrong values or get SIGBUS.
    unsafe { Mmap::map(file) }
}
