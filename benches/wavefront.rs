// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the wavefront grows with devices, in simulated time: a device sleeps for as long as an evaluation
//! is said to take, so that any machine can stand for any number of them.
//!
//! Prints, for each number of devices, output frames a second in the middle of a stream, how many times
//! those of one device that is, and the part of the time that the devices are busy, which is less where
//! the line fills and empties. Decoding, which here costs the host alone, is on the last device's thread.

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
    sampler::{Check, Conditions, Denoiser, Mode, Models, Seeded, Velocities, Wavefront},
};

/// What a frame of a window takes a device: long, beside the host's own work.
const FRAME: Duration = Duration::from_millis(1);
const KEYS: usize = 250;
const MADE: usize = 2;

/// One device: one evaluation at a time.
struct Sleeper {
    alone: Mutex<()>,
    busy: AtomicU64,
}

impl Denoiser for Sleeper {
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
        let _alone = self.alone.lock().unwrap();
        let start = Instant::now();
        sleep(FRAME * x.dim(2)? as u32);
        self.busy.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(Velocities { conditional: x.clone(), unconditional: None })
    }
}

/// When each frame has left.
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
    println!("devices  frames/s  times  busy");
    let mut one = None;
    for devices in [1, 2, 4, 7, 14] {
        let sleepers: Vec<_> = (0..devices)
            .map(|_| Arc::new(Sleeper { alone: Mutex::default(), busy: AtomicU64::new(0) }))
            .collect();
        let denoisers = sleepers.iter().map(|each| each.clone() as Arc<dyn Denoiser>).collect();
        let models = Models { denoisers, ..toy::models(1) };
        let (times, format) = (Arc::new(Times::default()), toy::format(MADE, false));
        let clip = ClipContext { sink: times.clone(), cancel: Cancel::default() };
        let settings = toy::settings(Solver::Fast, 15);
        let mut enhancer = Wavefront::new(models, settings, Arc::new(Seeded(1)));
        enhancer.start(format, clip).unwrap();
        let start = Instant::now();
        (0..KEYS).for_each(|n| enhancer.push(toy::picture(n, format.input)).unwrap());
        enhancer.finish().unwrap();
        let whole = start.elapsed().as_secs_f64();
        let times = times.0.lock().unwrap();
        // Without what fills and empties the line.
        let (first, last) = (times.len() / 4, times.len() * 3 / 4);
        let rate = (last - first) as f64 / (times[last] - times[first]).as_secs_f64();
        let busy: u64 = sleepers.iter().map(|each| each.busy.load(Ordering::Relaxed)).sum();
        let busy = busy as f64 / 1e6 / devices as f64 / whole;
        let ratio = rate / *one.get_or_insert(rate);
        println!("{devices:7}  {rate:8.1}  {ratio:5.2}  {:3.0}%", busy * 100.0);
    }
}
