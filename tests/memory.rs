// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares predicted with allocated memory. In a process of its own, because the allocator counts
//! all allocations.

#[path = "common/sink.rs"]
mod sink;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use gstvenhance::{
    engine::{ClipContext, Enhancer, Error, Format, Frame},
    lite::Retimed,
    networks::{
        unet::{Config, UNet, peak_bytes},
        vae::{self, Vae},
    },
    sampler::{Conditions, Mode, Slices},
    weights::synth,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A model that repeats each frame.
#[derive(Default)]
struct Repeat(Option<(Format, ClipContext)>);

impl Enhancer for Repeat {
    fn lookahead(&self, _: &Format) -> usize {
        0
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.0 = Some((format, clip));
        Ok(())
    }

    fn push(&mut self, frame: Frame, _: u64, outputs: &[u64]) -> Result<(), Error> {
        let (_, clip) = self.0.as_ref().unwrap();
        outputs.iter().try_for_each(|_| clip.sink.frame(Arc::new(frame.clone())))
    }

    fn finish(&mut self, _: &[u64]) -> Result<(), Error> {
        Ok(())
    }

    fn reset(&mut self) {}
}

#[test]
fn an_exact_rate_takes_the_predicted_memory() {
    let _exclusive = EXCLUSIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for size in [(320, 180), (1280, 720)] {
        let format =
            Format { input: size, output: size, interpolated: 0, exact: true, alpha: false };
        let run = || {
            let mut retimed = Retimed::new(Box::new(Repeat::default()));
            retimed.start(format, sink::clip(&Arc::new(sink::Discard))).unwrap();
            for n in 0..4 {
                let mut frame = Frame::new(size.0, size.1).unwrap();
                for (at, value) in frame.pixels_mut().iter_mut().enumerate() {
                    *value = (at * 7919 + n as usize * 4000) as u16;
                }
                retimed.push(frame, 10 * n, &[10 * n - n]).unwrap();
            }
            retimed.finish(&[]).unwrap();
        };
        compare(&format!("{size:?}"), Retimed::host_bytes(size), run);
    }
}

/// Serialises the tests of this file.
static EXCLUSIVE: Mutex<()> = Mutex::new(());

fn noise(name: &str, shape: &[usize]) -> Tensor {
    synth::noise(name, shape, &Device::Cpu).unwrap()
}

/// Memory of candle's matrix products on the CPU, in bytes: they copy blocks of an operand, of a size that depends on
/// the caches. It is not predicted, because a GPU needs none.
const BLOCKS: usize = 4 << 20;

/// Checks the peak memory of `work`.
fn compare<T>(what: &str, predicted: usize, work: impl FnOnce() -> T) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    work();
    let used = MEMORY.peak_usage() - before;
    let text = format!("{what}: {used} bytes used, {predicted} predicted");
    eprintln!("{text}");
    let bounds = predicted / 20 * 19..predicted / 20 * 21 + BLOCKS;
    assert!(bounds.contains(&used), "{text}");
}

/// Checks the predicted peak of an evaluation, for slices of each number of pixels.
fn measure(frames: usize, h: usize, w: usize, branches: usize, slices: &[usize]) {
    let _exclusive = EXCLUSIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let config = Config { dim: 64, head_dim: 16, num_heads: 8, context_dim: 128, ..Config::full() };
    let weights = synth::weights("", DType::F32, &Device::Cpu);
    let denoiser = UNet::new(&config, weights).unwrap();
    let (x, hint) = (noise("x", &[1, 4, frames, h, w]), noise("hint", &[1, 4, frames, h, w]));
    let context = denoiser.context(&noise("context", &[1, 77, 128])).unwrap();
    let mask: Vec<_> = (0..frames).map(Some).collect();
    let conditions = Conditions { t: 600.0, hint: &hint, t_hint: 199.0, s_cond: 8.0, mask: &mask };
    for pixels in slices {
        let slices = Slices::of_pixels(*pixels);
        let predicted = peak_bytes(&config, frames, (h, w), branches, DType::F32, slices);
        let what = format!("{frames}x{h}x{w}, {branches} branches, slices of {pixels}");
        let mode = Mode { slices, ..Mode::default() };
        let contexts = vec![&context; branches];
        let evaluate = || denoiser.forward_in(mode, &x, &conditions, &contexts, &|| Ok(()));
        compare(&what, predicted, || evaluate().unwrap());
    }
}

/// Takes more than 10 s: at smaller sizes, fixed costs hide the slices.
#[test]
fn an_evaluation_uses_the_predicted_memory_for_any_slice_size() {
    measure(4, 34, 48, 1, &[1 << 15]);
    // A slice holds all frames of every level; some of them; one on the first level, more on others.
    measure(9, 26, 40, 2, &[1 << 15, 1 << 12, 1 << 10]);
}

#[test]
fn the_published_size_fits_15_gib_in_the_default_slices() {
    let weights = 2_045_000_000 * 2;
    let peak =
        |slices| peak_bytes(&Config::full(), 43, (170, 248), 2, DType::F16, slices) + weights;
    let gib = |slices| peak(slices) as f64 / f64::from(1 << 30);
    let (smallest, usual, largest) =
        (gib(Slices::SMALLEST), gib(Slices::default()), gib(Slices::LARGEST));
    eprintln!("{smallest:.2}, {usual:.2}, {largest:.2} GiB");
    assert!(smallest <= usual && usual <= 15.0 && usual < largest && largest <= 16.0);
}

/// A small autoencoder with synthetic weights.
fn autoencoder() -> (vae::Config, Vae) {
    let config = vae::Config { block_out_channels: vec![32, 64, 64], layers_per_block: 2 };
    let weights = synth::weights("", DType::F32, &Device::Cpu);
    let vae = Vae::new(&config, weights).unwrap();
    (config, vae)
}

#[test]
fn encoding_and_decoding_use_the_predicted_memory() {
    use gstvenhance::sampler::Autoencoder;
    let _exclusive = EXCLUSIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (config, vae) = autoencoder();
    let check = &|| Ok(());
    let image = noise("image", &[1, 3, 240, 320]);
    let predicted = vae::encode_bytes(&config, (30, 40));
    let encode = || Autoencoder::encode(&vae, &image, Mode::default(), check).unwrap();
    compare("encoding", predicted, encode);

    let latents = noise("latents", &[7, 4, 36, 48]);
    // Decoded frames have 144·192 pixels: slices hold all frames, two, or one.
    for pixels in [1 << 18, 1 << 16, 1 << 11] {
        let slices = Slices::of_pixels(pixels);
        let predicted = vae::decode_bytes(&config, 7, (36, 48), DType::F32, slices);
        let mode = Mode { slices, ..Mode::default() };
        let decode = || Autoencoder::decode(&vae, &latents, mode, check).unwrap();
        compare(&format!("decoding in slices of {pixels}"), predicted, decode);
    }
}
