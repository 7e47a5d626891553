// SPDX-License-Identifier: MIT OR Apache-2.0
// Compares GEGLU with its formula in double precision, for widths that are and are not multiples
// of 16 bytes.
#include "emulator.h"

#include "../../src/ops/cuda/gate.cu"

template <class T>
void compare(void (*kernel)(const T *, T *, long long, int), int rows, int width, u32 blocks, u32 threads) {
    const auto x = emulator::numbers<T>(size_t(rows) * 2 * width, 15, 5);
    const emulator::Buffer<T> y(size_t(rows) * width);
    emulator::launch({blocks}, {threads}, 0, [&] { kernel(x.data(), y.data(), rows, width); });
    double worst = 0;
    for (size_t n = 0; n < y.size(); n += 1) {
        const size_t at = n / width * 2 * width + n % width;
        const double value = widen(x[at]), gate = widen(x[at + width]);
        const double wanted = value * gate * erfc(-gate * M_SQRT1_2) / 2;
        const double allowed =
            emulator::ROUNDING<T> * fabs(wanted) + 4 * emulator::ROUNDING<float> * (fabs(value * gate) + 1);
        const double difference = fabs(widen(y[n]) - wanted) / allowed;
        worst = max(worst, isnan(difference) ? INFINITY : difference);
    }
    char what[200];
    snprintf(what, sizeof(what), "geglu_%s of %d rows of %d, %u blocks of %u", emulator::NAME<T>, rows, width,
             blocks, threads);
    emulator::report(what, worst, 1);
}

template <class T> void all(void (*kernel)(const T *, T *, long long, int)) {
    compare(kernel, 31, 1280, 4, 160);
    compare(kernel, 5, 2560, 2, 256);
    compare(kernel, 50, 64, 3, 100);
    compare(kernel, 7, 37, 2, 256);
    compare(kernel, 1, 1, 1, 32);
}

int main() {
    all(geglu_f16);
    all(geglu_bf16);
    all(geglu_f32);
    return emulator::failed;
}
