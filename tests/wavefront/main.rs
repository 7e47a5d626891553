// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests the wavefront against a plain implementation that samples a whole clip step by step: the results are
//! bit-identical on any number of devices. Also tests fallbacks, errors and cancellation.

mod faults;
mod memory;
mod reference;
#[path = "../toy/mod.rs"]
mod toy;

use std::sync::{Arc, Mutex};

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{self, ColourFix, Enhancer, Error, Format, Frame, Solver},
    sampler::{
        self, Autoencoder, Batch, Check, ClipParams, DiffusionEnhancer, Encoded, LatentSink, Mode,
        Models, Noise, NoiseSchedule, Purpose, Sampler, SamplerParams, Seeded, Windows,
        evaluations, lookahead,
    },
};
use proptest::prelude::*;
use reference::{reference, sample_whole_clip};
use toy::{Record, ToyAutoencoder, clip, format, models, params, picture};

fn inputs(count: usize, format: Format) -> Vec<Frame> {
    (0..count).map(|n| picture(n, format.input)).collect()
}

/// Runs the wavefront over a clip.
fn run(
    models: Models,
    inputs: &[Frame],
    params: SamplerParams,
    format: Format,
    seed: u64,
) -> (Arc<Record>, std::result::Result<(), Error>) {
    let sink = Arc::new(Record::default());
    let mut enhancer = DiffusionEnhancer::new(models, params, Arc::new(Seeded(seed)));
    enhancer.start(format, clip(&sink)).unwrap();
    let mut pushed = inputs.iter().cloned().enumerate();
    let pushed = pushed.try_for_each(|(n, input)| toy::push(&mut enhancer, n, input, format));
    let result = pushed.and_then(|()| enhancer.finish(&[]));
    (sink, result)
}

/// The output of the wavefront for a clip on `devices` devices.
fn stream(
    inputs: &[Frame],
    params: &SamplerParams,
    format: Format,
    seed: u64,
    devices: usize,
) -> Vec<Arc<Frame>> {
    let (sink, result) = run(models(devices), inputs, params.clone(), format, seed);
    result.unwrap();
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
        "padded: 1984×1360, latents 248×170",
        "windows: 8 of frames 0–30, 15–45, 30–60, 45–75, 60–90, 75–105, 90–120, 105–144",
        "14 per window, 112 in total",
        "237",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert_eq!(plan.frames(), 145);
    // Of a long clip, not every window is listed.
    let text = sampler::Plan::new(&params, format, 24 * 3600).to_string();
    assert!(text.contains("of frames 0–30, 15–45, …, "), "{text}");
}
