// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an evaluation of the networks takes.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    networks::unet,
    ops::{self, Record},
    wavefront::{Autoencoder, Canvas, Conditions, Denoiser, Mode, Slices, Velocities},
    weights::synth,
};
use serde_json::json;

use super::{
    Args,
    model::{self, Window},
    seconds,
};

/// Frames that the published example has, and its evaluations of a window.
const PUBLISHED: usize = 145;
const EVALUATIONS: usize = 14;

/// Frames of the longest window.
const LONGEST: usize = 43;

fn latent(args: &Args) -> (usize, usize) {
    if let Some([h, w]) = args.latent.as_deref() {
        return (*h, *w);
    }
    Canvas::new((args.size[0], args.size[1]), Canvas::SMALLEST).latent()
}

fn evaluate(denoiser: &dyn Denoiser, window: &Window) -> Result<Velocities> {
    let slices = slices(denoiser, window)?;
    let conditions =
        Conditions { t: 601.0, hint: &window.hint, t_hint: 199.0, s_cond: 8.0, mask: &window.mask };
    let mode = Mode { slices, ..Mode::default() };
    denoiser.velocities(&window.x, &conditions, true, mode, &|| Ok(()))
}

/// The slices that the sampler would take.
fn slices(denoiser: &dyn Denoiser, window: &Window) -> Result<Slices> {
    let (_, _, frames, h, w) = window.x.dims5()?;
    let budget = denoiser.budget(frames, (h, w), true);
    Ok(budget.map_or_else(Slices::default, |budget| budget.slices(0)))
}

/// Seconds of both branches of guidance, and of each kind of kernel beside its floor.
pub fn time(args: &Args, device: &Device) -> Result<()> {
    let denoiser = model::denoiser(device)?;
    let (h, w) = latent(args);
    let window = Window::new(args.frames, (h, w), device)?;
    for run in 0..=args.runs {
        let before = ops::operations();
        let (seconds, made) = seconds(device, || evaluate(&denoiser, &window))?;
        let operations = (ops::operations() - before) as f64;
        let rms = |x: &Tensor| x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
        let memory = ops::memory(device)?;
        println!(
            "{}",
            json!({
                "what": "a window's evaluation, both branches",
                "run": run,
                "frames": args.frames,
                "latent": [h, w],
                "seconds": seconds,
                "pflop": operations / 1e15,
                "tflop_per_second": operations / seconds / 1e12,
                "floor_seconds": operations / args.tflops / 1e12,
                "peak_gib": gib(memory.most),
                "rms": rms(&made.conditional)?,
            })
        );
    }
    let (whole, (made, records)) =
        seconds(device, || ops::record(|| evaluate(&denoiser, &window)))?;
    if let Some(path) = &args.save {
        let tensors = [("conditional", made.conditional.to_device(&Device::Cpu)?)];
        candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), path)?;
    }
    split(&records, whole, args);
    Ok(())
}

/// What each kind of kernel took; what is left is candle's own, and the time between kernels.
fn split(records: &BTreeMap<&str, Record>, whole: f64, args: &Args) {
    let mut rest = whole;
    for (kind, record) in records {
        let floor = record.operations as f64 / args.tflops / 1e12
            + record.bytes as f64 / args.bandwidth / 1e12;
        rest -= record.seconds;
        println!(
            "{}",
            json!({
                "what": kind,
                "launches": record.launches,
                "seconds": record.seconds,
                "floor_seconds": floor,
                "times_floor": record.seconds / floor,
            })
        );
    }
    println!("{}", json!({ "what": "other", "seconds": rest, "of": whole }));
}

/// Seconds of encoding and decoding frames, and an estimate for the published example.
pub fn autoencoder(args: &Args, device: &Device) -> Result<()> {
    let vae = model::autoencoder(device)?;
    let (h, w) = latent(args);
    let frame = synth::noise("frame", &[1, 3, 8 * h, 8 * w], device)?;
    // As the decoder gets them: five frames of a tile.
    let tile = (h.min(72), w.min(128));
    let latents = synth::noise("latents", &[5, 4, tile.0, tile.1], device)?;
    let check = &|| Ok(());
    let mut encoding = f64::INFINITY;
    let mut decoding = f64::INFINITY;
    for _ in 0..=args.runs {
        let mode = Mode::default();
        encoding =
            encoding.min(seconds(device, || Autoencoder::encode(&vae, &frame, mode, check))?.0);
        let decode = || Autoencoder::decode(&vae, &latents, mode, check);
        decoding = decoding.min(seconds(device, decode)?.0);
    }
    println!("{}", json!({ "what": "encoding a frame", "latent": [h, w], "seconds": encoding }));
    println!(
        "{}",
        json!({ "what": "decoding a tile of 5 frames", "latent": tile, "seconds": decoding })
    );
    drop(vae);

    // Windows of frames and of pixels overlap as the sampler and the decoder have them.
    let tiles =
        gstvenhance::wavefront::ROWS.all(h).len() * gstvenhance::wavefront::COLUMNS.all(w).len();
    let passes = gstvenhance::wavefront::FRAMES.all(PUBLISHED).len() * tiles;
    let windows = gstvenhance::wavefront::Windows::of_clip(2).all(PUBLISHED);
    let denoiser = model::denoiser(device)?;
    let mut sampling = 0.0;
    for length in windows.iter().map(|window| window.len()) {
        let window = Window::new(length, (h, w), device)?;
        evaluate(&denoiser, &window)?;
        sampling += seconds(device, || evaluate(&denoiser, &window))?.0;
    }
    sampling *= EVALUATIONS as f64;
    let keys = PUBLISHED.div_ceil(3) as f64;
    let whole = sampling + keys * encoding + passes as f64 * decoding;
    println!(
        "{}",
        json!({
            "what": "estimate for the published example: 145 frames",
            "windows": windows.iter().map(|window| window.len()).collect::<Vec<_>>(),
            "sampling_seconds": sampling,
            "encoding_seconds": keys * encoding,
            "decoding_seconds": passes as f64 * decoding,
            "minutes": whole / 60.0,
        })
    );
    Ok(())
}

/// The peak of the longest window, with most of the device taken.
pub fn memory(args: &Args, device: &Device) -> Result<()> {
    let mut ballast = Vec::new();
    while ops::memory(device)?.free > (args.leave + 1) << 30 {
        ballast.push(Tensor::zeros(1 << 30, DType::U8, device)?);
    }
    let taken = ops::memory(device)?.used;
    let (h, w) = latent(args);
    let denoiser = model::denoiser(device)?;
    let weights = ops::memory(device)?.used - taken;
    let window = Window::new(LONGEST, (h, w), device)?;
    let slices = slices(&denoiser, &window)?;
    let free = ops::device_memory(device).map_or(0, |memory| memory.available) as u64;
    let before = ops::memory(device)?.used;
    let evaluated = evaluate(&denoiser, &window);
    device.synchronize()?;
    let most = ops::memory(device)?.most - before;
    let config = unet::Config::full();
    let said = unet::peak_bytes(&config, LONGEST, (h, w), 2, DType::F16, slices) as u64;
    println!(
        "{}",
        json!({
            "what": "the longest window, both branches",
            "frames": LONGEST,
            "latent": [h, w],
            "ballast_gib": gib(taken),
            "weights_gib": gib(weights),
            "free_gib": gib(free),
            "slices": slices.pixels(),
            "peak_gib": gib(most),
            "said_gib": gib(said),
            "error": evaluated.err().map(|error| error.to_string()),
        })
    );
    Ok(())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
