// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the parts of a run report, stop and fail.

use std::{fmt::Display, sync::Arc, time::Instant};

use candle_core::Tensor;

use super::model::{Check, Precision};
use crate::engine::{Cancel, Clip, Error, Progress, Sink};

/// What every part of a run holds.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) sink: Arc<dyn Sink>,
    /// Of who has begun the clip.
    cancel: Cancel,
    /// Of the run itself, when it is dropped.
    stop: Cancel,
}

impl Control {
    pub(super) fn new(clip: Clip) -> Self {
        Self { sink: clip.sink, cancel: clip.cancel, stop: Cancel::default() }
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
            Err(Error::Compute { what: what.to_string(), why: error.to_string() })
        })
    }

    /// Runs a network and reports it. What is not finite is computed once more, with the wide type.
    pub(super) fn evaluate<const N: usize>(
        &self,
        what: impl Display,
        run: impl Fn(Precision, Check) -> candle_core::Result<[Tensor; N]>,
    ) -> Result<[Tensor; N], Error> {
        let check = || self.check().map_err(candle_core::Error::wrap);
        for precision in [Precision::Usual, Precision::Wide] {
            let start = Instant::now();
            let tensors = self.attempt(&what, run(precision, &check))?;
            if self.attempt(&what, are_finite(&tensors))? {
                self.sink.progress(Progress { unit: what.to_string(), took: start.elapsed() });
                return Ok(tensors);
            }
        }
        Err(Error::NotFinite { what: what.to_string() })
    }
}

/// Whether all values are. 0 times anything else is no number.
fn are_finite(tensors: &[Tensor]) -> candle_core::Result<bool> {
    let zeros = tensors.iter().map(|tensor| (tensor * 0.0)?.sum_all()?.to_scalar::<f32>());
    Ok(zeros.sum::<candle_core::Result<f32>>()? == 0.0)
}
