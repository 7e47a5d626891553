// SPDX-License-Identifier: MIT OR Apache-2.0
//! Predicts the peak memory of a network: replays the allocations that
//! [`FrameBatch`](super::frame_batch::FrameBatch) makes layer by layer, with sizes in place of
//! tensors.

use candle_core::DType;

use super::frame_batch::frames_in_slice;
use crate::sampler::Slices;

/// Slices of a window at one resolution.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    /// Bytes of one channel of one frame.
    pub frame: usize,
    /// Number of frames in each slice.
    slices: Vec<usize>,
    /// Number of frames in a full slice.
    full: usize,
}

impl Scale {
    pub fn new(frames: usize, (h, w): (usize, usize), dtype: DType, slices: Slices) -> Self {
        let full = frames_in_slice(h, w, slices);
        let slices = (0..frames).step_by(full).map(|first| full.min(frames - first)).collect();
        Self { frame: h * w * dtype.size_in_bytes(), slices, full }
    }

    /// Bytes of one channel of each slice.
    fn slices(&self) -> impl Iterator<Item = usize> {
        self.slices.iter().map(|frames| frames * self.frame)
    }

    /// Bytes of one channel of the largest slice.
    pub fn slice(&self) -> usize {
        self.slices().next().unwrap_or(0)
    }

    /// Bytes of one channel of all frames.
    pub fn clip(&self) -> usize {
        self.slices().sum()
    }
}

/// Input tensor of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    pub channels: usize,
    /// Whether the layer frees the input slice by slice. Otherwise another owner keeps it alive.
    pub taken: bool,
}

impl Input {
    pub fn taken(channels: usize) -> Self {
        Self { channels, taken: true }
    }

    /// Channels that the layer frees.
    fn freed(self) -> usize {
        if self.taken { self.channels } else { 0 }
    }
}

/// Bytes of live tensors, and their maximum so far.
#[derive(Debug, Default)]
pub(super) struct PeakMemory {
    live: usize,
    pub peak: usize,
}

impl PeakMemory {
    /// Records a temporary allocation of `bytes`.
    pub fn record_temporary(&mut self, bytes: usize) {
        self.peak = self.peak.max(self.live + bytes);
    }

    /// Allocates `bytes`.
    pub fn allocate(&mut self, bytes: usize) {
        self.live += bytes;
        self.record_temporary(0);
    }

    /// Frees `bytes`.
    pub fn free(&mut self, bytes: usize) {
        self.live -= bytes;
    }

    /// A layer that maps the slices of its inputs to slices of `out` channels. `working` is the
    /// number of channels allocated at the layer's peak besides the inputs, the output included.
    pub fn map(&mut self, scale: &Scale, inputs: &[Input], out: usize, working: usize) {
        let freed: usize = inputs.iter().map(|input| input.freed()).sum();
        for slice in scale.slices() {
            self.record_temporary(working * slice);
            self.free(freed * slice);
            self.allocate(out * slice);
        }
    }

    /// A [`Residual`](super::residual::Residual).
    pub fn residual(&mut self, scale: &Scale, inputs: &[Input], out: usize) {
        let channels: usize = inputs.iter().map(|input| input.channels).sum();
        // First convolution with its normalised input, or second convolution with its normalised
        // input and, if the widths differ, the output of the skip layer.
        let second = if channels == out { 2 * out } else { 3 * out };
        self.map(scale, inputs, out, (channels + out).max(second));
    }

    /// A convolution along the frames. `normed` tells whether the slices are normalised first.
    pub fn time_conv(&mut self, scale: &Scale, input: Input, normed: bool) {
        let (channels, slices) = (input.channels, scale.slices().collect::<Vec<_>>());
        let norm = |memory: &mut Self, slice: usize| {
            if normed {
                memory.allocate(channels * slice);
                memory.free(input.freed() * slice);
            }
        };
        let done = if normed { channels } else { input.freed() };
        let mut rest = slices.iter();
        rest.next().inspect(|slice| norm(self, **slice));
        let mut before = 0;
        for slice in &slices {
            rest.next().inspect(|slice| norm(self, **slice));
            self.allocate(channels * slice);
            self.free(done * before);
            before = *slice;
        }
        self.free(done * before);
    }

    /// A [`TemporalResidual`](super::residual::TemporalResidual) of `count` convolutions.
    pub fn temporal_residual(&mut self, scale: &Scale, channels: usize, count: usize) {
        for n in 0..count {
            self.time_conv(scale, Input { channels, taken: n > 0 }, true);
        }
        self.free(channels * scale.clip());
    }

    /// A convolution to another resolution that keeps the number of channels: see
    /// [`FrameBatch::rescale`](super::frame_batch::FrameBatch::rescale).
    pub fn rescale(&mut self, from: &Scale, to: &Scale, input: Input) {
        let frame = input.channels * to.frame;
        // Frames of the incomplete output slice, and the number of tensors that hold them.
        let (mut pending, mut tensors) = (0, 0);
        for &count in &from.slices {
            let mut rest = count;
            while rest > 0 {
                let part = rest.min(to.full - pending);
                self.allocate(part * frame);
                (pending, tensors, rest) = (pending + part, tensors + 1, rest - part);
                if pending == to.full {
                    self.join(pending * frame, tensors);
                    (pending, tensors) = (0, 0);
                }
            }
            self.free(input.freed() * count * from.frame);
        }
        self.join(pending * frame, tensors);
    }

    /// Concatenates tensors of `bytes` in total.
    fn join(&mut self, bytes: usize, tensors: usize) {
        if tensors > 1 {
            self.record_temporary(bytes);
        }
    }
}
