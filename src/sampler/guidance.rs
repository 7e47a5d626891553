// SPDX-License-Identifier: MIT OR Apache-2.0
//! Classifier-free guidance, and the rescaling that keeps it from overexposing (arXiv 2305.08891).

use candle_core::{DType, Result, Tensor};

use super::model::Velocities;

/// How strongly the prompt counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Weight of the prompt; at 1 there is no guidance.
    pub scale: f64,
    /// The part of the result whose std is that of the conditional branch.
    pub rescale: f64,
}

impl Guidance {
    /// The reference's.
    pub const RESCALE: f64 = 0.2;

    /// Whether the unconditional branch is needed.
    pub fn guided(&self) -> bool {
        self.scale != 1.0
    }

    /// v = u + scale·(c − u), times rescale·std(c)/std(v) + 1 − rescale; deviations are of the whole
    /// window.
    ///
    /// # Errors
    /// On branches of different shapes.
    pub fn apply(&self, velocities: Velocities) -> Result<Tensor> {
        let Velocities { conditional: c, unconditional: Some(u) } = velocities else {
            return Ok(velocities.conditional);
        };
        let v = (&u + ((&c - &u)? * self.scale)?)?;
        let ratio = std(&c)? / (std(&v)? + 1e-12);
        v * (self.rescale * ratio + 1.0 - self.rescale)
    }
}

/// Unbiased; in f64, since a window has millions of values.
fn std(x: &Tensor) -> Result<f64> {
    let x = x.to_dtype(DType::F64)?;
    let squares = x.broadcast_sub(&x.mean_all()?)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    Ok((squares / (x.elem_count() - 1) as f64).sqrt())
}
