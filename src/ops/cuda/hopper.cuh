// SPDX-License-Identifier: MIT OR Apache-2.0
// Device functions for features of sm_90a, in addition to device.cuh: warpgroup products with
// operands in shared memory, and TMA copies that signal barriers. In tests, tests/kernels/hopper.h
// replaces the part that EMULATED leaves out.

typedef unsigned long long u64;

#ifndef EMULATED

// A tensor map of four dimensions for TMA copies. The host encodes it.
struct alignas(128) TensorMap {
    unsigned char opaque[128];
};

// An mbarrier, which counts arriving threads and bytes in phases of alternating parity.
struct alignas(8) Barrier {
    u64 state;
};

__device__ inline void init(Barrier &barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to TMA copies. A __syncthreads must follow.
__device__ inline void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(Barrier &barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives, and makes the phase wait for `bytes` more bytes of copies.
__device__ inline void arrive_and_expect(Barrier &barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

// Waits until the phase with this parity has ended.
__device__ inline void wait_for(Barrier &barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "AGAIN:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@over bra OVER;\n"
                 "bra AGAIN;\n"
                 "OVER:\n"
                 "}" ::"r"(shared_address(&barrier)),
                 "r"(parity)
                 : "memory");
}

// Starts to copy the map's tile of 64 columns at column c of (x, y, z). `barrier` counts its
// bytes. Elements outside the tensor are 0.
__device__ inline void copy_tile(void *shared, const TensorMap &map, int c, int x, int y, int z, Barrier &barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(&map), "r"(shared_address(&barrier)), "r"(c), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// Descriptor of a tile for warpgroup products: rows of 128 bytes with the 128-byte swizzle (chunk
// n of row r is at n ^ r % 8), as copy_tile writes them. The tile is aligned to 1024 bytes. A
// sub-tile begins 32 bytes further per 16 columns, and 128 bytes further per row, for multiples of
// 8 rows.
__device__ inline u64 tile_descriptor(const void *shared) {
    const u64 eight_rows = 1024 >> 4, swizzle_of_128 = 1;
    return u64((shared_address(shared) & 0x3ffff) >> 4) | 1ull << 16 | eight_rows << 32 | swizzle_of_128 << 62;
}

// Required before the first product after registers of its operands are written.
__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Commits the products since the last commit to a group.
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the N latest groups are pending.
template <int N> __device__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving accesses of these registers across this point.
template <int N> __device__ void hold(float (&d)[N]) {
#pragma unroll
    for (int n = 0; n < N; n += 1) {
        asm volatile("" : "+f"(d[n])::"memory");
    }
}

#define EIGHT(d, n)                                                                                                  \
    "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3]), "+f"(d[n + 4]), "+f"(d[n + 5]), "+f"(d[n + 6]),       \
        "+f"(d[n + 7])
#define THIRTY_TWO(d, n) EIGHT(d, n), EIGHT(d, n + 8), EIGHT(d, n + 16), EIGHT(d, n + 24)
#define NAMES_32                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31"
#define NAMES_40 NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define NAMES_64                                                                                                     \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56," \
             "%57,%58,%59,%60,%61,%62,%63"

// Starts d = a·b, or d += a·b, for a warpgroup: a [64, 16] and bᵀ [128 or 80, 16] in shared
// memory. Warp w has the rows from 16·w on; register i of lane l holds d[l/4 + i/2%2·8][i/4·8 +
// l%4·2 + i%2] of them.
template <class T> __device__ void multiply(float (&d)[64], u64 a, u64 b, bool add);
template <class T> __device__ void multiply(float (&d)[40], u64 a, u64 b, bool add);

// Starts d += a·b: a [64, 16] in registers, in the layout of mma, and b [16, 64] in shared memory,
// row-major.
template <class T> __device__ void multiply_rows(float (&d)[32], const u32 (&a)[4], u64 b);

#define DEFINE_MULTIPLY(T, type)                                                                                     \
    template <> __device__ inline void multiply<T>(float (&d)[64], u64 a, u64 b, bool add) {                         \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64                     \
                     "}, %64, %65, add, 1, 1, 0, 0;\n}"                                                             \
                     : THIRTY_TWO(d, 0), THIRTY_TWO(d, 32)                                                           \
                     : "l"(a), "l"(b), "r"(int(add)));                                                               \
    }                                                                                                                \
    template <> __device__ inline void multiply<T>(float (&d)[40], u64 a, u64 b, bool add) {                         \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %42, 0;\n"                                               \
                     "wgmma.mma_async.sync.aligned.m64n80k16.f32." type "." type " {" NAMES_40                     \
                     "}, %40, %41, add, 1, 1, 0, 0;\n}"                                                             \
                     : THIRTY_TWO(d, 0), EIGHT(d, 32)                                                               \
                     : "l"(a), "l"(b), "r"(int(add)));                                                               \
    }                                                                                                                \
    template <> __device__ inline void multiply_rows<T>(float (&d)[32], const u32 (&a)[4], u64 b) {                  \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES_32                      \
                     "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                                                       \
                     : THIRTY_TWO(d, 0)                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                          \
    }

DEFINE_MULTIPLY(f16, "f16")
DEFINE_MULTIPLY(bf16, "bf16")

// Waits for `threads` threads in whole warps at a named barrier. Name 0 is that of __syncthreads.
__device__ inline void synchronise(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ inline void synchronise_warp() { __syncwarp(); }

// A warpgroup releases registers, or requests released ones.
template <int N> __device__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// Index of a thread's warpgroup, in a form that tells the compiler that it is uniform across the
// warp.
__device__ inline int warpgroup_number() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); }

#define GRID_CONSTANT const __grid_constant__

#endif
