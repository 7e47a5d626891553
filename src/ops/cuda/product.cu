// SPDX-License-Identifier: MIT OR Apache-2.0
// Matrix products for 3×3 convolutions, convolutions along the frames and linear layers of
// channels-last tensors. Input rows are gathered during the multiplication (implicit GEMM); no
// im2col buffer is written.
//
// out[m, o] = scale · (sum of in(m, tap)[c] · weight[o, tap, c] over taps and channels) + bias[o] + add[m, o]
//
// for each pixel m of each frame. A block computes a range of outputs of 128 pixels, in steps over
// the channels.

// Mirrored in src/ops/cuda/product.rs with repr(C).
template <class T> struct Product {
    // The input in one or two parts, [frames, height, width, channels[i]]. Without a second part,
    // channels[1] is 0.
    const T *parts[2];
    // The frames before and after the input, [height, width, channels[0]], or null for zeros.
    const T *before, *after;
    // [outputs, taps, channels[0] + channels[1]].
    const T *weight;
    // [bias_frames, outputs], or null. With one row, the bias applies to all frames.
    const T *bias;
    // Shaped like `out`, or null. It may alias `out`: each thread reads an element before it
    // writes the same one.
    const T *add;
    // [frames, out_height, out_width, outputs].
    T *out;
    int channels[2];
    int frames, height, width;
    int out_height, out_width, outputs;
    // 9: a 3×3 kernel; 3: the frame before, the frame itself and the frame after; 1: the pixel
    // itself.
    int taps;
    // stride is 1 or 2; top and left are rows and columns of zero padding. Without a 3×3 kernel:
    // 1, 0, 0.
    int stride, top, left;
    // times is the upsampling factor, 1 or 2; crop is the number of rows cropped at the top after
    // upsampling.
    int times, crop;
    // Size of the input of a 3×3 kernel after upsampling and cropping, without padding.
    int source_height, source_width;
    int bias_frames;
    // Not 0.
    float scale;
};

// Pixels per thread block.
constexpr int ROWS = 128;

// Coordinates of an output pixel. The frame is -1 beyond the last pixel.
struct Place {
    int frame, y, x;
};

// For convolutions along the frames, the frames of a pixel are consecutive rows, because they
// share inputs.
template <class T> __device__ Place place_of(const Product<T> &p, int row) {
    const int pixels = p.out_height * p.out_width;
    if (row >= p.frames * pixels) {
        return {-1, 0, 0};
    }
    const int frame = p.taps == 3 ? row % p.frames : row / pixels;
    const int pixel = p.taps == 3 ? row / p.frames : row % pixels;
    return {frame, pixel / p.out_width, pixel % p.out_width};
}

// Address of the channels of a part that a tap reads for a pixel, or null for zeros.
template <class T> __device__ const T *locate(const Product<T> &p, const Place &place, int tap, int part) {
    const T *from = part == 0 ? p.parts[0] : p.parts[1];
    int frame = place.frame, y = place.y * p.stride - p.top, x = place.x * p.stride - p.left;
    if (frame < 0) {
        return nullptr;
    }
    if (p.taps == 9) {
        y += tap / 3;
        x += tap % 3;
        if (y < 0 || y >= p.source_height || x < 0 || x >= p.source_width) {
            return nullptr;
        }
    }
    if (p.taps == 3) {
        frame += tap - 1;
        if (frame < 0 || frame >= p.frames) {
            from = frame < 0 ? p.before : p.after;
            frame = 0;
        }
        if (from == nullptr) {
            return nullptr;
        }
    }
    // Division by `times` as a shift.
    const int halve = p.times - 1;
    const long long pixel = (frame * p.height + ((y + p.crop) >> halve)) * p.width + (x >> halve);
    return from + pixel * (part == 0 ? p.channels[0] : p.channels[1]);
}

// Iterates over taps, parts and channels in the order of the weights, STEP channels at a time.
template <int STEP> struct Walk {
    int tap = 0, part = 0, channel = 0;
    // Offset in a row of weights of the channels of this tap and part.
    int first = 0;

    template <class T> __device__ static int steps(const Product<T> &p) {
        return p.taps * ((p.channels[0] + STEP - 1) / STEP + (p.channels[1] + STEP - 1) / STEP);
    }

    template <class T> __device__ int channels(const Product<T> &p) const {
        return part == 0 ? p.channels[0] : p.channels[1];
    }

    // Advances. Returns true if another tap or part begins.
    template <class T> __device__ bool next(const Product<T> &p) {
        channel += STEP;
        if (channel < channels(p)) {
            return false;
        }
        first += channels(p);
        channel = 0;
        part = part == 0 && p.channels[1] > 0;
        tap += part == 0;
        return true;
    }
};

// The weights of an output.
template <class T> __device__ const T *weights_of(const Product<T> &p, int output) {
    return p.weight + static_cast<long long>(output) * p.taps * (p.channels[0] + p.channels[1]);
}

// First row and output of a block. Blocks with the same pixels have consecutive indices, so that
// they share the L2 cache.
struct Corner {
    int row, output;
};

template <class T> __device__ Corner corner(const Product<T> &p, int outputs) {
    const int blocks = (p.outputs + outputs - 1) / outputs;
    return {static_cast<int>(blockIdx.x) / blocks * ROWS, static_cast<int>(blockIdx.x) % blocks * outputs};
}

// Offset in `out` and `add` of a pixel's row; that of the first row beyond the last pixel.
template <class T> __device__ long long row_of(const Product<T> &p, const Place &place) {
    const int row = (place.frame * p.out_height + place.y) * p.out_width + place.x;
    return static_cast<long long>(max(row, 0)) * p.outputs;
}

// Adds four outputs of a row. Without a branch, so that loads can overlap: beyond the last output
// it loads another output's value, which is not used.
template <bool FOURS, class T>
__device__ void add_four(const T *row, int output, int outputs, float (&four)[4]) {
    if constexpr (FOURS) {
        const auto values = *reinterpret_cast<const Vector<T, 4> *>(row + (output < outputs ? output : 0));
        for (int n = 0; n < 4; n += 1) {
            four[n] += widen(values.values[n]);
        }
    } else {
        for (int n = 0; n < 4; n += 1) {
            four[n] += widen(row[min(output + n, outputs - 1)]);
        }
    }
}

// Initialises the accumulators with (add + bias) / scale. At the start rather than at the end,
// because the loads overlap with the first copies and the registers are still free.
template <class T, class Sums>
__device__ void start(const Product<T> &p, const Place *places, int first_output, Sums &sums) {
    sums.each(places, first_output, [](const Place &, int, float(&four)[4]) {
        for (int n = 0; n < 4; n += 1) {
            four[n] = 0;
        }
    });
    if (p.add != nullptr) {
        sums.each(places, first_output, [&](const Place &place, int output, float(&four)[4]) {
            add_four<Sums::FOURS>(p.add + row_of(p, place), output, p.outputs, four);
        });
    }
    if (p.bias != nullptr) {
        sums.each(places, first_output, [&](const Place &place, int output, float(&four)[4]) {
            const int row = p.bias_frames > 1 ? max(place.frame, 0) : 0;
            add_four<Sums::FOURS>(p.bias + row * p.outputs, output, p.outputs, four);
        });
    }
    const float inverse = 1 / p.scale;
    sums.each(places, first_output, [&](const Place &, int, float(&four)[4]) {
        for (int n = 0; n < 4; n += 1) {
            four[n] *= inverse;
        }
    });
}

// Writes the accumulators times scale.
template <class T, class Sums>
__device__ void finish(const Product<T> &p, const Place *places, int first_output, Sums &sums) {
    sums.each(places, first_output, [&](const Place &place, int output, float(&four)[4]) {
        if (place.frame < 0 || output >= p.outputs) {
            return;
        }
        for (int n = 0; n < 4; n += 1) {
            four[n] *= p.scale;
        }
        T *out = p.out + row_of(p, place) + output;
        if constexpr (Sums::FOURS) {
            write_narrow(out, four);
        } else {
            for (int n = 0; n < 4 && output + n < p.outputs; n += 1) {
                out[n] = narrow<T>(four[n]);
            }
        }
    });
}

// 16-bit types: 4 warps, as 2×2, multiply 128 pixels and OUTPUTS outputs in steps of 32 channels.
// A stage of shared memory holds the pixels' channels, then the outputs' weights, in rows of 64
// bytes.
constexpr int STEP = 32, ROW_BYTES = STEP * 2;

// Kernels with FEW outputs per block support any number of outputs; the others need multiples of
// 4.
constexpr int FEW = 32;

// Stages in shared memory: one is multiplied while the others are copied.
constexpr int STAGES = 4;

template <int OUTPUTS> constexpr int STAGE_BYTES = (ROWS + OUTPUTS) * ROW_BYTES;

// Row in a tile of 16 of row n of an 8×8 matrix for ldmatrix: alternating pairs of rows, so that
// two matrices give a lane four consecutive outputs.
__device__ inline int pairs_apart(int n) { return n / 2 * 4 + n % 2; }

// Offset of 8 channels of a row. The XOR swizzle avoids bank conflicts between the 8 rows that
// ldmatrix reads together.
__device__ inline int slot(int row, int eighth) { return row * ROW_BYTES + (eighth ^ row / 4 % 4) * 16; }

// The accumulators of a warp: 64 pixels and half of the block's outputs.
template <class T, int OUTPUTS> struct Sums {
    // Whether outputs are accessed in vectors of four.
    static constexpr bool FOURS = OUTPUTS > FEW;
    static constexpr int PAIRS = OUTPUTS / 32;
    // First row and output of the warp in its block.
    int row, output;
    // Accumulators in the layout of `mma`, [16 pixels, 8 outputs] each.
    float tiles[4][2 * PAIRS][4];

    __device__ Sums() {
        const int warp = threadIdx.x / 32;
        row = warp % 2 * 64;
        output = warp / 2 * (OUTPUTS / 2);
    }

    // Calls `f` with each pixel, its first output, and four accumulators, which `f` may change.
    template <class F> __device__ void each(const Place *places, int first_output, F f) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < 8; n += 1) {
            const int tile = n / 2, half = n % 2;
            const Place place = places[row + tile * 16 + pairs_apart(lane / 4) + half * 2];
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair += 1) {
                float(&low)[4] = tiles[tile][2 * pair], (&high)[4] = tiles[tile][2 * pair + 1];
                float four[4] = {low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]};
                f(place, first_output + output + pair * 16 + lane % 4 * 4, four);
                low[2 * half] = four[0];
                low[2 * half + 1] = four[1];
                high[2 * half] = four[2];
                high[2 * half + 1] = four[3];
            }
        }
    }

    // Adds the products of a stage.
    __device__ void multiply(const unsigned char *stage) {
        const int lane = threadIdx.x % 32;
        // `mma` expects the halves of the rows before those of the channels in a, and the reverse
        // in b.
        const int rows = pairs_apart(lane % 8), second = lane / 8 % 2, third = lane / 16;
        const int own_a = row * ROW_BYTES + slot(rows + second * 2, third);
        const int own_b = (ROWS + output) * ROW_BYTES + slot(rows + third * 2, second);
#pragma unroll
        for (int half = 0; half < 2; half += 1) {
            // Offset between the two halves of 16 channels.
            const int other = half * 32;
            u32 a[4][4];
#pragma unroll
            for (int tile = 0; tile < 4; tile += 1) {
                ldmatrix(a[tile], stage + (own_a ^ other) + tile * 16 * ROW_BYTES);
            }
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair += 1) {
                u32 b[4];
                ldmatrix(b, stage + (own_b ^ other) + pair * 16 * ROW_BYTES);
#pragma unroll
                for (int tile = 0; tile < 4; tile += 1) {
                    mma<T>(tiles[tile][2 * pair], a[tile], b[0], b[1]);
                    mma<T>(tiles[tile][2 * pair + 1], a[tile], b[2], b[3]);
                }
            }
        }
    }
};

// Copies stages to shared memory; channels must be multiples of 8. A thread copies the same 8 of
// the 32 channels of every 32nd row.
template <class T, int OUTPUTS> struct Gather {
    const Product<T> &p;
    const Place *places;
    Walk<STEP> walk;
    const T *rows[ROWS / 32];
    const T *weights;
    int output;

    __device__ Gather(const Product<T> &p, const Place *places, int first_output) : p(p), places(places) {
        output = first_output + threadIdx.x / 4;
        weights = weights_of(p, output);
        seek();
    }

    __device__ void seek() {
#pragma unroll
        for (int n = 0; n < ROWS / 32; n += 1) {
            rows[n] = locate(p, places[threadIdx.x / 4 + n * 32], walk.tap, walk.part);
        }
    }

    __device__ void copy(unsigned char *stage) {
        const int channel = walk.channel + threadIdx.x % 4 * 8;
        const bool within = channel < walk.channels(p);
        unsigned char *to = stage + slot(threadIdx.x / 4, threadIdx.x % 4);
#pragma unroll
        for (int n = 0; n < ROWS / 32; n += 1) {
            copy_async(to + n * 32 * ROW_BYTES, rows[n] + channel, within && rows[n] != nullptr);
        }
        const T *from = weights + walk.first + channel;
        to += ROWS * ROW_BYTES;
#pragma unroll
        for (int n = 0; n < OUTPUTS / 32; n += 1) {
            copy_async(to + n * 32 * ROW_BYTES, from, within && output + n * 32 < p.outputs);
            from += 32 * p.taps * (p.channels[0] + p.channels[1]);
        }
        if (walk.next(p)) {
            seek();
        }
    }
};

template <class T, int OUTPUTS> __device__ void product(const Product<T> &p) {
    DYNAMIC_SHARED(shared);
    constexpr int STAGE = STAGE_BYTES<OUTPUTS>;
    Place *places = reinterpret_cast<Place *>(shared + STAGES * STAGE);
    const Corner first = corner(p, OUTPUTS);
    places[threadIdx.x] = place_of(p, first.row + threadIdx.x);
    __syncthreads();

    Gather<T, OUTPUTS> gather(p, places, first.output);
    const int steps = Walk<STEP>::steps(p);
    for (int step = 0; step < STAGES - 1; step += 1) {
        if (step < steps) {
            gather.copy(shared + step * STAGE);
        }
        commit();
    }
    Sums<T, OUTPUTS> sums;
    start(p, places, first.output, sums);
    for (int step = 0; step < steps; step += 1) {
        wait<STAGES - 2>();
        // The stage has arrived for all threads, and all have finished the previous one, which the
        // next copy overwrites.
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < steps) {
            gather.copy(shared + ahead % STAGES * STAGE);
        }
        commit();
        sums.multiply(shared + step % STAGES * STAGE);
    }
    wait<0>();
    finish(p, places, first.output, sums);
}

// For numbers of channels that are not multiples of 8. Each thread writes the channels of a pixel
// to shared memory, and the first FEW threads those of an output, element by element, with all
// taps and parts concatenated.
template <class T> __device__ void product_narrow(const Product<T> &p) {
    DYNAMIC_SHARED(shared);
    Place *places = reinterpret_cast<Place *>(shared + STAGE_BYTES<FEW>);
    const Corner first = corner(p, FEW);
    const Place own = place_of(p, first.row + threadIdx.x);
    places[threadIdx.x] = own;
    __syncthreads();

    Sums<T, FEW> sums;
    start(p, places, first.output, sums);
    Walk<1> walk;
    const T *pixel = locate(p, own, walk.tap, walk.part);
    const int output = first.output + threadIdx.x;
    const T *weights = threadIdx.x < FEW && output < p.outputs ? weights_of(p, output) : nullptr;
    while (walk.tap < p.taps) {
#pragma unroll 1
        for (int eighth = 0; eighth < STEP / 8; eighth += 1) {
            Vector<T> a = {}, b = {};
#pragma unroll
            for (int n = 0; n < 8; n += 1) {
                if (walk.tap == p.taps) {
                    continue;
                }
                if (pixel != nullptr) {
                    a.values[n] = pixel[walk.channel];
                }
                if (weights != nullptr) {
                    b.values[n] = weights[walk.first + walk.channel];
                }
                if (walk.next(p)) {
                    pixel = locate(p, own, walk.tap, walk.part);
                }
            }
            unsigned char *to = shared + slot(threadIdx.x, eighth);
            *reinterpret_cast<Vector<T> *>(to) = a;
            if (threadIdx.x < FEW) {
                *reinterpret_cast<Vector<T> *>(to + ROWS * ROW_BYTES) = b;
            }
        }
        __syncthreads();
        sums.multiply(shared);
        __syncthreads();
    }
    finish(p, places, first.output, sums);
}

#define PRODUCTS(T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128, 2) product_32_##T(Product<T> p) { product<T, 32>(p); } \
    extern "C" __global__ void __launch_bounds__(128, 2) product_128_##T(Product<T> p) {                     \
        product<T, 128>(p);                                                                                  \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 2) product_160_##T(Product<T> p) {                     \
        product<T, 160>(p);                                                                                  \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 2) product_narrow_##T(Product<T> p) {                  \
        product_narrow(p);                                                                                   \
    }

PRODUCTS(f16)
PRODUCTS(bf16)

// f32: 256 threads multiply 128 pixels and 128 outputs in steps of 8 channels, 8×8 per thread.
// Shared memory holds two stages: [8 channels, 128 pixels], then [8 channels, 128 outputs].
constexpr int WIDE_STEP = 8;

// Padded, to avoid bank conflicts between the columns that are written together.
constexpr int WIDE_ROW = ROWS + 4, WIDE_SIDE = WIDE_STEP * WIDE_ROW, WIDE_STAGE = 2 * WIDE_SIDE;

// Loads four channels, of which the first `count` exist.
__device__ inline Vector<float> read_four(const float *from, int count, bool aligned) {
    Vector<float> four = {};
    if (from == nullptr || count <= 0) {
        return four;
    }
    if (aligned) {
        return *reinterpret_cast<const Vector<float> *>(from);
    }
    for (int n = 0; n < 4; n += 1) {
        four.values[n] = n < count ? from[n] : 0;
    }
    return four;
}

// A thread's accumulators are rows 0 to 3 and 16 to 19, columns 0 to 3 and 32 to 35, relative to
// its origin in its warp's [32, 64]. A warp thus reads consecutive values, which are in different
// banks.
struct WideSums {
    static constexpr bool FOURS = false;
    int row, output;
    float sums[8][8];

    __device__ WideSums() {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        row = warp % 4 * 32 + lane / 8 * 4;
        output = warp / 4 * 64 + lane % 8 * 4;
    }

    // As in `Sums`.
    template <class F> __device__ void each(const Place *places, int first_output, F f) {
#pragma unroll
        for (int n = 0; n < 8; n += 1) {
            const Place place = places[row + n / 4 * 16 + n % 4];
#pragma unroll
            for (int half = 0; half < 2; half += 1) {
                float four[4];
                for (int k = 0; k < 4; k += 1) {
                    four[k] = sums[n][half * 4 + k];
                }
                f(place, first_output + output + half * 32, four);
                for (int k = 0; k < 4; k += 1) {
                    sums[n][half * 4 + k] = four[k];
                }
            }
        }
    }

    __device__ void multiply(const float *stage) {
#pragma unroll
        for (int channel = 0; channel < WIDE_STEP; channel += 1) {
            const float *pixels = stage + channel * WIDE_ROW + row;
            const float *weights = stage + WIDE_SIDE + channel * WIDE_ROW + output;
            Vector<float> a[2], b[2];
            for (int half = 0; half < 2; half += 1) {
                a[half] = *reinterpret_cast<const Vector<float> *>(pixels + half * 16);
                b[half] = *reinterpret_cast<const Vector<float> *>(weights + half * 32);
            }
            for (int n = 0; n < 8; n += 1) {
                for (int k = 0; k < 8; k += 1) {
                    sums[n][k] += a[n / 4].values[n % 4] * b[k / 4].values[k % 4];
                }
            }
        }
    }
};

__device__ inline void product_wide(const Product<float> &p) {
    DYNAMIC_SHARED(shared);
    float *stages = reinterpret_cast<float *>(shared);
    Place *places = reinterpret_cast<Place *>(stages + 2 * WIDE_STAGE);
    const Corner first = corner(p, ROWS);
    // In each step, a thread loads four channels of a pixel and of an output. Two threads share a
    // pixel and an output.
    const int line = threadIdx.x / 2, quarter = threadIdx.x % 2 * 4;
    places[line] = place_of(p, first.row + line);
    __syncthreads();

    const bool aligned = p.channels[0] % 4 == 0 && p.channels[1] % 4 == 0;
    const float *weights = first.output + line < p.outputs ? weights_of(p, first.output + line) : nullptr;
    Walk<WIDE_STEP> walk;
    const float *pixel = locate(p, places[line], walk.tap, walk.part);
    Vector<float> a, b;
    const auto read = [&] {
        const int channel = walk.channel + quarter, left = walk.channels(p) - channel;
        a = read_four(pixel == nullptr ? nullptr : pixel + channel, left, aligned);
        b = read_four(weights == nullptr ? nullptr : weights + walk.first + channel, left, aligned);
        if (walk.next(p)) {
            pixel = locate(p, places[line], walk.tap, walk.part);
        }
    };
    const auto write = [&](float *stage) {
        for (int n = 0; n < 4; n += 1) {
            stage[(quarter + n) * WIDE_ROW + line] = a.values[n];
            stage[WIDE_SIDE + (quarter + n) * WIDE_ROW + line] = b.values[n];
        }
    };

    const int steps = Walk<WIDE_STEP>::steps(p);
    WideSums sums;
    start(p, places, first.output, sums);
    read();
    write(stages);
    __syncthreads();
    for (int step = 0; step < steps; step += 1) {
        const bool more = step + 1 < steps;
        if (more) {
            read();
        }
        sums.multiply(stages + step % 2 * WIDE_STAGE);
        if (more) {
            write(stages + (step + 1) % 2 * WIDE_STAGE);
        }
        __syncthreads();
    }
    finish(p, places, first.output, sums);
}

extern "C" __global__ void __launch_bounds__(256, 2) product_f32(Product<float> p) { product_wide(p); }
