// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices with little memory.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Result, Tensor};
use gstvenhance::{
    engine::{Error, Format, Solver},
    sampler::{
        self, Autoencoder, Budget, Canvas, Check, Conditions, Denoiser, Encoded, LATENT, Mode,
        RESERVE, Velocities, Work,
    },
};

use crate::{
    inputs, run,
    toy::{Record, ToyAutoencoder, ToyDenoiser, models, params},
};

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
        run(models, &inputs(4, format), params(Solver::Normal, 2), format, 1)
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
