// SPDX-License-Identifier: MIT OR Apache-2.0
//! Residual blocks that the denoiser and the autoencoder share.

use candle_core::{Result, Tensor};

use super::frame_batch::FrameBatch;
use crate::ops::{Conv2d, GroupNorm, Linear, Moments, TimeConv};

/// Group norm, SiLU and 3×3 convolution, twice, within each frame, plus the input.
#[derive(Debug)]
pub(super) struct Residual {
    pub norm1: GroupNorm,
    pub conv1: Conv2d,
    pub norm2: GroupNorm,
    pub conv2: Conv2d,
    /// Projects the input where its width differs from the output's.
    pub skip: Option<Linear>,
}

impl Residual {
    /// Maps a slice [n, h, w, in] to [n, h, w, out]. The input channels may be split over several
    /// tensors. `shift`, [n, out], is added after the first convolution.
    pub(super) fn forward(&self, parts: &[&Tensor], shift: Option<&Tensor>) -> Result<Tensor> {
        let moments = parts.iter().map(|part| Moments::of(part)).collect::<Result<Vec<_>>>()?;
        let affine = self.norm1.affine(&Moments::join(&moments)?)?;
        let mut first = 0;
        let normed = parts.iter().map(|part| {
            let channels = part.dim(3)?;
            first += channels;
            affine.channels(first - channels, channels)?.apply(part, true)
        });
        let normed = normed.collect::<Result<Vec<_>>>()?;
        let mut h = self.conv1.forward(&normed.iter().collect::<Vec<_>>(), shift, None)?;
        drop(normed);
        h = self.norm2.affine(&Moments::of(&h)?)?.apply(&h, true)?;
        match &self.skip {
            Some(skip) => self.conv2.forward(&[&h], None, Some(&skip.forward(parts, None)?)),
            None => self.conv2.forward(&[&h], None, Some(parts[0])),
        }
    }
}

/// Group norm over all frames, SiLU and convolution along the frames, several times, plus the
/// input.
#[derive(Debug)]
pub(super) struct TemporalResidual(pub(super) Vec<(GroupNorm, TimeConv)>);

impl TemporalResidual {
    /// Keeps the shape [f, h, w, c].
    pub(super) fn forward(&self, x: FrameBatch) -> Result<FrameBatch> {
        let mut h = x.clone();
        for (n, (norm, conv)) in self.0.iter().enumerate() {
            let add = (n + 1 == self.0.len()).then_some(&x);
            h = h.time_conv(Some(norm), conv, add)?;
        }
        Ok(h)
    }
}
