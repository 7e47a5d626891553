// SPDX-License-Identifier: MIT OR Apache-2.0
// Copies many runs of bytes in one launch: the pixels of frames that are in several tensors.

// Maximum of runs per launch.
constexpr int RUNS = 64;

// Mirrored in src/ops/cuda/pixels.rs with repr(C).
struct Runs {
    const unsigned char *from[RUNS];
    unsigned char *to[RUNS];
    // Bytes of each run.
    long long bytes;
};

// Copies a run with all blocks along x. A thread loads four values before it stores them, to
// overlap the loads.
template <class T> __device__ void copy(const void *source, void *target, long long bytes) {
    constexpr int TOGETHER = 4;
    const T *const from = reinterpret_cast<const T *>(source);
    T *const to = reinterpret_cast<T *>(target);
    const long long count = bytes / sizeof(T), share = TOGETHER * blockDim.x;
    for (long long first = blockIdx.x * share + threadIdx.x; first < count; first += gridDim.x * share) {
        T values[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n += 1) {
            if (first + n * blockDim.x < count) {
                values[n] = from[first + n * blockDim.x];
            }
        }
#pragma unroll
        for (int n = 0; n < TOGETHER; n += 1) {
            if (first + n * blockDim.x < count) {
                to[first + n * blockDim.x] = values[n];
            }
        }
    }
}

// Grid: (blocks per run, runs).
extern "C" __global__ void __launch_bounds__(256) copy_runs(Runs runs) {
    const unsigned char *const from = runs.from[blockIdx.y];
    unsigned char *const to = runs.to[blockIdx.y];
    // All element types have at least 2 bytes.
    using Number = unsigned short;
    if (((unsigned long long)from | (unsigned long long)to | runs.bytes) % sizeof(Vector<Number>) == 0) {
        copy<Vector<Number>>(from, to, runs.bytes);
    } else {
        copy<Number>(from, to, runs.bytes);
    }
}
