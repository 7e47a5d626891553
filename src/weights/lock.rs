// SPDX-License-Identifier: MIT OR Apache-2.0
//! One process or thread at a time makes a file; the others wait and then find it made.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    thread,
    time::Duration,
};

use crate::engine::{Cancel, Error};

const POLL: Duration = Duration::from_millis(50);

/// Creates the file that stands for the lock, if there is none.
pub(super) fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path)
}

/// Waits for the lock, which ends with the file's handle. As Python's filelock does it, so that both
/// wait for each other.
pub(super) fn wait(file: &File, path: &Path, cancel: &Cancel) -> Result<(), Error> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => cancel.check()?,
            Err(TryLockError::Error(error)) => {
                return Err(Error::Weights {
                    tried: format!("locking {}", path.display()),
                    why: error.to_string(),
                    instead: "use a folder on a file system with locks: set HF_HOME".into(),
                });
            }
        }
        thread::sleep(POLL);
    }
}
