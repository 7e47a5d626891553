// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures how the throughput of the wavefront scales with the number of devices.
//!
//! The devices are simulated: an evaluation sleeps instead of computing, so the benchmark needs no GPU.
//!
//! Prints for each number of devices: output frames per second in the middle of a stream, the speedup over
//! one device, and the utilization of the devices over the whole run, which includes filling and draining.
//! The last device's thread also decodes; decoding is real work on the CPU.

#[path = "../tests/toy/mod.rs"]
mod toy;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{self, Cancel, ClipContext, Enhancer, Error, Progress, Sink, Solver},
    sampler::{Check, Conditions, Denoiser, DiffusionEnhancer, Mode, Models, Seeded, Velocities},
};

/// Simulated time of an evaluation per frame of its window. Long compared with the work of the CPU.
const TIME_PER_FRAME: Duration = Duration::from_millis(1);
const INPUTS: usize = 250;
const INTERPOLATED: usize = 2;

/// A simulated device that runs one evaluation at a time.
struct SimulatedDevice {
    evaluating: Mutex<()>,
    /// Total time of all evaluations in µs.
    busy: AtomicU64,
}

impl Denoiser for SimulatedDevice {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn velocities(
        &self,
        x: &Tensor,
        _: &Conditions,
        _: bool,
        _: Mode,
        _: Check,
    ) -> Result<Velocities> {
        let _guard = self.evaluating.lock().unwrap();
        let start = Instant::now();
        sleep(TIME_PER_FRAME * x.dim(2)? as u32);
        self.busy.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(Velocities { conditional: x.clone(), unconditional: None })
    }
}

/// Records when each output frame is delivered.
#[derive(Default)]
struct Times(Mutex<Vec<Instant>>);

impl Sink for Times {
    fn frame(&self, _: Arc<engine::Frame>) -> std::result::Result<(), Error> {
        self.0.lock().unwrap().push(Instant::now());
        Ok(())
    }
    fn progress(&self, _: Progress) {}
}

fn main() {
    println!("devices  frames/s  speedup  busy");
    let mut single = None;
    for devices in [1, 2, 4, 7, 14] {
        let simulated: Vec<_> = (0..devices)
            .map(|_| {
                Arc::new(SimulatedDevice { evaluating: Mutex::default(), busy: AtomicU64::new(0) })
            })
            .collect();
        let denoisers = simulated.iter().map(|each| each.clone() as Arc<dyn Denoiser>).collect();
        let models = Models { denoisers, ..toy::models(1) };
        let (times, format) = (Arc::new(Times::default()), toy::format(INTERPOLATED, false));
        let clip = ClipContext { sink: times.clone(), cancel: Cancel::default() };
        let params = toy::params(Solver::Fast, 15);
        let mut enhancer = DiffusionEnhancer::new(models, params, Arc::new(Seeded(1)));
        enhancer.start(format, clip).unwrap();
        let start = Instant::now();
        (0..INPUTS).for_each(|n| {
            toy::push(&mut enhancer, n, toy::picture(n, format.input), format).unwrap()
        });
        enhancer.finish(&[]).unwrap();
        let elapsed = start.elapsed().as_secs_f64();
        let times = times.0.lock().unwrap();
        // The middle half: without filling and draining the wavefront.
        let (first, last) = (times.len() / 4, times.len() * 3 / 4);
        let rate = (last - first) as f64 / (times[last] - times[first]).as_secs_f64();
        let busy: u64 = simulated.iter().map(|each| each.busy.load(Ordering::Relaxed)).sum();
        let busy = busy as f64 / 1e6 / devices as f64 / elapsed;
        let speedup = rate / *single.get_or_insert(rate);
        println!("{devices:7}  {rate:8.1}  {speedup:7.2}  {:3.0}%", busy * 100.0);
    }
}
