// SPDX-License-Identifier: MIT OR Apache-2.0
//! Predicts peak memory of encoding and decoding by replaying the order of allocations.
//!
//! The peaks occur at full resolution. Attention runs on 1/64 of the pixels; its scores on a GPU
//! are far below the peak and are not counted.

use std::iter::successors;

use candle_core::DType;

use super::{COLOURS, Config, ENCODER, LATENTS};
use crate::{
    networks::peak_memory::{Input, PeakMemory, Scale},
    sampler::{LATENT, Slices},
};

/// Convolutions along the frames in each block of the decoder.
const TEMPORAL: usize = 2;

/// Tensors of the attention layer besides its input, each as wide as the input: normalised input,
/// queries, keys, values, attention result and output.
const ATTENTION: usize = 6;

fn attention(memory: &mut PeakMemory, scale: &Scale, channels: usize) {
    memory.map(scale, &[Input::taken(channels)], channels, ATTENTION * channels);
}

/// Peak bytes of encoding one frame with latents of size (h, w), in addition to the weights.
pub fn encode_bytes(config: &Config, (h, w): (usize, usize)) -> usize {
    let scale = |level: u32| {
        let size = ((h * LATENT) >> level, (w * LATENT) >> level);
        Scale::new(1, size, ENCODER, Slices::default())
    };
    let mut memory = PeakMemory::default();
    let mut channels = config.block_out_channels[0];
    let mut current = scale(0);
    // The channels-last copy of the frame stays allocated.
    memory.allocate((COLOURS + channels) * current.clip());
    for (level, &out) in config.block_out_channels.iter().enumerate() {
        for _ in 0..config.layers_per_block {
            memory.residual(&current, &[Input::taken(channels)], out);
            channels = out;
        }
        if level + 1 < config.block_out_channels.len() {
            let next = scale(level as u32 + 1);
            memory.rescale(&current, &next, Input::taken(channels));
            current = next;
        }
    }
    let input = [Input::taken(channels)];
    memory.residual(&current, &input, channels);
    attention(&mut memory, &current, channels);
    memory.residual(&current, &input, channels);
    memory.map(&current, &input, channels, channels);
    memory.peak
}

/// Peak bytes of decoding `frames` latents of size (h, w) as one batch, in addition to the
/// weights, with activations of type `dtype`.
pub fn decode_bytes(
    config: &Config,
    frames: usize,
    latent: (usize, usize),
    dtype: DType,
    slices: Slices,
) -> usize {
    let sizes = successors(Some(latent), |(h, w)| Some((2 * h, 2 * w)));
    let mut scales = sizes.map(|size| Scale::new(frames, size, dtype, slices));
    let mut memory = PeakMemory::default();
    let block = |memory: &mut PeakMemory, scale: &Scale, channels, out| {
        memory.residual(scale, &[Input::taken(channels)], out);
        memory.temporal_residual(scale, out, TEMPORAL);
    };
    let mut channels = config.innermost();
    let Some(mut current) = scales.next() else { return 0 };
    // The latents stay allocated; their slices are freed.
    memory.allocate(2 * LATENTS * current.clip());
    memory.map(&current, &[Input::taken(LATENTS)], channels, channels);
    for n in 0..config.layers_per_block {
        if n == 1 {
            attention(&mut memory, &current, channels);
        }
        block(&mut memory, &current, channels, channels);
    }
    for (level, &out) in config.block_out_channels.iter().rev().enumerate() {
        for _ in 0..=config.layers_per_block {
            block(&mut memory, &current, channels, out);
            channels = out;
        }
        if level + 1 < config.block_out_channels.len()
            && let Some(next) = scales.next()
        {
            memory.rescale(&current, &next, Input::taken(channels));
            current = next;
        }
    }
    memory.map(&current, &[Input::taken(channels)], COLOURS, channels + COLOURS);
    memory.time_conv(&current, Input::taken(COLOURS), false);
    // The frames are concatenated, permuted to channels first and converted to f32.
    let values = COLOURS * current.clip();
    memory.record_temporary(values + values / dtype.size_in_bytes() * DType::F32.size_in_bytes());
    memory.peak
}
