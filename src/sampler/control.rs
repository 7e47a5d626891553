// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs networks with cancellation, error context and fallbacks, the same way in all parts of a run.
//!
//! Two fallbacks: smaller slices when the device is out of memory, and bf16 when f16 overflows.

use std::{cell::Cell, fmt::Display, sync::Arc, time::Instant};

use candle_core::Tensor;

use super::{
    model::{Check, Mode, Precision},
    slices::Slices,
};
use crate::{
    engine::{
        Cancel, ClipContext, Error, Progress, Sink,
        log::{self, Area},
    },
    ops::{Failure, failure},
};

/// Converts a candle error into an [`Error`]. `what` names the operation that failed.
pub fn failed(what: String, error: &candle_core::Error) -> Error {
    let why = error.to_string();
    match failure(error) {
        Failure::OutOfMemory => Error::DeviceMemory { what, why },
        Failure::DeviceLost => Error::DeviceLost { what, why },
        Failure::Other => Error::Compute { what, why },
    }
}

/// Sink, cancellation and slice size, shared by the parts of a run.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) sink: Arc<dyn Sink>,
    /// Token of the caller that started the clip.
    cancel: Cancel,
    /// Token of the run itself, set when the run is dropped.
    stop: Cancel,
    /// The slices that fit the memory of the owner's device, as far as known. Each clone has its own.
    slices: Cell<Slices>,
}

impl Control {
    pub(super) fn new(clip: ClipContext) -> Self {
        Self {
            sink: clip.sink,
            cancel: clip.cancel,
            stop: Cancel::default(),
            slices: Cell::default(),
        }
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.cancel.check()?;
        self.stop.check()
    }

    /// Adds `what` to a candle error. After a cancellation, returns [`Error::Cancelled`] instead.
    pub(super) fn attempt<T>(
        &self,
        what: impl Display,
        result: candle_core::Result<T>,
    ) -> Result<T, Error> {
        result.or_else(|error| {
            self.check()?;
            Err(failed(what.to_string(), &error))
        })
    }

    /// Sets the slices of the following calls.
    pub(super) fn set_slices(&self, slices: Slices) {
        self.slices.set(slices);
    }

    /// Runs a network. If the device is out of memory, retries in smaller slices and keeps them for the
    /// following calls.
    fn retry_with_smaller_slices<T>(
        &self,
        what: impl Display,
        run: impl Fn(Slices) -> candle_core::Result<T>,
    ) -> Result<T, Error> {
        loop {
            let result = run(self.slices.get());
            let out_of_memory =
                result.as_ref().is_err_and(|error| failure(error) == Failure::OutOfMemory);
            match self.slices.get().halved() {
                Some(smaller) if out_of_memory => {
                    log::debug(
                        Area::Sampler,
                        format_args!("{what}: out of device memory, continuing with {smaller:?}"),
                    );
                    self.slices.set(smaller);
                }
                None if out_of_memory => {
                    return self.attempt(format!("{what} in the smallest slices"), result);
                }
                _ => return self.attempt(what, result),
            }
            self.check()?;
        }
    }

    /// Runs a network, reports its progress under the name `what`, and returns its output.
    ///
    /// If the output contains NaN or infinity, runs the network once more in [`Precision::Bf16`] and
    /// leaves `precision` at that: a step that overflows f16 in one window usually does so in the next.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the output is not finite in [`Precision::Bf16`] either,
    /// [`Error::Cancelled`], and errors of the network.
    pub(super) fn evaluate<const N: usize>(
        &self,
        what: impl Display,
        precision: &Cell<Precision>,
        run: impl Fn(Mode, Check) -> candle_core::Result<[Tensor; N]>,
    ) -> Result<[Tensor; N], Error> {
        let check = || self.check().map_err(candle_core::Error::wrap);
        let mut overflowed = false;
        loop {
            let start = Instant::now();
            let (tensors, finite) = self.retry_with_smaller_slices(&what, |slices| {
                let tensors = run(Mode { precision: precision.get(), slices }, &check)?;
                let finite = are_finite(&tensors)?;
                Ok((tensors, finite))
            })?;
            if finite {
                if overflowed {
                    log::info(
                        Area::Sampler,
                        format_args!(
                            "{what}: overflow in f16, using bf16 for this step from now on"
                        ),
                    );
                }
                log::log(Area::Sampler, format_args!("{what} took {:?}", start.elapsed()));
                self.sink.progress(Progress { unit: what.to_string(), took: start.elapsed() });
                return Ok(tensors);
            }
            if precision.replace(Precision::Bf16) == Precision::Bf16 {
                return Err(Error::NotFinite { what: what.to_string() });
            }
            overflowed = true;
        }
    }
}

/// Returns whether all values are finite: 0·x is 0 for a finite x, NaN otherwise.
fn are_finite(tensors: &[Tensor]) -> candle_core::Result<bool> {
    let zeros = tensors.iter().map(|tensor| (tensor * 0.0)?.sum_all()?.to_scalar::<f32>());
    Ok(zeros.sum::<candle_core::Result<f32>>()? == 0.0)
}
