// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures kernel times on the device, with the feature `bench`; without it, launches are not recorded.

#[cfg(feature = "bench")]
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "bench")]
use candle_core::{Result, cuda::WrapErr};
use cudarc::driver::{CudaEvent, CudaStream, DriverError, sys::CUevent_flags::CU_EVENT_DEFAULT};
use parking_lot::Mutex;

/// Work of a launch: its kind, floating-point operations, and bytes read and written.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "bench"), expect(dead_code, reason = "only benchmarks read it"))]
pub(super) struct Work {
    pub(super) kind: &'static str,
    pub(super) operations: usize,
    pub(super) bytes: usize,
}

impl Work {
    /// Work of a kernel that is bound by arithmetic.
    pub(super) fn product(kind: &'static str, operations: usize) -> Self {
        Self { kind, operations, bytes: 0 }
    }

    /// Work of a kernel that is bound by memory bandwidth.
    pub(super) fn memory(kind: &'static str, bytes: usize) -> Self {
        Self { kind, operations: 0, bytes }
    }
}

/// Totals over all launches of a kind.
#[cfg(feature = "bench")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Record {
    /// Number of launches.
    pub launches: usize,
    /// Time on the device, in seconds.
    pub seconds: f64,
    /// Floating-point operations of products.
    pub operations: usize,
    /// Bytes read and written, for kernels bound by memory bandwidth.
    pub bytes: usize,
}

/// A launch, with the events before and after it.
type Launch = (Work, CudaEvent, CudaEvent);

/// Launches so far, while recording; else `None`.
static LAUNCHES: Mutex<Option<Vec<Launch>>> = Mutex::new(None);

fn launches() -> parking_lot::MutexGuard<'static, Option<Vec<Launch>>> {
    LAUNCHES.lock()
}

/// Runs `launch`. While recording, records an event before and after it.
pub(super) fn timed(
    stream: &Arc<CudaStream>,
    work: Work,
    launch: impl FnOnce() -> std::result::Result<(), DriverError>,
) -> std::result::Result<(), DriverError> {
    // The lock is not held during the launch: a launch blocks while the driver's queue is full,
    // and would block launches on other devices.
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

/// Runs a closure and returns the totals of its launches by kind. Launches of the whole process on
/// all devices count.
///
/// # Errors
/// Errors of `run`, and errors of the device.
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
