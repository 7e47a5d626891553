// SPDX-License-Identifier: MIT OR Apache-2.0
// Runs the CUDA kernels of src/ops/cuda on a CPU, from the same source, so that they can be tested
// without a GPU. Replaces the part of device.cuh that EMULATED leaves out.
//
// The emulation is adversarial: a warp runs as far as possible before the others, copies complete
// as late as allowed, fresh memory is NaN, and inaccessible pages surround each array.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <random>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __launch_bounds__(...)

typedef unsigned u32;
using std::max;
using std::min;

struct dim3 {
    u32 x = 1, y = 1, z = 1;
};

struct f16 {
    unsigned short bits;
};

struct bf16 {
    unsigned short bits;
};

// Indices of the running thread.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

[[noreturn]] inline void fail(const char *what) {
    fflush(stdout);
    fprintf(stderr, "%s (block %u %u %u, thread %u %u %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z);
    abort();
}

/// An array of elements that are initially NaN, between inaccessible pages.
template <class T> class Buffer {
  public:
    explicit Buffer(size_t count, size_t alignment = 16) : count(count) {
        const size_t page = sysconf(_SC_PAGESIZE);
        const size_t used = (count * sizeof(T) + alignment - 1) / alignment * alignment;
        inner = (used + page - 1) / page * page;
        mapped = inner + 2 * page;
        base = static_cast<unsigned char *>(
            mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base == MAP_FAILED || mprotect(base + page, inner, PROT_READ | PROT_WRITE) != 0) {
            fail("no memory for a buffer");
        }
        base += page;
        memset(base, 0xff, inner);
        first = reinterpret_cast<T *>(base + inner - used);
    }

    Buffer(Buffer &&other)
        : base(other.base), inner(other.inner), mapped(other.mapped), first(other.first), count(other.count) {
        other.base = nullptr;
    }

    ~Buffer() {
        if (base != nullptr) {
            check();
            munmap(base - (mapped - inner) / 2, mapped);
        }
    }

    T *data() const { return first; }
    size_t size() const { return count; }
    T &operator[](size_t n) const {
        if (n >= count) {
            fail("a test reads beyond its buffer");
        }
        return first[n];
    }

    bool contains(const void *at, size_t bytes) const {
        const auto *begin = reinterpret_cast<const unsigned char *>(first);
        const auto *byte = static_cast<const unsigned char *>(at);
        return byte >= begin && byte + bytes <= begin + count * sizeof(T);
    }

    /// Checks that the padding of the first and the last page has not been overwritten.
    void check() const {
        const auto *begin = reinterpret_cast<const unsigned char *>(first);
        const auto untouched = [](unsigned char byte) { return byte == 0xff; };
        if (!std::all_of<const unsigned char *>(base, begin, untouched) ||
            !std::all_of<const unsigned char *>(begin + count * sizeof(T), base + inner, untouched)) {
            fail("a kernel wrote around a buffer");
        }
    }

  private:
    unsigned char *base;
    size_t inner, mapped;
    T *first;
    size_t count;
};

/// A pending copy of 16 bytes; a null source means zeros.
struct Copy {
    unsigned char *to;
    const void *from;
};

struct Thread {
    ucontext_t context;
    std::vector<unsigned char> stack = std::vector<unsigned char>(1 << 16);
    std::vector<Copy> begun;
    std::deque<std::vector<Copy>> groups;
};

/// The masks have one bit per lane.
struct Warp {
    u32 ready = 0;
    u32 at_barrier = 0;
    /// Lanes that have arrived at the collective operation `what`, and their operands.
    u32 arrived = 0;
    const char *what = nullptr;
    void *operands[32];
};

/// The running block.
struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    size_t living, current;
    ucontext_t outside;
    std::function<void()> kernel;
    const Buffer<unsigned char> *shared;
    std::minstd_rand random;
};

inline Block block;

/// Rows read by ldmatrix that conflict with another row of their matrix.
inline size_t conflicts = 0;

inline Warp &warp() { return block.warps[block.current / 32]; }
inline u32 lane() { return block.current % 32; }

/// Selects the next thread: a lane of the same warp if one can run, else a lane of a random warp.
inline size_t next() {
    size_t number = block.current / 32;
    if (block.warps[number].ready == 0) {
        const size_t count = block.warps.size();
        const size_t first = block.random() % count;
        size_t n = 0;
        while (n < count && block.warps[(first + n) % count].ready == 0) {
            n += 1;
        }
        if (n == count) {
            fail("threads wait for others that never come: at a barrier, or in an operation of the whole "
                 "warp");
        }
        number = (first + n) % count;
    }
    u32 lane = block.random() % 32;
    while (!(block.warps[number].ready >> lane & 1)) {
        lane = (lane + 1) % 32;
    }
    return number * 32 + lane;
}

inline void resume(ucontext_t &from) {
    block.current = next();
    warp().ready &= ~(1u << lane());
    const u32 n = block.current;
    threadIdx = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    swapcontext(&from, &block.threads[n].context);
}

inline void suspend() {
    // The thread's own index is on its stack.
    const size_t own = block.current;
    resume(block.threads[own].context);
}

inline void release_barrier() {
    size_t waiting = 0;
    for (const Warp &warp : block.warps) {
        waiting += __builtin_popcount(warp.at_barrier);
    }
    if (waiting == block.living) {
        for (Warp &warp : block.warps) {
            warp.ready |= warp.at_barrier;
            warp.at_barrier = 0;
        }
    }
}

/// A collective operation of a warp: the last lane to arrive calls `compute` with the operands of
/// all 32.
template <class Operands, class Compute> void together(const char *what, Operands &mine, Compute compute) {
    Warp &own = warp();
    if (own.arrived != 0 && strcmp(own.what, what) != 0) {
        fail("the lanes of a warp are at different operations");
    }
    own.what = what;
    own.operands[lane()] = &mine;
    own.arrived |= 1u << lane();
    if (own.arrived != ~0u) {
        return suspend();
    }
    Operands *all[32];
    std::transform(own.operands, own.operands + 32, all,
                   [](void *one) { return static_cast<Operands *>(one); });
    compute(all);
    own.arrived = 0;
    own.ready = ~(1u << lane());
}

inline void thread_main() {
    block.kernel();
    const Thread &thread = block.threads[block.current];
    if (!thread.begun.empty() || !thread.groups.empty()) {
        fail("a thread ends without waiting for its copies");
    }
    block.living -= 1;
    if (block.living == 0) {
        setcontext(&block.outside);
    }
    release_barrier();
    ucontext_t ended;
    resume(ended);
}

inline void run_block() {
    const size_t count = blockDim.x * blockDim.y * blockDim.z;
    block.threads.resize(count);
    block.warps.assign((count + 31) / 32, Warp());
    block.living = count;
    for (size_t n = 0; n < count; n += 1) {
        Thread &thread = block.threads[n];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, thread_main, 0);
        block.warps[n / 32].ready |= 1u << n % 32;
    }
    block.current = block.random() % count;
    resume(block.outside);
}

/// Like `kernel<<<grid, block, shared>>>`.
template <class Kernel> void launch(dim3 grid, dim3 threads, size_t shared_bytes, Kernel kernel) {
    if (threads.x * threads.y * threads.z > 1024 || shared_bytes > 227 * 1024 || grid.y > 65535 ||
        grid.z > 65535 || grid.x * grid.y * grid.z == 0) {
        fail("no GPU can launch this");
    }
    gridDim = grid;
    blockDim = threads;
    block.kernel = kernel;
    for (u32 z = 0; z < grid.z; z += 1) {
        for (u32 y = 0; y < grid.y; y += 1) {
            for (u32 x = 0; x < grid.x; x += 1) {
                blockIdx = {x, y, z};
                const Buffer<unsigned char> shared(shared_bytes, 128);
                block.shared = &shared;
                run_block();
            }
        }
    }
}

inline void check_shared(const void *at, const char *who) {
    if (!block.shared->contains(at, 16) || reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        fail(who);
    }
}

struct Rows {
    const void *row;
    u32 values[4];
};

inline void load_matrices(u32 (&r)[4], const void *row, bool transposed) {
    check_shared(row, "ldmatrix of what is no 16 bytes of shared memory");
    Rows mine = {row, {}};
    together(transposed ? "ldmatrix_transposed" : "ldmatrix", mine, [transposed](Rows *(&lanes)[32]) {
        for (int matrix = 0; matrix < 4; matrix += 1) {
            uint16_t rows[8][8];
            u32 banks = 0;
            for (int n = 0; n < 8; n += 1) {
                const void *row = lanes[matrix * 8 + n]->row;
                memcpy(rows[n], row, 16);
                banks |= 1u << reinterpret_cast<uintptr_t>(row) / 16 % 8;
            }
            conflicts += 8 - __builtin_popcount(banks);
            for (int lane = 0; lane < 32; lane += 1) {
                const int a = lane / 4, b = lane % 4 * 2;
                const u32 low = transposed ? rows[b][a] : rows[a][b];
                const u32 high = transposed ? rows[b + 1][a] : rows[a][b + 1];
                lanes[lane]->values[matrix] = low | high << 16;
            }
        }
    });
    memcpy(r, mine.values, sizeof(r));
}

} // namespace emulator

inline void __syncthreads() {
    emulator::warp().at_barrier |= 1u << emulator::lane();
    emulator::release_barrier();
    // The last thread to arrive is suspended as well.
    emulator::suspend();
}

inline float widen(float x) { return x; }

inline float widen(f16 x) {
    static const std::vector<float> all = [] {
        std::vector<float> all;
        for (int bits = 0; bits < 1 << 16; bits += 1) {
            const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
            const float size = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                               : exponent == 0 ? ldexpf(mantissa, -24)
                                               : ldexpf(1024 + mantissa, exponent - 25);
            all.push_back(bits >> 15 ? -size : size);
        }
        return all;
    }();
    return all[x.bits];
}

inline float widen(bf16 x) {
    const u32 bits = u32(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

template <class T> T narrow(float x);

template <> inline float narrow<float>(float x) { return x; }

template <> inline f16 narrow<f16>(float x) {
    const float size = fabsf(x);
    unsigned short bits = 0x7c00;
    if (isnan(x)) {
        bits = 0x7fff;
    } else if (size < 65520) {
        // The exponent of a normal number. Rounding the mantissa may carry over into the exponent.
        const int exponent = size == 0 ? -14 : max(ilogbf(size), -14);
        bits = ((exponent + 14) << 10) + lrintf(ldexpf(size, 10 - exponent));
    }
    return {static_cast<unsigned short>(bits | (signbit(x) ? 0x8000 : 0))};
}

template <> inline bf16 narrow<bf16>(float x) {
    if (isnan(x)) {
        return {0x7fff};
    }
    u32 bits;
    memcpy(&bits, &x, 4);
    return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T> u32 pack(float low, float high) {
    return narrow<T>(low).bits | u32(narrow<T>(high).bits) << 16;
}

namespace emulator {

struct Product {
    float (&d)[4];
    const u32 (&a)[4];
    u32 b[2];
};

template <class T> float half_of(u32 pair, int high) {
    return widen(T{static_cast<unsigned short>(pair >> 16 * high)});
}

template <class T> void multiply(Product *(&lanes)[32]) {
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane += 1) {
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int high = 0; high < 2; high += 1) {
            for (int n = 0; n < 4; n += 1) {
                a[group + n % 2 * 8][pair + n / 2 * 8 + high] = half_of<T>(lanes[lane]->a[n], high);
            }
            for (int n = 0; n < 2; n += 1) {
                b[pair + n * 8 + high][group] = half_of<T>(lanes[lane]->b[n], high);
            }
        }
    }
    for (int lane = 0; lane < 32; lane += 1) {
        for (int n = 0; n < 4; n += 1) {
            const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
            double sum = lanes[lane]->d[n];
            for (int k = 0; k < 16; k += 1) {
                sum += a[row][k] * b[k][column];
            }
            lanes[lane]->d[n] = sum;
        }
    }
}

} // namespace emulator

template <class T> void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::Product mine = {d, a, {b0, b1}};
    emulator::together("mma", mine, emulator::multiply<T>);
}

inline void ldmatrix(u32 (&r)[4], const void *row) { emulator::load_matrices(r, row, false); }

inline void ldmatrix_transposed(u32 (&r)[4], const void *row) { emulator::load_matrices(r, row, true); }

inline void copy_async(void *shared, const void *global, bool valid) {
    emulator::check_shared(shared, "copy_async to what is no 16 bytes of shared memory");
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        emulator::fail("copy_async from what is not aligned");
    }
    // The previous content is undefined from now on.
    memset(shared, 0xff, 16);
    auto *to = static_cast<unsigned char *>(shared);
    emulator::block.threads[emulator::block.current].begun.push_back({to, valid ? global : nullptr});
}

inline void commit() {
    emulator::Thread &thread = emulator::block.threads[emulator::block.current];
    thread.groups.push_back(std::move(thread.begun));
    thread.begun.clear();
}

template <int N> void wait() {
    auto &groups = emulator::block.threads[emulator::block.current].groups;
    while (groups.size() > N) {
        for (const emulator::Copy &copy : groups.front()) {
            if (copy.from != nullptr) {
                memcpy(copy.to, copy.from, 16);
            } else {
                memset(copy.to, 0, 16);
            }
        }
        groups.pop_front();
    }
}

inline float exp2_approx(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y;
}

inline float reciprocal_approx(float x) { return 1 / x; }

template <class T> T shuffle_xor(T value, int lanes) {
    struct Shuffle {
        T value;
        int lanes;
        T result;
    } mine = {value, lanes, {}};
    emulator::together("shuffle_xor", mine, [](Shuffle *(&all)[32]) {
        for (int lane = 0; lane < 32; lane += 1) {
            all[lane]->result = all[lane ^ all[lane]->lanes]->value;
        }
    });
    return mine.result;
}

#define DYNAMIC_SHARED(name) unsigned char *const name = emulator::block.shared->data()

#include "../../src/ops/cuda/device.cuh"

// Helpers that the tests share.
namespace emulator {

/// Pseudo-random values in [centre - size, centre + size], deterministic for a seed.
template <class T> Buffer<T> numbers(size_t count, u32 seed, float size = 1, float centre = 0) {
    Buffer<T> buffer(count);
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> values(-size, size);
    for (size_t n = 0; n < count; n += 1) {
        buffer[n] = narrow<T>(centre + values(random));
    }
    return buffer;
}

/// Half the distance between 1 and the next number: the maximum relative rounding error.
template <class T> constexpr double ROUNDING = 0;
template <> inline constexpr double ROUNDING<f16> = 1.0 / (1 << 11);
template <> inline constexpr double ROUNDING<bf16> = 1.0 / (1 << 8);
template <> inline constexpr double ROUNDING<float> = 1.0 / (1 << 24);

template <class T> constexpr const char *NAME = "";
template <> inline constexpr const char *NAME<f16> = "f16";
template <> inline constexpr const char *NAME<bf16> = "bf16";
template <> inline constexpr const char *NAME<float> = "f32";

inline bool failed = false;

/// Reports a comparison. An error above the tolerance, or NaN, fails the test.
inline void report(const char *what, double error, double allowed) {
    const bool fits = error <= allowed;
    printf("%-60s error %.2e of %.2e%s\n", what, error, allowed, fits ? "" : " TOO LARGE");
    failed |= !fits;
}

} // namespace emulator
