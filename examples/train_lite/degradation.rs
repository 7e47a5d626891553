// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens to images before they are enhanced: downscaling, noise, compression.

use candle_core::Result;

use super::{
    codec::Codec,
    image::{Border, Filter, Image, Plane},
    random::Random,
};

/// Side of the part of an image that is degraded: 4, 3 and 2 times a multiple of four.
pub const SIDE: usize = 240;
/// Frames of a clip that is encoded.
const CLIP_FRAMES: usize = 6;
/// Largest motion between two of its frames, in pixels of the image.
const MAX_MOTION: usize = 7;
/// Side of an image: the part moves by [`MAX_MOTION`] in each frame.
pub const IMAGE_SIDE: usize = SIDE + MAX_MOTION * (CLIP_FRAMES - 1);

/// An image before and after a degradation.
pub struct Pair {
    /// The original, [`SIDE`]².
    pub high: Plane,
    /// What is left of it.
    pub low: Plane,
}

/// A degradation.
#[derive(Debug, Clone, Copy)]
pub struct Degradation {
    /// Filter of the downscale.
    pub filter: Filter,
    /// Standard deviation of the noise.
    pub noise: f32,
    /// Quantization step of DCT coefficients; 0: none.
    pub quantization: f32,
    pub codec: Option<Codec>,
}

impl Degradation {
    /// A downscale alone.
    pub fn clean(filter: Filter) -> Self {
        Self { filter, noise: 0.0, quantization: 0.0, codec: None }
    }

    /// A random downscale, sharp or soft, often with noise or compression.
    ///
    /// Most images are not compressed: a network cannot tell well whether they are, and sharpens less where many
    /// are.
    pub fn random(random: &mut Random) -> Self {
        let filter = match random.below(20) {
            0..4 => Filter::Cubic(-0.5),
            4..9 => Filter::Cubic(-0.6),
            9..11 => Filter::Cubic(-0.75),
            11..13 => Filter::Lanczos3,
            13..17 => Filter::Box,
            17 => Filter::Triangle,
            _ => Filter::Gauss(random.uniform(0.4, 0.75)),
        };
        let mut degradation = Self::clean(filter);
        if random.chance(0.3) {
            degradation.noise = random.log_uniform(0.5, 8.0) / 255.0;
        }
        match random.below(20) {
            0..4 => degradation.codec = Some(Codec::H264 { crf: 18 + random.below(21) as u32 }),
            4 => degradation.codec = Some(Codec::Jpeg { quality: 30 + random.below(66) as u32 }),
            5..8 => degradation.quantization = random.log_uniform(0.006, 0.03),
            _ => {}
        }
        degradation
    }

    /// Degrades a part of `image`, which has [`IMAGE_SIDE`]², to 1/`factor` of its size.
    ///
    /// # Errors
    /// If the encoder fails.
    pub fn apply(self, image: &Plane, factor: usize, random: &mut Random) -> Result<Pair> {
        let frames = match self.codec {
            Some(Codec::H264 { .. }) => CLIP_FRAMES,
            _ => 1,
        };
        // The clip is a pan over the image, or stands still.
        let motion = match random.chance(0.7) {
            true => [random.below(MAX_MOTION + 1), random.below(MAX_MOTION + 1)],
            false => [0; 2],
        };
        let part = |n: usize| image.crop((motion[0] * n, motion[1] * n), (SIDE, SIDE));
        let mut clip: Vec<_> =
            (0..frames).map(|n| self.downscale(&part(n), factor, random)).collect();
        if let Some(codec) = self.codec {
            clip = codec.transcode(&clip)?;
        }
        let n = random.below(frames);
        let low = clip.swap_remove(n);
        Ok(Pair { high: part(n), low })
    }

    fn downscale(self, high: &Plane, factor: usize, random: &mut Random) -> Plane {
        let size = (high.width / factor, high.height / factor);
        let mut low = high.resample(size, self.filter, Border::Replicated);
        if self.noise > 0.0 {
            low.add_noise(self.noise, random);
        }
        if self.quantization > 0.0 {
            low.quantize_dct(self.quantization);
        }
        low.round_to_8_bits();
        low
    }
}
