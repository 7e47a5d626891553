// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lessons for the sharpeners: a picture, made smaller in one of many ways, and what Lanczos loses.

use candle_core::{Device, Result, Tensor};
use gstvenhance::lite::network::Sharpener;
use rayon::prelude::*;

use super::{
    plane::{Kernel, Picture, Plane},
    random::Random,
    scene::{Canvas, Scene},
    school::Pool,
    trainer::{Learner, Run},
};
use std::sync::Arc;

/// Pictures in a batch.
const BATCH: usize = 16;
/// How much of a small picture's border does not count.
const BORDER: usize = 4;
/// Steps between two new pictures.
const RENEWAL: usize = 8;
/// Side of the pictures that lessons are cut from.
const PICTURE: usize = 288;

/// Side of a small picture.
fn side(sharpener: Sharpener) -> usize {
    if sharpener.fold == 1 { 32 } else { 48 }
}

/// What a network gets, and what it should give.
struct Lesson {
    small: Plane,
    missing: Plane,
}

/// A picture as a camera, and whoever made it smaller, leaves it.
fn picture(canvases: &[Arc<Canvas>], random: &mut Random) -> Plane {
    let scene = Scene::new(canvases, (PICTURE, PICTURE), 0.0, random);
    let picture = scene.frame((PICTURE, PICTURE), 0.0);
    // Lenses, and encoders before this one, leave less than a sensor could show.
    match random.chance(0.8) {
        true => picture.blur(random.uniform(0.3, 1.4)),
        false => picture,
    }
}

fn shrink(large: &Plane, factor: usize, random: &mut Random, clean: bool) -> Plane {
    let kernels = [
        Kernel::Box,
        Kernel::Cubic(-0.5),
        Kernel::Cubic(-0.6),
        Kernel::Cubic(-0.75),
        Kernel::Lanczos3,
    ];
    let kernel = *random.pick(&kernels);
    let mut small = large.resample((large.width / factor, large.height / factor), kernel);
    if !clean && random.chance(0.2) {
        small.add_noise(random.log_uniform(0.002, 0.01), random);
    }
    if !clean && random.chance(0.25) {
        small.quantise(random.log_uniform(0.006, 0.03));
    }
    small.round();
    small
}

/// Squares of `fold` pixels as channels: [h/fold, w/fold, fold²].
fn fold(plane: &Plane, fold: usize) -> Vec<f32> {
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

fn lesson(pictures: &[Plane], sharpener: Sharpener, random: &mut Random, clean: bool) -> Lesson {
    let factor = sharpener.factor;
    let side = side(sharpener) * factor;
    let at = (random.below(PICTURE - side + 1), random.below(PICTURE - side + 1));
    let mut large = random.pick(pictures).crop(at, (side, side));
    large.turn(std::array::from_fn(|_| random.chance(0.5)));
    let small = shrink(&large, factor, random, clean);
    let lanczos = small.resample((side, side), Kernel::Lanczos3);
    let mut missing = large;
    missing.values.iter_mut().zip(&lanczos.values).for_each(|(x, y)| *x -= y);
    Lesson { small, missing }
}

fn batch(lessons: &[Lesson], sharpener: Sharpener, device: &Device) -> Result<(Tensor, Tensor)> {
    let Sharpener { factor, fold: size, .. } = sharpener;
    let side = side(sharpener) / size;
    let small: Vec<_> = lessons.iter().flat_map(|lesson| fold(&lesson.small, size)).collect();
    let missing: Vec<_> =
        lessons.iter().flat_map(|lesson| fold(&lesson.missing, size * factor)).collect();
    let small = Tensor::from_vec(small, (lessons.len(), side, side, size * size), device)?;
    let channels = size * size * factor * factor;
    let missing = Tensor::from_vec(missing, (lessons.len(), side, side, channels), device)?;
    let border = BORDER / size;
    let inner = |x: &Tensor| {
        x.narrow(1, border, side - 2 * border)?.narrow(2, border, side - 2 * border)?.contiguous()
    };
    Ok((small, inner(&missing)?))
}

fn error(learner: &Learner, small: &Tensor, missing: &Tensor) -> Result<Tensor> {
    let given = learner.forward(small)?;
    let side = missing.dim(1)?;
    let border = (given.dim(1)? - side) / 2;
    let given = given.narrow(1, border, side)?.narrow(2, border, side)?;
    (given - missing)?.contiguous()
}

/// Trains a sharpener until the run is over; then says what it has won in pictures that it does not know.
pub fn train(
    sharpener: Sharpener,
    learner: &Learner,
    run: &mut Run,
    seed: u64,
    device: &Device,
) -> Result<()> {
    let mut pool = Pool::new(seed, 160, picture);
    let mut random = Random::new(seed + 1);
    while let Some(step) = run.step() {
        if step % RENEWAL == 0 {
            pool.renew();
        }
        let seeds: Vec<_> = (0..BATCH).map(|_| random.seed()).collect();
        let pictures = pool.items();
        let lessons: Vec<_> = seeds
            .into_par_iter()
            .map(|seed| lesson(pictures, sharpener, &mut Random::new(seed), false))
            .collect();
        let (small, missing) = batch(&lessons, sharpener, device)?;
        // PSNR turned around, in nepers: soft pictures count as much as sharp ones, and what rounding to
        // 8 bits hides counts for nothing.
        let error = error(learner, &small, &missing)?.sqr()?.flatten_from(1)?.mean(1)?;
        let loss = (error + 4e-6)?.log()?.mean_all()?;
        run.learn(&loss, loss.to_scalar()?, &[learner])?;
        if (step + 1) % 2000 == 0 {
            validate(sharpener, learner, device)?;
        }
    }
    validate(sharpener, learner, device)
}

fn validate(sharpener: Sharpener, learner: &Learner, device: &Device) -> Result<()> {
    let mut random = Random::new(0x7A11);
    let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let pictures: Vec<_> = (0..12).map(|_| picture(&canvases, &mut random)).collect();
    let lessons: Vec<_> =
        (0..96).map(|_| lesson(&pictures, sharpener, &mut random, true)).collect();
    let (small, missing) = batch(&lessons, sharpener, device)?;
    let decibels = |x: &Tensor| {
        let error = x.sqr()?.flatten_from(1)?.mean(1)?;
        Ok::<_, candle_core::Error>(
            -10.0 / 10f32.ln() * error.log()?.mean_all()?.to_scalar::<f32>()?,
        )
    };
    let (before, after) = (decibels(&missing)?, decibels(&error(learner, &small, &missing)?)?);
    let name = sharpener.network.name;
    println!("  {name} lanczos {before:.2} dB, ours {:+.2} dB", after - before);
    Ok(())
}
