// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the upscalers: the input is an image that was downscaled in one of many ways, the target is what its
//! Lanczos upscale lacks.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::lite::{network::Upscaler, statistics::Statistics};

use super::{
    codec::Codec,
    degradation::{Degradation, IMAGE_SIDE, Pair},
    image::{Border, Filter, Image, Plane},
    pool::Pool,
    random::Random,
    scene::{Canvas, Scene},
    trainer::{Run, Trainee},
};

/// Samples per batch.
const BATCH: usize = 16;
/// Steps between two new images in the pool.
const RENEWAL_STEPS: usize = 8;

/// Side of a low-resolution sample.
fn sample_side(upscaler: Upscaler) -> usize {
    if upscaler.fold == 1 { 32 } else { 48 }
}

/// Pixels at the sides of a low-resolution sample that the loss ignores, unless they are sides of the image: the network
/// sees replicated pixels there. Each layer reads one pixel of its input, which is `fold` pixels of the image wide, beyond
/// the sides of its output.
fn border(upscaler: Upscaler) -> usize {
    upscaler.fold * (upscaler.network.channels.len() - 1)
}

/// A degraded image.
struct Degraded {
    /// The low-resolution luma.
    low: Plane,
    statistics: Statistics,
    /// The target: the original minus the Lanczos upscale of `low`.
    residual: Plane,
}

/// A part of a degraded image.
struct Sample {
    low: Plane,
    /// Those of the whole image.
    statistics: Statistics,
    residual: Plane,
    /// A weight per pixel of `low`, 0 where the loss ignores it. The mean of their squares is 1.
    weights: Plane,
}

impl Sample {
    /// Lets the image have one luma. In such samples, the network learns to add no pattern to flat areas.
    fn flatten(&mut self, luma: f32) {
        self.low.values.fill(luma);
        self.residual.values.fill(0.0);
    }
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
) -> Result<Degraded> {
    let Pair { high, low } = degradation.apply(image, factor, random)?;
    let lanczos = low.resample((high.width, high.height), Filter::Lanczos3, Border::Cut);
    let mut residual = high;
    residual.values.iter_mut().zip(&lanczos.values).for_each(|(x, y)| *x -= y);
    Ok(Degraded { statistics: Statistics::of(&low), low, residual })
}

/// A random part of an image, flipped at random. About a third touch the left or right border, and a third the top or bottom.
fn crop(image: &Degraded, upscaler: Upscaler, random: &mut Random) -> Sample {
    let side = sample_side(upscaler);
    let last = image.low.width - side;
    let beyond = last / 4;
    let mut at = || random.below(last + 2 * beyond + 1).saturating_sub(beyond).min(last);
    let (x, y) = (at(), at());
    let factor = upscaler.factor;
    let mut sample = Sample {
        low: image.low.crop((x, y), (side, side)),
        statistics: image.statistics,
        residual: image.residual.crop((x * factor, y * factor), (side * factor, side * factor)),
        weights: weights([x, y], last, upscaler),
    };
    let flips = std::array::from_fn(|_| random.chance(0.5));
    for plane in [&mut sample.low, &mut sample.residual, &mut sample.weights] {
        plane.flip(flips);
    }
    sample
}

/// The weights of the sample at (x, y), where `last` is the largest x and y.
fn weights(at: [usize; 2], last: usize, upscaler: Upscaler) -> Plane {
    let (side, border) = (sample_side(upscaler), border(upscaler));
    let [columns, rows] = at.map(|at| {
        let begin = if at == 0 { 0 } else { border };
        let end = if at == last { side } else { side - border };
        begin..end
    });
    let mut weights = Plane::new(side, side);
    let weight = ((side * side) as f32 / (columns.len() * rows.len()) as f32).sqrt();
    for row in weights.values.chunks_exact_mut(side).skip(rows.start).take(rows.len()) {
        row[columns.clone()].fill(weight);
    }
    weights
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

/// A batch of samples.
struct Batch {
    /// [n, h, w, fold² + 2].
    input: Tensor,
    /// The residual times the weights, [n, h, w, (fold·factor)²].
    target: Tensor,
    /// [n, h, w, 1].
    weights: Tensor,
}

/// Stacks samples.
fn batch(samples: &[Sample], upscaler: Upscaler, device: &Device) -> Result<Batch> {
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
    let weights: Vec<_> = samples
        .iter()
        .flat_map(|sample| space_to_depth(&sample.weights, fold).into_iter().step_by(fold * fold))
        .collect();
    let tensor =
        |values, channels| Tensor::from_vec(values, (samples.len(), side, side, channels), device);
    let weights = tensor(weights, 1)?;
    let residual = tensor(residual, fold * fold * factor * factor)?;
    let target = residual.broadcast_mul(&weights)?;
    Ok(Batch { input: tensor(low, upscaler.input_channels())?, target, weights })
}

impl Batch {
    /// The weighted error of the prediction.
    fn error(&self, trainee: &Trainee) -> Result<Tensor> {
        trainee.forward(&self.input)?.broadcast_mul(&self.weights)? - &self.target
    }
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
        let mut samples: Vec<_> =
            (0..BATCH).map(|_| crop(random.pick(pool.items()), upscaler, &mut random)).collect();
        samples[0].flatten(random.uniform(0.0, 1.0));
        let batch = batch(&samples, upscaler, device)?;
        let error = log_error(&batch.error(trainee)?)?;
        let loss = (&error + harm(&error, &log_error(&batch.target)?)?)?.mean_all()?;
        run.learn(&loss, loss.to_scalar()?, &[trainee])?;
        if (step + 1) % 2000 == 0 {
            validation.print(trainee)?;
        }
    }
    validation.print(trainee)
}

/// Images that no network is trained on, degraded in different ways.
struct Validation {
    /// One per degradation, with its name.
    batches: Vec<(&'static str, Batch)>,
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
            Ok((name, batch(&samples, upscaler, device)?))
        });
        Ok(Self { batches: batches.collect::<Result<_>>()? })
    }

    /// Prints the PSNR of Lanczos and the gain of the network in dB, by degradation, without the scale of
    /// the export.
    fn print(&self, trainee: &Trainee) -> Result<()> {
        let psnr = |error: &Tensor| {
            (log_error(error)?.mean_all()? * (-10.0 / 10f64.ln()))?.to_scalar::<f32>()
        };
        for (name, batch) in &self.batches {
            let (before, after) = (psnr(&batch.target)?, psnr(&batch.error(trainee)?)?);
            print!(" {name} {before:.2} {:+.2}", after - before);
        }
        println!();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gstvenhance::lite::network::UPSCALERS;

    use super::{super::degradation::SIDE, *};

    #[test]
    fn the_loss_ignores_pixels_next_to_unknown_ones() {
        for (upscaler, border) in UPSCALERS.into_iter().zip([6, 3, 4]) {
            let side = sample_side(upscaler);
            let last = SIDE / upscaler.factor - side;
            for (at, columns, rows) in [
                ([last - 1, 3], border..side - border, border..side - border),
                ([0, last], 0..side - border, border..side),
            ] {
                let weights = weights(at, last, upscaler);
                for (n, weight) in weights.values.iter().enumerate() {
                    let inside = columns.contains(&(n % side)) && rows.contains(&(n / side));
                    assert_eq!(*weight > 0.0, inside, "{at:?}: pixel {n}");
                }
                let square: f32 = weights.values.iter().map(|weight| weight * weight).sum();
                assert!((square / (side * side) as f32 - 1.0).abs() < 1e-4, "{at:?}: {square}");
            }
        }
    }
}
