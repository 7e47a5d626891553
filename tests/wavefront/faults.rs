// SPDX-License-Identifier: MIT OR Apache-2.0
//! Evaluations that overflow, fail or are cancelled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{Cancel, ClipContext, Enhancer, Error, Solver},
    sampler::{
        Check, Conditions, Denoiser, DiffusionEnhancer, Mode, NoiseSchedule, Precision, Seeded,
        Velocities, Windows, evaluations,
    },
};

use crate::{
    inputs,
    reference::reference,
    run,
    toy::{Record, ToyDenoiser, clip, format, models, params, picture, push},
};

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
        let mut models = models(1);
        models.denoisers = vec![self.clone() as Arc<dyn Denoiser>; devices];
        let format = format(2, false);
        let run = run(models, &inputs(40, format), params(Solver::Fast, 15), format, 1);
        // The enhancer is dropped: another reference would belong to a leaked thread.
        assert_eq!(Arc::strong_count(self), 1);
        run
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
        let pushed =
            (0..200).try_for_each(|n| push(&mut enhancer, n, picture(n, format.input), format));
        assert_eq!(pushed.and_then(|()| enhancer.finish(&[])), Err(Error::Cancelled));
        assert!(stopper.join().unwrap().elapsed() < Duration::from_secs(5));
        // The next clip starts.
        enhancer.start(format, clip(&sink)).unwrap();
        enhancer.reset();
        drop(enhancer);
        assert_eq!(Arc::strong_count(&faulty), 1);
    }
}
