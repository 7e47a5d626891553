// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gathers and scatters the tokens of a range of pixels over all frames, which are split into
//! slices.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;

/// Copies pixels `first..first + count` of all frames to one tensor [f, count, c]; `slices` are
/// [n, p, c].
///
/// # Errors
/// If shapes do not match.
pub fn gather_pixels(slices: &[Tensor], first: usize, count: usize) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if slices.first().is_some_and(|slice| slice.device().is_cuda()) {
        return cuda::gather_pixels(slices, first, count);
    }
    let parts = slices.iter().map(|slice| slice.narrow(1, first, count));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?.contiguous()
}

/// Writes tokens [f, count, c] to pixels `first..first + count` of the slices in place: the
/// inverse of [`gather_pixels`]. All tensors that share the slices' memory change.
///
/// # Errors
/// If shapes do not match.
pub fn scatter_pixels(tokens: &Tensor, slices: &[Tensor], first: usize) -> Result<()> {
    #[cfg(feature = "cuda")]
    if tokens.device().is_cuda() {
        return cuda::scatter_pixels(tokens, slices, first);
    }
    let mut frame = 0;
    for slice in slices {
        let n = slice.dim(0)?;
        slice.slice_set(&tokens.narrow(0, frame, n)?.contiguous()?, 1, first)?;
        frame += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same, numbers};

    #[test]
    fn scatter_is_the_inverse_of_gather() -> Result<()> {
        let slices = [numbers(&[2, 7, 3])?, numbers(&[1, 7, 3])?];
        let before = Tensor::cat(&slices, 0)?;
        for (first, count) in [(0, 7), (2, 4), (6, 1)] {
            let tokens = gather_pixels(&slices, first, count)?;
            assert_same(&tokens, &before.narrow(1, first, count)?);
            let doubled = (&tokens * 2.0)?;
            scatter_pixels(&doubled, &slices, first)?;
            let after = Tensor::cat(&slices, 0)?;
            assert_same(&after.narrow(1, first, count)?, &doubled);
            scatter_pixels(&tokens, &slices, first)?;
            assert_same(&Tensor::cat(&slices, 0)?, &before);
        }
        Ok(())
    }
}
