// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lessons for the matchers: two frames of a scene, the frame between them, and how everything moves.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use gstvenhance::lite::{
    flow::{self, Flow, GIVEN, Level, Pyramid, STATE},
    network::{COARSE, FINE, Matcher},
};
use rayon::prelude::*;

use super::{
    plane::{Picture, Plane},
    random::Random,
    scene::{Canvas, Scene},
    school::Pool,
    trainer::{Learner, Run},
};

/// Scenes in a batch.
const BATCH: usize = 6;
/// Side of the frames.
const SIDE: usize = 128;
/// Pixels of a level's flow that weigh as much as a difference in brightness of 1.
const FLOW_WEIGHT: f32 = 0.02;

/// Two neighbours, and what is between them.
#[derive(Clone)]
struct Lesson {
    neighbours: [Plane; 2],
    between: Plane,
    time: f32,
    /// x, y in pixels.
    flow: [Plane; 2],
}

fn lesson(canvases: &[Arc<Canvas>], random: &mut Random) -> Lesson {
    let size = (SIDE, SIDE);
    let speed = random.log_uniform(2.0, 44.0);
    let scene = Scene::new(canvases, size, speed, random);
    let time = match random.chance(0.5) {
        true => 0.5,
        false => {
            let made = 2 + random.below(7);
            (1 + random.below(made)) as f32 / (made + 1) as f32
        }
    };
    let softness = if random.chance(0.5) { random.uniform(0.3, 1.0) } else { 0.0 };
    let frame = |time| match softness > 0.0 {
        true => scene.frame(size, time).blur(softness),
        false => scene.frame(size, time),
    };
    Lesson {
        neighbours: [frame(0.0), frame(1.0)],
        between: frame(time),
        time,
        flow: scene.flow(size, time),
    }
}

/// The same lesson, seen in another way.
fn vary(lesson: &Lesson, random: &mut Random) -> Lesson {
    let mut lesson = lesson.clone();
    let mirrors: [bool; 3] = std::array::from_fn(|_| random.chance(0.5));
    let [first, second] = &mut lesson.neighbours;
    let [x, y] = &mut lesson.flow;
    for plane in [&mut *first, &mut *second, &mut lesson.between, &mut *x, &mut *y] {
        plane.turn(mirrors);
    }
    if mirrors[0] {
        x.values.iter_mut().for_each(|x| *x = -*x);
    }
    if mirrors[1] {
        y.values.iter_mut().for_each(|y| *y = -*y);
    }
    if mirrors[2] {
        std::mem::swap(x, y);
    }
    if random.chance(0.5) {
        std::mem::swap(first, second);
        lesson.time = 1.0 - lesson.time;
        x.values.iter_mut().chain(&mut y.values).for_each(|v| *v = -*v);
    }
    let gain = random.log_uniform(0.15, 1.0);
    let bias = random.uniform(0.0, 1.0 - gain);
    for plane in [&mut *first, &mut *second, &mut lesson.between] {
        plane.values.iter_mut().for_each(|value| *value = *value * gain + bias);
    }
    // Light that changes evenly: at the time between it is as it was.
    if random.chance(0.15) {
        let (gain, bias) = (random.normal() * 0.15, random.normal() * 0.1);
        for (plane, time) in [(&mut *first, -lesson.time), (&mut *second, 1.0 - lesson.time)] {
            let light = |value: f32| value * (1.0 + gain * time) + bias * time;
            plane.values.iter_mut().for_each(|value| *value = light(*value));
        }
    }
    let noise = if random.chance(0.4) { random.log_uniform(0.002, 0.02) } else { 0.0 };
    let step = if random.chance(0.4) { random.log_uniform(0.01, 0.06) } else { 0.0 };
    for plane in [first, second] {
        if noise > 0.0 {
            plane.add_noise(noise, random);
        }
        if step > 0.0 {
            plane.quantise(step);
        }
        plane.round();
    }
    lesson
}

/// A lesson at all levels.
struct Ready {
    neighbours: [Vec<Plane>; 2],
    between: Vec<Plane>,
    time: f32,
    flow: [Vec<Plane>; 2],
}

impl Ready {
    fn new(lesson: &Lesson) -> Self {
        let pyramid = |plane: &Plane| Pyramid::new(plane.clone()).0;
        Self {
            neighbours: lesson.neighbours.each_ref().map(pyramid),
            between: pyramid(&lesson.between),
            time: lesson.time,
            flow: lesson.flow.each_ref().map(pyramid),
        }
    }

    fn level(&self, n: usize) -> [&Plane; 2] {
        self.neighbours.each_ref().map(|planes| &planes[n])
    }
}

/// [n, side, side, c] from each lesson's numbers.
fn stack(parts: Vec<Vec<f32>>, side: usize, device: &Device) -> Result<Tensor> {
    let (n, count) = (parts.len(), parts[0].len());
    Tensor::from_vec(parts.concat(), (n, side, side, count / side / side), device)
}

/// Every pixel four times.
fn repeat(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h, 1, w, 1, c))?.broadcast_as((n, h, 2, w, 2, c))?.contiguous()?.reshape((
        n,
        2 * h,
        2 * w,
        c,
    ))
}

/// The value at a place, and how it changes with x and y.
fn sample(plane: &Plane, x: f32, y: f32) -> [f32; 3] {
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

/// The loss of a level, and its gradient by what the network has given: [h, w, 2 + STATE].
struct Marks {
    loss: f32,
    /// Squared error of the frame made.
    power: f32,
    gradient: Vec<f32>,
}

impl Marks {
    fn new(pixels: usize) -> Self {
        Self { loss: 0.0, power: 0.0, gradient: vec![0.0; pixels * GIVEN] }
    }

    /// How far the flow is from the right one: √(x² + y² + 0.1²).
    fn mark_flow(&mut self, flow: &Flow, [x, y]: [&Plane; 2], scale: f32) {
        let weight = FLOW_WEIGHT / flow.len() as f32;
        let right = x.values.iter().zip(&y.values);
        for ((gradient, [vx, vy]), (x, y)) in
            self.gradient.chunks_exact_mut(GIVEN).zip(flow).zip(right)
        {
            let (dx, dy) = (vx - x * scale, vy - y * scale);
            let length = (dx * dx + dy * dy + 0.01).sqrt();
            self.loss += weight * length;
            gradient[0] += weight * dx / length;
            gradient[1] += weight * dy / length;
        }
    }

    /// How far the frame that is made with `flow` is from the right one: √(x² + 0.01²). `given` is of the
    /// same size or, with `repeat` = 2, of half of it.
    fn mark_frame(
        &mut self,
        neighbours: [&Plane; 2],
        right: &Plane,
        time: f32,
        flow: &Flow,
        given: &[f32],
        (repeat, weight): (usize, f32),
    ) {
        let width = right.width;
        let weight = weight / flow.len() as f32;
        let prior = ((1.0 - time) / time).ln();
        for (n, ([vx, vy], right)) in flow.iter().zip(&right.values).enumerate() {
            let (x, y) = (n % width, n / width);
            let at = (y / repeat * (width / repeat) + x / repeat) * GIVEN;
            let trust = 1.0 / (1.0 + (-given[at + 2] - prior).exp());
            let (x, y) = (x as f32, y as f32);
            let after = 1.0 - time;
            let [a, ax, ay] = sample(neighbours[0], x - time * vx, y - time * vy);
            let [b, bx, by] = sample(neighbours[1], x + after * vx, y + after * vy);
            let off = b + trust * (a - b) - right;
            let length = (off * off + 1e-4).sqrt();
            self.loss += weight * length;
            self.power += off * off / flow.len() as f32;
            let slope = weight * off / length;
            let by_flow = |a: f32, b: f32| (1.0 - trust) * after * b - trust * time * a;
            // A flow of twice the size is twice as long.
            self.gradient[at] += slope * repeat as f32 * by_flow(ax, bx);
            self.gradient[at + 1] += slope * repeat as f32 * by_flow(ay, by);
            self.gradient[at + 2] += slope * trust * (1.0 - trust) * (a - b);
        }
    }
}

/// What a batch comes to: a tensor with the gradient of the loss, the loss, and the squared error of the
/// frames made.
fn losses(
    ready: &[Ready],
    coarse: &Learner,
    fine: &Learner,
    device: &Device,
) -> Result<(Tensor, f32, f32)> {
    let levels = flow::levels((SIDE, SIDE));
    let mut state: Option<Tensor> = None;
    let mut flows: Vec<Flow> = Vec::new();
    let mut gradient: Option<Tensor> = None;
    let (mut loss, mut power) = (0.0, 0.0);
    for n in (1..=levels).rev() {
        let side = SIDE >> n;
        let (matcher, learner): (Matcher, _) = if n == 1 { (FINE, fine) } else { (COARSE, coarse) };
        let seen = (0..ready.len()).into_par_iter().map(|i| {
            let flow = match flows.get(i) {
                Some(flow) => flow::double(flow, (side, side)),
                None => vec![[0.0; 2]; side * side],
            };
            let level = Level { neighbours: ready[i].level(n), time: ready[i].time, flow };
            let mut seen = vec![0.0; side * side * matcher.seen()];
            for (at, seen) in seen.chunks_exact_mut(matcher.seen()).enumerate() {
                level.see(&matcher, at % side, at / side, seen);
            }
            (seen, level.flow)
        });
        let seen: Vec<_> = seen.collect();
        let (seen, before): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
        let seen = stack(seen, side, device)?;
        let remembered = match &state {
            Some(state) => repeat(state)?,
            None => Tensor::zeros((ready.len(), side, side, STATE), seen.dtype(), device)?,
        };
        let given = learner.forward(&Tensor::cat(&[&seen, &remembered], 3)?)?;
        let values = given.detach().flatten_all()?.to_vec1::<f32>()?;

        let marks = ready.par_iter().zip(before).zip(values.par_chunks(side * side * GIVEN));
        let marks = marks.map(|((ready, mut flow), given)| {
            for (flow, given) in flow.iter_mut().zip(given.chunks_exact(GIVEN)) {
                flow[0] += given[0];
                flow[1] += given[1];
            }
            let mut marks = Marks::new(side * side);
            let right = ready.flow.each_ref().map(|planes| &planes[n]);
            marks.mark_flow(&flow, right, 1.0 / (1 << n) as f32);
            // The finest flow makes a frame of full size.
            let (n, size, whole) = match n {
                1 => (0, (2, 3.0), flow::double(&flow, (2 * side, 2 * side))),
                _ => (n, (1, 1.0), flow.clone()),
            };
            marks.mark_frame(ready.level(n), &ready.between[n], ready.time, &whole, given, size);
            (marks, flow)
        });
        let (marks, moved): (Vec<_>, Vec<_>) = marks.collect::<Vec<_>>().into_iter().unzip();
        flows = moved;
        let share = 1.0 / ready.len() as f32;
        loss += marks.iter().map(|marks| marks.loss).sum::<f32>() * share;
        power = marks.iter().map(|marks| marks.power).sum::<f32>() * share;
        let slopes = marks.into_iter().map(|marks| marks.gradient).collect();
        let part = ((&given * stack(slopes, side, device)?)?.sum_all()? * f64::from(share))?;
        gradient = Some(match gradient {
            Some(gradient) => (gradient + part)?,
            None => part,
        });
        state = Some(given.narrow(3, 2, STATE)?.contiguous()?);
    }
    match gradient {
        Some(gradient) => Ok((gradient, loss, power)),
        None => candle_core::bail!("frames of no size"),
    }
}

/// Trains both matchers until the run is over.
pub fn train(
    coarse: &Learner,
    fine: &Learner,
    run: &mut Run,
    seed: u64,
    device: &Device,
) -> Result<()> {
    let mut pool = Pool::new(seed, 300, lesson);
    let mut random = Random::new(seed + 1);
    while let Some(step) = run.step() {
        if step % 2 == 0 {
            pool.renew();
        }
        let seeds: Vec<_> = (0..BATCH).map(|_| random.seed()).collect();
        let lessons = pool.items();
        let ready: Vec<_> = seeds
            .into_par_iter()
            .map(|seed| {
                let mut random = Random::new(seed);
                Ready::new(&vary(random.pick(lessons), &mut random))
            })
            .collect();
        let (gradient, loss, _) = losses(&ready, coarse, fine, device)?;
        run.learn(&gradient, loss, &[coarse, fine])?;
        if (step + 1) % 1000 == 0 {
            validate(coarse, fine, device)?;
        }
    }
    validate(coarse, fine, device)
}

/// Says how good frames are that it does not know, beside mere fades.
fn validate(coarse: &Learner, fine: &Learner, device: &Device) -> Result<()> {
    let mut random = Random::new(0xF10);
    let canvases: Vec<_> = (0..6).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let ready: Vec<_> = (0..48).map(|_| Ready::new(&lesson(&canvases, &mut random))).collect();
    let mut fade = 0.0;
    for ready in &ready {
        let [first, second] = ready.level(0);
        let between = &ready.between[0].values;
        let power = first.values.iter().zip(&second.values).zip(between).map(|((a, b), x)| {
            let off = a + ready.time * (b - a) - x;
            off * off
        });
        fade += power.sum::<f32>() / between.len() as f32 / 48.0;
    }
    let (_, _, ours) = losses(&ready, coarse, fine, device)?;
    println!(
        "  made frames: fades {:.2} dB, ours {:.2} dB",
        -10.0 * fade.log10(),
        -10.0 * ours.log10()
    );
    Ok(())
}
