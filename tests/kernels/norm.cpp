// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares norms with sums in double precision, for channels that are and are not multiples of 16
// bytes, and that exceed the number of threads or not.
#include "emulator.h"

#include "../../src/ops/cuda/norm.cu"

using emulator::Buffer;
using emulator::NAME;
using emulator::numbers;
using emulator::ROUNDING;

template <class T> struct Norm;

#define NORM(T, SUFFIX)                                                                                      \
    template <> struct Norm<T> {                                                                             \
        static constexpr auto moments = moments_##SUFFIX;                                                    \
        static constexpr auto moments_end = moments_end_##SUFFIX;                                            \
        static constexpr auto affine = affine_##SUFFIX;                                                      \
        static constexpr auto layer_norm = layer_norm_##SUFFIX;                                              \
    };

NORM(f16, f16)
NORM(bf16, bf16)
NORM(float, f32)

template <class... Values> void say(double error, double allowed, const char *format, Values... values) {
    char what[200];
    snprintf(what, sizeof(what), format, values...);
    emulator::report(what, error, allowed);
}

// The largest error relative to the tolerance.
struct Worst {
    double ratio = 0;

    void see(double is, double wanted, double allowed) {
        const double difference = fabs(is - wanted) / allowed;
        ratio = max(ratio, isnan(difference) ? INFINITY : difference);
    }
};

template <class T> void moments(int frames, int pixels, int channels, int blocks, u32 threads) {
    // Far from 0, where sums of squares that are not centred would lose the variance.
    const auto x = numbers<T>(size_t(frames) * pixels * channels, 5, 1, 50);
    const Buffer<float> partial(size_t(frames) * blocks * 2 * channels),
        moments(size_t(frames) * 2 * channels);
    const u32 numbers_at_once = channels % Vector<T>::COUNT == 0 ? Vector<T>::COUNT : 1;
    emulator::launch({u32(blocks), u32(frames)}, {threads}, threads * numbers_at_once * 8,
                     [&] { Norm<T>::moments(x.data(), partial.data(), pixels, channels, blocks); });
    emulator::launch({(channels + 63u) / 64, u32(frames)}, {64}, 0, [&] {
        Norm<T>::moments_end(x.data(), partial.data(), moments.data(), pixels, channels, blocks);
    });
    Worst worst;
    for (int frame = 0; frame < frames; frame += 1) {
        for (int channel = 0; channel < channels; channel += 1) {
            const auto at = [&](int pixel) {
                return double(widen(x[(size_t(frame) * pixels + pixel) * channels + channel]));
            };
            double mean = 0, variance = 0;
            for (int pixel = 0; pixel < pixels; pixel += 1) {
                mean += at(pixel) / pixels;
            }
            for (int pixel = 0; pixel < pixels; pixel += 1) {
                variance += (at(pixel) - mean) * (at(pixel) - mean) / pixels;
            }
            const float *is = moments.data() + frame * 2 * channels + channel;
            worst.see(is[0], mean, 50 * 2 * ROUNDING<float>);
            // Relative to sums of squares of at most 4.
            worst.see(is[channels], variance, 4 * 10 * ROUNDING<float>);
        }
    }
    say(worst.ratio, 1, "moments_%s of %d x %d pixels, %d channels, %d blocks of %u", NAME<T>, frames, pixels,
        channels, blocks, threads);
}

void group(int frames, int channels) {
    const auto moments = numbers<float>(size_t(frames) * 2 * channels, 6, 1, 1.01);
    const auto weight = numbers<float>(channels, 7), bias = numbers<float>(channels, 8);
    const Buffer<float> scale(size_t(frames) * channels), offset(size_t(frames) * channels);
    const float epsilon = 1e-5;
    emulator::launch({32, u32(frames)}, {32}, 0, [&] {
        group_affine(moments.data(), weight.data(), bias.data(), scale.data(), offset.data(), channels,
                     epsilon);
    });
    Worst worst;
    const int count = channels / 32;
    for (int frame = 0; frame < frames; frame += 1) {
        for (int channel = 0; channel < channels; channel += 1) {
            const float *means = moments.data() + frame * 2 * channels + channel / count * count;
            double mean = 0, square = 0;
            for (int n = 0; n < count; n += 1) {
                mean += double(means[n]) / count;
                // E[x²] of the group.
                square += (double(means[channels + n]) + double(means[n]) * means[n]) / count;
            }
            const double factor = weight[channel] / sqrt(square - mean * mean + epsilon);
            const size_t at = size_t(frame) * channels + channel;
            worst.see(scale[at], factor, fabs(factor) * 8 * ROUNDING<float>);
            worst.see(offset[at], bias[channel] - factor * mean,
                      (1 + fabs(factor * mean)) * 8 * ROUNDING<float>);
        }
    }
    say(worst.ratio, 1, "group_affine of %d x %d channels", frames, channels);
}

template <class T>
void affine(int frames, int pixels, int channels, int norms, bool silu, u32 blocks, u32 threads) {
    const size_t count = size_t(frames) * pixels * channels;
    const auto x = numbers<T>(count, 9, 4);
    const auto scale = numbers<float>(size_t(norms) * channels, 10, 3);
    const auto offset = numbers<float>(size_t(norms) * channels, 11);
    const Buffer<T> y(count);
    emulator::launch({blocks, u32(frames)}, {threads}, 0, [&] {
        Norm<T>::affine(x.data(), scale.data(), offset.data(), y.data(), pixels, channels, norms, silu);
    });
    Worst worst;
    for (size_t n = 0; n < count; n += 1) {
        const size_t frame = norms == 1 ? 0 : n / channels / pixels, at = frame * channels + n % channels;
        const double product = double(widen(x[n])) * scale[at], sum = product + offset[at];
        const double wanted = silu ? sum / (1 + exp(-sum)) : sum;
        const double computed = 32 * ROUNDING<float> * (fabs(product) + 1);
        worst.see(widen(y[n]), wanted, ROUNDING<T> * fabs(wanted) + computed);
    }
    say(worst.ratio, 1, "affine_%s%s of %d x %d pixels, %d channels, %u blocks of %u", NAME<T>,
        silu ? " with SiLU" : "", frames, pixels, channels, blocks, threads);
}

template <class T> void layer(int rows, int width, u32 threads) {
    const auto x = numbers<T>(size_t(rows) * width, 12, 1, 3);
    const auto weight = numbers<float>(width, 13), bias = numbers<float>(width, 14);
    const Buffer<T> y(size_t(rows) * width);
    const float epsilon = 1e-5;
    emulator::launch({(rows * 32 + threads - 1) / threads}, {threads}, 0, [&] {
        Norm<T>::layer_norm(x.data(), weight.data(), bias.data(), y.data(), rows, width, epsilon);
    });
    Worst worst;
    for (int row = 0; row < rows; row += 1) {
        const auto at = [&](int column) { return double(widen(x[size_t(row) * width + column])); };
        double mean = 0, variance = 0;
        for (int column = 0; column < width; column += 1) {
            mean += at(column) / width;
        }
        for (int column = 0; column < width; column += 1) {
            variance += (at(column) - mean) * (at(column) - mean) / width;
        }
        const double deviation = sqrt(variance + epsilon);
        for (int column = 0; column < width; column += 1) {
            const double wanted = (at(column) - mean) / deviation * weight[column] + bias[column];
            const double computed = 16 * ROUNDING<float> * (4 / deviation + 1);
            worst.see(widen(y[size_t(row) * width + column]), wanted, ROUNDING<T> * fabs(wanted) + computed);
        }
    }
    say(worst.ratio, 1, "layer_norm_%s of %d rows of %d, %u threads", NAME<T>, rows, width, threads);
}

template <class T> void all() {
    moments<T>(2, 61, 320, 3, 240);
    // Fewer pixels than blocks; excess threads; several iterations over the columns; widths that
    // are not multiples of 16 bytes.
    moments<T>(1, 3, 64, 4, 100);
    moments<T>(1, 9, 2560, 2, 96);
    moments<T>(2, 50, 37, 2, 256);
    moments<T>(1, 1, 4, 1, 32);
    affine<T>(2, 61, 320, 2, true, 3, 240);
    affine<T>(2, 9, 640, 1, false, 2, 64);
    affine<T>(3, 50, 37, 3, true, 2, 100);
    affine<T>(1, 1, 4, 1, false, 1, 32);
    layer<T>(13, 320, 256);
    layer<T>(3, 1280, 64);
    layer<T>(5, 77, 32);
    layer<T>(1, 1, 32);
}

int main() {
    all<f16>();
    all<bf16>();
    all<float>();
    group(3, 320);
    group(1, 2560);
    group(2, 32);
    return emulator::failed;
}
