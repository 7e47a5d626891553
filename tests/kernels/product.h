// SPDX-License-Identifier: MIT OR Apache-2.0
// Reference implementation of convolutions and linear layers, and their test cases.
#pragma once

#include "emulator.h"

#include <string>

using emulator::Buffer;
using emulator::numbers;
using emulator::ROUNDING;

/// A test case; by default a linear layer over `width` rows.
struct Case {
    const char *what;
    int outputs;
    int channels[2];
    int taps = 1, frames = 1, height = 1, width = 150;
    int stride = 1, top = 0, bottom = 0, left = 0, right = 0, times = 1, crop = 0;
    bool before = false, after = false;
    /// Rows of the bias: 0 for none, 1 for all frames, or `frames`.
    int bias = 1;
    bool add = false;
    /// Whether `add` aliases the output.
    bool in_place = false;
    float scale = 1;

    int source_height() const { return height * times - 2 * crop; }
    int source_width() const { return width * times; }
    int out_height() const { return taps == 9 ? (source_height() + top + bottom - 3) / stride + 1 : height; }
    int out_width() const { return taps == 9 ? (source_width() + left + right - 3) / stride + 1 : width; }
    size_t pixels() const { return size_t(frames) * out_height() * out_width(); }
    int total() const { return channels[0] + channels[1]; }
    /// Elements of a part.
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

template <class T> struct Operands {
    Buffer<T> parts[2], before, after, weight, bias, add;

    explicit Operands(const Case &of)
        : parts{numbers<T>(of.input(0), 1), numbers<T>(of.input(1), 2)},
          before(numbers<T>(of.input(0) / of.frames, 3)), after(numbers<T>(of.input(0) / of.frames, 4)),
          weight(numbers<T>(size_t(of.outputs) * of.taps * of.total(), 5)),
          bias(numbers<T>(size_t(of.bias) * of.outputs, 6, 5)),
          add(numbers<T>(of.pixels() * of.outputs, 7, 5)) {}
};

/// A sum, and the sum of the absolute values of its terms.
struct Sum {
    double value = 0, size = 0;

    void add(double term) {
        value += term;
        size += fabs(term);
    }
};

/// Reference computation of one output.
template <class T> struct Output {
    const Operands<T> &operands;
    const Case &of;
    int frame, y, x, output;

    /// Adds the products of a tap with pixel (y, x) of a frame of `input`, which is a part or a
    /// frame around the parts.
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

/// Compares the whole output of a kernel with the reference and reports the largest error.
template <class T> void report(const char *kernel, const Operands<T> &operands, const Case &of, const Buffer<T> &out) {
    double worst = 0;
    for (size_t n = 0; n < out.size(); n += 1) {
        const int output = n % of.outputs, row = n / of.outputs;
        const int x = row % of.out_width(), y = row / of.out_width() % of.out_height();
        const int frame = row / of.out_width() / of.out_height();
        const Sum wanted = Output<T>{operands, of, frame, y, x, output}.all();
        // Sums are rounded to f32 several times, the result once to T.
        const double rounding = ROUNDING<T> * fabs(wanted.value) + 16 * ROUNDING<float> * wanted.size;
        const double difference = fabs(widen(out[n]) - wanted.value) / (rounding + 1e-7);
        worst = max(worst, isnan(difference) ? INFINITY : difference);
    }
    const std::string what = std::string(kernel) + "_" + emulator::NAME<T> + ": " + of.what;
    emulator::report(what.c_str(), worst, 1);
}
