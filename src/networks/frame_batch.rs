// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds the activations of a window at one resolution as slices of frames, so that layers can
//! work on one slice at a time.

use candle_core::{Result, Tensor};

use crate::{
    ops::{Affine, Conv2d, GroupNorm, Moments, TimeConv},
    sampler::Slices,
};

/// Frames in order, as slices [n, h, w, c].
#[derive(Debug, Clone, Default)]
pub(super) struct FrameBatch {
    slices: Vec<Tensor>,
    size: Slices,
}

/// Number of frames of size (h, w) in a full slice.
pub(super) fn frames_in_slice(h: usize, w: usize, size: Slices) -> usize {
    (size.pixels() / (h * w)).max(1)
}

impl FrameBatch {
    /// Splits frames [f, h, w, c] into slices; the slices are views.
    pub(super) fn new(frames: &Tensor, size: Slices) -> Result<Self> {
        let (f, h, w, _) = frames.dims4()?;
        let full = frames_in_slice(h, w, size);
        let slice = |first| frames.narrow(0, first, full.min(f - first));
        Ok(Self { slices: (0..f).step_by(full).map(slice).collect::<Result<_>>()?, size })
    }

    /// Concatenates single frames [1, h, w, c] to slices as they arrive.
    pub(super) fn of_frames(
        frames: impl Iterator<Item = Result<Tensor>>,
        size: Slices,
    ) -> Result<Self> {
        let (mut frames, mut slices) = (frames, Vec::new());
        while let Some(frame) = frames.next() {
            let frame = frame?;
            let (_, h, w, _) = frame.dims4()?;
            let others = frames.by_ref().take(frames_in_slice(h, w, size) - 1);
            let slice = std::iter::once(Ok(frame)).chain(others).collect::<Result<_>>()?;
            slices.push(join(slice)?);
        }
        Ok(Self { slices, size })
    }

    /// Concatenates all frames to [f, h, w, c].
    pub(super) fn frames(self) -> Result<Tensor> {
        Tensor::cat(&self.slices, 0)
    }

    /// The slices in order, [n, h, w, c] each.
    pub(super) fn slices(&self) -> &[Tensor] {
        &self.slices
    }

    /// The slice size that this batch is split by.
    pub(super) fn size(&self) -> Slices {
        self.size
    }

    /// Maps each slice in turn. Each input slice is freed before the next one is mapped.
    pub(super) fn map(self, change: impl FnMut(Tensor) -> Result<Tensor>) -> Result<Self> {
        let slices = self.slices.into_iter().map(change).collect::<Result<_>>()?;
        Ok(Self { slices, size: self.size })
    }

    /// Maps to `count` batches: `change` returns one slice for each of them.
    pub(super) fn fork(
        self,
        count: usize,
        mut change: impl FnMut(Tensor) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Self>> {
        let mut batches = vec![Self { slices: Vec::new(), size: self.size }; count];
        for slice in self.slices {
            for (batch, slice) in batches.iter_mut().zip(change(slice)?) {
                batch.slices.push(slice);
            }
        }
        Ok(batches)
    }

    /// Like [`FrameBatch::map`], with the corresponding slice of a second batch.
    pub(super) fn zip(
        self,
        other: Self,
        mut change: impl FnMut(Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let pairs = self.slices.into_iter().zip(other.slices);
        let slices = pairs.map(|(one, other)| change(one, other)).collect::<Result<_>>()?;
        Ok(Self { slices, size: self.size })
    }

    /// Convolves to another resolution and splits the result by the slice size of that resolution.
    /// `times` is the channel multiplier of the new level relative to level 0.
    pub(super) fn rescale(self, conv: &Conv2d, times: usize) -> Result<Self> {
        let size = self.size.of_width(times);
        let (mut slices, mut pending, mut frames) = (Vec::new(), Vec::new(), 0);
        for slice in self.slices {
            let (n, h, w, _) = slice.dims4()?;
            let (h, w) = conv.output((h, w));
            let full = frames_in_slice(h, w, size);
            let mut first = 0;
            while first < n {
                let count = (full - frames).min(n - first);
                let part = slice.narrow(0, first, count)?;
                pending.push(conv.forward(&[&part], None, None)?);
                (first, frames) = (first + count, frames + count);
                if frames == full {
                    slices.push(join(std::mem::take(&mut pending))?);
                    frames = 0;
                }
            }
        }
        if frames > 0 {
            slices.push(join(pending)?);
        }
        Ok(Self { slices, size: self.size })
    }

    /// Scale and offset of a group norm whose statistics run over all frames.
    pub(super) fn affine(&self, norm: &GroupNorm) -> Result<Affine> {
        let moments = self.slices.iter().map(Moments::of).collect::<Result<Vec<_>>>()?;
        norm.affine(&Moments::pool(&moments)?)
    }

    /// Convolution along the frames. If `norm` is given, a group norm over all frames and SiLU
    /// come first. The slices of `add` are added to the result. At most three normalised slices
    /// are allocated at a time.
    pub(super) fn time_conv(
        self,
        norm: Option<&GroupNorm>,
        conv: &TimeConv,
        add: Option<&Self>,
    ) -> Result<Self> {
        let affine = norm.map(|norm| self.affine(norm)).transpose()?;
        let mut rest = self.slices.into_iter().map(|slice| match &affine {
            Some(affine) => affine.apply(&slice, true),
            None => Ok(slice),
        });
        let (mut before, mut middle) = (None, rest.next().transpose()?);
        let mut slices = Vec::with_capacity(rest.len() + 1);
        while let Some(slice) = middle {
            let after = rest.next().transpose()?;
            let add = add.map(|add| &add.slices[slices.len()]);
            slices.push(conv.forward(before.as_ref(), &slice, after.as_ref(), add)?);
            (before, middle) = (Some(slice), after);
        }
        Ok(Self { slices, size: self.size })
    }
}

/// Concatenates tensors along the frames. A single tensor is not copied.
fn join(mut slices: Vec<Tensor>) -> Result<Tensor> {
    match slices.len() {
        1 => Ok(slices.remove(0)),
        _ => Tensor::cat(&slices, 0),
    }
}
