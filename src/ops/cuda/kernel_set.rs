// SPDX-License-Identifier: MIT OR Apache-2.0
//! Selects between the portable kernels and those for Hopper.

use std::{
    cell::Cell,
    collections::HashSet,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::{CudaDevice, Result, cuda::WrapErr};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::architectures::HOPPER;

/// A group of Hopper kernels that are enabled or disabled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// Attention over long sequences.
    Attention,
    /// Convolutions and linear layers.
    Product,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention",
            Self::Product => "convolutions and linear layers",
        })
    }
}

/// A set of kernels, complete for all operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KernelSet {
    Portable,
    Hopper,
}

/// See [`use_portable_kernels`].
static PORTABLE: AtomicBool = AtomicBool::new(false);

/// Restricts all devices to portable kernels, or lifts the restriction.
#[cfg(feature = "bench")]
pub fn use_portable_kernels(only: bool) {
    PORTABLE.store(only, Ordering::Relaxed);
}

/// Whether the user restricts the process to portable kernels with VENHANCE_KERNELS=portable. The
/// variable is read once.
///
/// # Errors
/// If the variable has another value.
pub(super) fn portable_forced() -> Result<bool> {
    const NAME: &str = "VENHANCE_KERNELS";
    static FORCED: OnceLock<std::result::Result<bool, String>> = OnceLock::new();
    let read = || match std::env::var_os(NAME) {
        None => Ok(false),
        Some(value) if value == "portable" => Ok(true),
        Some(value) => Err(format!(
            "the environment variable {NAME} is “{}”: set it to portable, or unset it",
            value.display()
        )),
    };
    FORCED.get_or_init(read).clone().map_err(candle_core::Error::msg)
}

/// Rejected families, with the ordinal of the device.
static REJECTED: Lazy<Mutex<HashSet<(usize, Family)>>> = Lazy::new(Mutex::default);

/// Makes a device run a family's operations on the portable kernels from now on.
pub(super) fn reject(ordinal: usize, family: Family) {
    REJECTED.lock().insert((ordinal, family));
}

thread_local! {
    /// The set that `with_kernels` selects for this thread. Other threads may use the device at
    /// the same time.
    static OVERRIDE: Cell<Option<KernelSet>> = const { Cell::new(None) };
}

/// Runs a closure on one set of kernels, regardless of other settings.
pub(super) fn with_kernels<T>(set: KernelSet, run: impl FnOnce() -> T) -> T {
    let before = OVERRIDE.replace(Some(set));
    let result = run();
    OVERRIDE.set(before);
    result
}

/// Whether a device has compute capability 9.0. Later ones cannot run the Hopper kernels.
pub(super) fn is_hopper(device: &CudaDevice) -> Result<bool> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    Ok(major * 10 + minor == HOPPER as i32)
}

/// Whether operations of a family run on the Hopper kernels.
pub(super) fn uses_hopper(device: &CudaDevice, family: Family) -> Result<bool> {
    if let Some(set) = OVERRIDE.get() {
        return Ok(set == KernelSet::Hopper);
    }
    if PORTABLE.load(Ordering::Relaxed) || portable_forced()? || !is_hopper(device)? {
        return Ok(false);
    }
    let ordinal = device.cuda_stream().context().ordinal();
    let rejected = REJECTED.lock();
    Ok(!rejected.contains(&(ordinal, family)))
}
