// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares products with reference convolutions and linear layers, for sizes that do and do not
// fill a kernel's blocks.
#include "product.h"

#include "../../src/ops/cuda/product.cu"

template <class T> struct Kernel {
    const char *name;
    void (*kernel)(Product<T>);
    int outputs;
    u32 threads;
    size_t shared;
};

template <class T> struct Kernels;

#define KERNELS(T)                                                                                           \
    template <> struct Kernels<T> {                                                                          \
        static constexpr Kernel<T> FEW = {"product_32", product_32_##T, 32, 128, 42496};                     \
        static constexpr Kernel<T> POWER = {"product_128", product_128_##T, 128, 128, 67072};                \
        static constexpr Kernel<T> MANY = {"product_160", product_160_##T, 160, 128, 75264};                 \
        static constexpr Kernel<T> NARROW = {"product_narrow", product_narrow_##T, 32, 128, 11776};          \
    };

KERNELS(f16)
KERNELS(bf16)

constexpr Kernel<float> WIDE = {"product", product_f32, 128, 256, 18432};

/// Kernel arguments that write to `out`, or add to it in place.
template <class T> Product<T> arguments(const Operands<T> &operands, const Case &of, const Buffer<T> &out) {
    const Buffer<T> &added = of.in_place ? out : operands.add;
    Product<T> all = {};
    all.parts[0] = operands.parts[0].data();
    all.parts[1] = of.channels[1] > 0 ? operands.parts[1].data() : nullptr;
    all.before = of.before ? operands.before.data() : nullptr;
    all.after = of.after ? operands.after.data() : nullptr;
    all.weight = operands.weight.data();
    all.bias = of.bias > 0 ? operands.bias.data() : nullptr;
    all.add = of.add ? added.data() : nullptr;
    all.out = out.data();
    all.channels[0] = of.channels[0];
    all.channels[1] = of.channels[1];
    all.frames = of.frames;
    all.height = of.height;
    all.width = of.width;
    all.out_height = of.out_height();
    all.out_width = of.out_width();
    all.outputs = of.outputs;
    all.taps = of.taps;
    all.stride = of.stride;
    all.top = of.top;
    all.left = of.left;
    all.times = of.times;
    all.crop = of.crop;
    all.source_height = of.source_height();
    all.source_width = of.source_width();
    all.bias_frames = max(of.bias, 1);
    all.scale = of.scale;
    return all;
}

template <class T> void compare(const Kernel<T> &kernel, const Case &of) {
    const Operands<T> operands(of);
    const Buffer<T> out(of.pixels() * of.outputs);
    if (of.in_place) {
        std::copy(operands.add.data(), operands.add.data() + out.size(), out.data());
    }
    const Product<T> args = arguments(operands, of, out);
    const u32 blocks = (of.pixels() + 127) / 128 * ((of.outputs + kernel.outputs - 1) / kernel.outputs);
    emulator::launch({blocks}, {kernel.threads}, kernel.shared, [&] { kernel.kernel(args); });
    report(kernel.name, operands, of, out);
}

/// Numbers of channels that are not multiples of 8.
const Case ANY_CHANNELS[] = {
    Case::image("3x3 of 3 channels", 2, 9, 11, 3, 0, 40),
    Case::image("3x3 of 4 channels, 3 outputs, a bias of each frame", 3, 8, 9, 4, 0, 3)
        .with([](Case &all) {
            all.bias = 3;
            all.add = true;
        }),
    Case::image("3x3 of 4 + 5 channels, 8 outputs, stride 2", 2, 13, 12, 4, 5, 8)
        .with([](Case &all) {
            all.stride = 2;
        }),
    Case::time("frames of 3 channels, 3 outputs, between others", 5, 7, 9, 3, 3)
        .with([](Case &all) {
            all.before = all.after = true;
        }),
    Case::linear("rows of 5 channels, 3 outputs", 130, 5, 0, 3),
};

/// Any number of outputs.
const Case ANY_OUTPUTS[] = {
    Case::image("3x3 of 8 channels, 4 outputs, stride 1", 2, 8, 9, 8, 0, 4),
    Case::image("3x3 of 40 channels, 3 outputs, all added in place", 3, 7, 11, 40, 0, 3)
        .with([](Case &all) {
            all.bias = 3;
            all.add = all.in_place = true;
            all.scale = 0.5;
        }),
    Case::linear("rows of 24 channels, 5 outputs, no bias", 200, 24, 0, 5)
        .with([](Case &all) {
            all.bias = 0;
        }),
    Case::time("frames of 24 channels, 8 outputs, after others", 4, 6, 9, 24, 8)
        .with([](Case &all) {
            all.before = true;
        }),
};

/// Multiples of 4 outputs and of 8 channels.
const Case USUAL[] = {
    Case::image("3x3 of 40 channels, 40 outputs", 2, 9, 10, 40, 0, 40),
    Case::image("3x3 of 24 + 40 channels, 8 outputs, added in place", 2, 9, 11, 24, 40, 8)
        .with([](Case &all) {
            all.bias = 2;
            all.add = all.in_place = true;
            all.scale = 0.3;
        }),
    Case::image("3x3 of 8 channels, 160 outputs, stride 2, zeros 2 above", 2, 11, 12, 8, 0, 160)
        .with([](Case &all) {
            all.stride = 2;
            all.top = all.bottom = 2;
        }),
    Case::image("3x3 of 8 channels, 40 outputs, stride 2, zeros below", 3, 12, 14, 8, 0, 40)
        .with([](Case &all) {
            all.stride = 2;
            all.top = all.left = 0;
            all.add = true;
        }),
    Case::image("3x3 of 8 + 24 channels, 40 outputs, doubled", 1, 6, 9, 8, 24, 40)
        .with([](Case &all) {
            all.times = 2;
        }),
    Case::image("3x3 of 24 channels, 40 outputs, doubled and cropped", 2, 6, 7, 24, 0, 40)
        .with([](Case &all) {
            all.times = 2;
            all.crop = 1;
        }),
    Case::time("frames of 40 channels, 40 outputs", 5, 6, 7, 40, 40),
    Case::time("frames of 24 channels, 160 outputs, between others", 5, 5, 7, 24, 160)
        .with([](Case &all) {
            all.before = all.after = all.add = true;
            all.scale = 0.3;
        }),
    Case::time("one frame of 8 channels, 40 outputs, before another", 1, 10, 15, 8, 40)
        .with([](Case &all) {
            all.after = true;
            all.bias = 0;
        }),
    Case::linear("rows of 8 channels, 40 outputs, no bias", 257, 8, 0, 40)
        .with([](Case &all) {
            all.bias = 0;
        }),
    Case::linear("rows of 320 + 40 channels, 320 outputs, added", 150, 320, 40, 320)
        .with([](Case &all) {
            all.add = true;
        }),
};

int main() {
    for (const Case &of : ANY_CHANNELS) {
        compare(Kernels<f16>::NARROW, of);
        compare(Kernels<bf16>::NARROW, of);
        compare(WIDE, of);
    }
    for (const Case &of : ANY_OUTPUTS) {
        compare(Kernels<f16>::FEW, of);
        compare(Kernels<bf16>::FEW, of);
        compare(WIDE, of);
    }
    for (const Case &of : USUAL) {
        compare(Kernels<f16>::POWER, of);
        compare(Kernels<f16>::MANY, of);
        compare(WIDE, of);
    }
    for (const Case &of : {USUAL[1], USUAL[7], USUAL[10]}) {
        compare(Kernels<f16>::FEW, of);
        compare(Kernels<bf16>::POWER, of);
        compare(Kernels<bf16>::MANY, of);
    }
    compare(Kernels<f16>::MANY, Case::image("3x3 of 320 channels, 160 outputs", 1, 9, 13, 320, 0, 160));
    emulator::report("shared memory bank conflicts", emulator::conflicts, 0);
    return emulator::failed;
}
