# SPDX-License-Identifier: MIT OR Apache-2.0
"""Times the full-size VAE of diffusers on the CPU, on the work that bench_networks does: a line of JSON each.

    pip install torch diffusers
    python benches/vae_diffusers.py
    cargo run --release --features bench --example bench_networks -- --network vae-decode --frames 5 --height 18 --width 32
    cargo run --release --features bench --example bench_networks -- --network vae-encode --frames 1 --height 288 --width 512
"""

import json
import time

import torch
from diffusers import AutoencoderKLTemporalDecoder

torch.manual_seed(0)
vae = AutoencoderKLTemporalDecoder(
    down_block_types=("DownEncoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
).eval()


def measure(name, frames, height, width, run):
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            run()
        seconds = time.perf_counter() - start
        size = {"frames": frames, "height": height, "width": width}
        print(json.dumps({"network": name, **size, "seconds": seconds}), flush=True)


latents = torch.randn(5, 4, 18, 32)
measure("VaeDecode", 5, 18, 32, lambda: vae.decode(latents, num_frames=5))
frames = torch.randn(1, 3, 288, 512)
measure("VaeEncode", 1, 288, 512, lambda: vae.encode(frames))
