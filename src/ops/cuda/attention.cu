// SPDX-License-Identifier: MIT OR Apache-2.0
// Attention on tensor cores without a matrix of all scores: a block keeps its queries in
// registers, iterates over tiles of keys and values, and rescales the sums whenever the maximum
// score grows (FlashAttention-2: Dao, arXiv 2307.08691).

// Mirrored in src/ops/cuda/attention.rs with repr(C). Strides are in elements: `row` between
// tokens of all four tensors, `batch` between sequences of q and out, `key_batch` between
// sequences of k and v, 0 if all sequences share them. Head h has the columns from 64·h on. scale
// is log2(e)/√64.
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

// Columns of a head. In shared memory they form a row of 128 bytes, which spans all banks.
constexpr int HEAD = 64;
constexpr int ROW_BYTES = 2 * HEAD;
constexpr int CHUNKS = ROW_BYTES / 16;

// Less than all scores, and finite: the difference of two is not NaN.
constexpr float LOWEST = -3e38f;

// Address of a chunk of 16 bytes of a row. The XOR swizzle avoids bank conflicts between the
// chunks of a column in 8 consecutive rows.
__device__ inline unsigned char *place(unsigned char *tile, int row, int chunk) {
    return tile + row * ROW_BYTES + (chunk ^ (row & 7)) * 16;
}

// Starts to copy ROWS rows of a head to shared memory. Rows from `valid` on are zeros.
template <int ROWS, int THREADS, class T>
__device__ void load(unsigned char *tile, const T *rows, int stride, int valid) {
    static_assert(ROWS * CHUNKS % THREADS == 0, "each thread copies as much");
#pragma unroll
    for (int n = 0; n < ROWS * CHUNKS / THREADS; n += 1) {
        const int index = n * THREADS + threadIdx.x;
        const int row = index / CHUNKS, chunk = index % CHUNKS;
        const bool here = row < valid;
        const T *from = rows + (long long)(here ? row : 0) * stride + chunk * 8;
        copy_async(place(tile, row, chunk), from, here);
    }
}

// A lane's state for its queries: rows lane/4 and lane/4 + 8 of each tile of 16.
template <int TILES> struct Queries {
    // A operands of mma, 16 columns per step.
    u32 q[TILES][HEAD / 16][4];
    // Weighted sums of values so far, 8 columns per step.
    float sums[TILES][HEAD / 8][4];
    // Maximum score so far, scaled.
    float best[TILES][2];
    // This lane's share of the sum of weights.
    float weight[TILES][2];
};

// Loads the queries to registers and clears the sums.
template <int TILES> __device__ void start(Queries<TILES> &queries, unsigned char *tile, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t += 1) {
#pragma unroll
        for (int step = 0; step < HEAD / 16; step += 1) {
            ldmatrix(queries.q[t][step], place(tile, row + 16 * t + lane % 16, 2 * step + lane / 16));
        }
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 1) {
#pragma unroll
            for (int i = 0; i < 4; i += 1) {
                queries.sums[t][n][i] = 0;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half += 1) {
            queries.best[t][half] = LOWEST;
            queries.weight[t][half] = 0;
        }
    }
}

// s = q·kᵀ, not scaled.
template <class T, int TILES, int KEYS>
__device__ void multiply_keys(float (&s)[TILES][KEYS / 8][4], const Queries<TILES> &queries,
                              unsigned char *k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t += 1) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 1) {
#pragma unroll
            for (int i = 0; i < 4; i += 1) {
                s[t][n][i] = 0;
            }
        }
    }
#pragma unroll
    for (int step = 0; step < HEAD / 16; step += 1) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            u32 b[4];
            ldmatrix(b, place(k, 8 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
            for (int t = 0; t < TILES; t += 1) {
                mma<T>(s[t][n], queries.q[t][step], b[0], b[1]);
                mma<T>(s[t][n + 1], queries.q[t][step], b[2], b[3]);
            }
        }
    }
}

// Masks the scores of keys from `from` on, which do not exist.
template <int TILES, int KEYS> __device__ void hide(float (&s)[TILES][KEYS / 8][4], int from) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 1) {
#pragma unroll
        for (int i = 0; i < 4; i += 1) {
            if (8 * n + column + i % 2 >= from) {
#pragma unroll
                for (int t = 0; t < TILES; t += 1) {
                    s[t][n][i] = LOWEST;
                }
            }
        }
    }
}

// Converts scores to weights and rescales the previous sums to the new maximum.
template <int TILES, int KEYS>
__device__ void weigh(float (&s)[TILES][KEYS / 8][4], Queries<TILES> &queries, float scale) {
#pragma unroll
    for (int t = 0; t < TILES; t += 1) {
#pragma unroll
        for (int half = 0; half < 2; half += 1) {
            const int i = 2 * half;
            float most = LOWEST;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 1) {
                most = fmaxf(most, fmaxf(s[t][n][i], s[t][n][i + 1]));
            }
            most = fmaxf(most, shuffle_xor(most, 1));
            most = fmaxf(most, shuffle_xor(most, 2));
            // All exponents use the same rounded product, so that its error cancels.
            const float best = fmaxf(queries.best[t][half], most * scale);
            const float shrink = exp2_approx(queries.best[t][half] - best);
            queries.best[t][half] = best;
            float weight = queries.weight[t][half] * shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 1) {
                s[t][n][i] = exp2_approx(fmaf(s[t][n][i], scale, -best));
                s[t][n][i + 1] = exp2_approx(fmaf(s[t][n][i + 1], scale, -best));
                weight += s[t][n][i] + s[t][n][i + 1];
            }
            queries.weight[t][half] = weight;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n += 1) {
                queries.sums[t][n][i] *= shrink;
                queries.sums[t][n][i + 1] *= shrink;
            }
        }
    }
}

// sums += s·v, with s rounded to T.
template <class T, int TILES, int KEYS>
__device__ void add_values(Queries<TILES> &queries, const float (&s)[TILES][KEYS / 8][4], unsigned char *v) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step += 1) {
        u32 a[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t += 1) {
            // mma's accumulator layout matches its A operand's layout.
#pragma unroll
            for (int i = 0; i < 4; i += 1) {
                const float (&pair)[4] = s[t][2 * step + i / 2];
                a[t][i] = pack<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            u32 b[4];
            ldmatrix_transposed(b, place(v, 16 * step + lane % 16, n + lane / 16));
#pragma unroll
            for (int t = 0; t < TILES; t += 1) {
                mma<T>(queries.sums[t][n], a[t], b[0], b[1]);
                mma<T>(queries.sums[t][n + 1], a[t], b[2], b[3]);
            }
        }
    }
}

// Divides the sums by the weights and writes them to rows of shared memory.
template <class T, int TILES>
__device__ void finish(const Queries<TILES> &queries, unsigned char *tile, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t += 1) {
#pragma unroll
        for (int half = 0; half < 2; half += 1) {
            float weight = queries.weight[t][half];
            weight += shuffle_xor(weight, 1);
            weight += shuffle_xor(weight, 2);
            const float factor = 1 / weight;
            const int row = first + 16 * t + 8 * half + lane / 4;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n += 1) {
                const float (&sums)[4] = queries.sums[t][n];
                const u32 pair = pack<T>(sums[2 * half] * factor, sums[2 * half + 1] * factor);
                reinterpret_cast<u32 *>(place(tile, row, n))[lane % 4] = pair;
            }
        }
    }
}

// Writes the rows below `valid` from shared to global memory.
template <int ROWS, int THREADS, class T>
__device__ void store(T *rows, unsigned char *tile, int stride, int valid) {
#pragma unroll
    for (int n = 0; n < ROWS * CHUNKS / THREADS; n += 1) {
        const int index = n * THREADS + threadIdx.x;
        const int row = index / CHUNKS, chunk = index % CHUNKS;
        if (row < valid) {
            *reinterpret_cast<Vector<T> *>(rows + (long long)row * stride + chunk * 8) =
                *reinterpret_cast<Vector<T> *>(place(tile, row, chunk));
        }
    }
}

// Each block processes WARPS·TILES·16 queries and KEYS keys per step. Grid: (blocks of queries,
// heads, sequences). Shared memory: two stages of KEYS rows of 128 bytes of k and of v; the
// queries are in the second stage at first.
template <class T, int WARPS, int TILES, int KEYS> __device__ void attend(const Attention<T> &args) {
    constexpr int THREADS = 32 * WARPS, ROWS = 16 * TILES * WARPS, TILE = KEYS * ROW_BYTES;
    static_assert(ROWS <= 2 * KEYS, "the queries fit in half of the shared memory");
    DYNAMIC_SHARED(shared);
    const int first = blockIdx.x * ROWS, head = blockIdx.y * HEAD;
    const int own = threadIdx.x / 32 * 16 * TILES;
    const long long queries_at = (long long)blockIdx.z * args.batch + (long long)first * args.row + head;
    const long long keys_at = (long long)blockIdx.z * args.key_batch + head;
    const T *k = args.k + keys_at;
    const T *v = args.v + keys_at;

    load<ROWS, THREADS>(shared + 2 * TILE, args.q + queries_at, args.row, args.tokens - first);
    commit();
    load<KEYS, THREADS>(shared, k, args.row, args.keys);
    load<KEYS, THREADS>(shared + TILE, v, args.row, args.keys);
    commit();
    wait<1>();
    __syncthreads();
    Queries<TILES> queries;
    start(queries, shared + 2 * TILE, own);

    unsigned char *tile = shared, *other = shared + 2 * TILE;
    for (int left = args.keys; left > 0; left -= KEYS) {
        wait<0>();
        // This step's keys have arrived for all threads, and no thread reads the tile that the
        // next copy overwrites.
        __syncthreads();
        if (left > KEYS) {
            k += (long long)KEYS * args.row;
            v += (long long)KEYS * args.row;
            load<KEYS, THREADS>(other, k, args.row, left - KEYS);
            load<KEYS, THREADS>(other + TILE, v, args.row, left - KEYS);
            commit();
        }
        float s[TILES][KEYS / 8][4];
        multiply_keys<T, TILES, KEYS>(s, queries, tile);
        if (left < KEYS) {
            hide<TILES, KEYS>(s, left);
        }
        weigh<TILES, KEYS>(s, queries, args.scale);
        add_values<T, TILES, KEYS>(queries, s, tile + TILE);
        unsigned char *done = tile;
        tile = other;
        other = done;
    }

    __syncthreads();
    finish<T>(queries, shared, own);
    __syncthreads();
    store<ROWS, THREADS>(args.out + queries_at, shared, args.row, args.tokens - first);
}

// 128 queries per block, for long sequences. Two blocks fit a multiprocessor.
extern "C" __global__ void __launch_bounds__(128, 2) attention_f16(Attention<f16> args) {
    attend<f16, 4, 2, 64>(args);
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_bf16(Attention<bf16> args) {
    attend<bf16, 4, 2, 64>(args);
}

// 32 queries per block, for attention along up to 32 frames.
extern "C" __global__ void __launch_bounds__(64) attention_short_f16(Attention<f16> args) {
    attend<f16, 2, 1, 32>(args);
}
extern "C" __global__ void __launch_bounds__(64) attention_short_bf16(Attention<bf16> args) {
    attend<bf16, 2, 1, 32>(args);
}

// 48 queries per block, for attention along up to 48 frames.
extern "C" __global__ void __launch_bounds__(96) attention_medium_f16(Attention<f16> args) {
    attend<f16, 3, 1, 48>(args);
}
extern "C" __global__ void __launch_bounds__(96) attention_medium_bf16(Attention<bf16> args) {
    attend<bf16, 3, 1, 48>(args);
}
