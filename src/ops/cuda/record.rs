// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times kernels on the device, for the feature `bench`; without it, launches are not recorded.

#[cfg(feature = "bench")]
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[cfg(feature = "bench")]
use candle_core::{Result, cuda::WrapErr};
use cudarc::driver::{CudaEvent, CudaStream, DriverError, sys::CUevent_flags::CU_EVENT_DEFAULT};

/// The work of a launch: its kind, multiplications and additions, bytes that it has to read and write.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "bench"), expect(dead_code, reason = "only benchmarks read it"))]
pub(super) struct Work {
    pub(super) kind: &'static str,
    pub(super) operations: usize,
    pub(super) bytes: usize,
}

impl Work {
    /// Of a kernel whose products count, not its memory.
    pub(super) fn product(kind: &'static str, operations: usize) -> Self {
        Self { kind, operations, bytes: 0 }
    }

    /// Of a kernel whose memory counts.
    pub(super) fn memory(kind: &'static str, bytes: usize) -> Self {
        Self { kind, operations: 0, bytes }
    }
}

/// Launches of a kind, together.
#[cfg(feature = "bench")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Record {
    /// How many there were.
    pub launches: usize,
    /// What they took on the device.
    pub seconds: f64,
    /// Multiplications and additions in products.
    pub operations: usize,
    /// Bytes that had to be read and written, where these count and not the products.
    pub bytes: usize,
}

/// A launch, with the events before it and after it.
type Launch = (Work, CudaEvent, CudaEvent);

/// While something is recorded: the launches so far.
static LAUNCHES: Mutex<Option<Vec<Launch>>> = Mutex::new(None);

fn launches() -> std::sync::MutexGuard<'static, Option<Vec<Launch>>> {
    LAUNCHES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Launches, and notes it if something is recorded.
pub(super) fn timed(
    stream: &Arc<CudaStream>,
    work: Work,
    launch: impl FnOnce() -> std::result::Result<(), DriverError>,
) -> std::result::Result<(), DriverError> {
    // The lock is not held while launching: a driver whose queue is full lets a launch wait, and launches of other devices
    // would wait with it.
    if !cfg!(feature = "bench") || launches().is_none() {
        return launch();
    }
    let event = || stream.record_event(Some(CU_EVENT_DEFAULT));
    let before = event()?;
    launch()?;
    let after = event()?;
    if let Some(launches) = launches().as_mut() {
        launches.push((work, before, after));
    }
    Ok(())
}

/// Runs something, and says what its kernels took, by kind: those of this process on all devices.
///
/// # Errors
/// Those of `run`.
#[cfg(feature = "bench")]
pub fn record<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, BTreeMap<&'static str, Record>)> {
    *launches() = Some(Vec::new());
    let result = run();
    let launches = launches().take().unwrap_or_default();
    let result = result?;
    let mut records = BTreeMap::<_, Record>::new();
    for (work, before, after) in launches {
        let record = records.entry(work.kind).or_default();
        record.launches += 1;
        record.seconds += f64::from(before.elapsed_ms(&after).w()?) / 1e3;
        record.operations += work.operations;
        record.bytes += work.bytes;
    }
    Ok((result, records))
}
