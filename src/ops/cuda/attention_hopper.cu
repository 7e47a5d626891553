// SPDX-License-Identifier: MIT OR Apache-2.0
// Attention with 64 channels per head for sm_90a, whose full throughput needs warpgroup products:
// one producer thread copies keys and values; three consumer warpgroups process 64 queries each.
// While the tensor cores multiply for one consumer, the others compute exponentials.

// As in attention.cu. q, k and v are read through the tensor maps of the kernel's other
// parameters.
template <class T> struct Attention {
    const T *q;
    const T *k;
    const T *v;
    T *out;
    int tokens;
    int keys;
    int row;
    int batch;
    int key_batch;
    float scale;
};

namespace {

constexpr int HEAD = 64;
constexpr int ROW = HEAD * 2;
constexpr int CONSUMERS = 3;
constexpr int QUERIES = 64;
constexpr int KEYS = 128;
constexpr int STAGES = 2;
constexpr int ALIGNMENT = 1024;

struct Shared {
    unsigned char queries[CONSUMERS][QUERIES * ROW];
    unsigned char keys[STAGES][KEYS * ROW];
    unsigned char values[STAGES][KEYS * ROW];
    Barrier queries_there;
    // A stage is full (there), or all warps have finished with it (done).
    Barrier keys_there[STAGES], values_there[STAGES];
    Barrier keys_done[STAGES], values_done[STAGES];
};

// Position in a ring of stages.
struct Stage {
    int number = 0;
    u32 parity = 0;

    __device__ void next() {
        number += 1;
        if (number == STAGES) {
            number = 0;
            parity ^= 1;
        }
    }
};

__device__ void fetch(Barrier &there, Barrier &done, unsigned char *tile, const TensorMap &map, int row, int batch,
                      u32 parity) {
    // In the first round, the stages are free.
    wait_for(done, parity ^ 1);
    arrive_and_expect(there, KEYS * ROW);
    copy_tile(tile, map, blockIdx.y * HEAD, row, batch, 0, there);
}

// Copies the queries once, then all keys and values.
template <class T>
__device__ void produce(Shared &shared, const Attention<T> &attention, const TensorMap &q, const TensorMap &k,
                        const TensorMap &v) {
    arrive_and_expect(shared.queries_there, sizeof(shared.queries));
    for (int n = 0; n < CONSUMERS; n += 1) {
        const int row = (blockIdx.x * CONSUMERS + n) * QUERIES;
        copy_tile(shared.queries[n], q, blockIdx.y * HEAD, row, blockIdx.z, 0, shared.queries_there);
    }
    const int batch = attention.key_batch == 0 ? 0 : blockIdx.z;
    Stage stage;
    for (int row = 0; row < attention.keys; row += KEYS) {
        const int n = stage.number;
        fetch(shared.keys_there[n], shared.keys_done[n], shared.keys[n], k, row, batch, stage.parity);
        fetch(shared.values_there[n], shared.values_done[n], shared.values[n], v, row, batch, stage.parity);
        stage.next();
    }
}

__device__ void done(Barrier &barrier) {
    if (threadIdx.x % 32 == 0) {
        arrive(barrier);
    }
}

// Starts scores = queries·keysᵀ.
template <class T> __device__ void begin_scores(float (&scores)[64], u64 queries, u64 keys) {
    warpgroup_fence();
#pragma unroll
    for (int n = 0; n < HEAD / 16; n += 1) {
        multiply<T>(scores, queries + n * 2, keys + n * 2, n > 0);
    }
    warpgroup_commit();
}

// Starts out += weights·values.
template <class T> __device__ void begin_sums(float (&out)[32], const u32 (&weights)[8][4], u64 values) {
    warpgroup_fence();
#pragma unroll
    for (int n = 0; n < KEYS / 16; n += 1) {
        multiply_rows<T>(out, weights[n], values + n * (16 * ROW >> 4));
    }
    warpgroup_commit();
}

// -LARGEST is less than any score; finite, so that differences are not NaN.
constexpr float LARGEST = 3.402823466e38f;

// Online softmax of a thread's two rows.
struct Softmax {
    float most[2] = {-LARGEST, -LARGEST};
    float weight[2] = {0, 0};
    // Factors that rescale the previous sums.
    float shrink[2];

    // Converts scores to weights, 2^(scale·(score - most)).
    __device__ void take(float (&scores)[64], float scale, int keys) {
        if (keys < KEYS) {
#pragma unroll
            for (int i = 0; i < 64; i += 1) {
                const int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
                scores[i] = column < keys ? scores[i] : -LARGEST;
            }
        }
#pragma unroll
        for (int row = 0; row < 2; row += 1) {
            float top = most[row];
#pragma unroll
            for (int i = 0; i < 64; i += 1) {
                top = i / 2 % 2 == row ? fmaxf(top, scores[i]) : top;
            }
            // Four lanes share a row.
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            shrink[row] = exp2_approx((most[row] - top) * scale);
            most[row] = top;
            const float offset = top * scale;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 64; i += 1) {
                if (i / 2 % 2 == row) {
                    scores[i] = exp2_approx(fmaf(scores[i], scale, -offset));
                    sum += scores[i];
                }
            }
            weight[row] = weight[row] * shrink[row] + sum;
        }
    }
};

// Packs the weights to the A operands of the product with the values.
template <class T> __device__ void pack_weights(u32 (&packed)[8][4], const float (&weights)[64]) {
#pragma unroll
    for (int n = 0; n < 8; n += 1) {
#pragma unroll
        for (int i = 0; i < 4; i += 1) {
            packed[n][i] = pack<T>(weights[n * 8 + i * 2], weights[n * 8 + i * 2 + 1]);
        }
    }
}

// Divides the sums by the weights and writes them.
template <class T>
__device__ void store(const Attention<T> &attention, const float (&out)[32], const Softmax &softmax, int consumer) {
    const int lane = threadIdx.x % 32;
    const int first = (blockIdx.x * CONSUMERS + consumer) * QUERIES + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int row = 0; row < 2; row += 1) {
        float weight = softmax.weight[row];
        weight += shuffle_xor(weight, 1);
        weight += shuffle_xor(weight, 2);
        const float share = 1 / weight;
        const int token = first + row * 8;
        if (token >= attention.tokens) {
            continue;
        }
        const long long at = (long long)blockIdx.z * attention.batch + (long long)token * attention.row;
        u32 *to = reinterpret_cast<u32 *>(attention.out + at + blockIdx.y * HEAD + lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < 8; n += 1) {
            const int i = n * 4 + row * 2;
            to[n * 4] = pack<T>(out[i] * share, out[i + 1] * share);
        }
    }
}

template <class T> __device__ void consume(Shared &shared, const Attention<T> &attention, int consumer) {
    const u64 queries = tile_descriptor(shared.queries[consumer]);
    const u64 keys = tile_descriptor(shared.keys), values = tile_descriptor(shared.values);
    const auto tile = [](const Stage &stage) { return stage.number * (KEYS * ROW >> 4); };
    float out[32] = {};
    float scores[64];
    u32 weights[8][4];
    Softmax softmax;
    Stage next, current;

    wait_for(shared.queries_there, 0);
    wait_for(shared.keys_there[0], 0);
    begin_scores<T>(scores, queries, keys);
    warpgroup_wait<0>();
    hold(scores);
    done(shared.keys_done[0]);
    softmax.take(scores, attention.scale, attention.keys);
    pack_weights<T>(weights, scores);
    next.next();

    // The scores of the next tile are computed concurrently with the sums of this one.
    for (int rest = attention.keys - KEYS; rest > 0; rest -= KEYS) {
        wait_for(shared.keys_there[next.number], next.parity);
        begin_scores<T>(scores, queries, keys + tile(next));
        wait_for(shared.values_there[current.number], current.parity);
        begin_sums<T>(out, weights, values + tile(current));
        warpgroup_wait<1>();
        hold(scores);
        done(shared.keys_done[next.number]);
        softmax.take(scores, attention.scale, rest);
        // Never true. The branch keeps ptxas from waiting for the sums before the exponentials.
        if (softmax.weight[0] + softmax.weight[1] < 0) {
            arrive(shared.queries_there);
        }
        warpgroup_wait<0>();
        hold(out);
        hold(scores);
        done(shared.values_done[current.number]);
#pragma unroll
        for (int i = 0; i < 32; i += 1) {
            out[i] *= softmax.shrink[i / 2 % 2];
        }
        pack_weights<T>(weights, scores);
        next.next();
        current.next();
    }
    wait_for(shared.values_there[current.number], current.parity);
    begin_sums<T>(out, weights, values + tile(current));
    warpgroup_wait<0>();
    hold(out);
    store<T>(attention, out, softmax, consumer);
}

template <class T>
__device__ void attend(const Attention<T> &attention, const TensorMap &q, const TensorMap &k, const TensorMap &v) {
    DYNAMIC_SHARED(bytes);
    unsigned char *const base = bytes + (ALIGNMENT - (unsigned long long)bytes % ALIGNMENT) % ALIGNMENT;
    Shared &shared = *reinterpret_cast<Shared *>(base);
    if (threadIdx.x == 0) {
        init(shared.queries_there, 1);
        for (int n = 0; n < STAGES; n += 1) {
            init(shared.keys_there[n], 1);
            init(shared.values_there[n], 1);
            init(shared.keys_done[n], CONSUMERS * 4);
            init(shared.values_done[n], CONSUMERS * 4);
        }
        fence_init();
    }
    __syncthreads();
    const int group = warpgroup_number();
    if (group == CONSUMERS) {
        give_registers<32>();
        if (threadIdx.x % 128 == 0) {
            produce(shared, attention, q, k, v);
        }
    } else {
        take_registers<160>();
        consume<T>(shared, attention, group);
    }
}

} // namespace

// Grid: (tokens / 192 rounded up, heads, sequences), 512 threads. Shared memory: Shared and 1024
// bytes for alignment.
#define KERNEL(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                             \
        attention_hopper_##T(Attention<T> attention, GRID_CONSTANT TensorMap q, GRID_CONSTANT TensorMap k,           \
                             GRID_CONSTANT TensorMap v) {                                                            \
        attend<T>(attention, q, k, v);                                                                               \
    }

KERNEL(f16)
KERNEL(bf16)
