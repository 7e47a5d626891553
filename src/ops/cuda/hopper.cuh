// SPDX-License-Identifier: MIT OR Apache-2.0
// What GPUs of sm_90a do beyond device.cuh: products of four warps whose operands lie in shared memory, and
// copies of whole tiles that count on barriers when they have come. In tests, tests/kernels/hopper.h stands for
// what EMULATED leaves out.

typedef unsigned long long u64;

#ifndef EMULATED

// A tensor of four dimensions, for copies of tiles of it. The host encodes it.
struct alignas(128) TensorMap {
    unsigned char opaque[128];
};

// Threads and bytes that are waited for, in phases of alternating parity.
struct alignas(8) Barrier {
    u64 state;
};

__device__ inline void init(Barrier &barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// What has been initialised is seen by copies. A __syncthreads has to follow.
__device__ inline void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(Barrier &barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Arrives; the phase ends when as many bytes have come as well.
__device__ inline void arrive_and_expect(Barrier &barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

// Until the phase of this parity is over.
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

// Begins to copy the map's tile of 64 columns that begins at column c of (x, y, z); `barrier` counts its bytes.
// What lies outside is 0.
__device__ inline void copy_tile(void *shared, const TensorMap &map, int c, int x, int y, int z, Barrier &barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
                 "l"(&map), "r"(shared_address(&barrier)), "r"(c), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// How a product finds a tile of rows of 128 bytes, whose 16 bytes n of row r are at n ^ r % 8: what copy_tile
// leaves. The tile lies at a multiple of 1024 bytes; a part of it begins 32 bytes further for every 16 columns,
// 128 for every row of a multiple of 8.
__device__ inline u64 tile_descriptor(const void *shared) {
    const u64 eight_rows = 1024 >> 4, swizzle_of_128 = 1;
    return u64((shared_address(shared) & 0x3ffff) >> 4) | 1ull << 16 | eight_rows << 32 | swizzle_of_128 << 62;
}

// Before the first product of some, when their registers have been written.
__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes a group of the products begun since the last one.
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most the N latest groups are under way.
template <int N> __device__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The compiler may not move what is done with these registers beyond here.
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

// Begins d = a·b, or d += a·b, for four warps: a [64, 16] and bᵀ [128 or 80, 16] in shared memory. Warp w has rows 16·w and on of d; in them lane l holds d[l/4 + i/2%2·8][i/4·8 + l%4·2 + i%2] as
// number i.
template <class T> __device__ void multiply(float (&d)[64], u64 a, u64 b, bool add);
template <class T> __device__ void multiply(float (&d)[40], u64 a, u64 b, bool add);

// Begins d += a·b: a [64, 16] in registers, as for mma, and b [16, 64] in shared memory, its rows as they are.
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

// Until `threads` threads, whole warps, have come to the named barrier, which is not that of __syncthreads.
__device__ inline void synchronise(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ inline void synchronise_warp() { __syncwarp(); }

// Four warps give registers back, or take what others have given.
template <int N> __device__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// Which four warps of the block a thread belongs to, in a way that lets the compiler see that it is one number
// for all of a warp.
__device__ inline int warpgroup_number() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); }

#define GRID_CONSTANT const __grid_constant__

#endif
