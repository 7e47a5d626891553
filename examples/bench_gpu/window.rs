// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an evaluation of the networks takes.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Instant,
};

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::{
    networks::unet,
    ops::{self, Record},
    sampler::{Autoencoder, Check, Conditions, Denoiser, Mode, Slices, Velocities},
    weights::synth,
};
use serde_json::json;

use super::{
    Args, Findings,
    model::{self, Window},
    parity::relative,
    seconds,
};

/// Frames that the published example has, and its evaluations of a window.
const PUBLISHED: usize = 145;
const EVALUATIONS: usize = 14;

/// Frames of the longest window.
const LONGEST: usize = 43;

/// Relative error between two sets of kernels, or two sizes of slices, over the whole network in f16: what each may be
/// off from f32.
const SAME: f64 = 2e-2;

fn evaluate(
    denoiser: &dyn Denoiser,
    window: &Window,
    slices: Slices,
    check: Check,
) -> Result<Velocities> {
    let conditions =
        Conditions { t: 601.0, hint: &window.hint, t_hint: 199.0, s_cond: 8.0, mask: &window.mask };
    denoiser.velocities(&window.x, &conditions, true, Mode { slices, ..Mode::default() }, check)
}

/// The slices of the command line, or those that the sampler would take.
fn slices(args: &Args, denoiser: &dyn Denoiser, window: &Window) -> Result<Slices> {
    let (_, _, frames, h, w) = window.x.dims5()?;
    let budget = || denoiser.budget(frames, (h, w), true);
    let chosen = || budget().map_or_else(Slices::default, |budget| budget.slices(0));
    Ok(args.slices.map_or_else(chosen, Slices::of_pixels))
}

/// Seconds of both branches of guidance, and of each kind of kernel beside its floor.
pub fn time(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let denoiser = model::denoiser(device)?;
    let (h, w) = args.latent();
    let window = Window::new(args.frames, (h, w), device)?;
    let slices = slices(args, &denoiser, &window)?;
    for run in 0..=args.runs {
        let before = ops::operations();
        let (seconds, output) =
            seconds(device, || evaluate(&denoiser, &window, slices, &|| Ok(())))?;
        let operations = (ops::operations() - before) as f64;
        let rms = |x: &Tensor| x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
        let memory = ops::memory(device)?;
        findings.print(&json!({
            "what": "a window's evaluation, both branches",
            "run": run,
            "frames": args.frames,
            "latent": [h, w],
            "slices": slices.pixels(),
            "seconds": seconds,
            "pflop": operations / 1e15,
            "tflop_per_second": operations / seconds / 1e12,
            "floor_seconds": operations / args.tflops / 1e12,
            "peak_gib": gib(memory.most),
            "rms": rms(&output.conditional)?,
        }));
    }
    let (whole, (output, records)) =
        seconds(device, || ops::record(|| evaluate(&denoiser, &window, slices, &|| Ok(()))))?;
    split(&records, whole, args, findings);
    let output = tensors(output)?;
    if let Some(path) = &args.save {
        candle_core::safetensors::save(&output, path)?;
    }
    if let Some(path) = &args.compare {
        compare(&output, path, findings)?;
    }
    Ok(())
}

/// Both branches by name, on the CPU.
fn tensors(output: Velocities) -> Result<HashMap<&'static str, Tensor>> {
    let mut tensors = HashMap::new();
    tensors.insert("conditional", output.conditional.to_device(&Device::Cpu)?);
    if let Some(unconditional) = output.unconditional {
        tensors.insert("unconditional", unconditional.to_device(&Device::Cpu)?);
    }
    Ok(tensors)
}

/// Compares velocities with those that another run, with other kernels or slices, has saved.
fn compare(
    output: &HashMap<&'static str, Tensor>,
    path: &Path,
    findings: &mut Findings,
) -> Result<()> {
    let saved = candle_core::safetensors::load(path, &Device::Cpu)?;
    for (name, actual) in output {
        let Some(expected) = saved.get(*name) else {
            candle_core::bail!("{} holds no {name} velocities", path.display());
        };
        if actual.dims() != expected.dims() {
            candle_core::bail!(
                "{} holds velocities of {:?}, these are {:?}",
                path.display(),
                expected.dims(),
                actual.dims()
            );
        }
        let largest = (actual - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let figure =
            json!({ "what": "compared with saved velocities", "case": name, "largest": largest });
        findings.compare(figure, relative(actual, expected)?, SAME);
    }
    Ok(())
}

/// Seconds from a cancellation in the middle of a window's evaluation to its return, and until the device is idle.
pub fn cancel(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let denoiser = model::denoiser(device)?;
    let window = Window::new(args.frames, args.latent(), device)?;
    let slices = slices(args, &denoiser, &window)?;
    let blocks = Cell::new(0);
    let count = || {
        blocks.set(blocks.get() + 1);
        Ok(())
    };
    let (whole, _) = seconds(device, || evaluate(&denoiser, &window, slices, &count))?;
    let (middle, blocks) = (blocks.replace(0) / 2, &blocks);
    let cancelled = Cell::new(None);
    let check = || {
        blocks.set(blocks.get() + 1);
        if blocks.get() == middle {
            cancelled.set(Some(Instant::now()));
            candle_core::bail!("cancelled");
        }
        Ok(())
    };
    let stopped = evaluate(&denoiser, &window, slices, &check);
    let returned = Instant::now();
    device.synchronize()?;
    let Some(cancelled) = cancelled.get().filter(|_| stopped.is_err()) else {
        candle_core::bail!("the evaluation did not ask whether it was cancelled");
    };
    findings.print(&json!({
        "what": "cancelled in the middle of a window",
        "blocks": 2 * middle,
        "whole_seconds": whole,
        "returned_seconds": (returned - cancelled).as_secs_f64(),
        "idle_seconds": cancelled.elapsed().as_secs_f64(),
    }));
    Ok(())
}

/// What each kind of kernel took; what is left is candle's own, and the time between kernels.
fn split(records: &BTreeMap<&str, Record>, whole: f64, args: &Args, findings: &Findings) {
    let mut rest = whole;
    for (kind, record) in records {
        let floor = record.operations as f64 / args.tflops / 1e12
            + record.bytes as f64 / args.bandwidth / 1e12;
        rest -= record.seconds;
        findings.print(&json!({
            "what": "kernels of a kind",
            "kind": kind,
            "launches": record.launches,
            "seconds": record.seconds,
            "floor_seconds": floor,
            "times_floor": record.seconds / floor,
        }));
    }
    findings.print(
        &json!({ "what": "kernels of a kind", "kind": "other", "seconds": rest, "of": whole }),
    );
}

/// Seconds of encoding and decoding frames, and an estimate for the published example.
pub fn autoencoder(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let vae = model::autoencoder(device)?;
    let (h, w) = args.latent();
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
    findings.print(&json!({ "what": "encoding a frame", "latent": [h, w], "seconds": encoding }));
    findings.print(
        &json!({ "what": "decoding a tile of 5 frames", "latent": tile, "seconds": decoding }),
    );
    drop(vae);

    // Windows of frames and of pixels overlap as the sampler and the decoder have them.
    let tiles =
        gstvenhance::sampler::ROWS.all(h).len() * gstvenhance::sampler::COLUMNS.all(w).len();
    let passes = gstvenhance::sampler::FRAMES.all(PUBLISHED).len() * tiles;
    let windows = gstvenhance::sampler::Windows::of_clip(2).all(PUBLISHED);
    let denoiser = model::denoiser(device)?;
    let mut sampling = 0.0;
    let mut measured = HashMap::new();
    // Windows of the same length take the same time.
    for length in windows.iter().map(|window| window.len()) {
        sampling += match measured.get(&length) {
            Some(seconds) => *seconds,
            None => {
                let window = Window::new(length, (h, w), device)?;
                let slices = slices(args, &denoiser, &window)?;
                evaluate(&denoiser, &window, slices, check)?;
                let seconds = seconds(device, || evaluate(&denoiser, &window, slices, check))?.0;
                measured.insert(length, seconds);
                seconds
            }
        };
    }
    sampling *= EVALUATIONS as f64;
    let inputs = PUBLISHED.div_ceil(3) as f64;
    let whole = sampling + inputs * encoding + passes as f64 * decoding;
    findings.print(&json!({
        "what": "estimate for the published example: 145 frames",
        "windows": windows.iter().map(|window| window.len()).collect::<Vec<_>>(),
        "sampling_seconds": sampling,
        "encoding_seconds": inputs * encoding,
        "decoding_seconds": passes as f64 * decoding,
        "minutes": whole / 60.0,
    }));
    Ok(())
}

/// The peak of the longest window, with most of the device taken.
pub fn memory(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let mut ballast = Vec::new();
    while ops::memory(device)?.free > (args.leave + 1) << 30 {
        ballast.push(Tensor::zeros(1 << 30, DType::U8, device)?);
    }
    let taken = ops::memory(device)?.used;
    let (h, w) = args.latent();
    let denoiser = model::denoiser(device)?;
    let weights = ops::memory(device)?.used - taken;
    let window = Window::new(LONGEST, (h, w), device)?;
    let slices = slices(args, &denoiser, &window)?;
    let free = ops::device_memory(device).map_or(0, |memory| memory.available) as u64;
    let before = ops::memory(device)?.used;
    let evaluated = evaluate(&denoiser, &window, slices, &|| Ok(()));
    device.synchronize()?;
    let most = ops::memory(device)?.most - before;
    let config = unet::Config::full();
    let said = unet::peak_bytes(&config, LONGEST, (h, w), 2, DType::F16, slices) as u64;
    let figure = json!({
        "what": "the longest window, both branches",
        "frames": LONGEST,
        "latent": [h, w],
        "ballast_gib": gib(taken),
        "weights_gib": gib(weights),
        "free_gib": gib(free),
        "slices": slices.pixels(),
        "peak_gib": gib(most),
        "said_gib": gib(said),
    });
    match evaluated {
        Ok(_) => findings.print(&figure),
        Err(error) => findings.failed(figure, error),
    }
    Ok(())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
