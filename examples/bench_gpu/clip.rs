// SPDX-License-Identifier: MIT OR Apache-2.0
//! A clip from end to end: frames in, frames out, as the element runs it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use candle_core::{Device, Error as Failure, Result};
use gstvenhance::{
    engine::{
        Cancel, ClipContext, Enhancer, Error, Format, Frame, Options, Progress, Sink,
        multiple_times,
    },
    ops,
    sampler::{DiffusionEnhancer, Models, SamplerParams, Seeded},
};
use serde_json::json;

use super::{Args, Findings, model};

/// Input frames; with the interpolated frames, 61 output frames.
const INPUT_FRAMES: usize = 21;
/// Interpolated frames between two input frames.
const INTERPOLATED: usize = 2;

#[derive(Default)]
struct Count {
    frames: AtomicUsize,
    units: AtomicUsize,
}

impl Sink for Count {
    fn frame(&self, _: Arc<Frame>) -> std::result::Result<(), Error> {
        self.frames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn progress(&self, _: Progress) {
        self.units.fetch_add(1, Ordering::Relaxed);
    }

    fn warning(&self, text: String) {
        eprintln!("{text}");
    }
}

/// A picture that moves.
fn picture(number: usize, (width, height): (usize, usize)) -> std::result::Result<Frame, Error> {
    let mut frame = Frame::new(width, height)?;
    for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
        let (x, y) = (n % width + 3 * number, n / width);
        let wave =
            |scale: f64| ((x as f64 * scale).sin() * (y as f64 * scale).cos() + 1.0) * 32767.0;
        pixel.copy_from_slice(&[wave(0.05) as u16, wave(0.11) as u16, wave(0.23) as u16, u16::MAX]);
    }
    Ok(frame)
}

pub fn run(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let output = (args.size[1], args.size[0]);
    let input = (output.0 / 4, output.1 / 4);
    let format = Format { input, output, interpolated: INTERPOLATED, exact: false, alpha: false };
    let autoencoder = Arc::new(model::autoencoder(device)?);
    let models = Models {
        encoder: autoencoder.clone(),
        denoisers: vec![Arc::new(model::denoiser(device)?)],
        decoder: autoencoder,
    };
    let settings = SamplerParams::from(&Options::default());
    let mut enhancer = DiffusionEnhancer::new(models, settings, Arc::new(Seeded(1)));
    let sink = Arc::new(Count::default());
    ops::memory(device)?;
    let start = Instant::now();
    let mut run = || {
        let clip = ClipContext { sink: sink.clone(), cancel: Cancel::default() };
        enhancer.start(format, clip)?;
        (0..INPUT_FRAMES).try_for_each(|n| {
            let (time, outputs) = multiple_times(n as u64, n == 0, INTERPOLATED);
            enhancer.push(picture(n, input)?, time, &outputs)
        })?;
        enhancer.finish(&[])
    };
    run().map_err(Failure::wrap)?;
    let seconds = start.elapsed().as_secs_f64();
    findings.print(&json!({
        "what": "a clip from end to end",
        "frames": sink.frames.load(Ordering::Relaxed),
        "units": sink.units.load(Ordering::Relaxed),
        "size": [output.1, output.0],
        "seconds": seconds,
        "peak_gib": ops::memory(device)?.most as f64 / f64::from(1 << 30),
    }));
    Ok(())
}
