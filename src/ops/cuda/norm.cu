// SPDX-License-Identifier: MIT OR Apache-2.0
// Norms of channels-last tensors, bound by memory bandwidth: moments of the channels of frames,
// the affine transform of a group norm and its application, and layer norm.

// Sums of x and x² over a block's share of a frame's pixels, relative to the frame's first pixel
// to avoid cancellation. Shared memory: float [2·N, threads].
template <class T, int N>
__device__ void moments(const T *x, float *partial, int pixels, int channels, int blocks) {
    DYNAMIC_SHARED(shared);
    float *const all = reinterpret_cast<float *>(shared);
    const int threads = blockDim.x, width = channels / N;
    const Spread at(width);
    const T *const frame = x + (long long)blockIdx.y * pixels * channels;
    float *const out = partial + ((long long)blockIdx.y * blocks + blockIdx.x) * 2 * channels;
    const int share = (pixels + blocks - 1) / blocks;
    const int first = blockIdx.x * share, end = min(first + share, pixels);
    for (int begin = 0; begin < width; begin += at.columns) {
        const int channel = (begin + at.column) * N;
        float sums[N] = {}, squares[N] = {};
        if (channel < channels && at.row < at.rows) {
            float centre[N];
            read_wide(centre, frame + channel);
#pragma unroll 2
            for (int pixel = first + at.row; pixel < end; pixel += at.rows) {
                float values[N];
                read_wide(values, frame + (long long)pixel * channels + channel);
#pragma unroll
                for (int n = 0; n < N; n += 1) {
                    const float difference = values[n] - centre[n];
                    sums[n] += difference;
                    squares[n] = fmaf(difference, difference, squares[n]);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < N; n += 1) {
            all[n * threads + threadIdx.x] = sums[n];
            all[(N + n) * threads + threadIdx.x] = squares[n];
        }
        __syncthreads();
        if (channel < channels && at.row == 0) {
#pragma unroll
            for (int n = 0; n < 2 * N; n += 1) {
                float sum = 0;
                for (int row = 0; row < at.rows; row += 1) {
                    sum += all[n * threads + row * at.columns + at.column];
                }
                out[n / N * channels + channel + n % N] = sum;
            }
        }
        // Only rows longer than a block need another iteration. Each thread then overwrites only
        // values that it has read itself.
    }
}

// Mean and biased variance of one channel of a frame per thread.
template <class T>
__device__ void moments_end(const T *x, const float *partial, float *moments, int pixels, int channels,
                            int blocks) {
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) {
        return;
    }
    const long long frame = blockIdx.y;
    double sum = 0, squares = 0;
    for (int block = 0; block < blocks; block += 1) {
        const float *const sums = partial + (frame * blocks + block) * 2 * channels + channel;
        sum += sums[0];
        squares += sums[channels];
    }
    const double mean = sum / pixels;
    float *const out = moments + frame * 2 * channels + channel;
    out[0] = widen(x[frame * pixels * channels + channel]) + mean;
    out[channels] = fmaxf(squares / pixels - mean * mean, 0);
}

// Scale and offset of a group norm. Grid: (32 groups, frames), one warp each.
extern "C" __global__ void __launch_bounds__(32)
    group_affine(const float *moments, const float *weight, const float *bias, float *scale, float *offset,
                 int channels, float epsilon) {
    const int count = channels / 32, first = blockIdx.x * count;
    const float *const means = moments + (long long)blockIdx.y * 2 * channels + first;
    const float *const variances = means + channels;
    float sum = 0;
    for (int n = threadIdx.x; n < count; n += 32) {
        sum += means[n];
    }
    const float mean = warp_sum(sum) / count;
    // Variance within the channels plus variance between them.
    float spread = 0;
    for (int n = threadIdx.x; n < count; n += 32) {
        spread += variances[n] + (means[n] - mean) * (means[n] - mean);
    }
    const float deviation = sqrtf(warp_sum(spread) / count + epsilon);
    const long long out = (long long)blockIdx.y * channels;
    for (int channel = first + threadIdx.x; channel < first + count; channel += 32) {
        const float factor = weight[channel] / deviation;
        scale[out + channel] = factor;
        offset[out + channel] = bias[channel] - factor * mean;
    }
}

__device__ inline float silu_of(float x) {
    constexpr float LOG2_E = 1.44269504f;
    return x * reciprocal_approx(1 + exp2_approx(-LOG2_E * x));
}

// Grid: (blocks that share a frame's pixels, frames of x).
template <class T, int N>
__device__ void affine(const T *__restrict__ x, const float *__restrict__ scale,
                       const float *__restrict__ offset, T *__restrict__ y, int pixels, int channels,
                       int frames, int silu) {
    const Spread at(channels / N);
    const long long first = (long long)blockIdx.y * pixels * channels;
    const long long norm = frames == 1 ? 0 : (long long)blockIdx.y * channels;
    if (at.row >= at.rows) {
        return;
    }
    for (int channel = at.column * N; channel < channels; channel += at.columns * N) {
        float a[N], b[N];
        read_wide(a, scale + norm + channel);
        read_wide(b, offset + norm + channel);
#pragma unroll 2
        for (int pixel = blockIdx.x * at.rows + at.row; pixel < pixels; pixel += gridDim.x * at.rows) {
            const long long place = first + (long long)pixel * channels + channel;
            float values[N];
            read_wide(values, x + place);
#pragma unroll
            for (int n = 0; n < N; n += 1) {
                const float value = fmaf(values[n], a[n], b[n]);
                values[n] = silu ? silu_of(value) : value;
            }
            write_narrow(y + place, values);
        }
    }
}

// One warp per row of x. The row is read from memory once, and from the cache twice.
template <class T, int N>
__device__ void layer_norm(const T *__restrict__ x, const float *__restrict__ weight,
                           const float *__restrict__ bias, T *__restrict__ y, int rows, int width,
                           float epsilon) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int first = threadIdx.x % 32 * N;
    if (row >= rows) {
        return;
    }
    const long long begin = (long long)row * width;
    float values[N], sum = 0;
    for (int column = first; column < width; column += 32 * N) {
        read_wide(values, x + begin + column);
#pragma unroll
        for (int n = 0; n < N; n += 1) {
            sum += values[n];
        }
    }
    const float mean = warp_sum(sum) / width;
    float squares = 0;
    for (int column = first; column < width; column += 32 * N) {
        read_wide(values, x + begin + column);
#pragma unroll
        for (int n = 0; n < N; n += 1) {
            squares = fmaf(values[n] - mean, values[n] - mean, squares);
        }
    }
    const float factor = 1 / sqrtf(warp_sum(squares) / width + epsilon);
    for (int column = first; column < width; column += 32 * N) {
        float a[N], b[N];
        read_wide(values, x + begin + column);
        read_wide(a, weight + column);
        read_wide(b, bias + column);
#pragma unroll
        for (int n = 0; n < N; n += 1) {
            values[n] = fmaf((values[n] - mean) * factor, a[n], b[n]);
        }
        write_narrow(y + begin + column, values);
    }
}

// Uses 16-byte accesses if they divide the number of channels.
#define WIDEST(T, count, function, ...)                                                                      \
    if (count % Vector<T>::COUNT == 0) {                                                                     \
        function<T, Vector<T>::COUNT>(__VA_ARGS__);                                                          \
    } else {                                                                                                 \
        function<T, 1>(__VA_ARGS__);                                                                         \
    }

#define KERNELS(T, NAME)                                                                                     \
    extern "C" __global__ void __launch_bounds__(1024)                                                       \
        moments_##NAME(const T *x, float *partial, int pixels, int channels, int blocks) {                   \
        WIDEST(T, channels, moments, x, partial, pixels, channels, blocks)                                   \
    }                                                                                                        \
    extern "C" __global__ void moments_end_##NAME(const T *x, const float *partial, float *moments,          \
                                                  int pixels, int channels, int blocks) {                    \
        moments_end(x, partial, moments, pixels, channels, blocks);                                          \
    }                                                                                                        \
    extern "C" __global__ void affine_##NAME(const T *x, const float *scale, const float *offset, T *y,      \
                                             int pixels, int channels, int frames, int silu) {               \
        WIDEST(T, channels, affine, x, scale, offset, y, pixels, channels, frames, silu)                     \
    }                                                                                                        \
    extern "C" __global__ void layer_norm_##NAME(const T *x, const float *weight, const float *bias, T *y,   \
                                                 int rows, int width, float epsilon) {                       \
        WIDEST(T, width, layer_norm, x, weight, bias, y, rows, width, epsilon)                               \
    }

KERNELS(f16, f16)
KERNELS(bf16, bf16)
KERNELS(float, f32)
