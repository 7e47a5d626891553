// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clips for `examples/quality`: what is hard for an enhancer and rare in other material.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::Arc,
};

use candle_core::Result;
use rayon::prelude::*;

use super::{
    image::Plane,
    random::Random,
    scene::{Canvas, Scene},
};

/// Size of the clips.
const SIZE: (usize, usize) = (384, 192);
/// Number of frames. The time of a clip goes from 0 to 1.
const FRAMES: usize = 41;
/// Luma of the limited range, and what a clip with superwhites fills.
const NOMINAL: (f32, f32) = (16.0, 235.0);
const SUPERWHITE: (f32, f32) = (1.0, 254.0);

/// Writes the clips to `folder`, as Y4M without colour.
///
/// # Errors
/// If a file cannot be written.
pub fn write_clips(folder: &Path, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let layers =
        |speed, random: &mut Random| Scene::new(&canvases, SIZE, speed, random).with_shutter(0.0);
    for n in 0..4 {
        let scene = layers(480.0, &mut random);
        write(folder, &format!("layers{n}"), NOMINAL, |time| scene.frame(SIZE, time))?;
    }
    let blurred = layers(480.0, &mut random).with_shutter(0.5 / (FRAMES - 1) as f32);
    write(folder, "motion-blur", NOMINAL, |time| blurred.frame(SIZE, time))?;

    let mut pan = |velocity| Scene::pan(&canvases, SIZE, velocity, &mut random);
    let (slow, fast, diagonal) = (pan((200.0, 0.0)), pan((480.0, 30.0)), pan((150.0, 100.0)));
    write(folder, "pan", NOMINAL, |time| fast.frame(SIZE, time))?;
    write(folder, "fade", NOMINAL, |time| {
        let mut frame = slow.frame(SIZE, time);
        frame.values.iter_mut().for_each(|luma| *luma *= 1.0 - time);
        frame
    })?;
    write(folder, "superwhites", SUPERWHITE, |time| diagonal.frame(SIZE, time))?;
    // The camera swings three times in the clip.
    write(folder, "shake", NOMINAL, |time| {
        slow.frame(SIZE, 0.5 + 0.08 * (3.0 * std::f32::consts::TAU * time).sin())
    })?;
    let subtitled = pan((200.0, 20.0)).with_text((0.0, 0.0), 0.8, &mut random);
    write(folder, "subtitles", NOMINAL, |time| subtitled.frame(SIZE, time))?;
    let credits = Scene::black(SIZE).with_text((0.0, -100.0), 0.3, &mut random);
    write(folder, "credits", NOMINAL, |time| credits.frame(SIZE, time))?;
    let rods = Scene::pan(&canvases, SIZE, (40.0, 0.0), &mut random).with_rods(&mut random);
    write(folder, "rods", NOMINAL, |time| rods.frame(SIZE, time))?;
    // A unit of the time of the scene is a frame.
    let steps = (FRAMES - 1) as f32;
    let figure = Scene::pan(&canvases, SIZE, (1.5, 0.0), &mut random);
    let figure = figure.with_figure(&canvases, (-3.0, 0.5), &mut random);
    write(folder, "figure", NOMINAL, |time| figure.frame(SIZE, steps * (time - 0.5)))
}

/// Writes a clip; `frame` renders the luma at a time from 0 to 1, whose black and white are the code values of
/// `range`.
fn write(
    folder: &Path,
    name: &str,
    range: (f32, f32),
    frame: impl Fn(f32) -> Plane + Sync,
) -> Result<()> {
    let (width, height) = SIZE;
    let frames: Vec<_> =
        (0..FRAMES).into_par_iter().map(|n| frame(n as f32 / (FRAMES - 1) as f32)).collect();
    let mut file = BufWriter::new(File::create(folder.join(name).with_extension("y4m"))?);
    writeln!(file, "YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg")?;
    for frame in frames {
        writeln!(file, "FRAME")?;
        let code = |luma: &f32| (range.0 + (range.1 - range.0) * luma).round() as u8;
        file.write_all(&frame.values.iter().map(code).collect::<Vec<_>>())?;
        file.write_all(&vec![128; width * height / 2])?;
    }
    Ok(file.flush()?)
}
