// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares attention on tensor cores with a reference, for sizes that do and do not fill its
// tiles.
#include "attention.h"

#include "../../src/ops/cuda/attention.cu"

struct Kernel {
    const char *name;
    // Queries per block.
    int queries, keys, threads;
    void (*f16)(Attention<::f16>);
    void (*bf16)(Attention<::bf16>);
};

const Kernel LONG = {"attention", 128, 64, 128, attention_f16, attention_bf16};
const Kernel SHORT = {"attention_short", 32, 32, 64, attention_short_f16, attention_short_bf16};
const Kernel MEDIUM = {"attention_medium", 48, 48, 96, attention_medium_f16, attention_medium_bf16};

void run(const Kernel &kernel, const Attention<f16> &args) { kernel.f16(args); }
void run(const Kernel &kernel, const Attention<bf16> &args) { kernel.bf16(args); }

template <class T> void compare(const Kernel &kernel, const Shape &shape) {
    const Inputs<T> inputs(shape);
    const Attention<T> args = {inputs.q.data(), inputs.k.data(), inputs.v.data(),    inputs.out.data(), shape.tokens,
                               shape.keys,      inputs.row(),    inputs.batch(),     inputs.key_batch(), SCALE};
    const u32 blocks = (shape.tokens + kernel.queries - 1) / kernel.queries;
    emulator::launch({blocks, u32(shape.heads), u32(shape.batch)}, {u32(kernel.threads)}, 4 * 128 * kernel.keys,
                     [&] { run(kernel, args); });
    inputs.report(kernel.name);
}

void compare_both(const Kernel &kernel, const Shape &shape) {
    compare<f16>(kernel, shape);
    compare<bf16>(kernel, shape);
}

int main() {
    compare_both(LONG, {1, 128, 64, 1, false, 2});
    compare_both(LONG, {2, 150, 200, 3, false, 2});
    compare_both(LONG, {2, 40, 77, 2, true, 3});
    compare_both(LONG, {1, 1, 1, 1, false, 2});
    compare_both(LONG, {1, 257, 129, 1, false, 4});
    // Scores in the thousands.
    compare_both(LONG, {1, 100, 150, 2, false, 60});
    compare_both(SHORT, {3, 32, 32, 2, false, 2});
    compare_both(SHORT, {3, 31, 31, 2, false, 2});
    compare_both(SHORT, {2, 1, 5, 1, false, 2});
    compare_both(SHORT, {2, 70, 77, 2, true, 60});
    compare_both(MEDIUM, {2, 48, 48, 2, false, 2});
    compare_both(MEDIUM, {3, 43, 43, 2, false, 2});
    compare_both(MEDIUM, {2, 50, 100, 1, true, 60});
    // Attention along the frames of pixels.
    compare_both(SHORT, {5, 31, 31, 2, false, 2, true});
    compare_both(SHORT, {3, 70, 40, 1, false, 60, true});
    compare_both(MEDIUM, {4, 43, 43, 3, false, 2, true});
    compare_both(MEDIUM, {1, 48, 48, 1, false, 2, true});
    compare_both(LONG, {3, 150, 200, 2, false, 2, true});
    emulator::report("shared memory bank conflicts", emulator::conflicts, 0);
    return emulator::failed;
}
