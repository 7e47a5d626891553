// SPDX-License-Identifier: MIT OR Apache-2.0
// Convolutions and linear layers for sm_90a: one producer thread copies tiles of weights and of
// pixels, shifted by the kernel tap; two consumer warpgroups multiply 64 pixels each.

// Mirrored in src/ops/cuda/product_hopper.rs with repr(C). out and add are [frames, height, width,
// outputs], bias is [1 or frames, outputs]; bias and add may be null. The input has one or two
// parts, of `steps` steps of 64 channels each; the weights of the second part begin at `second`.
struct Tiles {
    const void *bias, *add;
    void *out;
    int frames, height, width, outputs;
    // Pixels per block: tile_width · tile_height = 128.
    int tile_width, tile_height, across, down;
    // 9: a 3×3 kernel within a frame; 3: along the frames; 1: the pixel itself.
    int taps;
    int steps[2], second;
    int bias_frames, has_before, has_after;
    float scale;
};

namespace {

constexpr int ROW = 128;
constexpr int PIXELS = 128;
constexpr int STEP = 64;
constexpr int STAGES = 4;
constexpr int ALIGNMENT = 1024;
constexpr int CONSUMERS = 2;

template <int OUTPUTS> struct Stage {
    unsigned char pixels[PIXELS * ROW];
    unsigned char weights[OUTPUTS * ROW];
};

// A TMA copy has at most 256 rows.
template <int OUTPUTS> constexpr int WEIGHTS = OUTPUTS > 256 ? OUTPUTS / 2 : OUTPUTS;

template <int OUTPUTS> struct Shared {
    Stage<OUTPUTS> stages[STAGES];
    Barrier there[STAGES], done[STAGES];
};

// Tensor maps of the inputs, [frames, height, width, channels] with tiles of a block's pixels, and
// of the weights, [outputs, taps, channels] with tiles of WEIGHTS outputs.
struct Sources {
    const TensorMap &first, &second, &before, &after, &weights;
};

// First output and pixel of a block.
struct Place {
    int output, x, y, frame;

    __device__ Place(const Tiles &tiles, int outputs) {
        const int columns = tiles.outputs / outputs;
        // Blocks with the same pixels have consecutive indices.
        output = blockIdx.x % columns * outputs;
        const int tile = blockIdx.x / columns;
        x = tile % tiles.across * tiles.tile_width;
        y = tile / tiles.across % tiles.down * tiles.tile_height;
        frame = tile / tiles.across / tiles.down;
    }
};

__device__ void fetch_pixels(unsigned char *to, const Tiles &tiles, const Sources &from, const Place &place, int part,
                             int tap, int channel, Barrier &there) {
    const TensorMap &map = part == 0 ? from.first : from.second;
    if (tiles.taps == 9) {
        copy_tile(to, map, channel, place.x + tap % 3 - 1, place.y + tap / 3 - 1, place.frame, there);
        return;
    }
    // Frames that neither the clip nor its neighbours provide are outside the map and thus 0.
    const int frame = place.frame + (tiles.taps == 3 ? tap - 1 : 0);
    if (frame < 0 && tiles.has_before) {
        copy_tile(to, from.before, channel, place.x, place.y, 0, there);
    } else if (frame >= tiles.frames && tiles.has_after) {
        copy_tile(to, from.after, channel, place.x, place.y, 0, there);
    } else {
        copy_tile(to, map, channel, place.x, place.y, frame, there);
    }
}

// Fills the stages in the order in which the consumers use them.
template <int OUTPUTS>
__device__ void produce(Shared<OUTPUTS> &shared, const Tiles &tiles, const Sources &from, const Place &place) {
    int number = 0;
    u32 parity = 0;
    for (int part = 0; part < 2; part += 1) {
        for (int tap = 0; tap < tiles.taps; tap += 1) {
            for (int step = 0; step < tiles.steps[part]; step += 1) {
                Stage<OUTPUTS> &stage = shared.stages[number];
                Barrier &there = shared.there[number];
                wait_for(shared.done[number], parity ^ 1);
                arrive_and_expect(there, sizeof(stage));
                fetch_pixels(stage.pixels, tiles, from, place, part, tap, step * STEP, there);
                const int channel = step * STEP + (part == 0 ? 0 : tiles.second);
                for (int output = 0; output < OUTPUTS; output += WEIGHTS<OUTPUTS>) {
                    unsigned char *const to = stage.weights + output * ROW;
                    copy_tile(to, from.weights, channel, tap, place.output + output, 0, there);
                }
                number += 1;
                if (number == STAGES) {
                    number = 0;
                    parity ^= 1;
                }
            }
        }
    }
}

// Multiplies all stages for a consumer's 64 pixels, N outputs per instruction.
template <class T, int OUTPUTS, int N>
__device__ void multiply_all(Shared<OUTPUTS> &shared, const Tiles &tiles, float (&sums)[OUTPUTS / N][N / 2], int consumer) {
    const u64 pixels = tile_descriptor(shared.stages[0].pixels + consumer * 64 * ROW);
    const u64 weights = tile_descriptor(shared.stages[0].weights);
    const int count = (tiles.steps[0] + tiles.steps[1]) * tiles.taps;
    int number = 0, before = STAGES - 1;
    u32 parity = 0;
    for (int n = 0; n < count; n += 1) {
        const int stage = number * int(sizeof(Stage<OUTPUTS>) >> 4);
        wait_for(shared.there[number], parity);
        warpgroup_fence();
#pragma unroll
        for (int k = 0; k < STEP / 16; k += 1) {
#pragma unroll
            for (int part = 0; part < OUTPUTS / N; part += 1) {
                const u64 some = weights + stage + part * (N * ROW >> 4);
                multiply<T>(sums[part], pixels + stage + k * 2, some + k * 2, n > 0 || k > 0);
            }
        }
        warpgroup_commit();
        // The previous stage is free once at most this stage's products are pending.
        warpgroup_wait<1>();
        if (n > 0 && threadIdx.x % 32 == 0) {
            arrive(shared.done[before]);
        }
        before = number;
        number += 1;
        if (number == STAGES) {
            number = 0;
            parity ^= 1;
        }
    }
    warpgroup_wait<0>();
    for (auto &part : sums) {
        hold(part);
    }
}

// Stages 16 pixels of a warp in shared memory, so that global accesses are contiguous. Rows are
// padded by 16 bytes against bank conflicts between 8 rows.
template <class T, int OUTPUTS> struct Rows {
    static constexpr int PITCH = OUTPUTS * sizeof(T) + 16;
    static constexpr int PIECES = OUTPUTS / Vector<T>::COUNT;
    unsigned char *const bytes;
    const Tiles &tiles;
    const Place &place;
    const int first;

    // Index of a pixel in out, or negative outside the frame.
    __device__ long long pixel(int row) const {
        const int x = place.x + (first + row) % tiles.tile_width, y = place.y + (first + row) / tiles.tile_width;
        const bool inside = x < tiles.width && y < tiles.height;
        return inside ? ((long long)place.frame * tiles.height + y) * tiles.width + x : -1;
    }

    // Calls `move` with each 16 bytes here and the corresponding ones of a tensor shaped like out.
    template <class Move> __device__ void for_each(const T *tensor, Move move) const {
        for (int n = threadIdx.x % 32; n < 16 * PIECES; n += 32) {
            const int row = n / PIECES, piece = n % PIECES;
            const long long at = pixel(row);
            if (at >= 0) {
                const T *there = tensor + at * tiles.outputs + place.output + piece * Vector<T>::COUNT;
                move(*reinterpret_cast<Vector<T> *>(bytes + row * PITCH + piece * 16),
                     *reinterpret_cast<Vector<T> *>(const_cast<T *>(there)));
            }
        }
    }

    __device__ u32 &pair(int row, int column) const {
        return *reinterpret_cast<u32 *>(bytes + row * PITCH + column * sizeof(T));
    }
};

template <class T> __device__ float half_of(u32 pair, int high) {
    return widen(T{(unsigned short)(pair >> 16 * high)});
}

// Adds bias and `add` to the scaled sums and writes them to out.
template <class T, int OUTPUTS, int N>
__device__ void store(const Rows<T, OUTPUTS> &rows, const Tiles &tiles, const Place &place,
                      const float (&sums)[OUTPUTS / N][N / 2]) {
    if (tiles.add != nullptr) {
        rows.for_each(static_cast<const T *>(tiles.add), [](Vector<T> &here, Vector<T> &there) { here = there; });
        synchronise_warp();
    }
    const int lane = threadIdx.x % 32;
    const long long frame = tiles.bias_frames > 1 ? place.frame : 0;
    const T *bias = static_cast<const T *>(tiles.bias) + frame * tiles.outputs + place.output;
#pragma unroll
    for (int n = 0; n < OUTPUTS / 8; n += 1) {
        const int column = n * 8 + lane % 4 * 2;
        const u32 added = tiles.bias == nullptr ? 0 : *reinterpret_cast<const u32 *>(bias + column);
#pragma unroll
        for (int half = 0; half < 2; half += 1) {
            u32 &pair = rows.pair(lane / 4 + half * 8, column);
            const u32 skip = tiles.add == nullptr ? 0 : pair;
            float out[2];
            for (int i = 0; i < 2; i += 1) {
                out[i] = sums[n / (N / 8)][n % (N / 8) * 4 + half * 2 + i] * tiles.scale + half_of<T>(added, i) + half_of<T>(skip, i);
            }
            pair = pack<T>(out[0], out[1]);
        }
    }
    synchronise_warp();
    rows.for_each(static_cast<const T *>(tiles.out), [](Vector<T> &here, Vector<T> &there) { there = here; });
}

template <class T, int OUTPUTS, int N> __device__ void run(const Tiles &tiles, const Sources &from) {
    DYNAMIC_SHARED(bytes);
    unsigned char *const base = bytes + (ALIGNMENT - (unsigned long long)bytes % ALIGNMENT) % ALIGNMENT;
    Shared<OUTPUTS> &shared = *reinterpret_cast<Shared<OUTPUTS> *>(base);
    if (threadIdx.x == 0) {
        for (int n = 0; n < STAGES; n += 1) {
            init(shared.there[n], 1);
            init(shared.done[n], CONSUMERS * 4);
        }
        fence_init();
    }
    __syncthreads();
    const Place place(tiles, OUTPUTS);
    const int group = warpgroup_number();
    if (group == CONSUMERS) {
        give_registers<24>();
        if (threadIdx.x % 128 == 0) {
            produce(shared, tiles, from, place);
        }
    } else {
        take_registers<240>();
        float sums[OUTPUTS / N][N / 2];
        multiply_all<T, OUTPUTS, N>(shared, tiles, sums, group);
        // The stages can be reused for the results once both consumers have finished.
        synchronise(1, CONSUMERS * 128);
        const int warp = threadIdx.x / 32;
        const Rows<T, OUTPUTS> rows = {base + warp * 16 * Rows<T, OUTPUTS>::PITCH, tiles, place, warp * 16};
        store<T, OUTPUTS, N>(rows, tiles, place, sums);
    }
}

} // namespace

// Grid: outputs / OUTPUTS · across · down · frames blocks of 384 threads. Shared memory: Shared
// and 1024 bytes for alignment.
#define DEFINE_PRODUCT(NAME, T, OUTPUTS, N)                                                                             \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                             \
        NAME(Tiles tiles, GRID_CONSTANT TensorMap first, GRID_CONSTANT TensorMap second,                             \
             GRID_CONSTANT TensorMap before, GRID_CONSTANT TensorMap after, GRID_CONSTANT TensorMap weights) {       \
        run<T, OUTPUTS, N>(tiles, {first, second, before, after, weights});                                             \
    }

DEFINE_PRODUCT(product_hopper_128_f16, f16, 128, 128)
DEFINE_PRODUCT(product_hopper_256_f16, f16, 256, 128)
DEFINE_PRODUCT(product_hopper_320_f16, f16, 320, 80)
DEFINE_PRODUCT(product_hopper_128_bf16, bf16, 128, 128)
DEFINE_PRODUCT(product_hopper_256_bf16, bf16, 256, 128)
DEFINE_PRODUCT(product_hopper_320_bf16, bf16, 320, 80)
