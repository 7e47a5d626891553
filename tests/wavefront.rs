// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests the wavefront against a plain implementation that samples a whole clip step by step: the results are
//! bit-identical on any number of devices. Also tests fallbacks, errors and cancellation.

mod toy;

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{self, Cancel, ClipContext, ColourFix, Enhancer, Error, Format, Frame, Solver},
    sampler::{
        self, Autoencoder, Batch, Budget, Canvas, Check, ClipParams, Conditions, Denoiser,
        DiffusionEnhancer, Encoded, LATENT, LatentSink, Mode, Noise, NoiseSchedule, Precision,
        Purpose, RESERVE, START, Sampler, SamplerParams, Seeded, Velocities, Windows, Work,
        evaluations, lookahead,
    },
};
use proptest::prelude::*;
use toy::{Record, ToyAutoencoder, ToyDenoiser, clip, format, models, params, picture};

/// Computes the windows of a whole clip like the reference implementation.
fn windows_of(total: usize, length: usize, overlap: usize) -> Vec<Range<usize>> {
    let longest = (1.33 * length as f64).round_ties_even() as usize;
    let (mut list, mut first) = (Vec::new(), 0);
    loop {
        if first + longest >= total {
            list.push(first..total);
            return list;
        }
        list.push(first..first + length);
        first += length - overlap;
    }
}

/// Cross-fades the results of all windows in order.
fn cross_fade_all(windows: &[Range<usize>], results: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
    let mut all: Vec<Tensor> = Vec::new();
    for (window, results) in windows.iter().zip(results) {
        let overlap = all.len() - window.start;
        for (t, result) in results.iter().enumerate() {
            if t < overlap {
                let weight = t as f64 / overlap as f64;
                let faded = ((&all[window.start + t] * (1.0 - weight))? + (result * weight)?)?;
                all[window.start + t] = faded;
            } else {
                all.push(result.clone());
            }
        }
    }
    Ok(all)
}

/// Samples a whole clip: runs each step over all windows before the next step.
fn sample_whole_clip(
    mut x: Vec<Tensor>,
    hints: &[Tensor],
    params: &SamplerParams,
    interpolated: usize,
    noise: &dyn Noise,
) -> Result<Vec<Tensor>> {
    let (_, evaluations) = evaluations(&NoiseSchedule::default(), params.solver, params.steps);
    let round_down = |most: usize| most / (interpolated + 1) * (interpolated + 1) + 1;
    let windows = windows_of(x.len(), round_down(31), round_down(15));
    let hint = Tensor::cat(hints, 2)?;
    let mask: Vec<_> = (0..x.len())
        .map(|n| n.is_multiple_of(interpolated + 1).then_some(n / (interpolated + 1)))
        .collect();
    let mut history: Vec<Option<Tensor>> = vec![None; x.len()];
    for evaluation in &evaluations {
        let mut results = Vec::new();
        for window in &windows {
            let input = evaluation.input(&Tensor::cat(&x[window.clone()], 2)?)?;
            let conditions = Conditions {
                t: evaluation.timestep as f64,
                hint: &hint,
                t_hint: f64::from(params.noise_aug) - 1.0,
                s_cond: params.downscale_cond,
                mask: &mask[window.clone()],
            };
            let velocities =
                ToyDenoiser.velocities(&input, &conditions, true, Mode::default(), &|| Ok(()))?;
            let d = evaluation.denoised(&input, &params.guidance.apply(velocities)?)?;
            let split = (0..window.len()).map(|n| d.narrow(2, n, 1)?.contiguous());
            results.push(split.collect::<Result<_>>()?);
        }
        for (n, d) in cross_fade_all(&windows, &results)?.iter().enumerate() {
            let (_, _, _, h, w) = d.dims5()?;
            let noise = noise.normal(Purpose::Step(evaluation.step), n, (h, w))?.unsqueeze(2)?;
            let next = evaluation.advance(&x[n], d, history[n].as_ref(), Some(&noise))?;
            (x[n], history[n]) = next;
        }
    }
    Ok(x)
}

/// Processes a whole clip at once with the toy networks: the expected output of the wavefront.
fn reference(
    inputs: &[Frame],
    params: &SamplerParams,
    format: Format,
    noise: &dyn Noise,
) -> Vec<Frame> {
    try_reference(inputs, params, format, noise).unwrap()
}

fn try_reference(
    inputs: &[Frame],
    params: &SamplerParams,
    format: Format,
    noise: &dyn Noise,
) -> Result<Vec<Frame>> {
    let (schedule, interpolated) = (NoiseSchedule::default(), format.interpolated);
    let (start, _) = evaluations(&schedule, params.solver, params.steps);
    let canvas = Canvas::new((format.output.1, format.output.0), params.smallest);
    let (mut x, mut hints) = (Vec::new(), Vec::new());
    for n in 0..inputs.len() + interpolated * (inputs.len() - 1) {
        let image = sampler::fit(&sampler::planes(&inputs[n / (interpolated + 1)])?, &canvas)?;
        let encoded = ToyAutoencoder.encode(&image, Mode::default(), &|| Ok(()))?;
        let noise = |purpose| noise.normal(purpose, n, canvas.latent());
        let latents = encoded.sample(&noise(Purpose::Encode)?)?;
        let noised = schedule.diffuse(&latents, START, &noise(Purpose::Start)?)?;
        x.push((noised * start)?.unsqueeze(2)?);
        if n.is_multiple_of(interpolated + 1) {
            let t_hint = params.noise_aug as usize - 1;
            hints.push(schedule.diffuse(&latents, t_hint, &noise(Purpose::Hint)?)?.unsqueeze(2)?);
        }
    }
    let latents = sample_whole_clip(x, &hints, params, interpolated, noise)?;
    let windows = windows_of(latents.len(), 5, 2);
    let (rows, columns) = sampler::tile_weights(canvas.padded.0, canvas.padded.1);
    let weights: Vec<_> =
        rows.iter().flat_map(|y| columns.iter().map(move |x| (y * x) as f32)).collect();
    let weights = Tensor::from_vec(weights, canvas.padded, &Device::Cpu)?;
    let decode = |window: &Range<usize>| {
        let latents = Tensor::cat(&latents[window.clone()], 2)?.squeeze(0)?.transpose(0, 1)?;
        let latents = latents.contiguous()?;
        let frames = ToyAutoencoder.decode(&latents, Mode::default(), &|| Ok(()))?;
        // The canvas is a single tile; its weighted mean only adds rounding.
        let frames = frames.broadcast_mul(&weights)?.broadcast_div(&weights)?;
        (0..window.len()).map(|n| frames.narrow(0, n, 1)?.contiguous()).collect()
    };
    let results = windows.iter().map(decode).collect::<Result<Vec<_>>>()?;
    let frames = cross_fade_all(&windows, &results)?;
    frames.iter().map(|frame| crop_and_round(frame, &canvas)).collect()
}

/// Crops planes [1, 3, H, W] to an opaque 16-bit frame.
fn crop_and_round(planes: &Tensor, canvas: &Canvas) -> Result<Frame> {
    let ((top, left), (h, w)) = (canvas.origin, canvas.target);
    let planes = planes.squeeze(0)?.narrow(1, top, h)?.narrow(2, left, w)?.to_vec3::<f32>()?;
    let mut frame = Frame::new(w, h).unwrap();
    for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
        for (colour, out) in pixel[..3].iter_mut().enumerate() {
            let value = planes[colour][n / w][n % w];
            *out = ((value + 1.0) * (f32::from(u16::MAX) / 2.0)).round() as u16;
        }
        pixel[3] = u16::MAX;
    }
    Ok(frame)
}

fn inputs(count: usize, format: Format) -> Vec<Frame> {
    (0..count).map(|n| picture(n, format.input)).collect()
}

/// Runs the wavefront over a clip on `devices` devices.
fn stream(
    inputs: &[Frame],
    params: &SamplerParams,
    format: Format,
    seed: u64,
    devices: usize,
) -> Vec<Arc<Frame>> {
    let sink = Arc::new(Record::default());
    let mut enhancer =
        DiffusionEnhancer::new(models(devices), params.clone(), Arc::new(Seeded(seed)));
    enhancer.start(format, clip(&sink)).unwrap();
    for (n, input) in inputs.iter().enumerate() {
        toy::push(&mut enhancer, n, input.clone(), format).unwrap();
    }
    enhancer.finish(&[]).unwrap();
    sink.take()
}

fn solvers() -> impl Strategy<Value = (Solver, u32)> {
    prop_oneof![
        2 => Just((Solver::Fast, 15)),
        2 => (1..6u32).prop_map(|steps| (Solver::Normal, steps)),
        1 => (1..4u32).prop_map(|steps| (Solver::Heun, steps)),
    ]
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

fn assert_equal_to_reference(
    (count, interpolated): (usize, usize),
    (solver, steps): (Solver, u32),
    seed: u64,
) {
    let (params, format) = (params(solver, steps), format(interpolated, false));
    let inputs = inputs(count, format);
    let expected = reference(&inputs, &params, format, &Seeded(seed));
    assert_eq!(expected.len(), count + interpolated * (count - 1));
    // Output that is all black or white would hide a difference.
    let is_extreme = |value: &&u16| **value == 0 || **value == u16::MAX;
    for frame in &expected {
        // The alpha values, a quarter of all, are always extreme.
        assert!(frame.pixels().iter().filter(is_extreme).count() < frame.pixels().len() / 2);
    }
    for devices in [1, 2, 5] {
        let actual = stream(&inputs, &params, format, seed, devices);
        assert_eq!(actual.len(), expected.len());
        for (n, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            assert!(**actual == *expected, "frame {n}, {devices} devices");
        }
    }
}

/// Runs the wavefront over the input frames from `first` on.
fn stream_from(
    inputs: &[Frame],
    first: usize,
    params: &SamplerParams,
    format: Format,
) -> Vec<Arc<Frame>> {
    let sink = Arc::new(Record::default());
    let mut enhancer = DiffusionEnhancer::new(models(1), params.clone(), Arc::new(Seeded(3)));
    enhancer.start_at(first, format, clip(&sink)).unwrap();
    for (n, input) in inputs.iter().enumerate().skip(first) {
        let (time, outputs) = engine::multiple_times(n as u64, n == first, format.interpolated);
        enhancer.push(input.clone(), time, &outputs).unwrap();
    }
    enhancer.finish(&[]).unwrap();
    sink.take()
}

/// Takes more than 10 s: with `solver=fast`, the first equal frame comes after 440 frames.
#[test]
fn a_run_from_resume_from_equals_the_whole_run_after_the_resume_point() {
    for interpolated in 0..=8 {
        // All 14 steps, once with an overlap larger than the stride and once with a smaller one.
        let fast = (interpolated == 2 || interpolated == 3).then_some((Solver::Fast, 15));
        let solvers = [(Solver::Normal, 1), (Solver::Normal, 4), (Solver::Heun, 2)];
        for (solver, steps) in solvers.into_iter().chain(fast) {
            let (params, format) = (params(solver, steps), format(interpolated, false));
            let from =
                |resume_point: usize| sampler::resume_from(&params, interpolated, resume_point);
            // The first resume point that does not need the start of the clip, and a later one.
            let earliest = (0..).find(|&resume_point| from(resume_point) > 0).unwrap();
            for (resume_point, after) in [(earliest, 0), (earliest, 40), (2 * earliest + 7, 3)] {
                let (first, inputs) =
                    (from(resume_point), inputs(resume_point + 1 + after, format));
                let (whole, part) = (
                    stream_from(&inputs, 0, &params, format),
                    stream_from(&inputs, first, &params, format),
                );
                let skipped = whole.len() - part.len();
                assert_eq!(skipped, first * (interpolated + 1));
                let same: Vec<_> =
                    whole[skipped..].iter().zip(&part).map(|(a, b)| a == b).collect();
                let equal_from = resume_point * (interpolated + 1) - skipped;
                assert!(same.contains(&false), "{interpolated}, {solver:?} {steps}");
                assert!(
                    same[equal_from..].iter().all(|same| *same),
                    "{interpolated}, {solver:?} {steps}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn the_wavefront_is_bit_identical_to_the_reference_on_any_number_of_devices(
        count in prop_oneof![1..60usize, 1..=300usize],
        interpolated in 0..=8usize,
        solver in solvers(),
        seed: u64,
    ) {
        assert_equal_to_reference((count, interpolated), solver, seed);
    }
}

/// Collects the sampled latents.
#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<Tensor>>>);

impl LatentSink for Collect {
    fn take(&mut self, batch: Batch) -> std::result::Result<(), Error> {
        self.0.lock().unwrap().extend(batch.frames.into_iter().map(|frame| frame.x));
        Ok(())
    }
}

fn values(frames: &[Tensor]) -> Vec<f32> {
    Tensor::cat(frames, 2).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn the_result_does_not_depend_on_the_batch_sizes(
        total in 1..400usize,
        interpolated in 0..=8usize,
        devices in prop_oneof![Just(1usize), Just(3)],
        batches in prop::collection::vec(1..120usize, 1..5),
    ) {
        let params = params(Solver::Normal, 4);
        let noise = Arc::new(Seeded(5));
        let latent = |purpose, n| noise.normal(purpose, n, (2, 3)).unwrap().unsqueeze(2).unwrap();
        let x: Vec<_> = (0..total).map(|n| latent(Purpose::Start, n)).collect();
        let hints: Vec<_> = (0..total).step_by(interpolated + 1).map(|n| latent(Purpose::Hint, n)).collect();
        let expected = sample_whole_clip(x.clone(), &hints, &params, interpolated, &*noise).unwrap();
        for batches in [&batches[..], &[1], &[total]] {
            let (_, evaluations) =
                evaluations(&NoiseSchedule::default(), params.solver, params.steps);
            let params =
                ClipParams { sampler: params.clone(), interpolated, noise: noise.clone() };
            let (output, sink) = (Collect::default(), Arc::new(Record::default()));
            let denoisers = models(devices).denoisers;
            let mut sampler =
                Sampler::new(&denoisers, &evaluations, params, clip(&sink), output.clone()).unwrap();
            let mut first = 0;
            for batch in batches.iter().cycle() {
                let end = (first + batch).min(total);
                let frame = |n: usize| {
                    let hint = n.is_multiple_of(interpolated + 1).then(|| hints[n / (interpolated + 1)].clone());
                    sampler::Frame::new(x[n].clone(), hint)
                };
                let non_final_windows = Windows::of_clip(interpolated).non_final_windows(end);
                let frames = (first..end).map(frame).collect();
                sampler.push(Batch { frames, non_final_windows, ended: end == total }).unwrap();
                if end == total {
                    break;
                }
                first = end;
            }
            sampler.wait().unwrap();
            prop_assert_eq!(values(&output.0.lock().unwrap()), values(&expected));
        }
    }
}

#[test]
fn an_empty_clip_has_no_output() {
    let actual = stream(&[], &params(Solver::Fast, 15), format(2, false), 1, 2);
    assert!(actual.is_empty());
}

#[test]
fn times_of_frames_that_the_model_does_not_make_are_an_error() {
    let format = format(1, false);
    for (time, outputs, last) in [
        (10, &[5, 10][..], &[11][..]),
        (10, &[4, 10], &[]),
        (10, &[10], &[]),
        (10, &[5], &[]),
        (10, &[], &[]),
    ] {
        let sink = Arc::new(Record::default());
        let params = params(Solver::Normal, 1);
        let mut enhancer = DiffusionEnhancer::new(models(1), params, Arc::new(Seeded(1)));
        enhancer.start(format, clip(&sink)).unwrap();
        enhancer.push(picture(0, format.input), 0, &[0]).unwrap();
        let pushed = enhancer.push(picture(1, format.input), time, outputs);
        let finished = pushed.and_then(|()| enhancer.finish(last));
        assert!(matches!(finished, Err(Error::Internal { .. })), "{outputs:?} {last:?}");
    }
}

#[test]
fn the_lookahead_is_sufficient_and_minimal() {
    for (interpolated, steps) in [(0, 3), (2, 4), (3, 1), (4, 2), (8, 3)] {
        let (params, format) = (params(Solver::Normal, steps), format(interpolated, false));
        let ahead = lookahead(&params, interpolated);
        let sink = Arc::new(Record::default());
        let mut enhancer = DiffusionEnhancer::new(models(1), params, Arc::new(Seeded(1)));
        assert_eq!(enhancer.lookahead(&format), ahead);
        enhancer.start(format, clip(&sink)).unwrap();
        let mut late = 0;
        for n in 0..ahead + 60 {
            toy::push(&mut enhancer, n, picture(n, format.input), format).unwrap();
            if let Some(input) = n.checked_sub(ahead) {
                assert!(
                    sink.count() > input * (interpolated + 1),
                    "input frame {input} is not delivered"
                );
            }
            // With one input frame less, some output must be missing.
            if let Some(input) = (n + 1).checked_sub(ahead) {
                late += usize::from(sink.count() <= input * (interpolated + 1));
            }
        }
        assert!(late > 0, "the lookahead is too long");
    }
}

#[test]
fn frames_in_flight_match_the_plan_and_do_not_grow_with_the_clip() {
    for interpolated in 0..=8 {
        let (params, format) = (params(Solver::Fast, 15), format(interpolated, false));
        let plan = sampler::Plan::new(&params, format, 600);
        let sink = Arc::new(Record::default());
        let mut enhancer = DiffusionEnhancer::new(models(1), params, Arc::new(Seeded(1)));
        enhancer.start(format, clip(&sink)).unwrap();
        let mut most = 0;
        for n in 0..700 / (interpolated + 1) {
            toy::push(&mut enhancer, n, picture(n, format.input), format).unwrap();
            most = most.max(enhancer.latents().unwrap());
        }
        let planned = plan.latents();
        assert!(
            most <= planned && planned - most <= interpolated,
            "{interpolated}: {most} in flight, {planned} planned"
        );
        // Bounds that hold for every number of interpolated frames.
        assert!((550..=760).contains(&most), "{interpolated}: {most}");
        if interpolated == 2 {
            assert_eq!(plan.sampled_after(), 237);
        }
    }
}

/// An autoencoder that darkens, tints and reduces the contrast of what it decodes.
struct ShiftingAutoencoder;

impl Autoencoder for ShiftingAutoencoder {
    fn encode(&self, frames: &Tensor, mode: Mode, check: Check) -> Result<Encoded> {
        ToyAutoencoder.encode(frames, mode, check)
    }

    fn decode(&self, latents: &Tensor, mode: Mode, check: Check) -> Result<Tensor> {
        let shift = Tensor::from_vec(vec![-0.2_f32, 0.1, -0.3], (1, 3, 1, 1), &Device::Cpu)?;
        (ToyAutoencoder.decode(latents, mode, check)? * 0.15)?.broadcast_add(&shift)
    }
}

/// The mean of each colour in 0–1 of the left and of the right quarter of a frame.
fn means(frame: &Frame) -> Vec<f64> {
    let quarter = |right: bool, colour: usize| {
        let (w, h) = (frame.width(), frame.height());
        let values =
            (0..w * h).filter(move |n| if right { n % w >= w / 4 * 3 } else { n % w < w / 4 });
        let sum: f64 = values.map(|n| f64::from(frame.pixels()[n * 4 + colour])).sum();
        sum / (h * w / 4) as f64 / f64::from(u16::MAX)
    };
    (0..6).map(|n| quarter(n >= 3, n % 3)).collect()
}

#[test]
fn the_colour_fix_restores_colours_that_the_decoder_shifts() {
    // The left half is bluish, the right half reddish, and the whole gets darker from frame to frame.
    let format =
        Format { input: (64, 32), output: (128, 64), interpolated: 2, exact: false, alpha: false };
    let input = |n: usize| {
        let mut frame = Frame::new(64, 32).unwrap();
        for (at, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
            let colour =
                if at % 64 < 32 { [20_000, 30_000, 50_000] } else { [52_000, 30_000, 15_000] };
            let texture = (at * 7919 % 97) as u16 * 20;
            let dark = n as u16 * 2000;
            (0..3).for_each(|c| pixel[c] = colour[c] + texture - dark);
            pixel[3] = u16::MAX;
        }
        frame
    };
    let inputs: Vec<_> = (0..3).map(input).collect();
    let run = |colour_fix| {
        let mut models = models(1);
        models.decoder = Arc::new(ShiftingAutoencoder);
        let params = SamplerParams { colour_fix, ..params(Solver::Normal, 2) };
        let mut enhancer = DiffusionEnhancer::new(models, params, Arc::new(Seeded(1)));
        let sink = Arc::new(Record::default());
        enhancer.start(format, clip(&sink)).unwrap();
        for (n, frame) in inputs.iter().enumerate() {
            toy::push(&mut enhancer, n, frame.clone(), format).unwrap();
        }
        enhancer.finish(&[]).unwrap();
        let frames = sink.take();
        assert_eq!(frames.len(), 7);
        let error = |(n, frame): (usize, &Frame)| {
            let (before, part) = (means(&inputs[n / 3]), (n % 3) as f64 / 3.0);
            let after = means(&inputs[(n / 3 + 1).min(2)]);
            let expected = before.iter().zip(after).map(|(a, b)| a * (1.0 - part) + b * part);
            let errors = means(frame).into_iter().zip(expected).map(|(a, b)| (a - b).abs());
            errors.fold(0.0, f64::max)
        };
        frames.iter().map(|frame| &**frame).enumerate().map(error).fold(0.0, f64::max)
    };
    let (none, mean, wavelet) =
        (run(ColourFix::None), run(ColourFix::Mean), run(ColourFix::Wavelet));
    assert!(none > 0.15, "{none}");
    // The mean of the frame is right, but not that of each side, where contrast is lost.
    assert!(mean < none / 1.5, "{mean}");
    // What is left is the low-frequency part of the generated detail.
    assert!(wavelet < 0.03, "{wavelet}");
}

#[test]
fn alpha_is_interpolated_and_resized_independently_of_the_colours() {
    let (params, interpolated) = (params(Solver::Normal, 2), 3);
    let flat = |alpha: u16| {
        let mut frame = picture(1, (12, 5));
        frame.pixels_mut().chunks_exact_mut(4).for_each(|pixel| pixel[3] = alpha);
        frame
    };
    let inputs = [flat(0), flat(40_000), flat(u16::MAX)];
    let run = |alpha| stream(&inputs, &params, format(interpolated, alpha), 3, 1);
    let (with, without) = (run(true), run(false));
    let expected = [0, 10_000, 20_000, 30_000, 40_000, 46_384, 52_768, 59_151, u16::MAX];
    for ((with, without), expected) in with.iter().zip(&without).zip(expected) {
        let pixels = with.pixels().chunks_exact(4).zip(without.pixels().chunks_exact(4));
        for (with, without) in pixels {
            assert_eq!((with[3], without[3]), (expected, u16::MAX));
            assert_eq!(with[..3], without[..3]);
        }
    }
}

/// A denoiser that applies `fault` to the output of one evaluation.
struct Faulty {
    /// Timestep of that evaluation.
    timestep: f64,
    fault: fn(Tensor, Mode, Check) -> Result<Tensor>,
    /// Number of evaluations of that step in [`Precision::Native`].
    usual: AtomicUsize,
    /// Number of all evaluations in [`Precision::Bf16`].
    wide: AtomicUsize,
}

impl Faulty {
    fn new(step: usize, fault: fn(Tensor, Mode, Check) -> Result<Tensor>) -> Arc<Self> {
        let (_, evaluations) = evaluations(&NoiseSchedule::default(), Solver::Fast, 15);
        let timestep = evaluations[step].timestep as f64;
        Arc::new(Self { timestep, fault, usual: AtomicUsize::new(0), wide: AtomicUsize::new(0) })
    }

    fn run(self: &Arc<Self>, devices: usize) -> (Arc<Record>, std::result::Result<(), Error>) {
        let (sink, format) = (Arc::new(Record::default()), format(2, false));
        let mut models = models(1);
        models.denoisers = vec![self.clone() as Arc<dyn Denoiser>; devices];
        let params = params(Solver::Fast, 15);
        let mut enhancer = DiffusionEnhancer::new(models, params, Arc::new(Seeded(1)));
        enhancer.start(format, clip(&sink)).unwrap();
        let pushed =
            (0..40).try_for_each(|n| toy::push(&mut enhancer, n, picture(n, format.input), format));
        let result = pushed.and_then(|()| enhancer.finish(&[]));
        // The enhancer is dropped: another reference would belong to a leaked thread.
        drop(enhancer);
        assert_eq!(Arc::strong_count(self), 1);
        (sink, result)
    }
}

impl Denoiser for Faulty {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities> {
        let mut velocities = ToyDenoiser.velocities(x, conditions, guided, mode, check)?;
        if mode.precision == Precision::Bf16 {
            self.wide.fetch_add(1, Ordering::Relaxed);
        }
        if conditions.t == self.timestep {
            if mode.precision == Precision::Native {
                self.usual.fetch_add(1, Ordering::Relaxed);
            }
            velocities.conditional = (self.fault)(velocities.conditional, mode, check)?;
        }
        Ok(velocities)
    }
}

/// Replaces one value by infinity.
fn with_infinity(x: Tensor) -> Result<Tensor> {
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    let middle = values.len() / 2;
    values[middle] = f32::INFINITY;
    Tensor::from_vec(values, x.shape(), x.device())
}

#[test]
fn a_step_that_overflows_uses_the_wide_type_from_then_on() {
    for devices in [1, 5] {
        let faulty = Faulty::new(6, |x, mode, _| match mode.precision {
            Precision::Native => with_infinity(x),
            Precision::Bf16 => Ok(x),
        });
        let (sink, result) = faulty.run(devices);
        result.unwrap();
        // 118 frames are seven windows. Only the first one is evaluated in the usual type.
        let windows = Windows::of_clip(2).all(118).len();
        assert_eq!(faulty.wide.load(Ordering::Relaxed), windows);
        assert_eq!(faulty.usual.load(Ordering::Relaxed), 1);
        let inputs = inputs(40, format(2, false));
        let params = params(Solver::Fast, 15);
        let expected = reference(&inputs, &params, format(2, false), &Seeded(1));
        assert!(sink.take().iter().map(|frame| &**frame).eq(&expected));
    }
}

#[test]
fn infinity_in_the_wide_type_is_an_error_that_names_window_and_step() {
    for devices in [1, 5] {
        let (sink, result) = Faulty::new(6, |x, _, _| with_infinity(x)).run(devices);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }));
        assert!(
            error.to_string().starts_with("window 0, step 6 produced NaN or infinity"),
            "{error}"
        );
        assert_eq!(sink.count(), 0);
    }
}

/// Toy networks on a device with little memory.
struct SmallDevice {
    /// The largest slice that fits, in sixteenths of a default slice.
    slice: usize,
    /// The most latents that can be encoded or decoded in one call.
    latents: usize,
    /// Number of out-of-memory errors.
    failures: AtomicUsize,
}

impl SmallDevice {
    fn new(slice: usize, latents: usize) -> Arc<Self> {
        Arc::new(Self { slice, latents, failures: AtomicUsize::new(0) })
    }

    fn check(&self, mode: Mode, latents: usize) -> Result<()> {
        if mode.slices.share(16) <= self.slice && latents <= self.latents {
            return Ok(());
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let text = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        Err(candle_core::Error::Cuda(text.into()).bt())
    }

    /// Runs four frames of 90×24, upscaled to 360×96: 48×18 latents with padding.
    fn run(models: sampler::Models) -> (Arc<Record>, std::result::Result<(), Error>) {
        let format = Format {
            input: (90, 24),
            output: (360, 96),
            interpolated: 2,
            exact: false,
            alpha: false,
        };
        let sink = Arc::new(Record::default());
        let params = params(Solver::Normal, 2);
        let mut enhancer = DiffusionEnhancer::new(models, params, Arc::new(Seeded(1)));
        enhancer.start(format, clip(&sink)).unwrap();
        let pushed =
            (0..4).try_for_each(|n| toy::push(&mut enhancer, n, picture(n, format.input), format));
        let result = pushed.and_then(|()| enhancer.finish(&[]));
        (sink, result)
    }
}

impl Denoiser for SmallDevice {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities> {
        self.check(mode, 0)?;
        ToyDenoiser.velocities(x, conditions, guided, mode, check)
    }
}

impl Autoencoder for SmallDevice {
    fn encode(&self, frames: &Tensor, mode: Mode, check: Check) -> Result<Encoded> {
        let (_, _, h, w) = frames.dims4()?;
        self.check(mode, h * w / LATENT.pow(2))?;
        ToyAutoencoder.encode(frames, mode, check)
    }

    fn decode(&self, latents: &Tensor, mode: Mode, check: Check) -> Result<Tensor> {
        let (_, _, h, w) = latents.dims4()?;
        self.check(mode, h * w)?;
        ToyAutoencoder.decode(latents, mode, check)
    }
}

#[test]
fn a_device_that_runs_out_of_memory_uses_smaller_slices_from_then_on() {
    let usual = SmallDevice::run(models(1)).0.take();
    let (denoiser, vae) = (SmallDevice::new(4, 0), SmallDevice::new(2, usize::MAX));
    let (sink, result) = SmallDevice::run(sampler::Models {
        encoder: vae.clone(),
        denoisers: vec![denoiser.clone()],
        decoder: vae.clone(),
    });
    result.unwrap();
    assert_eq!(sink.take(), usual);
    assert!(sink.warnings.lock().unwrap().is_empty());
    // The denoiser halves its slices twice in total, the encoder and the decoder three times each.
    let failures = |device: &SmallDevice| device.failures.load(Ordering::Relaxed);
    assert_eq!((failures(&denoiser), failures(&vae)), (2, 6));
}

/// A denoiser whose peak memory is one byte per pixel of a slice. Records the slices that it is called with.
struct Budgeted {
    /// Available bytes.
    available: usize,
    pixels: Mutex<Vec<usize>>,
}

impl Denoiser for Budgeted {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn budget(&self, frames: usize, latent: (usize, usize), guided: bool) -> Option<Budget<'_>> {
        // The longest window, for any clip length.
        assert_eq!((frames, latent, guided), (41, (18, 48), true));
        Some(Budget { available: self.available, peak: Box::new(|slices| slices.pixels()) })
    }

    fn velocities(
        &self,
        x: &Tensor,
        conditions: &Conditions,
        guided: bool,
        mode: Mode,
        check: Check,
    ) -> Result<Velocities> {
        self.pixels.lock().unwrap().push(mode.slices.pixels());
        ToyDenoiser.velocities(x, conditions, guided, mode, check)
    }
}

#[test]
fn the_denoiser_runs_in_the_largest_slices_that_fit_its_device() {
    let params = params(Solver::Normal, 2);
    let canvas = Canvas::new((96, 360), params.smallest);
    let latents = Work::new(&params, &canvas, 2, (0, 1)).latents();
    for (beyond, pixels) in
        [(1 << 20, 1 << 17), (1 << 15, 1 << 15), ((1 << 15) - 1, 1 << 14), (0, 1 << 11)]
    {
        let available = RESERVE + latents + beyond;
        let denoiser = Arc::new(Budgeted { available, pixels: Mutex::default() });
        let mut models = models(1);
        models.denoisers = vec![denoiser.clone()];
        SmallDevice::run(models).1.unwrap();
        assert_eq!(*denoiser.pixels.lock().unwrap(), [pixels; 2]);
    }
}

#[test]
fn tiles_become_smaller_with_a_warning_if_the_smallest_slices_do_not_fit() {
    let usual = SmallDevice::run(models(1)).0.take();
    // A tile with a fourth of the sides of a published tile.
    let vae = SmallDevice::new(16, 18 * 32);
    let mut small = models(1);
    (small.encoder, small.decoder) = (vae.clone(), vae.clone());
    let (sink, result) = SmallDevice::run(small);
    result.unwrap();
    // The toy autoencoder has no spatial context: only the weighted mean of tiles rounds differently.
    for (frame, usual) in sink.take().iter().zip(usual) {
        let error = frame.pixels().iter().zip(usual.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(error <= Some(1), "{error:?}");
    }
    let warnings = sink.warnings.lock().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, what) in warnings.iter().zip(["encoding", "decoding"]) {
        for part in [what, "256×144 pixels", "differ slightly", "max-pixels"] {
            assert!(warning.contains(part), "{part} is not in {warning}");
        }
    }
}

#[test]
fn an_out_of_memory_error_names_the_operation_and_the_remedy() {
    let error = |models| SmallDevice::run(models).1.unwrap_err();
    let mut small = models(1);
    small.denoisers = vec![SmallDevice::new(0, 0)];
    let denoising = error(small);
    let mut small = models(1);
    small.decoder = SmallDevice::new(16, 18 * 32 - 1);
    let decoding = error(small);
    for (error, what) in [(denoising, "window 0, step 0"), (decoding, "decoding window 0")] {
        assert!(matches!(error, Error::DeviceMemory { .. }));
        let text = error.to_string();
        for part in [what, "smallest slices", "out of memory", "OUT_OF_MEMORY", "max-pixels"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

#[test]
fn an_error_on_any_device_is_the_error_of_the_run() {
    for (devices, step) in [(1, 0), (2, 13), (5, 0), (5, 7), (5, 13)] {
        let faulty = Faulty::new(step, |_, _, _| candle_core::bail!("device failure"));
        let error = faulty.run(devices).1.unwrap_err().to_string();
        let what = format!("window 0, step {step} failed: device failure");
        assert!(error.starts_with(&what), "{error}");
    }
}

#[test]
fn cancelling_ends_the_run_on_all_devices_and_the_next_clip_runs() {
    static REACHED: AtomicBool = AtomicBool::new(false);
    for devices in [1, 2, 5] {
        REACHED.store(false, Ordering::Relaxed);
        // Blocks in one evaluation until it is cancelled.
        let faulty = Faulty::new(3, |_, _, check| {
            REACHED.store(true, Ordering::Relaxed);
            loop {
                check()?;
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (sink, format) = (Arc::new(Record::default()), format(2, false));
        let mut models = models(1);
        models.denoisers = vec![faulty.clone() as Arc<dyn Denoiser>; devices];
        let mut enhancer =
            DiffusionEnhancer::new(models, params(Solver::Fast, 15), Arc::new(Seeded(1)));
        let cancel = Cancel::default();
        enhancer.start(format, ClipContext { sink: sink.clone(), cancel: cancel.clone() }).unwrap();
        let stop = cancel.clone();
        let stopper = std::thread::spawn(move || {
            while !REACHED.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            stop.cancel();
            Instant::now()
        });
        let pushed = (0..200)
            .try_for_each(|n| toy::push(&mut enhancer, n, picture(n, format.input), format));
        assert_eq!(pushed.and_then(|()| enhancer.finish(&[])), Err(Error::Cancelled));
        assert!(stopper.join().unwrap().elapsed() < Duration::from_secs(5));
        // The next clip starts.
        enhancer.start(format, clip(&sink)).unwrap();
        enhancer.reset();
        drop(enhancer);
        assert_eq!(Arc::strong_count(&faulty), 1);
    }
}

#[test]
fn progress_units_name_window_and_step() {
    let (sink, format) = (Arc::new(Record::default()), format(2, false));
    let mut enhancer =
        DiffusionEnhancer::new(models(1), params(Solver::Normal, 2), Arc::new(Seeded(1)));
    enhancer.start(format, clip(&sink)).unwrap();
    (0..15).for_each(|n| toy::push(&mut enhancer, n, picture(n, format.input), format).unwrap());
    enhancer.finish(&[]).unwrap();
    let units = sink.units.lock().unwrap();
    let evaluations: Vec<_> = units.iter().filter(|unit| unit.contains("step")).collect();
    let expected = ["window 0, step 0", "window 1, step 0", "window 0, step 1", "window 1, step 1"];
    assert_eq!(evaluations, expected);
}

#[test]
fn the_plan_of_the_published_example_matches_the_reference() {
    let output = engine::target_size((720, 480), 4.0, 720, 1280 * 2048);
    let interpolated = engine::interpolated_frames((24, 1), (8, 1));
    let format = Format { input: (720, 480), output, interpolated, exact: false, alpha: false };
    let params = SamplerParams::from(&engine::Options::default());
    let plan = sampler::Plan::new(&params, format, 49);
    let text = plan.to_string();
    eprintln!("{text}");
    for part in [
        "145 frames",
        "720×480 to 1982×1320, padded to 1984×1360, latents 248×170",
        "windows: 8 of frames 0–30, 15–45, 30–60, 45–75, 60–90, 75–105, 90–120, 105–144",
        "14 per window, 112 in total",
        "237",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}
