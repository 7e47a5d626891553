// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trains the flow refiners: the input is two frames of a scene, the targets are a frame between them and the true
//! flow.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use gstvenhance::lite::{
    flow::{self, Flow, FlowLevel, OUTPUT_CHANNELS, Pyramid, STATE_CHANNELS},
    network::{COARSE, FINE, FlowRefiner},
};
use rayon::prelude::*;

use super::{
    image::{Image, Plane},
    pool::Pool,
    random::Random,
    scene::{Canvas, Scene},
    trainer::{Run, Trainee},
};

/// Samples per batch.
const BATCH: usize = 6;
/// Side of the frames.
const SIDE: usize = 128;
/// Weight of a flow error of one pixel of a level, relative to a luma error of 1.
const FLOW_WEIGHT: f32 = 0.02;

/// A training sample.
#[derive(Clone)]
struct Sample {
    neighbours: [Plane; 2],
    /// The true frame at `time`.
    target: Plane,
    time: f32,
    /// The true flow at `time`: x and y, in pixels.
    flow: [Plane; 2],
}

fn sample(canvases: &[Arc<Canvas>], random: &mut Random) -> Sample {
    let size = (SIDE, SIDE);
    let speed = random.log_uniform(2.0, 44.0);
    let scene = Scene::new(canvases, size, speed, random);
    let time = match random.chance(0.5) {
        true => 0.5,
        false => {
            let interpolated = 2 + random.below(7);
            (1 + random.below(interpolated)) as f32 / (interpolated + 1) as f32
        }
    };
    let blur = if random.chance(0.5) { random.uniform(0.3, 1.0) } else { 0.0 };
    let frame = |time| match blur > 0.0 {
        true => scene.frame(size, time).blur(blur),
        false => scene.frame(size, time),
    };
    Sample {
        neighbours: [frame(0.0), frame(1.0)],
        target: frame(time),
        time,
        flow: scene.flow(size, time),
    }
}

/// Augments a sample: flips, time reversal, brightness and contrast, fades, noise and compression artifacts.
fn augment(sample: &Sample, random: &mut Random) -> Sample {
    let mut sample = sample.clone();
    let flips: [bool; 3] = std::array::from_fn(|_| random.chance(0.5));
    let [first, second] = &mut sample.neighbours;
    let [x, y] = &mut sample.flow;
    for plane in [&mut *first, &mut *second, &mut sample.target, &mut *x, &mut *y] {
        plane.flip(flips);
    }
    if flips[0] {
        x.values.iter_mut().for_each(|x| *x = -*x);
    }
    if flips[1] {
        y.values.iter_mut().for_each(|y| *y = -*y);
    }
    if flips[2] {
        std::mem::swap(x, y);
    }
    if random.chance(0.5) {
        std::mem::swap(first, second);
        sample.time = 1.0 - sample.time;
        x.values.iter_mut().chain(&mut y.values).for_each(|v| *v = -*v);
    }
    let gain = random.log_uniform(0.15, 1.0);
    let bias = random.uniform(0.0, 1.0 - gain);
    for plane in [&mut *first, &mut *second, &mut sample.target] {
        plane.values.iter_mut().for_each(|value| *value = *value * gain + bias);
    }
    // A linear change of brightness and contrast, which leaves the target as it is.
    if random.chance(0.15) {
        let (gain, bias) = (random.normal() * 0.15, random.normal() * 0.1);
        for (plane, time) in [(&mut *first, -sample.time), (&mut *second, 1.0 - sample.time)] {
            let fade = |value: f32| value * (1.0 + gain * time) + bias * time;
            plane.values.iter_mut().for_each(|value| *value = fade(*value));
        }
    }
    let noise = if random.chance(0.4) { random.log_uniform(0.002, 0.02) } else { 0.0 };
    let step = if random.chance(0.4) { random.log_uniform(0.01, 0.06) } else { 0.0 };
    for plane in [first, second] {
        if noise > 0.0 {
            plane.add_noise(noise, random);
        }
        if step > 0.0 {
            plane.quantize_dct(step);
        }
        plane.round_to_8_bits();
    }
    sample
}

/// A sample at all pyramid levels.
struct SamplePyramid {
    neighbours: [Vec<Plane>; 2],
    target: Vec<Plane>,
    time: f32,
    flow: [Vec<Plane>; 2],
}

impl SamplePyramid {
    fn new(sample: &Sample) -> Self {
        let pyramid = |plane: &Plane| Pyramid::new(plane.clone()).0;
        Self {
            neighbours: sample.neighbours.each_ref().map(pyramid),
            target: pyramid(&sample.target),
            time: sample.time,
            flow: sample.flow.each_ref().map(pyramid),
        }
    }

    fn level(&self, n: usize) -> [&Plane; 2] {
        self.neighbours.each_ref().map(|planes| &planes[n])
    }
}

/// Stacks the values of each sample, [side, side, c], to [n, side, side, c].
fn stack(parts: Vec<Vec<f32>>, side: usize, device: &Device) -> Result<Tensor> {
    let (n, count) = (parts.len(), parts[0].len());
    Tensor::from_vec(parts.concat(), (n, side, side, count / side / side), device)
}

/// Nearest-neighbour upsampling by 2 of [n, h, w, c].
fn upsample_nearest(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h, 1, w, 1, c))?.broadcast_as((n, h, 2, w, 2, c))?.contiguous()?.reshape((
        n,
        2 * h,
        2 * w,
        c,
    ))
}

/// Samples a plane bilinearly; also returns the derivatives by x and y.
fn sample_with_gradient(plane: &Plane, x: f32, y: f32) -> [f32; 3] {
    let x = x.clamp(0.0, (plane.width - 1) as f32);
    let y = y.clamp(0.0, (plane.height - 1) as f32);
    let (left, top) = ((x as usize).min(plane.width - 2), (y as usize).min(plane.height - 2));
    let (fx, fy) = (x - left as f32, y - top as f32);
    let at = top * plane.width + left;
    let [a, b] = [plane.values[at], plane.values[at + 1]];
    let [c, d] = [plane.values[at + plane.width], plane.values[at + plane.width + 1]];
    let (upper, lower) = (a + fx * (b - a), c + fx * (d - c));
    [upper + fy * (lower - upper), b - a + fy * (d - c - b + a), lower - upper]
}

/// The loss of a sample at a level.
struct Loss {
    loss: f32,
    /// Mean squared error of the interpolated frame.
    mse: f32,
    /// The gradient of the loss by the output of the network, [h, w, [`OUTPUT_CHANNELS`]].
    gradient: Vec<f32>,
}

impl Loss {
    fn new(pixels: usize) -> Self {
        Self { loss: 0.0, mse: 0.0, gradient: vec![0.0; pixels * OUTPUT_CHANNELS] }
    }

    /// Adds the loss of the flow: the mean of √(x² + y² + 0.1²) of its errors. The true flow (x, y) is multiplied by
    /// `scale`.
    fn add_flow(&mut self, flow: &Flow, [x, y]: [&Plane; 2], scale: f32) {
        let weight = FLOW_WEIGHT / flow.len() as f32;
        let expected = x.values.iter().zip(&y.values);
        for ((gradient, [vx, vy]), (x, y)) in
            self.gradient.chunks_exact_mut(OUTPUT_CHANNELS).zip(flow).zip(expected)
        {
            let (dx, dy) = (vx - x * scale, vy - y * scale);
            let length = (dx * dx + dy * dy + 0.01).sqrt();
            self.loss += weight * length;
            gradient[0] += weight * dx / length;
            gradient[1] += weight * dy / length;
        }
    }

    /// Adds the loss of the frame that is interpolated with `flow`: the mean of √(x² + 0.01²) of its errors.
    /// `output` has the size of the frame or, with `repeat` = 2, half of it.
    fn add_frame(
        &mut self,
        neighbours: [&Plane; 2],
        target: &Plane,
        time: f32,
        flow: &Flow,
        output: &[f32],
        (repeat, weight): (usize, f32),
    ) {
        let width = target.width;
        let weight = weight / flow.len() as f32;
        let prior = ((1.0 - time) / time).ln();
        for (n, ([vx, vy], target)) in flow.iter().zip(&target.values).enumerate() {
            let (x, y) = (n % width, n / width);
            let at = (y / repeat * (width / repeat) + x / repeat) * OUTPUT_CHANNELS;
            let first_weight = 1.0 / (1.0 + (-output[at + 2] - prior).exp());
            let (x, y) = (x as f32, y as f32);
            let after = 1.0 - time;
            let [a, ax, ay] = sample_with_gradient(neighbours[0], x - time * vx, y - time * vy);
            let [b, bx, by] = sample_with_gradient(neighbours[1], x + after * vx, y + after * vy);
            let error = b + first_weight * (a - b) - target;
            let length = (error * error + 1e-4).sqrt();
            self.loss += weight * length;
            self.mse += error * error / flow.len() as f32;
            let slope = weight * error / length;
            let by_flow =
                |a: f32, b: f32| (1.0 - first_weight) * after * b - first_weight * time * a;
            // Upsampling by 2 doubles the vectors.
            self.gradient[at] += slope * repeat as f32 * by_flow(ax, bx);
            self.gradient[at + 1] += slope * repeat as f32 * by_flow(ay, by);
            self.gradient[at + 2] += slope * first_weight * (1.0 - first_weight) * (a - b);
        }
    }
}

/// The loss of a batch.
struct BatchLoss {
    /// A scalar whose gradient by the parameters is that of the loss.
    objective: Tensor,
    loss: f32,
    /// Mean squared error of the interpolated frames.
    mse: f32,
}

/// Stacks the features of a level for all samples, [n, side, side, features]; also returns the flow before the
/// refinement. `coarser` holds the flows of the coarser level, none for the coarsest.
fn features(
    samples: &[SamplePyramid],
    n: usize,
    refiner: FlowRefiner,
    coarser: &[Flow],
    device: &Device,
) -> Result<(Tensor, Vec<Flow>)> {
    let side = SIDE >> n;
    let levels = (0..samples.len()).into_par_iter().map(|i| {
        let flow = match coarser.get(i) {
            Some(flow) => flow::upsample(flow, (side, side)),
            None => vec![[0.0; 2]; side * side],
        };
        let level = FlowLevel { neighbours: samples[i].level(n), time: samples[i].time, flow };
        let mut features = vec![0.0; side * side * refiner.features()];
        for (at, features) in features.chunks_exact_mut(refiner.features()).enumerate() {
            level.write_features(&refiner, at % side, at / side, features);
        }
        (features, level.flow)
    });
    let (features, flows): (Vec<_>, Vec<_>) = levels.collect::<Vec<_>>().into_iter().unzip();
    Ok((stack(features, side, device)?, flows))
}

/// Applies the flow residual in `output`, [side, side, [`OUTPUT_CHANNELS`]], to `flow`, and computes the loss of
/// the sample at level n.
fn level_loss(sample: &SamplePyramid, n: usize, flow: &mut Flow, output: &[f32]) -> Loss {
    for (flow, output) in flow.iter_mut().zip(output.chunks_exact(OUTPUT_CHANNELS)) {
        flow[0] += output[0];
        flow[1] += output[1];
    }
    let side = SIDE >> n;
    let mut loss = Loss::new(side * side);
    let expected = sample.flow.each_ref().map(|planes| &planes[n]);
    loss.add_flow(flow, expected, 1.0 / (1 << n) as f32);
    // The finest flow interpolates the frame at full size.
    let (n, size, flow) = match n {
        1 => (0, (2, 3.0), &flow::upsample(flow, (2 * side, 2 * side))),
        _ => (n, (1, 1.0), &*flow),
    };
    loss.add_frame(sample.level(n), &sample.target[n], sample.time, flow, output, size);
    loss
}

/// Runs the refiners on a batch, from coarse to fine, and sums the losses of all levels.
fn batch_loss(
    samples: &[SamplePyramid],
    coarse: &Trainee,
    fine: &Trainee,
    device: &Device,
) -> Result<BatchLoss> {
    let mut state: Option<Tensor> = None;
    let mut flows: Vec<Flow> = Vec::new();
    let mut objective = Tensor::zeros((), DType::F32, device)?;
    let (mut loss, mut mse) = (0.0, 0.0);
    for n in (1..=flow::pyramid_levels((SIDE, SIDE))).rev() {
        let side = SIDE >> n;
        let (refiner, trainee) = if n == 1 { (FINE, fine) } else { (COARSE, coarse) };
        let (features, before) = features(samples, n, refiner, &flows, device)?;
        let coarser_state = match &state {
            Some(state) => upsample_nearest(state)?,
            None => Tensor::zeros((samples.len(), side, side, STATE_CHANNELS), DType::F32, device)?,
        };
        let output = trainee.forward(&Tensor::cat(&[&features, &coarser_state], 3)?)?;
        let values = output.detach().flatten_all()?.to_vec1::<f32>()?;
        let outputs = values.par_chunks(side * side * OUTPUT_CHANNELS);
        let losses = samples.par_iter().zip(before).zip(outputs);
        let losses = losses.map(|((sample, mut flow), output)| {
            let loss = level_loss(sample, n, &mut flow, output);
            (loss, flow)
        });
        let (losses, refined): (Vec<_>, Vec<_>) = losses.collect::<Vec<_>>().into_iter().unzip();
        flows = refined;
        let share = 1.0 / samples.len() as f32;
        loss += losses.iter().map(|loss| loss.loss).sum::<f32>() * share;
        mse = losses.iter().map(|loss| loss.mse).sum::<f32>() * share;
        let gradients = losses.into_iter().map(|loss| loss.gradient).collect();
        // d/dp (output · constant) = doutput/dp · constant, the chain rule.
        let part = (&output * stack(gradients, side, device)?)?.sum_all()?;
        objective = (objective + (part * f64::from(share))?)?;
        state = Some(output.narrow(3, 2, STATE_CHANNELS)?.contiguous()?);
    }
    Ok(BatchLoss { objective, loss, mse })
}

/// Trains both refiners until the run is complete. Prints the PSNR on unseen samples every 1000 steps and at the
/// end.
pub fn train(
    coarse: &Trainee,
    fine: &Trainee,
    run: &mut Run,
    seed: u64,
    device: &Device,
) -> Result<()> {
    let mut pool = Pool::new(seed, 300, |canvases, random| Ok(sample(canvases, random)))?;
    let mut random = Random::new(seed + 1);
    while let Some(step) = run.step() {
        if step % 2 == 0 {
            pool.renew()?;
        }
        let seeds: Vec<_> = (0..BATCH).map(|_| random.seed()).collect();
        let items = pool.items();
        let samples: Vec<_> = seeds
            .into_par_iter()
            .map(|seed| {
                let mut random = Random::new(seed);
                SamplePyramid::new(&augment(random.pick(items), &mut random))
            })
            .collect();
        let BatchLoss { objective, loss, .. } = batch_loss(&samples, coarse, fine, device)?;
        run.learn(&objective, loss, &[coarse, fine])?;
        if (step + 1) % 1000 == 0 {
            validate(coarse, fine, device)?;
        }
    }
    validate(coarse, fine, device)
}

/// Prints the PSNR of frames interpolated by a cross-fade and by the networks, on samples that they were not
/// trained on.
fn validate(coarse: &Trainee, fine: &Trainee, device: &Device) -> Result<()> {
    let mut random = Random::new(0xF10);
    let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let samples: Vec<_> =
        (0..48).map(|_| SamplePyramid::new(&sample(&canvases, &mut random))).collect();
    let mut fade = 0.0;
    for sample in &samples {
        let [first, second] = sample.level(0);
        let target = &sample.target[0].values;
        let squares = first.values.iter().zip(&second.values).zip(target).map(|((a, b), x)| {
            let error = a + sample.time * (b - a) - x;
            error * error
        });
        fade += squares.sum::<f32>() / target.len() as f32 / 48.0;
    }
    let BatchLoss { mse, .. } = batch_loss(&samples, coarse, fine, device)?;
    println!(
        "  interpolated frames: cross-fade {:.2} dB, networks {:.2} dB",
        -10.0 * fade.log10(),
        -10.0 * mse.log10()
    );
    Ok(())
}
