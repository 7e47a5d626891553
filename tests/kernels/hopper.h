// SPDX-License-Identifier: MIT OR Apache-2.0
// CPU emulation of the part of hopper.cuh that EMULATED leaves out. Products and copies of tiles
// complete as late as possible: when a thread waits for them.
#pragma once

#include "emulator.h"

typedef unsigned long long u64;

/// A tensor [depth, height, width, columns] of 16-bit elements, in tiles of tile_height ×
/// tile_width rows of 64 columns.
struct TensorMap {
    const void *base;
    int columns, width, height, depth;
    int tile_width, tile_height;
};

struct Barrier {
    u32 arrivals;
    u32 missing;
    long long bytes;
    u32 phase;
};

namespace emulator {

/// A pending copy of a tile.
struct TileCopy {
    unsigned char *to;
    TensorMap map;
    int c, x, y, z;
    Barrier *barrier;
};

inline std::deque<TileCopy> tiles_under_way;

/// Applies the 128-byte swizzle to an address.
inline unsigned char *swizzled(unsigned char *at) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    return reinterpret_cast<unsigned char *>(address ^ (address >> 7 & 7) << 4);
}

inline void end_phase(Barrier &barrier) {
    if (barrier.missing == 0 && barrier.bytes == 0) {
        barrier.phase += 1;
        barrier.missing = barrier.arrivals;
    }
}

inline int tile_bytes(const TensorMap &map) { return map.tile_width * map.tile_height * 128; }

inline void finish(const TileCopy &copy) {
    const TensorMap &map = copy.map;
    const auto in = [](int n, int size) { return n >= 0 && n < size; };
    for (int row = 0; row < map.tile_width * map.tile_height; row += 1) {
        const int x = copy.x + row % map.tile_width, y = copy.y + row / map.tile_width;
        for (int column = 0; column < 64; column += 1) {
            const int c = copy.c + column;
            unsigned char *to = swizzled(copy.to + row * 128 + column * 2);
            memset(to, 0, 2);
            if (in(c, map.columns) && in(x, map.width) && in(y, map.height) && in(copy.z, map.depth)) {
                const size_t place = ((size_t)copy.z * map.height + y) * map.width + x;
                memcpy(to, static_cast<const unsigned char *>(map.base) + (place * map.columns + c) * 2, 2);
            }
        }
    }
    copy.barrier->bytes -= tile_bytes(map);
    end_phase(*copy.barrier);
}

/// Lets other threads run, those of other warps included.
inline void give_way() {
    const size_t own = block.current, count = block.warps.size();
    warp().ready |= 1u << lane();
    size_t other = block.random() % count;
    while (block.warps[other].ready == 0) {
        other = (other + 1) % count;
    }
    block.current = other * 32;
    resume(block.threads[own].context);
}

/// Operands of a warpgroup product: a in registers or, like b, in shared memory.
struct WarpgroupProduct {
    float *d[128];
    const u32 *a[128];
    u64 a_tile, b_tile;
    int columns;
    bool add, a_in_registers, b_as_it_is;
    float (*value)(unsigned short);
};

/// State of a warpgroup.
struct Warpgroup {
    u32 arrived = 0;
    const char *what = nullptr;
    void *operands[128];
    std::vector<WarpgroupProduct> begun;
    std::deque<std::vector<WarpgroupProduct>> groups;
    /// While a product is pending, its accumulators, keyed by the first lane's; the registers hold
    /// NaN.
    std::vector<std::pair<float *, std::vector<float>>> sums;
};

inline std::vector<Warpgroup> warpgroups;

inline Warpgroup &warpgroup() {
    warpgroups.resize(block.warps.size() / 4);
    return warpgroups[block.current / 128];
}

/// Like `together`, for a warpgroup.
template <class Operands, class Compute>
void four_warps_together(const char *what, Operands &mine, Compute compute) {
    Warpgroup &own = warpgroup();
    if (own.arrived != 0 && strcmp(own.what, what) != 0) {
        fail("four warps are at different operations");
    }
    own.what = what;
    own.operands[block.current % 128] = &mine;
    own.arrived += 1;
    if (own.arrived < 128) {
        return suspend();
    }
    Operands *all[128];
    std::transform(own.operands, own.operands + 128, all, [](void *one) { return static_cast<Operands *>(one); });
    compute(own, all);
    own.arrived = 0;
    for (size_t n = 0; n < 4; n += 1) {
        block.warps[block.current / 128 * 4 + n].ready = ~0u;
    }
    warp().ready &= ~(1u << lane());
}

/// Address in a descriptor. Checks the other fields.
inline unsigned char *tile_of(u64 descriptor) {
    if (descriptor >> 32 != ((1024 >> 4) | 1ull << 30)) {
        fail("a tile that is no 128 bytes wide and swizzled");
    }
    // The descriptor holds 18 bits of the address, relative to the window of shared memory.
    const uintptr_t base = reinterpret_cast<uintptr_t>(block.shared->data());
    const uintptr_t low = (descriptor & 0x3fff) << 4;
    uintptr_t at = (base & ~uintptr_t(0x3ffff)) | low;
    if (at < base) {
        at += 0x40000;
    }
    return reinterpret_cast<unsigned char *>(at);
}

inline float element(const WarpgroupProduct &product, u64 tile, int row, int column) {
    unsigned char *at = swizzled(tile_of(tile) + row / 8 * 1024 + row % 8 * 128 + column * 2);
    if (!block.shared->contains(at, 2)) {
        fail("a product reads beyond shared memory");
    }
    unsigned short bits;
    memcpy(&bits, at, 2);
    return product.value(bits);
}

inline float a_of(const WarpgroupProduct &product, int row, int k) {
    if (!product.a_in_registers) {
        return element(product, product.a_tile, row, k);
    }
    const int lane = row % 8 * 4 + k % 8 / 2, number = row % 16 / 8 + k / 8 * 2;
    return product.value(product.a[row / 16 * 32 + lane][number] >> k % 2 * 16);
}

inline std::vector<float> &sums_of(Warpgroup &own, float *d) {
    for (auto &[key, sums] : own.sums) {
        if (key == d) {
            return sums;
        }
    }
    fail("a product without a place for its sums");
}

inline void finish(Warpgroup &own, const WarpgroupProduct &product) {
    std::vector<float> &sums = sums_of(own, product.d[0]);
    const int per_thread = product.columns / 2;
    std::vector<float> a(64 * 16), b(16 * product.columns);
    for (int k = 0; k < 16; k += 1) {
        for (int row = 0; row < 64; row += 1) {
            a[row * 16 + k] = a_of(product, row, k);
        }
        for (int n = 0; n < product.columns; n += 1) {
            b[n * 16 + k] = product.b_as_it_is ? element(product, product.b_tile, k, n)
                                               : element(product, product.b_tile, n, k);
        }
    }
    for (int thread = 0; thread < 128; thread += 1) {
        const int lane = thread % 32;
        for (int i = 0; i < per_thread; i += 1) {
            const int row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
            const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            double sum = product.add ? sums[thread * per_thread + i] : 0;
            for (int k = 0; k < 16; k += 1) {
                sum += double(a[row * 16 + k]) * b[column * 16 + k];
            }
            sums[thread * per_thread + i] = sum;
        }
    }
}

template <class T> float value_of(unsigned short bits) { return widen(T{bits}); }

struct Begin {
    float *d;
    const u32 *a;
    WarpgroupProduct product;
};

inline void begin(Begin mine) {
    four_warps_together("wgmma", mine, [](Warpgroup &own, Begin *(&all)[128]) {
        WarpgroupProduct product = all[0]->product;
        const int per_thread = product.columns / 2;
        for (int thread = 0; thread < 128; thread += 1) {
            product.d[thread] = all[thread]->d;
            product.a[thread] = all[thread]->a;
        }
        const auto known = [&](const auto &sums) { return sums.first == product.d[0]; };
        if (std::none_of(own.sums.begin(), own.sums.end(), known)) {
            std::vector<float> sums;
            for (float *d : product.d) {
                sums.insert(sums.end(), d, d + per_thread);
                std::fill(d, d + per_thread, NAN);
            }
            own.sums.emplace_back(product.d[0], sums);
        }
        own.begun.push_back(product);
    });
}

struct Nothing {};

inline void commit_products() {
    Nothing nothing;
    four_warps_together("wgmma.commit_group", nothing, [](Warpgroup &own, Nothing *(&)[128]) {
        own.groups.push_back(std::move(own.begun));
        own.begun.clear();
    });
}

/// Writes the results of completed products to the threads' registers, if no other product on
/// these accumulators is pending.
inline void give_back(Warpgroup &own, const WarpgroupProduct &product) {
    const auto same = [&](const WarpgroupProduct &other) { return other.d[0] == product.d[0]; };
    const auto uses = [&](const auto &group) { return std::any_of(group.begin(), group.end(), same); };
    const auto sums = std::find_if(own.sums.begin(), own.sums.end(),
                                   [&](const auto &sums) { return sums.first == product.d[0]; });
    if (sums == own.sums.end() || uses(own.begun) || std::any_of(own.groups.begin(), own.groups.end(), uses)) {
        return;
    }
    const int per_thread = product.columns / 2;
    for (int thread = 0; thread < 128; thread += 1) {
        std::copy_n(&sums->second[thread * per_thread], per_thread, product.d[thread]);
    }
    own.sums.erase(sums);
}

inline void wait_for_products(size_t rest) {
    Nothing nothing;
    four_warps_together("wgmma.wait_group", nothing, [rest](Warpgroup &own, Nothing *(&)[128]) {
        while (own.groups.size() > rest) {
            const std::vector<WarpgroupProduct> group = std::move(own.groups.front());
            own.groups.pop_front();
            for (const WarpgroupProduct &product : group) {
                finish(own, product);
            }
            for (const WarpgroupProduct &product : group) {
                give_back(own, product);
            }
        }
    });
}

} // namespace emulator

inline void init(Barrier &barrier, u32 arrivals) { barrier = {arrivals, arrivals, 0, 0}; }

inline void fence_init() {}

inline void arrive(Barrier &barrier) {
    if (barrier.missing == 0) {
        emulator::fail("more threads arrive than the barrier waits for");
    }
    barrier.missing -= 1;
    emulator::end_phase(barrier);
    // A waiting thread may continue at once.
    emulator::give_way();
}

inline void arrive_and_expect(Barrier &barrier, u32 bytes) {
    barrier.bytes += bytes;
    arrive(barrier);
}

inline void wait_for(Barrier &barrier, u32 parity) {
    // The phase before the first one has parity 1.
    for (size_t tries = 0; barrier.phase % 2 == parity % 2; tries += 1) {
        auto &tiles = emulator::tiles_under_way;
        const auto mine = [&](const emulator::TileCopy &copy) { return copy.barrier == &barrier; };
        const auto found = std::find_if(tiles.begin(), tiles.end(), mine);
        if (found != tiles.end()) {
            emulator::finish(*found);
            tiles.erase(found);
        } else if (tries > 1000000) {
            emulator::fail("a thread waits at a barrier for what never comes");
        } else {
            emulator::give_way();
        }
    }
}

inline void copy_tile(void *shared, const TensorMap &map, int c, int x, int y, int z, Barrier &barrier) {
    if (reinterpret_cast<uintptr_t>(shared) % 1024 != 0 || map.columns % 8 != 0 || map.tile_width > 256 ||
        map.tile_height > 256) {
        emulator::fail("a tile that is not aligned, or too large");
    }
    memset(shared, 0xff, emulator::tile_bytes(map));
    emulator::tiles_under_way.push_back({static_cast<unsigned char *>(shared), map, c, x, y, z, &barrier});
}

inline u64 tile_descriptor(const void *shared) {
    return u64((reinterpret_cast<uintptr_t>(shared) & 0x3ffff) >> 4) | 1ull << 16 | u64(1024 >> 4) << 32 | 1ull << 62;
}

inline void warpgroup_fence() {}
inline void warpgroup_commit() { emulator::commit_products(); }
template <int N> void warpgroup_wait() { emulator::wait_for_products(N); }
template <int N> void hold(float (&)[N]) {}

template <class T> void multiply(float (&d)[64], u64 a, u64 b, bool add) {
    emulator::begin({d, nullptr, {{}, {}, a, b, 128, add, false, false, emulator::value_of<T>}});
}

template <class T> void multiply(float (&d)[40], u64 a, u64 b, bool add) {
    emulator::begin({d, nullptr, {{}, {}, a, b, 80, add, false, false, emulator::value_of<T>}});
}

template <class T> void multiply_rows(float (&d)[32], const u32 (&a)[4], u64 b) {
    emulator::begin({d, a, {{}, {}, 0, b, 64, true, true, true, emulator::value_of<T>}});
}

namespace emulator {

/// Threads that have arrived at each named barrier.
struct Named {
    int arrived = 0;
    u32 phase = 0;
};

inline Named named[16];

} // namespace emulator

inline void synchronise(int name, int threads) {
    emulator::Named &barrier = emulator::named[name];
    const u32 phase = barrier.phase;
    barrier.arrived += 1;
    if (barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.phase += 1;
    }
    while (barrier.phase == phase) {
        emulator::give_way();
    }
}

inline void synchronise_warp() {
    emulator::Nothing nothing;
    emulator::together("__syncwarp", nothing, [](emulator::Nothing *(&)[32]) {});
}

template <int N> void give_registers() {}
template <int N> void take_registers() {}

inline int warpgroup_number() { return threadIdx.x / 128; }

#define GRID_CONSTANT const

#include "../../src/ops/cuda/hopper.cuh"
