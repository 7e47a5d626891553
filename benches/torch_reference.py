# SPDX-License-Identifier: MIT OR Apache-2.0
"""VEnhancer's denoiser in PyTorch, written from its description, on the work that bench_networks and bench_gpu do
and with the weights that `weights::synth` makes: a line of JSON for each run.

    pip install torch
    python benches/torch_reference.py --dim 64 --head-dim 16 --context-dim 128 --frames 8 --height 42 --width 64
    cargo run --release --features bench --example bench_networks -- --network unet --dim 64 --head-dim 16 --context-dim 128 \
        --frames 8 --height 42 --width 64

On a GPU with f16 it runs under autocast, as the published code does, with PyTorch's memory-efficient attention or
another. `--compare` takes what bench_gpu has saved, and prints how far both are from PyTorch's own f32:

    bench_gpu window --frames 8 --latent 42 64 --save ours.safetensors
    python benches/torch_reference.py --device cuda --dtype f16 --frames 8 --compare ours.safetensors
    python benches/torch_reference.py --device cuda --dtype f16 --frames 31 --height 170 --width 248 --branches 2 \
        --attention efficient
"""

import argparse
import contextlib
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

# Relative error of f16 to f32.
ALLOWED = 2e-2

MASK = (1 << 64) - 1


def signed(x):
    """A 64-bit number as PyTorch's int64 holds it."""
    x &= MASK
    return x - (1 << 64) if x >> 63 else x


def shift(z, bits):
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def spread(name, shape, device):
    """The numbers in [-1, 1) that a name stands for: see src/weights/synth.rs."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    z = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=device)
    z = z * signed(0x9E3779B97F4A7C15) + signed(seed)
    z = (z ^ shift(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift(z, 27)) * signed(0x94D049BB133111EB)
    z = shift(z ^ shift(z, 31), 40)
    return (z.float() * 2.0**-23 - 1.0).reshape(shape)


def noise(name, shape, device):
    return spread(name, shape, device) * torch.tensor(3.0).sqrt().item()


class Weights:
    """Tensors by name, made when first asked for."""

    def __init__(self, device, dtype):
        self.device, self.dtype, self.made = device, dtype, {}

    def __call__(self, name, *shape):
        if name not in self.made:
            s = spread(name, shape, self.device)
            if len(shape) > 1:
                s = s * torch.tensor(3.0 / math.prod(shape[1:]), dtype=torch.float64).sqrt().float().item()
            else:
                s = s * 0.05 if name.endswith("bias") else s * 0.1 + 1.0
            self.made[name] = s.to(self.dtype)
        return self.made[name]


class Denoiser:
    """Frames are [f, c, h, w]; a clip for the layers over time is [1, c, f, h, w]."""

    def __init__(self, args, weights):
        self.w, self.dim, self.head_dim = weights, args.dim, args.head_dim
        self.heads0, self.context_dim, self.blocks = 8, args.context_dim, args.res_blocks
        self.mult = [1, 2, 4, 4]

    def linear(self, x, key, inputs, outputs, bias=True, kernel=()):
        weight = self.w(f"{key}.weight", outputs, inputs, *kernel).reshape(outputs, inputs)
        return F.linear(x, weight, self.w(f"{key}.bias", outputs) if bias else None)

    def conv(self, x, key, outputs, **how):
        return F.conv2d(x, self.w(f"{key}.weight", outputs, x.shape[1], 3, 3), self.w(f"{key}.bias", outputs), **how)

    def norm(self, x, key, epsilon):
        c = x.shape[1]
        return F.group_norm(x, 32, self.w(f"{key}.weight", c), self.w(f"{key}.bias", c), epsilon)

    def residual(self, x, key, outputs, embedding):
        h = self.conv(F.silu(self.norm(x, f"{key}.in_layers.0", 1e-5)), f"{key}.in_layers.2", outputs, padding=1)
        shift = self.linear(F.silu(embedding), f"{key}.emb_layers.1", 4 * self.dim, outputs)
        h = h + shift[:, :, None, None]
        h = self.conv(F.silu(self.norm(h, f"{key}.out_layers.0", 1e-5)), f"{key}.out_layers.3", outputs, padding=1)
        if x.shape[1] != outputs:
            weight = self.w(f"{key}.skip_connection.weight", outputs, x.shape[1], 1, 1)
            x = F.conv2d(x, weight, self.w(f"{key}.skip_connection.bias", outputs))
        clip = (x + h).transpose(0, 1)[None]
        h = clip
        for name, place in [("conv1", 2), ("conv2", 3), ("conv3", 3), ("conv4", 3)]:
            at = f"{key}.temopral_conv.{name}"
            h = F.silu(self.norm(h, f"{at}.0", 1e-5))
            weight = self.w(f"{at}.{place}.weight", outputs, outputs, 3, 1, 1)
            h = F.conv3d(h, weight, self.w(f"{at}.{place}.bias", outputs), padding=(1, 0, 0))
        return (clip + h)[0].transpose(0, 1)

    def attention(self, x, context, key, inner, heads):
        q = self.linear(x, f"{key}.to_q", inner, inner, bias=False)
        k = self.linear(context, f"{key}.to_k", context.shape[-1], inner, bias=False)
        v = self.linear(context, f"{key}.to_v", context.shape[-1], inner, bias=False)
        q, k, v = (t.unflatten(-1, (heads, inner // heads)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.linear(out, f"{key}.to_out.0", inner, inner)

    def block(self, x, context, key, inner, heads):
        key = f"{key}.transformer_blocks.0"

        def norm(x, name):
            return F.layer_norm(x, (inner,), self.w(f"{key}.{name}.weight", inner), self.w(f"{key}.{name}.bias", inner))

        normed = norm(x, "norm1")
        x = x + self.attention(normed, normed, f"{key}.attn1", inner, heads)
        normed = norm(x, "norm2")
        x = x + self.attention(normed, normed if context is None else context, f"{key}.attn2", inner, heads)
        value, gate = self.linear(norm(x, "norm3"), f"{key}.ff.net.0.proj", inner, 8 * inner).chunk(2, -1)
        return x + self.linear(value * F.gelu(gate), f"{key}.ff.net.2", 4 * inner, inner)

    def spatial(self, x, key, context):
        f, c, h, w = x.shape
        tokens = self.norm(x, f"{key}.norm", 1e-6).flatten(2).transpose(1, 2)
        tokens = self.linear(tokens, f"{key}.proj_in", c, c)
        tokens = self.block(tokens, context.expand(f, -1, -1), key, c, c // self.head_dim)
        return x + self.linear(tokens, f"{key}.proj_out", c, c).transpose(1, 2).reshape(f, c, h, w)

    def temporal(self, x, key, inner=None, heads=None):
        f, c, h, w = x.shape
        inner, heads = inner or c, heads or c // self.head_dim
        clip = self.norm(x.transpose(0, 1)[None], f"{key}.norm", 1e-6)[0]
        tokens = self.linear(clip.permute(2, 3, 1, 0).reshape(h * w, f, c), f"{key}.proj_in", c, inner, kernel=(1,))
        tokens = self.block(tokens, None, key, inner, heads)
        tokens = self.linear(tokens, f"{key}.proj_out", inner, c, kernel=(1,))
        return x + tokens.reshape(h, w, f, c).permute(2, 3, 0, 1)

    def stage(self, x, key, outputs, attends, embedding, context):
        x = self.residual(x, f"{key}.0", outputs, embedding)
        if attends:
            x = self.temporal(self.spatial(x, f"{key}.1", context), f"{key}.2")
        return x

    def encode(self, x, prefix, embedding, context, hint=None):
        """What each block gives, and the middle."""
        x = self.conv(x, f"{prefix}input_blocks.0.0", self.dim, padding=1)
        if hint is not None:
            x = x + hint
        x = self.temporal(x, f"{prefix}input_blocks.0.1", self.heads0 * self.head_dim, self.heads0)
        outputs = [x]
        for level, multiplier in enumerate(self.mult):
            for _ in range(self.blocks):
                key = f"{prefix}input_blocks.{len(outputs)}"
                x = self.stage(x, key, self.dim * multiplier, level + 1 < len(self.mult), embedding, context)
                outputs.append(x)
            if level + 1 < len(self.mult):
                key = f"{prefix}input_blocks.{len(outputs)}.op"
                x = self.conv(x, key, x.shape[1], stride=2, padding=(2, 1))
                outputs.append(x)
        x = self.stage(x, f"{prefix}middle_block", x.shape[1], True, embedding, context)
        return outputs, self.residual(x, f"{prefix}middle_block.3", x.shape[1], embedding)

    def sinusoid(self, t):
        half = self.dim // 2
        angles = t * 10000.0 ** (-torch.arange(half, device=self.w.device) / half)
        return torch.cat([angles.cos(), angles.sin()])[None].to(self.w.dtype)

    def time(self, t, key):
        x = F.silu(self.linear(self.sinusoid(t), f"{key}.0", self.dim, 4 * self.dim))
        return self.linear(x, f"{key}.2", 4 * self.dim, 4 * self.dim)

    def control(self, x, hint, mask, t, t_hint, s_cond, context):
        """What is added to each skip and to the middle."""
        key, wide = "VideoControlNet.", 4 * self.dim
        own = self.time(t, f"{key}time_embed")
        told = self.linear(self.time(t_hint, f"{key}time_embed"), f"{key}hint_time_zero_linear", wide, wide)
        told = told + self.time(s_cond, f"{key}scale_cond")
        keys = torch.tensor([[float(m >= 0)] for m in mask], device=x.device, dtype=own.dtype)
        embedding = own + keys * told
        hints = self.conv(hint, f"{key}input_hint_block", self.dim, padding=1)
        hints = hints[[max(m, 0) for m in mask]] * keys[:, :, None, None]
        outputs, middle = self.encode(x, key, embedding, context, hints)

        def zero(x, name):
            c = x.shape[1]
            return F.conv2d(x, self.w(f"{key}{name}.weight", c, c, 1, 1), self.w(f"{key}{name}.bias", c))

        return [zero(x, f"zero_convs.{n}.0") for n, x in enumerate(outputs)], zero(middle, "middle_block_out.0")

    def forward(self, x, hint, mask, t, t_hint, s_cond, context):
        """x and hint are [f, 4, h, w], the context [1, 77, c]."""
        controls, middle = self.control(x, hint, mask, t, t_hint, s_cond, context)
        embedding = self.time(t, "time_embed").expand(len(x), -1)
        skips, x = self.encode(x, "", embedding, context)
        x = x + middle
        number = 0
        for level, multiplier in reversed(list(enumerate(self.mult))):
            attends = level + 1 < len(self.mult)
            for n in range(self.blocks + 1):
                key = f"output_blocks.{number}"
                x = torch.cat([x, skips.pop() + controls.pop()], 1)
                x = self.stage(x, key, self.dim * multiplier, attends, embedding, context)
                if n == self.blocks and level > 0:
                    x = F.interpolate(x, scale_factor=2, mode="nearest")[:, :, 1:-1]
                    x = self.conv(x, f"{key}.{3 if attends else 1}.conv", x.shape[1], padding=1)
                number += 1
        return self.conv(F.silu(self.norm(x, "out.0", 1e-5)), "out.2", 4, padding=1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--context-dim", type=int, default=1024)
    parser.add_argument("--res-blocks", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--height", type=int, default=42)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--branches", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "f16"], default="f32")
    parser.add_argument("--attention", choices=list(ATTENTION), default="efficient")
    parser.add_argument("--compare", help="what bench_gpu has saved")
    return parser.parse_args()


class Evaluation:
    """A window's evaluation, as bench_networks and bench_gpu do it."""

    def __init__(self, args, dtype):
        device, size = args.device, (args.height, args.width)
        self.denoiser = Denoiser(args, Weights(device, dtype))
        self.x = noise("x", (4, args.frames, *size), device).transpose(0, 1).to(dtype)
        self.hint = noise("hint", (4, -(-args.frames // 3), *size), device).transpose(0, 1).to(dtype)
        # bench_gpu has two prompts.
        name, count = ("tokens", 2) if args.device != "cpu" else ("context", 1)
        self.contexts = noise(name, (count, 77, args.context_dim), device).to(dtype)
        self.branches = args.branches
        self.mask = [-1 if n % 3 else n // 3 for n in range(args.frames)]

    def __call__(self):
        contexts = [self.contexts[n % len(self.contexts)][None] for n in range(self.branches)]
        return [self.denoiser.forward(self.x, self.hint, self.mask, 601, 199, 8, c) for c in contexts]


def surroundings(args):
    """Autocast and the choice of attention, where there is one."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.inference_mode())
    if args.device != "cpu":
        stack.enter_context(sdpa_kernel([ATTENTION[args.attention]]))
        if args.dtype == "f16":
            stack.enter_context(torch.autocast("cuda", torch.float16))
    return stack


def synchronise(args):
    if args.device != "cpu":
        torch.cuda.synchronize()


def time_runs(args):
    evaluate = Evaluation(args, torch.float16 if args.dtype == "f16" else torch.float32)
    # The first run makes the weights.
    for run in range(args.runs + 1):
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        synchronise(args)
        start = time.perf_counter()
        out = evaluate()[0]
        synchronise(args)
        seconds = time.perf_counter() - start
        line = {"what": "PyTorch's window", "frames": args.frames, "height": args.height, "width": args.width}
        if run > 0:
            line |= {"seconds": seconds, "rms": out.float().square().mean().sqrt().item()}
            if args.device != "cpu":
                peak = torch.cuda.max_memory_allocated() / 2**30
                line |= {"attention": args.attention, "branches": args.branches, "peak_gib": peak}
            print(json.dumps(line), flush=True)


def compare(args):
    """How far PyTorch's f16 and ours are from PyTorch's f32; returns 3 if ours is too far."""
    from safetensors.torch import load_file

    ours = load_file(args.compare)["conditional"].to(args.device)[0].transpose(0, 1).float()
    with surroundings(args):
        theirs = Evaluation(args, torch.float16)()[0].float()
    # Plain f32, nothing rounded on its way into a product.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    args.dtype = "f32"
    with surroundings(args):
        exact = Evaluation(args, torch.float32)()[0]

    def error(x):
        return ((x - exact).norm() / exact.norm()).item()

    found = error(ours)
    print(json.dumps({"what": "errors to f32", "ours": found, "torch_f16": error(theirs), "allowed": ALLOWED}))
    return 0 if found <= ALLOWED else 3


def main():
    args = arguments()
    if args.compare:
        return compare(args)
    with surroundings(args):
        time_runs(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
