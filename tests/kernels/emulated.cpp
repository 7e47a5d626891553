// SPDX-License-Identifier: MIT OR Apache-2.0
// Compiles a kernel file to a library that runs its kernels by name, for driver.c.
// scripts/cuda-dry-run defines SOURCE, the file, and KERNELS, a list of ENTRY(name) for each of
// its kernels.
#include "hopper.h"

#include <utility>

#include SOURCE

namespace {

template <class... Arguments, size_t... N>
void call(void (*kernel)(Arguments...), void **arguments, std::index_sequence<N...>) {
    kernel(*static_cast<std::remove_const_t<Arguments> *>(arguments[N])...);
}

template <class... Arguments> void call(void (*kernel)(Arguments...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<Arguments...>());
}

struct Entry {
    const char *name;
    void (*call)(void **arguments);
};

#define ENTRY(name) {#name, [](void **arguments) { call(name, arguments); }}
const Entry entries[] = {KERNELS};

} // namespace

/// Runs a kernel by name. Returns false if the library does not have it.
extern "C" __attribute__((visibility("default"))) int emulate(const char *name, const u32 *grid, const u32 *block,
                                                              u32 shared, void **arguments) {
    for (const Entry &entry : entries) {
        if (strcmp(entry.name, name) == 0) {
            emulator::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared,
                             [&] { entry.call(arguments); });
            return 1;
        }
    }
    return 0;
}
