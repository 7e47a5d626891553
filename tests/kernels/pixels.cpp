// SPDX-License-Identifier: MIT OR Apache-2.0
// Tests copies of several runs in one launch, for any length and alignment.
#include "emulator.h"

#include "../../src/ops/cuda/pixels.cu"

void compare(const std::vector<size_t> &before, size_t numbers, u32 blocks) {
    std::vector<emulator::Buffer<bf16>> sources, targets;
    Runs runs = {};
    runs.bytes = numbers * sizeof(bf16);
    for (size_t n = 0; n < before.size(); n += 1) {
        // The run begins at an offset and ends at the end of the buffer, so that accesses beyond
        // it fault.
        sources.push_back(emulator::numbers<bf16>(before[n] + numbers, n));
        targets.emplace_back(numbers, sizeof(bf16));
        runs.from[n] = reinterpret_cast<const unsigned char *>(sources[n].data() + before[n]);
        runs.to[n] = reinterpret_cast<unsigned char *>(targets[n].data());
    }
    emulator::launch({blocks, u32(before.size())}, {256}, 0, [&] { copy_runs(runs); });
    size_t different = 0;
    for (size_t n = 0; n < before.size(); n += 1) {
        for (size_t i = 0; i < numbers; i += 1) {
            different += targets[n][i].bits != sources[n][before[n] + i].bits;
        }
    }
    char what[200];
    snprintf(what, sizeof(what), "copy of %zu runs of %zu numbers, %u blocks", before.size(), numbers, blocks);
    emulator::report(what, different, 0);
}

int main() {
    compare({0, 8, 640}, 4 * 320, 1);
    // More bytes than all blocks copy per iteration, and the maximum of runs per launch.
    compare(std::vector<size_t>(RUNS, 16), 24 * 1024, 2);
    compare({0, 1, 3}, 37, 1);
    compare({5}, 1, 3);
    compare({4}, 9000, 1);
    return emulator::failed;
}
