// SPDX-License-Identifier: MIT OR Apache-2.0
//! Predicts the peak memory of an evaluation by replaying the order of its allocations.

use candle_core::DType;

use super::{config::Config, encoder::DOWN, transformer::tokens_at_a_time};
use crate::{
    networks::peak_memory::{Input, PeakMemory, Scale},
    sampler::Slices,
};

/// Convolutions along the frames in each residual block.
const TEMPORAL: usize = 4;

/// Replays one evaluation over a window.
struct Evaluation<'a> {
    config: &'a Config,
    scales: Vec<Scale>,
    frames: usize,
    dtype: DType,
    slices: Slices,
    memory: PeakMemory,
}

impl Evaluation<'_> {
    fn residual(&mut self, level: usize, inputs: &[Input], out: usize) {
        let scale = &self.scales[level];
        self.memory.residual(scale, inputs, out);
        self.memory.temporal_residual(scale, out, TEMPORAL);
    }

    /// Attention within frames, once for each guidance branch.
    fn spatial(&mut self, level: usize, channels: usize, branches: usize) {
        // Tokens before and after cross-attention, the feed-forward network's 8 and 4 widths, and
        // the output.
        let working = (14 + branches) * channels;
        let input = [Input::taken(channels)];
        self.memory.map(&self.scales[level], &input, branches * channels, working);
    }

    /// Attention along the frames, in place.
    fn temporal(&mut self, level: usize, channels: usize, inner: usize) {
        let frame = self.scales[level].frame;
        let tokens = self.slices.share(tokens_at_a_time(self.dtype, inner));
        let pixels = (tokens / self.frames).max(1) * self.dtype.size_in_bytes();
        self.memory.record_temporary(pixels.min(frame) * self.frames * (channels + 14 * inner));
    }

    /// A residual block with its attention. Returns the output width.
    fn stage(&mut self, level: usize, inputs: &[Input], attends: bool) -> usize {
        let out = self.width(level);
        self.residual(level, inputs, out);
        if attends {
            self.spatial(level, out, 1);
            self.temporal(level, out, out);
        }
        out
    }

    /// Channels of a level.
    fn width(&self, level: usize) -> usize {
        self.config.dim * self.config.dim_mult[level]
    }

    /// Index of the innermost level.
    fn last(&self) -> usize {
        self.config.dim_mult.len() - 1
    }

    /// Adds a ControlNet output to a tensor of the UNet, slice by slice.
    fn add(&mut self, level: usize, channels: usize) {
        self.memory.record_temporary(channels * self.scales[level].slice());
    }

    /// The first two blocks. The first block's output stays allocated; the second block runs once
    /// for each guidance branch.
    fn begin(&mut self, branches: usize) {
        let dim = self.config.dim;
        self.memory.allocate(dim * self.scales[0].clip());
        // Single frames are concatenated to slices.
        self.memory.record_temporary(dim * self.scales[0].slice());
        self.temporal(0, dim, self.config.num_heads * self.config.head_dim);
        let out = self.width(0);
        self.residual(0, &[Input { channels: dim, taken: false }], out);
        self.spatial(0, out, branches);
        self.temporal(0, out, out);
    }

    /// From the third block to the middle block. `keeps` tells whether each block's output stays
    /// allocated as a skip connection (UNet) or is added to the UNet's skip connection
    /// (ControlNet). Returns channels and level of each output.
    fn down(&mut self, keeps: bool) -> Vec<(usize, usize)> {
        let mut channels = self.width(0);
        let mut outputs = vec![(self.config.dim, 0), (channels, 0)];
        if !keeps {
            self.add(0, channels);
        }
        for level in 0..=self.last() {
            let blocks = self.config.num_res_blocks - usize::from(level == 0);
            for _ in 0..blocks {
                let input = Input { channels, taken: !keeps };
                channels = self.stage(level, &[input], self.config.attends(level));
                outputs.push((channels, level));
                if !keeps {
                    self.add(level, channels);
                }
            }
            if level < self.last() {
                self.rescale(level, level + 1, Input { channels, taken: !keeps });
                outputs.push((channels, level + 1));
                if !keeps {
                    self.add(level + 1, channels);
                }
            }
        }
        let last = self.last();
        self.stage(last, &[Input { channels, taken: !keeps }], true);
        self.residual(last, &[Input::taken(channels)], channels);
        if !keeps {
            self.add(last, channels);
        }
        outputs
    }

    /// A convolution to another level.
    fn rescale(&mut self, from: usize, to: usize, input: Input) {
        self.memory.rescale(&self.scales[from], &self.scales[to], input);
    }

    /// From the middle block to the output. `first_taken` is false while another guidance branch
    /// still needs the first skip connection.
    fn up(&mut self, mut skips: Vec<(usize, usize)>, first_taken: bool) {
        let mut channels = self.width(self.last());
        for level in (0..=self.last()).rev() {
            for _ in 0..=self.config.num_res_blocks {
                let Some((skip, _)) = skips.pop() else { return };
                let skip = Input { channels: skip, taken: first_taken || !skips.is_empty() };
                let inputs = [Input::taken(channels), skip];
                channels = self.stage(level, &inputs, self.config.attends(level));
            }
            if level > 0 {
                self.rescale(level, level - 1, Input::taken(channels));
            }
        }
        let latents = self.config.latents;
        self.memory.map(&self.scales[0], &[Input::taken(channels)], latents, channels + latents);
    }
}

/// Peak bytes of [`UNet::forward_in`](super::UNet::forward_in), in addition to the
/// weights, for a window of `frames` latents of size (h, w), with `branches` guidance branches and
/// activations of type `dtype`.
pub fn peak_bytes(
    config: &Config,
    frames: usize,
    (h, w): (usize, usize),
    branches: usize,
    dtype: DType,
    slices: Slices,
) -> usize {
    let mut sizes = vec![(h, w)];
    for _ in 1..config.dim_mult.len() {
        sizes.push(DOWN.output(sizes[sizes.len() - 1]));
    }
    let scale =
        |(size, times): (&_, &usize)| Scale::new(frames, *size, dtype, slices.of_width(*times));
    let scales = sizes.iter().zip(&config.dim_mult).map(scale).collect();
    let memory = PeakMemory::default();
    let mut evaluation = Evaluation { config, scales, frames, dtype, slices, memory };
    let clip = evaluation.scales[0].clip();
    // Latents of the window and of the input frames, channels last.
    evaluation.memory.allocate(2 * config.latents * clip);
    evaluation.begin(branches);
    evaluation.begin(branches);
    evaluation.add(0, config.dim);
    // The ControlNet's first output has been added to the first skip connection.
    evaluation.memory.free(config.dim * clip);
    let (last, middle) = (evaluation.last(), evaluation.width(evaluation.last()));
    for branch in 1..=branches {
        let skips = evaluation.down(true);
        evaluation.down(false);
        // The output of the ControlNet's middle block has been added to the UNet's.
        let middle = middle * evaluation.scales[last].clip();
        evaluation.memory.free(middle);
        evaluation.up(skips, branch == branches);
        let output = config.latents * clip;
        evaluation.memory.free(output);
        evaluation.memory.allocate(output / dtype.size_in_bytes() * DType::F32.size_in_bytes());
    }
    evaluation.memory.peak
}
