// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small helpers for files.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use rustix::fs::OFlags;

/// Maximum size in bytes of the pickle and of the central directory of a PyTorch file. The pickle of the denoiser, with
/// 2180 tensors, has half a megabyte.
pub(super) const MAX_HEADER: u64 = 8 << 20;

/// Creates a file for writing and reading, also in the place of an old one, so that no link is followed.
///
/// # Errors
/// If the old file cannot be removed or the new one cannot be created.
pub fn create_new(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(path),
    }
}

/// Opens a file for reading and writing, and creates it if it does not exist. Follows no link, and does not wait for
/// the other end of a FIFO.
///
/// # Errors
/// If the file cannot be opened, or is not a regular file.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    let file = options.open(path).map_err(|error| match path.is_symlink() {
        true => io::Error::other("it is a symbolic link"),
        false => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// A number of bytes for users.
pub(super) fn readable_size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.2} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

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
