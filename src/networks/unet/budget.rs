// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much memory an evaluation takes, from the order of its work: the network's own walk, with sizes in
//! place of tensors.

use candle_core::DType;

use super::{Config, transformer::tokens_at_a_time};
use crate::{networks::clip::frames_in_slice, wavefront::Slices};

/// Bytes of a level for each channel: of a whole window, of a slice, of the tokens that temporal
/// attention takes at a time.
#[derive(Clone, Copy)]
struct Scale {
    clip: usize,
    slice: usize,
    frames: usize,
    pixels: usize,
    dtype: DType,
}

impl Scale {
    fn new(frames: usize, (h, w): (usize, usize), dtype: DType) -> Self {
        let (pixels, bytes) = (h * w, dtype.size_in_bytes());
        Self {
            clip: frames * pixels * bytes,
            slice: frames_in_slice(h, w, Slices::default()).min(frames) * pixels * bytes,
            frames,
            pixels,
            dtype,
        }
    }

    /// Bytes of a channel of the tokens that temporal attention takes at a time.
    fn tokens(&self, width: usize) -> usize {
        let tokens = tokens_at_a_time(self.dtype, width);
        let pixels = (tokens / self.frames).clamp(1, self.pixels);
        pixels * self.frames * self.dtype.size_in_bytes()
    }
}

/// Tensors of a window that live, and the most that there were.
struct Walk<'a> {
    config: &'a Config,
    scales: Vec<Scale>,
    live: usize,
    peak: usize,
}

/// A window's tensor that a layer takes.
#[derive(Clone, Copy)]
struct Input {
    channels: usize,
    /// Whether it goes with the layer, slice after slice; else something else still holds it.
    taken: bool,
}

impl Walk<'_> {
    /// For a while, `bytes` more.
    fn touch(&mut self, bytes: usize) {
        self.peak = self.peak.max(self.live + bytes);
    }

    fn keep(&mut self, bytes: usize) {
        self.live += bytes;
        self.touch(0);
    }

    fn free(&mut self, bytes: usize) {
        self.live -= bytes;
    }

    /// A layer that makes slices of `out` channels from those of its inputs, with `working` channels of
    /// a slice in between.
    fn map(&mut self, scale: Scale, inputs: &[Input], out: usize, working: usize) {
        let taken: usize = inputs.iter().filter(|x| x.taken).map(|x| x.channels).sum();
        self.touch(working * scale.slice);
        self.free(taken * (scale.clip - scale.slice));
        self.keep(out * (scale.clip - scale.slice));
        self.touch(working * scale.slice);
        self.free(taken * scale.slice);
        self.keep(out * scale.slice);
    }

    fn residual(&mut self, scale: Scale, inputs: &[Input], out: usize) {
        let channels: usize = inputs.iter().map(|input| input.channels).sum();
        // Norm and first convolution, or norm, skip and second convolution.
        self.map(scale, inputs, out, (channels + out).max(3 * out));
        // The first convolution along the frames; three slices are normalised.
        self.keep(out * (scale.clip - scale.slice));
        self.touch(4 * out * scale.slice);
        self.keep(out * scale.slice);
        // The others make a clip of the one before.
        self.touch(3 * out * scale.slice);
        self.free(out * scale.clip);
    }

    /// Attention within frames, for each branch.
    fn spatial(&mut self, scale: Scale, channels: usize, branches: usize) {
        // Tokens before the prompt and after it, the gates' 8 and 4, and the output.
        let input = Input { channels, taken: true };
        self.map(scale, &[input], branches * channels, (14 + branches) * channels);
    }

    fn temporal(&mut self, scale: Scale, channels: usize, inner: usize) {
        self.touch(scale.tokens(inner) * (channels + 14 * inner));
    }

    fn stage(&mut self, level: usize, inputs: &[Input], attends: bool) -> usize {
        let scale = self.scales[level];
        let out = self.width(level);
        self.residual(scale, inputs, out);
        if attends {
            self.spatial(scale, out, 1);
            self.temporal(scale, out, out);
        }
        out
    }

    fn width(&self, level: usize) -> usize {
        self.config.dim * self.config.dim_mult[level]
    }

    fn last(&self) -> usize {
        self.config.dim_mult.len() - 1
    }

    /// The first two blocks, the second for each branch. The first stays.
    fn begin(&mut self, branches: usize) {
        let (scale, dim) = (self.scales[0], self.config.dim);
        self.keep(dim * scale.clip);
        self.touch(2 * dim * scale.slice);
        self.temporal(scale, dim, self.config.num_heads * self.config.head_dim);
        let out = self.width(0);
        self.residual(scale, &[Input { channels: dim, taken: false }], out);
        self.spatial(scale, out, branches);
        self.temporal(scale, out, out);
    }

    /// From the third block on to the middle. `keeps` says whether each block's output stays as a skip.
    /// Gives the channels and levels of the outputs.
    fn down(&mut self, keeps: bool) -> Vec<(usize, usize)> {
        let mut channels = self.width(0);
        let mut outputs = vec![(self.config.dim, 0), (channels, 0)];
        for level in 0..=self.last() {
            let blocks = self.config.num_res_blocks - usize::from(level == 0);
            for _ in 0..blocks {
                let input = Input { channels, taken: !keeps };
                channels = self.stage(level, &[input], self.config.attends(level));
                outputs.push((channels, level));
            }
            if level < self.last() {
                self.rescale(level, level + 1, Input { channels, taken: !keeps });
                outputs.push((channels, level + 1));
            }
        }
        let last = self.last();
        self.stage(last, &[Input { channels, taken: !keeps }], true);
        self.residual(self.scales[last], &[Input { channels, taken: true }], channels);
        outputs
    }

    /// A convolution to another level.
    fn rescale(&mut self, from: usize, to: usize, input: Input) {
        let (from, to) = (self.scales[from], self.scales[to]);
        // A slice as it comes, and the same put in slices anew.
        self.touch(2 * input.channels * to.slice);
        if input.taken {
            self.free(input.channels * (from.clip - from.slice));
        }
        self.keep(input.channels * to.clip);
        self.touch(input.channels * to.slice);
        if input.taken {
            self.free(input.channels * from.slice);
        }
    }

    /// From the middle to the output. The first skip may be held for another branch.
    fn up(&mut self, mut skips: Vec<(usize, usize)>, first_taken: bool) {
        let mut channels = self.width(self.last());
        for level in (0..=self.last()).rev() {
            for _ in 0..=self.config.num_res_blocks {
                let Some((skip, _)) = skips.pop() else { return };
                let skip = Input { channels: skip, taken: first_taken || !skips.is_empty() };
                let inputs = [Input { channels, taken: true }, skip];
                channels = self.stage(level, &inputs, self.config.attends(level));
            }
            if level > 0 {
                self.rescale(level, level - 1, Input { channels, taken: true });
            }
        }
        let input = Input { channels, taken: true };
        self.map(self.scales[0], &[input], self.config.latents, channels);
    }
}

/// Bytes at the peak of [`Denoiser::forward`](super::Denoiser::forward) beyond the weights, for a window
/// of `frames` latents of (h, w) and some branches of guidance.
pub fn peak_bytes(
    config: &Config,
    frames: usize,
    (h, w): (usize, usize),
    branches: usize,
    dtype: DType,
) -> usize {
    let mut sizes = vec![(h, w)];
    for _ in 1..config.dim_mult.len() {
        let (h, w) = sizes[sizes.len() - 1];
        sizes.push(super::encoder::DOWN.output((h, w)));
    }
    let scale = |size: &_| Scale::new(frames, *size, dtype);
    let scales = sizes.iter().map(scale).collect();
    let mut walk = Walk { config, scales, live: 0, peak: 0 };
    // Latents and key frames' latents, channels last.
    let latents = config.latents * walk.scales[0].clip;
    walk.keep(2 * latents);
    walk.begin(branches);
    walk.begin(branches);
    // The ControlNet's part has been added to the first skip.
    walk.free(config.dim * walk.scales[0].clip);
    for branch in 1..=branches {
        let skips = walk.down(true);
        walk.down(false);
        // The ControlNet's middle has been added to the UNet's.
        let last = walk.last();
        walk.free(walk.width(last) * walk.scales[last].clip);
        walk.up(skips, branch == branches);
        walk.keep(latents);
    }
    walk.peak
}
