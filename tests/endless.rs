// SPDX-License-Identifier: MIT OR Apache-2.0
//! A long stream takes no more memory than a short one. Alone in its process: the allocator counts
//! everything.

mod toy;

use std::sync::Arc;

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Enhancer, Solver},
    networks::{
        unet::{Config, Prompted, UNet},
        vae::{self, Vae},
    },
    sampler::{DiffusionEnhancer, Models, Plan, Seeded},
    weights::synth,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn tiny() -> Models {
    let device = &Device::Cpu;
    let weights = |prefix| synth::weights(prefix, DType::F32, device);
    let config = Config {
        dim: 32,
        head_dim: 8,
        num_heads: 4,
        context_dim: 16,
        num_res_blocks: 1,
        dim_mult: vec![1, 1],
        ..Config::full()
    };
    let denoiser = UNet::new(&config, weights("unet.")).unwrap();
    let tokens = synth::noise("prompts", &[2, 77, config.context_dim][..], device).unwrap();
    let denoiser = Arc::new(Prompted::new(Arc::new(denoiser), &tokens).unwrap());
    let config = vae::Config { block_out_channels: vec![32; 4], layers_per_block: 1 };
    let vae = Arc::new(Vae::new(&config, weights("vae.")).unwrap());
    Models { encoder: vae.clone(), denoisers: vec![denoiser], decoder: vae }
}

#[test]
fn memory_stays_flat_over_three_hundred_frames() {
    let (params, format) = (toy::params(Solver::Normal, 2), toy::format(2, false));
    let plan = Plan::new(&params, format, 100);
    assert_eq!(plan.frames(), 298);
    let mut enhancer = DiffusionEnhancer::new(tiny(), params, Arc::new(Seeded(1)));
    enhancer.start(format, toy::clip(&Arc::new(toy::Discard))).unwrap();
    // Held between two frames, and the peak, in each quarter.
    let mut quarters = [(0, 0); 4];
    for n in 0..100 {
        let (held, peak) = &mut quarters[n / 25];
        MEMORY.reset_peak_usage();
        toy::push(&mut enhancer, n, toy::picture(n, format.input), format).unwrap();
        *held = MEMORY.current_usage().max(*held);
        *peak = MEMORY.peak_usage().max(*peak);
        assert!(enhancer.latents().unwrap() <= plan.latents());
    }
    enhancer.finish(&[]).unwrap();
    eprintln!("bytes held and at the peak, by quarter: {quarters:?}");
    let [_, (held, peak), _, (later_held, later_peak)] = quarters;
    // In 150 frames, less than the latents of 30; the threads' own buffers may come and go.
    let slack = 30 * 4 * 2 * 8 * size_of::<f32>();
    assert!(later_held < held + slack, "{held} bytes, then {later_held}");
    assert!(later_peak < peak + slack, "{peak} bytes, then {later_peak}");
}
