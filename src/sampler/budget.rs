// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a run takes of the memory of its devices.

use std::ops::Range;

use super::{
    decode::FRAMES,
    geometry::Canvas,
    plan::{frames_in_flight, hints_in_flight},
    schedule::NoiseSchedule,
    slices::Slices,
    solver::evaluations,
    stream::Settings,
    tiles::Tiles,
    windows::Windows,
};

/// Bytes of a number of the sampler's.
const F32: usize = size_of::<f32>();

/// Windows of latents that an evaluation has beside the network's own: those of the frames put together, as
/// the network takes them, and those of the input frames.
const COPIES: usize = 3;

/// What networks take of a device, in bytes, before they are loaded.
pub trait Footprint {
    /// The weights of a denoiser.
    fn denoiser(&self) -> usize;

    /// The weights of an autoencoder.
    fn autoencoder(&self) -> usize;

    /// The peak of evaluating a window of `frames` latents of size (h, w).
    fn evaluate(
        &self,
        frames: usize,
        latent: (usize, usize),
        guided: bool,
        slices: Slices,
    ) -> usize;

    /// The peak of encoding a frame to latents of size (h, w).
    fn encode(&self, latent: (usize, usize)) -> usize;

    /// The peak of decoding `frames` latents of size (h, w) together.
    fn decode(&self, frames: usize, latent: (usize, usize), slices: Slices) -> usize;
}

/// What one device of a run takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The networks' weights.
    pub weights: usize,
    /// Latents between evaluations.
    pub latents: usize,
    /// The largest peak of a network.
    pub networks: usize,
}

impl Need {
    /// All together.
    pub fn total(&self) -> usize {
        self.weights + self.latents + self.networks
    }
}

/// The stages that device `part` of `parts` has of `count`.
pub(super) fn stage_range(part: usize, parts: usize, count: usize) -> Range<usize> {
    part * count / parts..(part + 1) * count / parts
}

/// The work of one device of a run.
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
    /// Of device `part` of `parts`, for frames on a canvas, with `interpolated` frames between two.
    pub fn new(
        settings: &Settings,
        canvas: &Canvas,
        interpolated: usize,
        (part, parts): (usize, usize),
    ) -> Self {
        let evaluations =
            evaluations(&NoiseSchedule::default(), settings.solver, settings.steps).1.len();
        Self {
            latent: canvas.latent(),
            windows: Windows::of_clip(interpolated),
            interpolated,
            guided: settings.guidance.guided(),
            stages: stage_range(part, parts.min(evaluations), evaluations),
            evaluations,
        }
    }

    /// Frames of the longest window.
    pub fn frames(&self) -> usize {
        self.windows.longest()
    }

    fn encodes(&self) -> bool {
        self.stages.start == 0
    }

    fn decodes(&self) -> bool {
        self.stages.end == self.evaluations
    }

    /// Whether other devices have a part of the work: then frames are encoded while windows are evaluated.
    pub(super) fn encodes_concurrently(&self) -> bool {
        self.encodes() && !self.decodes()
    }

    /// Bytes of the latents that the device holds at most while a network works.
    pub fn latents(&self) -> usize {
        let (h, w) = self.latent;
        let frames = frames_in_flight(self.windows, self.stages.clone())
            + hints_in_flight(self.windows, self.evaluations, self.interpolated)
            + COPIES * self.frames();
        frames * 4 * h * w * F32
    }

    /// What the device's memory is needed for.
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
        let together = match self.encodes_concurrently() {
            true => evaluate + encode,
            false => evaluate.max(encode),
        };
        Need {
            weights: networks.denoiser() + if has_autoencoder { networks.autoencoder() } else { 0 },
            latents: self.latents(),
            networks: together.max(decode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Options;

    /// Networks whose bytes are easy to tell apart.
    struct Numbers;

    impl Footprint for Numbers {
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
            // So small a frame is one tile.
            assert_eq!((frames, tile), (7, (90, 160)));
            1_010
        }
    }

    #[test]
    fn a_device_needs_what_its_part_of_the_work_takes() {
        let settings = Settings::from(&Options::default());
        let canvas = Canvas::new((720, 1280), Canvas::SMALLEST);
        let need = |part, parts| {
            let work = Work::new(&settings, &canvas, 2, (part, parts));
            let Need { weights, networks, .. } = work.need(&Numbers, Slices::default());
            (weights, networks)
        };
        // One network works after the other.
        assert_eq!(need(0, 1), (21, 1_010));
        // The first of several encodes while it evaluates; the last decodes after that.
        assert_eq!(need(0, 3), (21, 1_900));
        assert_eq!(need(1, 3), (1, 1_000));
        assert_eq!(need(2, 3), (21, 1_010));
    }

    #[test]
    fn devices_share_the_latents() {
        let settings = Settings::from(&Options::default());
        let canvas = Canvas::new((720, 1280), Canvas::SMALLEST);
        let latents = |part, parts| Work::new(&settings, &canvas, 2, (part, parts)).latents();
        let frame = 4 * 90 * 160 * F32;
        let common = (COPIES * 41 + 237_usize.div_ceil(3)) * frame;
        let sum: usize = (0..7).map(|part| latents(part, 7) - common).sum();
        assert_eq!(sum, latents(0, 1) - common);
    }
}
