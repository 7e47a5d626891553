// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said of memory is what is used. Alone in its process: the allocator counts everything.

use candle_core::{DType, Device};
use gstvenhance::{
    networks::unet::{Config, Denoiser, peak_bytes},
    wavefront::Conditions,
    weights::synth,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A narrow network of the published structure.
fn config(dim: usize) -> Config {
    Config { dim, head_dim: 16, num_heads: 8, context_dim: 128, ..Config::full() }
}

/// The peak of an evaluation of a window [1, 4, frames, h, w] against the budget.
fn measure(config: &Config, frames: usize, (h, w): (usize, usize), branches: usize) -> f64 {
    let device = &Device::Cpu;
    let denoiser = Denoiser::new(config, synth::weights("", DType::F32, device)).unwrap();
    let noise = |name: &str, shape: &[usize]| synth::noise(name, shape, device).unwrap();
    let (x, hint) = (noise("x", &[1, 4, frames, h, w]), noise("hint", &[1, 4, frames, h, w]));
    let context = denoiser.context(&noise("context", &[1, 77, 128])).unwrap();
    let mask: Vec<_> = (0..frames).map(Some).collect();
    let conditions = Conditions { t: 600.0, hint: &hint, t_hint: 199.0, s_cond: 8.0, mask: &mask };
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    denoiser.forward(&x, &conditions, &vec![&context; branches], &|| Ok(())).unwrap();
    let used = (MEMORY.peak_usage() - before) as f64;
    let said = peak_bytes(config, frames, (h, w), branches, DType::F32) as f64;
    eprintln!("{frames}x{h}x{w}, {branches} branches: {used:.0} bytes used, {said:.0} said");
    used / said
}

#[test]
fn an_evaluation_takes_the_memory_that_is_said() {
    for (frames, size, branches) in [(4, (34, 48), 2), (9, (26, 40), 1)] {
        let ratio = measure(&config(64), frames, size, branches);
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}

/// What a large window adds to a small one is that layers work on slices of at most 32768 pixels. This window has
/// three slices at the first level, of 31 frames each, and one at the second.
#[test]
fn a_window_of_several_slices_takes_the_memory_that_is_said() {
    let config = Config { num_res_blocks: 1, dim_mult: vec![1, 2], ..config(32) };
    let ratio = measure(&config, 93, (26, 40), 1);
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
}

#[test]
fn the_published_size_fits_15_gib() {
    let weights = 2_045_000_000 * 2;
    let said = peak_bytes(&Config::full(), 43, (170, 248), 2, DType::F16) + weights;
    let gib = said as f64 / f64::from(1 << 30);
    eprintln!("{gib:.2} GiB");
    assert!(gib <= 15.0, "{gib}");
}
