// SPDX-License-Identifier: MIT OR Apache-2.0
// GEGLU, value·GELU(gate), in one pass over memory.

// A row of x holds `width` values, then as many gates. Grid: blocks that share the rows.
template <class T, int N>
__device__ void geglu(const T *__restrict__ x, T *__restrict__ y, long long rows, int width) {
    constexpr float SQRT_HALF = 0.707106781f;
    const Spread at(width / N);
    if (at.row >= at.rows) {
        return;
    }
    for (int column = at.column * N; column < width; column += at.columns * N) {
        for (long long row = (long long)blockIdx.x * at.rows + at.row; row < rows;
             row += gridDim.x * at.rows) {
            float values[N], gates[N];
            read_wide(values, x + row * 2 * width + column);
            read_wide(gates, x + row * 2 * width + width + column);
#pragma unroll
            for (int n = 0; n < N; n += 1) {
                values[n] *= 0.5f * gates[n] * (1 + erff(gates[n] * SQRT_HALF));
            }
            write_narrow(y + row * width + column, values);
        }
    }
}

#define KERNEL(T, NAME)                                                                                      \
    extern "C" __global__ void geglu_##NAME(const T *x, T *y, long long rows, int width) {                   \
        if (width % Vector<T>::COUNT == 0) {                                                                 \
            geglu<T, Vector<T>::COUNT>(x, y, rows, width);                                                   \
        } else {                                                                                             \
            geglu<T, 1>(x, y, rows, width);                                                                  \
        }                                                                                                    \
    }

KERNEL(f16, f16)
KERNEL(bf16, bf16)
KERNEL(float, f32)
