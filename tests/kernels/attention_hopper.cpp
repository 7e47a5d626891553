// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares attention for Hopper with a reference, for sizes that do and do not fill its tiles.
#include "hopper.h"

#include "attention.h"

#include "../../src/ops/cuda/attention_hopper.cu"

template <class T> using Kernel = void (*)(Attention<T>, TensorMap, TensorMap, TensorMap);

template <class T> void compare(Kernel<T> kernel, const Shape &shape) {
    const Inputs<T> inputs(shape);
    const Attention<T> args = {inputs.q.data(), inputs.k.data(), inputs.v.data(),    inputs.out.data(), shape.tokens,
                               shape.keys,      inputs.row(),    inputs.batch(),     inputs.key_batch(), SCALE};
    const TensorMap q = {inputs.q.data(), inputs.width, shape.tokens, shape.batch, 1, QUERIES, 1};
    const TensorMap k = {inputs.k.data(), inputs.width, shape.keys, inputs.key_batches, 1, KEYS, 1};
    const TensorMap v = {inputs.v.data(), inputs.width, shape.keys, inputs.key_batches, 1, KEYS, 1};
    const u32 blocks = (shape.tokens + CONSUMERS * QUERIES - 1) / (CONSUMERS * QUERIES);
    emulator::launch({blocks, u32(shape.heads), u32(shape.batch)}, {512}, sizeof(Shared) + ALIGNMENT,
                     [&] { kernel(args, q, k, v); });
    inputs.report("attention_hopper");
}

void compare_both(const Shape &shape) {
    compare<f16>(attention_hopper_f16, shape);
    compare<bf16>(attention_hopper_bf16, shape);
}

int main() {
    compare_both({1, 192, 128, 1, false, 2});
    // Enough keys to reuse every stage several times.
    compare_both({1, 70, 700, 1, false, 2});
    compare_both({1, 64, 4000, 1, false, 2});
    compare_both({2, 200, 300, 2, false, 2});
    compare_both({2, 70, 77, 2, true, 3});
    compare_both({1, 1, 1, 1, false, 2});
    compare_both({1, 257, 129, 1, false, 4});
    // Scores in the thousands.
    compare_both({1, 100, 150, 2, false, 60});
    return emulator::failed;
}
