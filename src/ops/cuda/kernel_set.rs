// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which kernels run: those for Hopper, or the portable ones.

use std::{
    cell::Cell,
    collections::HashSet,
    fmt,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use candle_core::{CudaDevice, Result, cuda::WrapErr};
use once_cell::sync::Lazy;

use super::architectures::HOPPER;

/// Kernels for Hopper that are used, or not used, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// Of long sequences.
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

/// All kernels that an operation can run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KernelSet {
    Portable,
    Hopper,
}

static PORTABLE: AtomicBool = AtomicBool::new(false);

/// Chooses between portable kernels only, and all kernels.
#[cfg(feature = "bench")]
pub fn use_portable_kernels(only: bool) {
    PORTABLE.store(only, Ordering::Relaxed);
}

/// Whether the user has asked for portable kernels only: VENHANCE_KERNELS=portable. The variable is read once.
///
/// # Errors
/// On any other value.
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

/// Families that are not used, with the ordinal of the device.
static REJECTED: Lazy<Mutex<HashSet<(usize, Family)>>> = Lazy::new(Mutex::default);

/// From now on a device runs a family's operations on portable kernels.
pub(super) fn reject(ordinal: usize, family: Family) {
    REJECTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert((ordinal, family));
}

thread_local! {
    /// What `with_kernels` asks for. Other threads may use the device meanwhile.
    static ASKED: Cell<Option<KernelSet>> = const { Cell::new(None) };
}

/// Runs something on one set of kernels, whatever else has been decided.
pub(super) fn with_kernels<T>(set: KernelSet, run: impl FnOnce() -> T) -> T {
    let before = ASKED.replace(Some(set));
    let result = run();
    ASKED.set(before);
    result
}

/// Whether a device has compute capability 9.0: later ones cannot run the kernels for Hopper.
pub(super) fn is_hopper(device: &CudaDevice) -> Result<bool> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    Ok(major * 10 + minor == HOPPER as i32)
}

/// Whether the kernels for Hopper run an operation of a family.
pub(super) fn uses_hopper(device: &CudaDevice, family: Family) -> Result<bool> {
    if let Some(set) = ASKED.get() {
        return Ok(set == KernelSet::Hopper);
    }
    if PORTABLE.load(Ordering::Relaxed) || portable_forced()? || !is_hopper(device)? {
        return Ok(false);
    }
    let ordinal = device.cuda_stream().context().ordinal();
    let rejected = REJECTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(!rejected.contains(&(ordinal, family)))
}
