# SPDX-License-Identifier: MIT OR Apache-2.0
"""PyTorch on the single operations that `bench_gpu ops` times, in f16 under the same names, and what the device can do
at best: a line of JSON for each. Of attention each implementation that PyTorch has.

    python benches/torch_ops.py --device cuda
    python benches/torch_ops.py --device cpu --latent 10 16     # to try the script
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

# As in examples/bench_gpu/ops.rs: inputs that take turns, milliseconds between two events and runs at most,
# measurements of which the median is taken; frames of a window, and pixels of it that attention along time takes at a
# time.
INPUTS = 3
MEASURED_MS = 2.0
MOST_RUNS = 50
MEASUREMENTS = 11
FRAMES = 31
PIXELS = 2114


class Timer:
    def __init__(self, args):
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        # CPUs are for trying the script: many have no f16 that is fast.
        self.dtype = torch.float16 if self.cuda else torch.float32
        self.deadline = time.monotonic() + args.seconds

    def elapsed(self, run, inputs, runs):
        """Milliseconds of a run."""
        if self.cuda:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        start = time.perf_counter()
        for n in range(runs):
            run(inputs[n % len(inputs)])
        if not self.cuda:
            return (time.perf_counter() - start) * 1e3 / runs
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / runs

    def median(self, run, inputs):
        self.elapsed(run, inputs, len(inputs))
        first = max(self.elapsed(run, inputs, len(inputs)), 1e-3)
        runs = int(min(max(MEASURED_MS / first, 1), MOST_RUNS) + 0.999)
        count = MEASUREMENTS if self.cuda else 3
        return statistics.median(self.elapsed(run, inputs, runs) for _ in range(count))

    def time(self, name, make, run, variant=None, work=lambda ms: {}):
        """Prints the median of `run` on inputs that `make` gives, or why there is none."""
        line = {"what": "PyTorch's operation", "name": name}
        if variant is not None:
            line["variant"] = variant
        if time.monotonic() > self.deadline:
            line["skipped"] = "no time is left"
        else:
            try:
                ms = self.median(run, [make() for _ in range(INPUTS)])
                line |= {"ms": ms} | work(ms)
            except (RuntimeError, NotImplementedError) as error:
                line["failed"] = str(error).splitlines()[0]
        print(json.dumps(line), flush=True)

    def normal(self, *shape, dtype=None):
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)


def ceilings(t, small):
    """A copy, bytes read and written; and a product of bf16."""
    size = 1 << (24 if small else 32)

    def copy(x):
        buffer.copy_(x)

    buffer = torch.empty(size, dtype=torch.uint8, device=t.device)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=t.device)
    t.time("a copy", lambda: source, copy, work=lambda ms: {"tb_per_second": 2 * size / ms / 1e9})
    del buffer, source
    n = 256 if small else 8192
    b = t.normal(n, n, dtype=torch.bfloat16)
    t.time(
        "a product of 8192³, bf16",
        lambda: t.normal(n, n, dtype=torch.bfloat16),
        lambda a: a @ b,
        work=lambda ms: {"tflop_per_second": 2 * n**3 / ms / 1e9},
    )


def attention(t, name, b, tokens, keys, c):
    """Tokens [b, t, c] in heads of 64 channels, as they come from the layers before."""
    heads = c // 64

    def split(x):
        return x.unflatten(-1, (heads, 64)).transpose(1, 2)

    k, v = split(t.normal(b, keys, c)), split(t.normal(b, keys, c))

    def run(q):
        return F.scaled_dot_product_attention(split(q), k, v).transpose(1, 2)

    backends = ATTENTION if t.cuda else {"flash": SDPBackend.FLASH_ATTENTION}
    for variant, backend in backends.items():
        with sdpa_kernel([backend]):
            t.time(name, lambda: t.normal(b, tokens, c), run, variant)


def linear(t, name, tokens, inputs, outputs):
    weight, bias = t.normal(outputs, inputs) * inputs**-0.5, t.normal(outputs)
    t.time(name, lambda: t.normal(1, tokens, inputs), lambda x: F.linear(x, weight, bias))


def convolution(t, name, size, c, double=False, **how):
    weight, bias = t.normal(c, c, 3, 3) * (9 * c) ** -0.5, t.normal(c)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def run(x):
        if double:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(x, weight, bias, **how)

    def make():
        return t.normal(1, c, *size).contiguous(memory_format=torch.channels_last)

    t.time(name, make, run)


def time_convolution(t, name, size, c):
    weight, bias = t.normal(c, c, 3, 1, 1) * (3 * c) ** -0.5, t.normal(c)
    weight = weight.contiguous(memory_format=torch.channels_last_3d)

    def make():
        return t.normal(1, c, 3, *size).contiguous(memory_format=torch.channels_last_3d)

    t.time(name, make, lambda x: F.conv3d(x, weight, bias, padding=(1, 0, 0)))


def norms(t, size, c):
    weight, bias = t.normal(c), t.normal(c)

    def make():
        return t.normal(1, c, *size).contiguous(memory_format=torch.channels_last)

    t.time("group norm and SiLU, 320", make, lambda x: F.silu(F.group_norm(x, 32, weight, bias)))
    tokens = size[0] * size[1]
    t.time("layer norm, 320", lambda: t.normal(1, tokens, c), lambda x: F.layer_norm(x, (c,), weight, bias))


def gate(x):
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def operations(t, latent):
    h, w = latent
    half, quarter = (-(-h // 2), -(-w // 2)), (-(-h // 4), -(-w // 4))
    tokens0, tokens1 = h * w, half[0] * half[1]
    attention(t, "attention in a frame, 320", 1, tokens0, tokens0, 320)
    attention(t, "attention in a frame, 640", 1, tokens1, tokens1, 640)
    attention(t, "attention to the prompt, 320", 1, tokens0, 77, 320)
    attention(t, "attention along time, 320", min(PIXELS, tokens0), FRAMES, FRAMES, 320)
    linear(t, "linear, 320 to 320", tokens0, 320, 320)
    linear(t, "linear, 320 to 2560", tokens0, 320, 2560)
    linear(t, "linear, 1280 to 320", tokens0, 1280, 320)
    linear(t, "linear, 640 to 640", tokens1, 640, 640)
    convolution(t, "convolution, 320 to 320", latent, 320, padding=1)
    convolution(t, "convolution, 640 to 640", half, 640, padding=1)
    convolution(t, "convolution, 1280 to 1280", quarter, 1280, padding=1)
    convolution(t, "convolution to half the size, 320", latent, 320, stride=2, padding=(2, 1))
    convolution(t, "convolution to twice the size, 640", half, 640, double=True, padding=1)
    time_convolution(t, "convolution along time, 320", latent, 320)
    norms(t, latent, 320)
    t.time("gate, 1280", lambda: t.normal(1, tokens0, 2560), gate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--latent", type=int, nargs=2, default=[170, 248], help="height and width of the latents")
    parser.add_argument("--seconds", type=float, default=60, help="after which nothing more is begun")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    timer = Timer(args)
    with torch.inference_mode():
        ceilings(timer, small=not timer.cuda)
        operations(timer, args.latent)


if __name__ == "__main__":
    sys.exit(main())
