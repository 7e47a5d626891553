// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plain implementation that samples a whole clip step by step.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{Format, Frame},
    sampler::{
        self, Autoencoder, Canvas, Conditions, Denoiser, Mode, Noise, NoiseSchedule, Purpose,
        START, SamplerParams, evaluations,
    },
};

use crate::toy::{ToyAutoencoder, ToyDenoiser};

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
pub fn sample_whole_clip(
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
pub fn reference(
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
