// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes the device memory of a run before any weights are loaded.

use std::ops::Range;

use super::{
    decode::FRAMES,
    geometry::Canvas,
    params::SamplerParams,
    plan::{frames_in_flight, hints_in_flight},
    slices::Slices,
    tiles::Tiles,
    windows::Windows,
};

/// Bytes of one value of a latent.
const F32: usize = size_of::<f32>();

/// Windows of latents that an evaluation allocates besides the network's own tensors: the concatenated
/// frames, the scaled input of the network, and the hint.
const COPIES: usize = 3;

/// Memory of the networks in bytes, known before they are loaded.
pub trait Footprint {
    /// Weights of a denoiser.
    fn denoiser(&self) -> usize;

    /// Weights of an autoencoder.
    fn autoencoder(&self) -> usize;

    /// Peak of an evaluation of a window of `frames` latents of size (h, w).
    fn evaluate(
        &self,
        frames: usize,
        latent: (usize, usize),
        guided: bool,
        slices: Slices,
    ) -> usize;

    /// Peak of encoding one frame to latents of size (h, w).
    fn encode(&self, latent: (usize, usize)) -> usize;

    /// Peak of decoding `frames` latents of size (h, w) in one call.
    fn decode(&self, frames: usize, latent: (usize, usize), slices: Slices) -> usize;
}

/// Memory that a run needs on one device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Weights of the networks.
    pub weights: usize,
    /// Latents held between evaluations.
    pub latents: usize,
    /// Largest peak of the networks.
    pub networks: usize,
}

impl Need {
    /// Sum of all parts.
    pub fn total(&self) -> usize {
        self.weights + self.latents + self.networks
    }
}

/// Returns the stages of device number `device` when `count` stages are split over `devices`.
pub(super) fn stage_range(device: usize, devices: usize, count: usize) -> Range<usize> {
    device * count / devices..(device + 1) * count / devices
}

/// The share of one device in a run.
#[derive(Debug, Clone)]
pub struct Work {
    latent: (usize, usize),
    windows: Windows,
    interpolated: usize,
    guided: bool,
    stages: Range<usize>,
    evaluations: usize,
}

impl Work {
    /// Describes the share of device number `device` of `devices`, for frames on `canvas` with
    /// `interpolated` frames between two input frames.
    pub fn new(
        params: &SamplerParams,
        canvas: &Canvas,
        interpolated: usize,
        (device, devices): (usize, usize),
    ) -> Self {
        let evaluations = params.evaluations();
        Self {
            latent: canvas.latent(),
            windows: Windows::of_clip(interpolated),
            interpolated,
            guided: params.guidance.guided(),
            stages: stage_range(device, devices.min(evaluations), evaluations),
            evaluations,
        }
    }

    /// Returns the frames of the longest window.
    pub fn frames(&self) -> usize {
        self.windows.longest()
    }

    fn encodes(&self) -> bool {
        self.stages.start == 0
    }

    fn decodes(&self) -> bool {
        self.stages.end == self.evaluations
    }

    /// Returns whether the device encodes frames while it evaluates windows. With several devices, the
    /// caller's thread encodes and the device's own thread evaluates.
    pub(super) fn encodes_concurrently(&self) -> bool {
        self.encodes() && !self.decodes()
    }

    /// Returns the bytes of latents that the device holds at most while a network runs.
    pub fn latents(&self) -> usize {
        let (h, w) = self.latent;
        let frames = frames_in_flight(self.windows, self.stages.clone())
            + hints_in_flight(self.windows, self.evaluations, self.interpolated)
            + COPIES * self.frames();
        frames * 4 * h * w * F32
    }

    /// Returns the memory that the device needs for its share.
    pub fn need(&self, networks: &dyn Footprint, slices: Slices) -> Need {
        let has_autoencoder = self.encodes() || self.decodes();
        let evaluate = networks.evaluate(self.frames(), self.latent, self.guided, slices);
        let encode = if self.encodes() { networks.encode(self.latent) } else { 0 };
        let decode = match self.decodes() {
            true => {
                let tile = Tiles::for_decoding(self.latent).tile();
                networks.decode(FRAMES.longest(), tile, slices)
            }
            false => 0,
        };
        let denoising = match self.encodes_concurrently() {
            true => evaluate + encode,
            false => evaluate.max(encode),
        };
        Need {
            weights: networks.denoiser() + if has_autoencoder { networks.autoencoder() } else { 0 },
            latents: self.latents(),
            networks: denoising.max(decode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Options;

    /// Networks whose sizes are distinct decimal digits, so that a sum shows its terms.
    struct DigitFootprint;

    impl Footprint for DigitFootprint {
        fn denoiser(&self) -> usize {
            1
        }

        fn autoencoder(&self) -> usize {
            20
        }

        fn evaluate(&self, frames: usize, _: (usize, usize), guided: bool, _: Slices) -> usize {
            assert_eq!((frames, guided), (41, true));
            1_000
        }

        fn encode(&self, latent: (usize, usize)) -> usize {
            assert_eq!(latent, (90, 160));
            900
        }

        fn decode(&self, frames: usize, tile: (usize, usize), _: Slices) -> usize {
            // A frame of this size is a single tile.
            assert_eq!((frames, tile), (7, (90, 160)));
            1_010
        }
    }

    #[test]
    fn a_device_needs_memory_for_its_share_only() {
        let params = SamplerParams::from(&Options::default());
        let canvas = Canvas::new((720, 1280), Canvas::SMALLEST);
        let need = |device, devices| {
            let work = Work::new(&params, &canvas, 2, (device, devices));
            let Need { weights, networks, .. } = work.need(&DigitFootprint, Slices::default());
            (weights, networks)
        };
        // A single device runs one network at a time.
        assert_eq!(need(0, 1), (21, 1_010));
        // Of several devices, the first encodes while it evaluates; the last evaluates, then decodes.
        assert_eq!(need(0, 3), (21, 1_900));
        assert_eq!(need(1, 3), (1, 1_000));
        assert_eq!(need(2, 3), (21, 1_010));
    }

    #[test]
    fn the_latents_of_all_devices_sum_to_those_of_one() {
        let params = SamplerParams::from(&Options::default());
        let canvas = Canvas::new((720, 1280), Canvas::SMALLEST);
        let latents = |device, devices| Work::new(&params, &canvas, 2, (device, devices)).latents();
        let frame = 4 * 90 * 160 * F32;
        let common = (COPIES * 41 + 237_usize.div_ceil(3)) * frame;
        let sum: usize = (0..7).map(|device| latents(device, 7) - common).sum();
        assert_eq!(sum, latents(0, 1) - common);
    }
}
