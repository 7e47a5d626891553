// SPDX-License-Identifier: MIT OR Apache-2.0
//! Applies classifier-free guidance, with the rescaling that prevents overexposure (arXiv 2305.08891).

use candle_core::{DType, Result, Tensor};

use super::model::Velocities;

/// Scale and rescale factor of classifier-free guidance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Guidance scale; 1 disables guidance.
    pub scale: f64,
    /// Rescale factor φ, 0–1: how far the standard deviation of the result moves to that of the
    /// conditional branch.
    pub rescale: f64,
}

impl Guidance {
    /// The rescale factor of the reference implementation.
    pub const RESCALE: f64 = 0.2;

    /// Returns whether the unconditional branch is needed.
    pub fn guided(&self) -> bool {
        self.scale != 1.0
    }

    /// Returns v·(rescale·std(c)/std(v) + 1 − rescale) with v = u + scale·(c − u), for the conditional
    /// branch c and the unconditional branch u, [1, 4, f, h, w]. The standard deviations are over the
    /// whole window. Without an unconditional branch, returns c.
    ///
    /// # Errors
    /// Branches of different shapes.
    pub fn apply(&self, velocities: Velocities) -> Result<Tensor> {
        let Velocities { conditional: c, unconditional: Some(u) } = velocities else {
            return Ok(velocities.conditional);
        };
        let v = (&u + ((&c - &u)? * self.scale)?)?;
        let ratio = std(&c)? / (std(&v)? + 1e-12);
        v * (self.rescale * ratio + 1.0 - self.rescale)
    }
}

/// Returns the unbiased standard deviation. Computed in f64, since a window has millions of values.
fn std(x: &Tensor) -> Result<f64> {
    let x = x.to_dtype(DType::F64)?;
    let squares = x.broadcast_sub(&x.mean_all()?)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    Ok((squares / (x.elem_count() - 1) as f64).sqrt())
}
