// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the upscalers: the input is an image that was downscaled in one of many ways, the target is what its
//! Lanczos upscale lacks.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::lite::{network::Upscaler, statistics::Statistics};

use super::{
    codec::Codec,
    degradation::{Degradation, IMAGE_SIDE, Pair},
    image::{Filter, Image, Plane},
    pool::Pool,
    random::Random,
    scene::{Canvas, Scene},
    trainer::{Run, Trainee},
};

/// Samples per batch.
const BATCH: usize = 16;
/// Pixels at the border of a low-resolution image that are excluded from the loss.
const BORDER: usize = 4;
/// Steps between two new images in the pool.
const RENEWAL_STEPS: usize = 8;

/// Side of a low-resolution sample.
fn sample_side(upscaler: Upscaler) -> usize {
    if upscaler.fold == 1 { 32 } else { 48 }
}

/// A degraded image, or a part of it.
struct Sample {
    /// The low-resolution luma.
    low: Plane,
    /// The statistics of the whole image.
    statistics: Statistics,
    /// The target: the original minus the Lanczos upscale of `low`.
    residual: Plane,
}

/// An image of a scene as a camera records it. The blur grows with the `factor` of the network, so that the inputs of all
/// networks are equally soft.
fn render(canvases: &[Arc<Canvas>], factor: usize, random: &mut Random) -> Plane {
    let size = (IMAGE_SIDE, IMAGE_SIDE);
    let image = Scene::new(canvases, size, 0.0, random).frame(size, 0.0);
    // Lenses and earlier compression leave less detail than the sensor resolves.
    match random.chance(0.8) {
        true => image.blur(random.log_uniform(0.3, factor as f32)),
        false => image,
    }
}

/// Degrades an image.
fn degrade(
    image: &Plane,
    degradation: Degradation,
    factor: usize,
    random: &mut Random,
) -> Result<Sample> {
    let Pair { high, low } = degradation.apply(image, factor, random)?;
    let lanczos = low.resample((high.width, high.height), Filter::Lanczos3);
    let mut residual = high;
    residual.values.iter_mut().zip(&lanczos.values).for_each(|(x, y)| *x -= y);
    Ok(Sample { statistics: Statistics::of(&low), low, residual })
}

/// A random part of an image, flipped at random.
fn crop(image: &Sample, upscaler: Upscaler, random: &mut Random) -> Sample {
    let side = sample_side(upscaler);
    let mut at = || random.below(image.low.width - side + 1);
    let (x, y) = (at(), at());
    let factor = upscaler.factor;
    let mut sample = Sample {
        low: image.low.crop((x, y), (side, side)),
        statistics: image.statistics,
        residual: image.residual.crop((x * factor, y * factor), (side * factor, side * factor)),
    };
    let flips = std::array::from_fn(|_| random.chance(0.5));
    sample.low.flip(flips);
    sample.residual.flip(flips);
    sample
}

/// Space to depth: [h, w] to [h/fold, w/fold, fold²].
fn space_to_depth(plane: &Plane, fold: usize) -> Vec<f32> {
    let (w, h) = (plane.width / fold, plane.height / fold);
    let mut values = Vec::with_capacity(plane.values.len());
    for y in 0..h {
        for x in 0..w {
            for dy in 0..fold {
                let row = &plane.values[(y * fold + dy) * plane.width + x * fold..];
                values.extend_from_slice(&row[..fold]);
            }
        }
    }
    values
}

/// Stacks samples: inputs [n, h, w, fold² + 2], and targets without the border.
fn batch(samples: &[Sample], upscaler: Upscaler, device: &Device) -> Result<(Tensor, Tensor)> {
    let Upscaler { factor, fold, .. } = upscaler;
    let side = sample_side(upscaler) / fold;
    let mut low = Vec::new();
    for sample in samples {
        for block in space_to_depth(&sample.low, fold).chunks_exact(fold * fold) {
            low.extend_from_slice(block);
            low.extend(Upscaler::statistics_input(sample.statistics));
        }
    }
    let residual: Vec<_> =
        samples.iter().flat_map(|sample| space_to_depth(&sample.residual, fold * factor)).collect();
    let low =
        Tensor::from_vec(low, (samples.len(), side, side, upscaler.input_channels()), device)?;
    let channels = fold * fold * factor * factor;
    let residual = Tensor::from_vec(residual, (samples.len(), side, side, channels), device)?;
    let border = BORDER / fold;
    let inner = |x: &Tensor| {
        x.narrow(1, border, side - 2 * border)?.narrow(2, border, side - 2 * border)?.contiguous()
    };
    Ok((low, inner(&residual)?))
}

/// The prediction minus the target, without the border.
fn error(trainee: &Trainee, low: &Tensor, residual: &Tensor) -> Result<Tensor> {
    let output = trainee.forward(low)?;
    let side = residual.dim(1)?;
    let border = (output.dim(1)? - side) / 2;
    let output = output.narrow(1, border, side)?.narrow(2, border, side)?;
    (output - residual)?.contiguous()
}

/// The log of the mean square error of each sample, [n]: the negative PSNR, so that soft images count as much as sharp
/// ones. The constant hides errors below the rounding to 8 bits.
fn log_error(error: &Tensor) -> Result<Tensor> {
    (error.sqr()?.flatten_from(1)?.mean(1)? + 4e-6)?.log()
}

/// What is added to the loss of samples that are worse than their Lanczos upscale: a user would be better off without
/// the network.
fn harm(error: &Tensor, lanczos: &Tensor) -> Result<Tensor> {
    const WEIGHT: f64 = 2.0;
    (error - lanczos)?.relu()? * WEIGHT
}

/// Trains an upscaler until the run is complete, on randomly degraded images. Prints the gain on unseen images at the start,
/// every 2000 steps, and at the end.
pub fn train(
    upscaler: Upscaler,
    trainee: &Trainee,
    run: &mut Run,
    seed: u64,
    device: &Device,
) -> Result<()> {
    let mut pool = Pool::new(seed, 160, move |canvases, random| {
        let degradation = Degradation::random(random);
        let image = render(canvases, upscaler.factor, random);
        degrade(&image, degradation, upscaler.factor, random)
    })?;
    let validation = Validation::new(upscaler, device)?;
    validation.print(trainee)?;
    let mut random = Random::new(seed + 1);
    while let Some(step) = run.step() {
        if step % RENEWAL_STEPS == 0 {
            pool.renew()?;
        }
        let samples: Vec<_> =
            (0..BATCH).map(|_| crop(random.pick(pool.items()), upscaler, &mut random)).collect();
        let (low, residual) = batch(&samples, upscaler, device)?;
        let error = log_error(&error(trainee, &low, &residual)?)?;
        let loss = (&error + harm(&error, &log_error(&residual)?)?)?.mean_all()?;
        run.learn(&loss, loss.to_scalar()?, &[trainee])?;
        if (step + 1) % 2000 == 0 {
            validation.print(trainee)?;
        }
    }
    validation.print(trainee)
}

/// Images that no network is trained on, degraded in different ways.
struct Validation {
    /// The name of each degradation, the input of the network, and the target.
    batches: Vec<(&'static str, Tensor, Tensor)>,
}

impl Validation {
    fn new(upscaler: Upscaler, device: &Device) -> Result<Self> {
        let clean = Degradation::clean(Filter::Cubic(-0.6));
        let h264 = |crf| Degradation { codec: Some(Codec::H264 { crf }), ..clean };
        let degradations = [
            ("bicubic", clean),
            ("area", Degradation::clean(Filter::Box)),
            ("soft", Degradation::clean(Filter::Gauss(0.6))),
            ("crf 23", h264(23)),
            ("crf 28", h264(28)),
            ("crf 35", h264(35)),
            ("JPEG", Degradation { codec: Some(Codec::Jpeg { quality: 40 }), ..clean }),
            ("noise", Degradation { noise: 4.0 / 255.0, ..clean }),
        ];
        let mut random = Random::new(0x7A11);
        let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
        let images: Vec<_> =
            (0..24).map(|_| render(&canvases, upscaler.factor, &mut random)).collect();
        let batches = degradations.into_iter().map(|(name, degradation)| {
            let sample = |image: &Plane| {
                let image = degrade(image, degradation, upscaler.factor, &mut random)?;
                Ok(crop(&image, upscaler, &mut random))
            };
            let samples: Vec<_> = images.iter().map(sample).collect::<Result<_>>()?;
            let (low, residual) = batch(&samples, upscaler, device)?;
            Ok((name, low, residual))
        });
        Ok(Self { batches: batches.collect::<Result<_>>()? })
    }

    /// Prints the PSNR of Lanczos and the gain of the network in dB, by degradation.
    fn print(&self, trainee: &Trainee) -> Result<()> {
        let psnr = |error: &Tensor| {
            (log_error(error)?.mean_all()? * (-10.0 / 10f64.ln()))?.to_scalar::<f32>()
        };
        for (name, low, residual) in &self.batches {
            let (before, after) = (psnr(residual)?, psnr(&error(trainee, low, residual)?)?);
            print!(" {name} {before:.2} {:+.2}", after - before);
        }
        println!();
        Ok(())
    }
}
