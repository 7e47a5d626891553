// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the upscalers: the input is an image that was downscaled in one of many ways, the target is what its
//! Lanczos upscale lacks.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::lite::network::Upscaler;
use rayon::prelude::*;

use super::{
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
/// Side of the images that samples are cropped from.
const IMAGE_SIDE: usize = 288;

/// Side of a low-resolution sample.
fn sample_side(upscaler: Upscaler) -> usize {
    if upscaler.fold == 1 { 32 } else { 48 }
}

/// A training sample.
struct Sample {
    /// The low-resolution luma.
    low: Plane,
    /// The target: the original minus the Lanczos upscale of `low`.
    residual: Plane,
}

/// An image of a scene as a camera records it.
fn render(canvases: &[Arc<Canvas>], random: &mut Random) -> Plane {
    let scene = Scene::new(canvases, (IMAGE_SIDE, IMAGE_SIDE), 0.0, random);
    let image = scene.frame((IMAGE_SIDE, IMAGE_SIDE), 0.0);
    // Lenses and earlier compression leave less detail than the sensor resolves.
    match random.chance(0.8) {
        true => image.blur(random.uniform(0.3, 1.4)),
        false => image,
    }
}

/// Downscales with a random filter and, unless `clean`, adds noise and compression artifacts.
fn downscale(high: &Plane, factor: usize, random: &mut Random, clean: bool) -> Plane {
    let filters = [
        Filter::Box,
        Filter::Cubic(-0.5),
        Filter::Cubic(-0.6),
        Filter::Cubic(-0.75),
        Filter::Lanczos3,
    ];
    let filter = *random.pick(&filters);
    let mut low = high.resample((high.width / factor, high.height / factor), filter);
    if !clean && random.chance(0.2) {
        low.add_noise(random.log_uniform(0.002, 0.01), random);
    }
    if !clean && random.chance(0.25) {
        low.quantize_dct(random.log_uniform(0.006, 0.03));
    }
    low.round_to_8_bits();
    low
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

fn sample(images: &[Plane], upscaler: Upscaler, random: &mut Random, clean: bool) -> Sample {
    let factor = upscaler.factor;
    let side = sample_side(upscaler) * factor;
    let at = (random.below(IMAGE_SIDE - side + 1), random.below(IMAGE_SIDE - side + 1));
    let mut high = random.pick(images).crop(at, (side, side));
    high.flip(std::array::from_fn(|_| random.chance(0.5)));
    let low = downscale(&high, factor, random, clean);
    let lanczos = low.resample((side, side), Filter::Lanczos3);
    let mut residual = high;
    residual.values.iter_mut().zip(&lanczos.values).for_each(|(x, y)| *x -= y);
    Sample { low, residual }
}

/// Stacks samples: inputs [n, h, w, fold²], and targets without the border.
fn batch(samples: &[Sample], upscaler: Upscaler, device: &Device) -> Result<(Tensor, Tensor)> {
    let Upscaler { factor, fold, .. } = upscaler;
    let side = sample_side(upscaler) / fold;
    let low: Vec<_> = samples.iter().flat_map(|sample| space_to_depth(&sample.low, fold)).collect();
    let residual: Vec<_> =
        samples.iter().flat_map(|sample| space_to_depth(&sample.residual, fold * factor)).collect();
    let low = Tensor::from_vec(low, (samples.len(), side, side, fold * fold), device)?;
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

/// Trains an upscaler until the run is complete. Prints the gain on unseen images every 2000 steps and at the end.
pub fn train(
    upscaler: Upscaler,
    trainee: &Trainee,
    run: &mut Run,
    seed: u64,
    device: &Device,
) -> Result<()> {
    let mut pool = Pool::new(seed, 160, render);
    let mut random = Random::new(seed + 1);
    while let Some(step) = run.step() {
        if step % RENEWAL_STEPS == 0 {
            pool.renew();
        }
        let seeds: Vec<_> = (0..BATCH).map(|_| random.seed()).collect();
        let images = pool.items();
        let samples: Vec<_> = seeds
            .into_par_iter()
            .map(|seed| sample(images, upscaler, &mut Random::new(seed), false))
            .collect();
        let (low, residual) = batch(&samples, upscaler, device)?;
        // The mean log error per sample (the negative PSNR), so that soft images count as much as sharp ones.
        // The constant hides errors below the rounding to 8 bits.
        let error = error(trainee, &low, &residual)?.sqr()?.flatten_from(1)?.mean(1)?;
        let loss = (error + 4e-6)?.log()?.mean_all()?;
        run.learn(&loss, loss.to_scalar()?, &[trainee])?;
        if (step + 1) % 2000 == 0 {
            validate(upscaler, trainee, device)?;
        }
    }
    validate(upscaler, trainee, device)
}

/// Prints the PSNR of Lanczos, and the gain of the network, on images that it was not trained on.
fn validate(upscaler: Upscaler, trainee: &Trainee, device: &Device) -> Result<()> {
    let mut random = Random::new(0x7A11);
    let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let images: Vec<_> = (0..12).map(|_| render(&canvases, &mut random)).collect();
    let samples: Vec<_> = (0..96).map(|_| sample(&images, upscaler, &mut random, true)).collect();
    let (low, residual) = batch(&samples, upscaler, device)?;
    let psnr = |error: &Tensor| {
        let error = error.sqr()?.flatten_from(1)?.mean(1)?;
        let decibels = -10.0 / 10f32.ln() * error.log()?.mean_all()?.to_scalar::<f32>()?;
        Ok::<_, candle_core::Error>(decibels)
    };
    let (before, after) = (psnr(&residual)?, psnr(&error(trainee, &low, &residual)?)?);
    let name = upscaler.network.name;
    println!("  {name}: Lanczos {before:.2} dB, network {:+.2} dB", after - before);
    Ok(())
}
