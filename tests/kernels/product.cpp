// SPDX-License-Identifier: MIT OR Apache-2.0
// Gathered products against convolutions and linear layers written out, for sizes that do and do not fill a
// kernel's blocks.
#include "emulator.h"

#include "../../src/ops/cuda/product.cu"

#include <string>

using emulator::Buffer;
using emulator::numbers;
using emulator::ROUNDING;

/// What is computed: a linear layer of `width` rows as it stands.
struct Case {
    const char *what;
    int outputs;
    int channels[2];
    int taps = 1, frames = 1, height = 1, width = 150;
    int stride = 1, top = 0, bottom = 0, left = 0, right = 0, times = 1, crop = 0;
    bool before = false, after = false;
    /// 0 for none, 1 for one of all frames, `frames` for one of each.
    int bias = 1;
    bool add = false;
    /// `add` is where the output goes.
    bool in_place = false;
    float scale = 1;

    int source_height() const { return height * times - 2 * crop; }
    int source_width() const { return width * times; }
    int out_height() const { return taps == 9 ? (source_height() + top + bottom - 3) / stride + 1 : height; }
    int out_width() const { return taps == 9 ? (source_width() + left + right - 3) / stride + 1 : width; }
    size_t pixels() const { return size_t(frames) * out_height() * out_width(); }
    int total() const { return channels[0] + channels[1]; }
    /// Numbers of a part.
    size_t input(int part) const { return size_t(frames) * height * width * channels[part]; }

    static Case linear(const char *what, int rows, int c0, int c1, int outputs) {
        Case all = {what, outputs, {c0, c1}};
        all.width = rows;
        return all;
    }

    static Case image(const char *what, int frames, int height, int width, int c0, int c1, int outputs) {
        Case all = {what, outputs, {c0, c1}, 9, frames, height, width};
        all.top = all.bottom = all.left = all.right = 1;
        return all;
    }

    static Case time(const char *what, int frames, int height, int width, int channels, int outputs) {
        return {what, outputs, {channels, 0}, 3, frames, height, width};
    }

    template <class Change> Case with(Change change) const {
        Case all = *this;
        change(all);
        return all;
    }
};

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

template <class T> struct Operands {
    Buffer<T> parts[2], before, after, weight, bias, add;

    explicit Operands(const Case &of)
        : parts{numbers<T>(of.input(0), 1), numbers<T>(of.input(1), 2)},
          before(numbers<T>(of.input(0) / of.frames, 3)), after(numbers<T>(of.input(0) / of.frames, 4)),
          weight(numbers<T>(size_t(of.outputs) * of.taps * of.total(), 5)),
          bias(numbers<T>(size_t(of.bias) * of.outputs, 6, 5)),
          add(numbers<T>(of.pixels() * of.outputs, 7, 5)) {}

    /// As a kernel takes them, to write `out`, or to add to it what is there.
    Product<T> arguments(const Case &of, const Buffer<T> &out) const {
        const Buffer<T> &added = of.in_place ? out : add;
        Product<T> all = {};
        all.parts[0] = parts[0].data();
        all.parts[1] = of.channels[1] > 0 ? parts[1].data() : nullptr;
        all.before = of.before ? before.data() : nullptr;
        all.after = of.after ? after.data() : nullptr;
        all.weight = weight.data();
        all.bias = of.bias > 0 ? bias.data() : nullptr;
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
};

/// A sum, and the sum of its terms' sizes.
struct Sum {
    double value = 0, size = 0;

    void add(double term) {
        value += term;
        size += fabs(term);
    }
};

/// One output, written out.
template <class T> struct Output {
    const Operands<T> &operands;
    const Case &of;
    int frame, y, x, output;

    /// Adds what a tap reads at pixel (y, x) of a frame of `input`, a part or what is before or after it.
    void products(Sum &sum, int tap, const Buffer<T> &input, int part, int frame, int y, int x) const {
        const T *pixel = input.data() + ((size_t(frame) * of.height + y) * of.width + x) * of.channels[part];
        const T *weight = operands.weight.data() + (size_t(output) * of.taps + tap) * of.total();
        for (int channel = 0; channel < of.channels[part]; channel += 1) {
            const int of_both = part == 0 ? channel : of.channels[0] + channel;
            sum.add(double(widen(pixel[channel])) * widen(weight[of_both]));
        }
    }

    void pixel(Sum &sum, int tap, int y, int x) const {
        products(sum, tap, operands.parts[0], 0, frame, y, x);
        products(sum, tap, operands.parts[1], 1, frame, y, x);
    }

    void image(Sum &sum) const {
        for (int tap = 0; tap < 9; tap += 1) {
            const int row = y * of.stride + tap / 3 - of.top, column = x * of.stride + tap % 3 - of.left;
            if (row >= 0 && row < of.source_height() && column >= 0 && column < of.source_width()) {
                pixel(sum, tap, (row + of.crop) / of.times, column / of.times);
            }
        }
    }

    void time(Sum &sum) const {
        for (int tap = 0; tap < 3; tap += 1) {
            const int from = frame + tap - 1;
            if (from >= 0 && from < of.frames) {
                products(sum, tap, operands.parts[0], 0, from, y, x);
            } else if (from < 0 ? of.before : of.after) {
                products(sum, tap, from < 0 ? operands.before : operands.after, 0, 0, y, x);
            }
        }
    }

    Sum all() const {
        Sum sum;
        if (of.taps == 9) {
            image(sum);
        } else if (of.taps == 3) {
            time(sum);
        } else {
            pixel(sum, 0, y, x);
        }
        sum.value *= of.scale;
        sum.size *= of.scale;
        if (of.bias > 0) {
            sum.add(widen(operands.bias[(of.bias > 1 ? frame : 0) * of.outputs + output]));
        }
        if (of.add) {
            const size_t row = (size_t(frame) * of.out_height() + y) * of.out_width() + x;
            sum.add(widen(operands.add[row * of.outputs + output]));
        }
        return sum;
    }
};

template <class T> void compare(const Kernel<T> &kernel, const Case &of) {
    const Operands<T> operands(of);
    const Buffer<T> out(of.pixels() * of.outputs);
    if (of.in_place) {
        std::copy(operands.add.data(), operands.add.data() + out.size(), out.data());
    }
    const Product<T> arguments = operands.arguments(of, out);
    const u32 blocks = (of.pixels() + 127) / 128 * ((of.outputs + kernel.outputs - 1) / kernel.outputs);
    emulator::launch({blocks}, {kernel.threads}, kernel.shared, [&] { kernel.kernel(arguments); });

    double worst = 0;
    for (size_t n = 0; n < out.size(); n += 1) {
        const int output = n % of.outputs, row = n / of.outputs;
        const int x = row % of.out_width(), y = row / of.out_width() % of.out_height();
        const int frame = row / of.out_width() / of.out_height();
        const Sum wanted = Output<T>{operands, of, frame, y, x, output}.all();
        // Sums are rounded to f32 some times, the result once.
        const double rounding = ROUNDING<T> * fabs(wanted.value) + 16 * ROUNDING<float> * wanted.size;
        const double difference = fabs(widen(out[n]) - wanted.value) / (rounding + 1e-7);
        worst = max(worst, isnan(difference) ? INFINITY : difference);
    }
    const std::string what = std::string(kernel.name) + "_" + emulator::NAME<T> + ": " + of.what;
    emulator::report(what.c_str(), worst, 1);
}

/// Channels that are no multiples of 8.
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

/// Multiples of 4 outputs, and of 8 channels.
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
    emulator::report("reads of shared memory that wait for a bank", emulator::conflicts, 0);
    return emulator::failed;
}
