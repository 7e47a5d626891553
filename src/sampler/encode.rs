// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encodes each input frame once and derives from it the noisy latents that sampling starts from.
//!
//! An input frame and the interpolated frames after it start from the same encoded frame. Each of them
//! draws its own noise.

use std::{cell::Cell, sync::Arc};

use candle_core::{Result, Tensor};

use super::{
    control::Control,
    geometry::Canvas,
    model::{Autoencoder, Encoded, Precision},
    noise::Purpose,
    params::ClipParams,
    schedule::{NoiseSchedule, START},
    slices::Slices,
    stage::Frame,
    tiles::Tiles,
};
use crate::engine::{Error, output_frames};

/// Parameters that are the same for all frames of a clip.
pub(super) struct EncodeParams {
    pub(super) clip: Arc<ClipParams>,
    pub(super) canvas: Canvas,
    pub(super) schedule: NoiseSchedule,
    /// s = σ/α of the first step. Sampling starts from the diffused latents times s, as in the reference
    /// implementation.
    pub(super) start: f64,
}

impl EncodeParams {
    /// Returns output frame `index` with noise, starting from the input frame `encoded`.
    fn frame(&self, encoded: &Encoded, index: usize, is_input: bool) -> Result<Frame> {
        let noise = |purpose| {
            let noise = self.clip.noise.normal(purpose, index, self.canvas.latent())?;
            noise.to_device(encoded.mean.device())
        };
        let latents = encoded.sample(&noise(Purpose::Encode)?)?;
        let x = (self.schedule.diffuse(&latents, START, &noise(Purpose::Start)?)? * self.start)?;
        let hint = match is_input {
            true => {
                let t_hint = self.clip.sampler.t_hint();
                Some(self.schedule.diffuse(&latents, t_hint, &noise(Purpose::Hint)?)?)
            }
            false => None,
        };
        let hint = hint.map(|hint| hint.unsqueeze(2)).transpose()?;
        Ok(Frame::new(x.unsqueeze(2)?, hint))
    }
}

/// Turns input frames into output frames that are ready for the first stage.
pub(super) struct Encode {
    autoencoder: Arc<dyn Autoencoder>,
    tiles: Tiles,
    params: EncodeParams,
    /// Number of input frames so far.
    inputs: usize,
    /// The last input frame, for the interpolated frames that follow it.
    previous: Option<Encoded>,
    precision: Cell<Precision>,
    control: Control,
}

impl Encode {
    pub(super) fn new(
        autoencoder: Arc<dyn Autoencoder>,
        params: EncodeParams,
        control: Control,
    ) -> Self {
        let tiles = Tiles::for_encoding(params.canvas.latent());
        let precision = Cell::default();
        Self { autoencoder, tiles, params, inputs: 0, previous: None, precision, control }
    }

    /// Returns the number of output frames so far.
    pub(super) fn output_frames(&self) -> usize {
        output_frames(self.inputs, self.params.clip.interpolated)
    }

    /// Encodes the next input frame, an image [1, 3, H, W] of the padded size. Returns the interpolated frames
    /// between the previous input frame and this one, then this one.
    pub(super) fn push(&mut self, image: &Tensor) -> std::result::Result<Vec<Frame>, Error> {
        let what = format!("encoding input frame {}", self.inputs);
        let encoded = loop {
            let encoded = self.control.evaluate(&what, &self.precision, |mode, check| {
                let encoded = self.tiles.encode(image, &*self.autoencoder, mode, check)?;
                Ok([encoded.mean, encoded.std])
            });
            match encoded {
                Ok([mean, std]) => break Encoded { mean, std },
                Err(error) => {
                    self.tiles = self.tiles.smaller(error, "encoding", &self.control)?;
                    self.control.set_slices(Slices::default());
                }
            }
        };
        let frames = self.control.attempt(&what, self.frames_to(&encoded))?;
        self.inputs += 1;
        self.previous = Some(encoded);
        Ok(frames)
    }

    /// Returns the interpolated frames from the previous input frame to `input`, then `input`.
    fn frames_to(&self, input: &Encoded) -> Result<Vec<Frame>> {
        let interpolated = self.params.clip.interpolated;
        let mut frames = Vec::new();
        if let Some(previous) = &self.previous {
            for n in 1..=interpolated {
                let index = (self.inputs - 1) * (interpolated + 1) + n;
                frames.push(self.params.frame(previous, index, false)?);
            }
        }
        let index = self.inputs * (interpolated + 1);
        frames.push(self.params.frame(input, index, true)?);
        Ok(frames)
    }
}
