// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lock files: only one process or thread creates a file, the others wait and use it.

use std::{
    fs::{File, TryLockError},
    path::Path,
    thread,
    time::Duration,
};

use crate::engine::{Cancel, Error};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits for an exclusive lock, which is released when the handle is dropped. The lock is compatible with Python's
/// `filelock`, which `huggingface_hub` uses. `advice` says what to do if the file system has no locks.
pub(super) fn acquire(
    file: &File,
    path: &Path,
    cancel: &Cancel,
    advice: &str,
) -> Result<(), Error> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => cancel.check()?,
            Err(TryLockError::Error(error)) => {
                return Err(Error::Weights {
                    tried: format!("locking {}", path.display()),
                    why: error.to_string(),
                    instead: advice.into(),
                });
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
}
