// SPDX-License-Identifier: MIT OR Apache-2.0
// Device functions for features of sm_80 and later that C++ lacks: 16-bit floats, matrix products
// on tensor cores, asynchronous copies. Compiled in front of each kernel file. In tests,
// tests/kernels/emulator.h replaces the part that EMULATED leaves out.

#ifndef EMULATED

typedef unsigned u32;

struct f16 {
    unsigned short bits;
};

struct bf16 {
    unsigned short bits;
};

__device__ inline float widen(float x) { return x; }

__device__ inline float widen(f16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

__device__ inline float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to nearest even.
template <class T> __device__ T narrow(float x);

template <> __device__ inline float narrow<float>(float x) { return x; }

template <> __device__ inline f16 narrow<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

template <> __device__ inline bf16 narrow<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Rounds two values and packs them into a register.
template <class T> __device__ u32 pack(float low, float high);

template <> __device__ inline u32 pack<f16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <> __device__ inline u32 pack<bf16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// d += a·b with f32 accumulation, for a [16, 16] and b [16, 8], one product per warp. With g =
// lane/4 and t = lane%4·2, a lane holds a[g + {0, 8, 0, 8}][t + {0, 0, 8, 8}] and the column after
// each, b[t + {0, 8}][g] and the row after each, d[g + {0, 0, 8, 8}][t + {0, 1, 0, 1}].
template <class T> __device__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <> __device__ inline void mma<f16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <> __device__ inline void mma<bf16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline u32 shared_address(const void *shared) { return u32(__cvta_generic_to_shared(shared)); }

// Loads four matrices of 8 rows of 16 bytes from shared memory. Lanes 8·i to 8·i + 7 pass the rows
// of matrix i. Lane l receives elements 2·(l%4) and 2·(l%4) + 1 of row l/4 of each.
__device__ inline void ldmatrix(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Like ldmatrix, transposed: lane l receives rows 2·(l%4) and 2·(l%4) + 1 of column l/4.
__device__ inline void ldmatrix_transposed(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts an asynchronous copy of 16 bytes, or writes zeros if `valid` is false. The bytes are
// visible to this thread after it waits for the copy's group, and to other threads after a barrier
// that follows.
__device__ inline void copy_async(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// Commits all copies of this thread since the last commit to a group.
__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the N latest groups are pending.
template <int N> __device__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// 2^x and 1/x to about 22 bits. Denormal values are flushed to 0.
__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The value of the lane whose index differs in the bits of `lanes`. All lanes of the warp must
// call it.
template <class T> __device__ T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#endif

// Elements that are read or written at once, 16 bytes by default.
template <class T, int N = 16 / sizeof(T)> struct alignas(N * sizeof(T)) Vector {
    static constexpr int COUNT = N;
    T values[N];
};

// Loads N elements as floats, with 16-byte accesses where N elements are a multiple of 16 bytes.
template <int N, class T> __device__ void read_wide(float (&to)[N], const T *from) {
    constexpr int COUNT = N * sizeof(T) % 16 == 0 ? 16 / sizeof(T) : 1;
#pragma unroll
    for (int n = 0; n < N; n += COUNT) {
        const auto vector = *reinterpret_cast<const Vector<T, COUNT> *>(from + n);
#pragma unroll
        for (int i = 0; i < COUNT; i += 1) {
            to[n + i] = widen(vector.values[i]);
        }
    }
}

template <int N, class T> __device__ void write_narrow(T *to, const float (&from)[N]) {
    Vector<T, N> vector;
#pragma unroll
    for (int n = 0; n < N; n += 1) {
        vector.values[n] = narrow<T>(from[n]);
    }
    *reinterpret_cast<Vector<T, N> *>(to) = vector;
}

// Distributes a block's threads over rows of `width` items: consecutive threads along a row, on as
// many rows at a time as fit. Excess threads get a row index that is not below `rows`.
struct Spread {
    int columns, rows;
    int column, row;

    __device__ explicit Spread(int width)
        : columns(min(width, int(blockDim.x))), rows(blockDim.x / columns), column(threadIdx.x % columns),
          row(threadIdx.x / columns) {}
};

// The sum over the warp, in every lane.
__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value += shuffle_xor(value, lanes);
    }
    return value;
}
