// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much memory a network takes, from the order of its work: the walk of [`FrameBatch`](super::frame_batch::FrameBatch)
//! through its layers, with sizes in place of tensors.

use candle_core::DType;

use super::frame_batch::frames_in_slice;
use crate::sampler::Slices;

/// The slices of a window at one scale.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    /// Bytes of a channel of a frame.
    pub frame: usize,
    /// Frames of each slice.
    slices: Vec<usize>,
    /// Frames of a full slice.
    full: usize,
}

impl Scale {
    pub fn new(frames: usize, (h, w): (usize, usize), dtype: DType, slices: Slices) -> Self {
        let full = frames_in_slice(h, w, slices);
        let slices = (0..frames).step_by(full).map(|first| full.min(frames - first)).collect();
        Self { frame: h * w * dtype.size_in_bytes(), slices, full }
    }

    /// Bytes of a channel of each slice.
    fn slices(&self) -> impl Iterator<Item = usize> {
        self.slices.iter().map(|frames| frames * self.frame)
    }

    /// Bytes of a channel of the largest slice.
    pub fn slice(&self) -> usize {
        self.slices().next().unwrap_or(0)
    }

    /// Bytes of a channel of the window.
    pub fn clip(&self) -> usize {
        self.slices().sum()
    }
}

/// A window's tensor that a layer takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    pub channels: usize,
    /// Whether it goes with the layer, slice after slice; else something else still holds it.
    pub taken: bool,
}

impl Input {
    pub fn taken(channels: usize) -> Self {
        Self { channels, taken: true }
    }

    /// Channels that go with the layer.
    fn freed(self) -> usize {
        if self.taken { self.channels } else { 0 }
    }
}

/// Bytes of tensors that live, and the most that there were.
#[derive(Debug, Default)]
pub(super) struct Walk {
    live: usize,
    pub peak: usize,
}

impl Walk {
    /// For a while, `bytes` more.
    pub fn touch(&mut self, bytes: usize) {
        self.peak = self.peak.max(self.live + bytes);
    }

    pub fn keep(&mut self, bytes: usize) {
        self.live += bytes;
        self.touch(0);
    }

    pub fn free(&mut self, bytes: usize) {
        self.live -= bytes;
    }

    /// A layer that makes slices of `out` channels from those of its inputs; at its own peak `working`
    /// channels of a slice are there beside the inputs, those of the output included.
    pub fn map(&mut self, scale: &Scale, inputs: &[Input], out: usize, working: usize) {
        let freed: usize = inputs.iter().map(|input| input.freed()).sum();
        for slice in scale.slices() {
            self.touch(working * slice);
            self.free(freed * slice);
            self.keep(out * slice);
        }
    }

    /// See [`Residual`](super::residual::Residual).
    pub fn residual(&mut self, scale: &Scale, inputs: &[Input], out: usize) {
        let channels: usize = inputs.iter().map(|input| input.channels).sum();
        // Norm and first convolution; then norm and second convolution, with what a skip makes of the input.
        let second = if channels == out { 2 * out } else { 3 * out };
        self.map(scale, inputs, out, (channels + out).max(second));
    }

    /// Convolution along the frames; `normed` says whether slices are normalised before.
    pub fn time_conv(&mut self, scale: &Scale, input: Input, normed: bool) {
        let (channels, slices) = (input.channels, scale.slices().collect::<Vec<_>>());
        let norm = |walk: &mut Self, slice: usize| {
            if normed {
                walk.keep(channels * slice);
                walk.free(input.freed() * slice);
            }
        };
        let done = if normed { channels } else { input.freed() };
        let mut rest = slices.iter();
        rest.next().inspect(|slice| norm(self, **slice));
        let mut before = 0;
        for slice in &slices {
            rest.next().inspect(|slice| norm(self, **slice));
            self.keep(channels * slice);
            self.free(done * before);
            before = *slice;
        }
        self.free(done * before);
    }

    /// See [`TemporalResidual`](super::residual::TemporalResidual): of `count` convolutions, in place.
    pub fn temporal_residual(&mut self, scale: &Scale, channels: usize, count: usize) {
        for n in 0..count {
            self.time_conv(scale, Input { channels, taken: n > 0 }, true);
        }
        self.free(channels * scale.clip());
    }

    /// A convolution with as many outputs as inputs, to another scale, where frames are put in slices anew:
    /// see [`FrameBatch::rescale`](super::frame_batch::FrameBatch::rescale).
    pub fn rescale(&mut self, from: &Scale, to: &Scale, input: Input) {
        let frame = input.channels * to.frame;
        // Frames that wait for a slice to be full, and the tensors that they are in.
        let (mut waiting, mut tensors) = (0, 0);
        for &count in &from.slices {
            let mut rest = count;
            while rest > 0 {
                let part = rest.min(to.full - waiting);
                self.keep(part * frame);
                (waiting, tensors, rest) = (waiting + part, tensors + 1, rest - part);
                if waiting == to.full {
                    self.join(waiting * frame, tensors);
                    (waiting, tensors) = (0, 0);
                }
            }
            self.free(input.freed() * count * from.frame);
        }
        self.join(waiting * frame, tensors);
    }

    /// Tensors of `bytes` together become one.
    fn join(&mut self, bytes: usize, tensors: usize) {
        if tensors > 1 {
            self.touch(bytes);
        }
    }
}
