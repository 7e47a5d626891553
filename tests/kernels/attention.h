// SPDX-License-Identifier: MIT OR Apache-2.0
// Reference implementation of attention, and the inputs of its tests.
#pragma once

#include "emulator.h"

struct Shape {
    int batch, tokens, keys, heads;
    // Whether all batches share the keys.
    bool shared;
    // Maximum absolute value of q and k.
    float size;
    // Whether the layout is [tokens, batch, width]; keys are not shared then.
    bool interleaved = false;
};

/// Queries, keys and values with 64 channels per head, and the output.
template <class T> struct Inputs {
    const Shape shape;
    const int width, key_batches;
    const emulator::Buffer<T> q, k, v, out;

    explicit Inputs(const Shape &shape)
        : shape(shape), width(shape.heads * 64), key_batches(shape.shared ? 1 : shape.batch),
          q(emulator::numbers<T>(queries(), 1, shape.size)), k(emulator::numbers<T>(keys(), 2, shape.size)),
          v(emulator::numbers<T>(keys(), 3, 1, 0.25)), out(queries()) {}

    size_t queries() const { return size_t(shape.batch) * shape.tokens * width; }
    size_t keys() const { return size_t(key_batches) * shape.keys * width; }

    // Strides as kernel arguments.
    int row() const { return shape.interleaved ? shape.batch * width : width; }
    int batch() const { return shape.interleaved ? width : shape.tokens * width; }
    int key_batch() const { return shape.shared ? 0 : shape.interleaved ? width : shape.keys * width; }

    // The largest error of a query and head relative to the rounding error: weights and result are
    // rounded to T, scores are accumulated in f32.
    double error(int batch, int token, int head) const {
        const auto at = [&](const emulator::Buffer<T> &x, size_t row, int d) {
            return double(widen(x[row * width + head * 64 + d]));
        };
        const auto row = [&](int token, int tokens) {
            return shape.interleaved ? size_t(token) * shape.batch + batch : size_t(batch) * tokens + token;
        };
        const auto key_row = [&](int key) { return shape.shared ? key : row(key, shape.keys); };
        const size_t query = row(token, shape.tokens);
        std::vector<double> scores(shape.keys);
        double most = -1e300, size = 0, weight = 0;
        for (int key = 0; key < shape.keys; key += 1) {
            double sizes = 0;
            for (int d = 0; d < 64; d += 1) {
                const double product = at(q, query, d) * at(k, key_row(key), d) / 8;
                scores[key] += product;
                sizes += fabs(product);
            }
            most = max(most, scores[key]);
            size = max(size, sizes);
        }
        for (double &score : scores) {
            score = exp(score - most);
            weight += score;
        }
        double worst = 0;
        for (int d = 0; d < 64; d += 1) {
            double sum = 0, sizes = 0;
            for (int key = 0; key < shape.keys; key += 1) {
                const double value = scores[key] / weight * at(v, key_row(key), d);
                sum += value;
                sizes += fabs(value);
            }
            const double narrowed = emulator::ROUNDING<T> * (sizes + fabs(sum));
            const double summed = emulator::ROUNDING<float> * (16 + 8 * size) * sizes;
            // Weights below the smallest normal number of f16 have fewer digits.
            const double denormal = 1.0 / (1 << 25) * shape.keys / weight;
            const double difference = fabs(at(out, query, d) - sum);
            worst = max(worst, isnan(difference) ? INFINITY : difference / (narrowed + summed + denormal));
        }
        return worst;
    }

    double worst() const {
        double worst = 0;
        for (int batch = 0; batch < shape.batch; batch += 1) {
            for (int token = 0; token < shape.tokens; token += 1) {
                for (int head = 0; head < shape.heads; head += 1) {
                    worst = max(worst, error(batch, token, head));
                }
            }
        }
        return worst;
    }

    void report(const char *kernel) const {
        char what[200];
        snprintf(what, sizeof(what), "%s_%s of %d x %d tokens, %d keys%s%s, %d heads, |q| < %g", kernel,
                 emulator::NAME<T>, shape.batch, shape.tokens, shape.keys, shape.shared ? " for all" : "",
                 shape.interleaved ? ", interleaved" : "", shape.heads, shape.size);
        emulator::report(what, worst(), 1);
    }
};

/// log2(e) / sqrt(64).
inline const float SCALE = M_LOG2E / 8;
