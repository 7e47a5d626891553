// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the parts of a run report, stop and fail.

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

/// What is reported when an operation of a network fails.
pub fn failed(what: String, error: &candle_core::Error) -> Error {
    let why = error.to_string();
    match failure(error) {
        Failure::OutOfMemory => Error::DeviceMemory { what, why },
        Failure::DeviceLost => Error::DeviceLost { what, why },
        Failure::Other => Error::Compute { what, why },
    }
}

/// What every part of a run holds.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) sink: Arc<dyn Sink>,
    /// Of who has begun the clip.
    cancel: Cancel,
    /// Of the run itself, when it is dropped.
    stop: Cancel,
    /// What the holder's device has memory for, as far as is known. Each holder has its own.
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

    /// Says `what` has failed, unless it was cancelled.
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

    /// Works in slices of this size from now on.
    pub(super) fn set_slices(&self, slices: Slices) {
        self.slices.set(slices);
    }

    /// Runs a network. Where its device has no memory left, it is run again in smaller slices, and so are
    /// the next.
    fn retry_with_smaller_slices<T>(
        &self,
        what: impl Display,
        run: impl Fn(Slices) -> candle_core::Result<T>,
    ) -> Result<T, Error> {
        loop {
            let result = run(self.slices.get());
            let full = result.as_ref().is_err_and(|error| failure(error) == Failure::OutOfMemory);
            match self.slices.get().halved() {
                Some(smaller) if full => {
                    log::debug(
                        Area::Sampler,
                        format_args!("{what}: out of device memory, continuing with {smaller:?}"),
                    );
                    self.slices.set(smaller);
                }
                None if full => {
                    return self.attempt(format!("{what}, in the smallest slices,"), result);
                }
                _ => return self.attempt(what, result),
            }
            self.check()?;
        }
    }

    /// Runs a network and reports it, in the precision that is given. What is not finite is computed once more with the
    /// wide type, and so is from then on all that is run with the same `precision`: a step whose values leave the range
    /// of f16 in one window does so in the next.
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
                        format_args!("{what}: overflow in f16; bf16 from now on for this step"),
                    );
                }
                log::log(Area::Sampler, format_args!("{what} took {:?}", start.elapsed()));
                self.sink.progress(Progress { unit: what.to_string(), took: start.elapsed() });
                return Ok(tensors);
            }
            if precision.replace(Precision::Wide) == Precision::Wide {
                return Err(Error::NotFinite { what: what.to_string() });
            }
            overflowed = true;
        }
    }
}

/// Whether all values are. 0 times anything else is no number.
fn are_finite(tensors: &[Tensor]) -> candle_core::Result<bool> {
    let zeros = tensors.iter().map(|tensor| (tensor * 0.0)?.sum_all()?.to_scalar::<f32>());
    Ok(zeros.sum::<candle_core::Result<f32>>()? == 0.0)
}
