// SPDX-License-Identifier: MIT OR Apache-2.0
// A mock cuBLASLt, for use without a GPU: computes small products in host memory according to
// their layouts and rejects what cuBLASLt would reject. For scripts/cuda-dry-run, which generates
// no-op stubs for all other functions.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
// Values of cudaDataType_t and cublasComputeType_t.
enum { F32 = 0, F16 = 2, BF16 = 14, SUMS_F32 = 68 };
// Attributes of a matmul descriptor, and of a preference.
enum { TRANS_A = 3, TRANS_B = 4, EPILOGUE = 7, BIAS_POINTER = 8 };
enum { MOST_WORKSPACE = 1, ALIGNMENT_A = 5, ALIGNMENT_D = 8 };
enum { EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4 };
// Multiplications up to which a product is computed.
#define LOOKED_AT (1ull << 28)

struct Product {
    int sums, scale;
    int32_t transposed_a, transposed_b;
    int32_t epilogue;
    const void *bias;
};

// A column-major matrix layout.
struct Matrix {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Preference {
    uint64_t workspace;
    uint32_t alignment;
};

// The opaque 64 bytes of an algorithm, which the caller allocates.
struct Algorithm {
    uint64_t workspace, alignment, rows, columns, steps, rest[3];
};

struct Heuristic {
    struct Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static int refuse(const char *what) {
    fprintf(stderr, "cuBLASLt would refuse %s\n", what);
    return INVALID_VALUE;
}

int cublasLtCreate(void **handle) {
    static char only;
    *handle = &only;
    return SUCCESS;
}

int cublasLtMatmulDescCreate(struct Product **product, int sums, int scale) {
    *product = calloc(1, sizeof(**product));
    **product = (struct Product){sums, scale, 0, 0, EPILOGUE_NONE, NULL};
    return SUCCESS;
}

int cublasLtMatmulDescDestroy(struct Product *product) {
    free(product);
    return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(struct Product *product, int name, const void *value, size_t bytes) {
    void *const to = name == TRANS_A        ? (void *)&product->transposed_a
                     : name == TRANS_B      ? (void *)&product->transposed_b
                     : name == EPILOGUE     ? (void *)&product->epilogue
                     : name == BIAS_POINTER ? (void *)&product->bias
                                            : NULL;
    if (to == NULL || bytes != (name == BIAS_POINTER ? sizeof(void *) : sizeof(int32_t))) {
        return refuse("an attribute of a product");
    }
    memcpy(to, value, bytes);
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(struct Matrix **matrix, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *matrix = calloc(1, sizeof(**matrix));
    **matrix = (struct Matrix){type, rows, columns, stride};
    return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(struct Matrix *matrix) {
    free(matrix);
    return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(struct Preference **preference) {
    *preference = calloc(1, sizeof(**preference));
    **preference = (struct Preference){0, 256};
    return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(struct Preference *preference) {
    free(preference);
    return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(struct Preference *preference, int name, const void *value, size_t bytes) {
    if (name == MOST_WORKSPACE && bytes == sizeof(uint64_t)) {
        memcpy(&preference->workspace, value, bytes);
    } else if (name >= ALIGNMENT_A && name <= ALIGNMENT_D && bytes == sizeof(uint32_t)) {
        memcpy(&preference->alignment, value, bytes);
    } else {
        return refuse("an attribute of a preference");
    }
    return SUCCESS;
}

// Whether the shapes of the matrices match.
static int fits(const struct Product *product, const struct Matrix *a, const struct Matrix *b,
                const struct Matrix *c, const struct Matrix *d) {
    const uint64_t rows = product->transposed_a ? a->columns : a->rows;
    const uint64_t steps = product->transposed_a ? a->rows : a->columns;
    const uint64_t columns = product->transposed_b ? b->rows : b->columns;
    const struct Matrix *const all[] = {a, b, c, d};
    int fit = product->sums == SUMS_F32 && product->scale == F32 && rows > 0 && columns > 0 && steps > 0;
    fit &= (product->transposed_b ? b->columns : b->rows) == steps;
    for (int n = 0; n < 4; n += 1) {
        fit &= all[n]->type == d->type && (d->type == F16 || d->type == BF16);
        fit &= all[n]->stride >= (int64_t)all[n]->rows;
        fit &= n < 2 || (all[n]->rows == rows && all[n]->columns == columns);
    }
    fit &= product->epilogue == EPILOGUE_NONE || (product->epilogue == EPILOGUE_BIAS && product->bias != NULL);
    return fit;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, const struct Product *product, const struct Matrix *a,
                                   const struct Matrix *b, const struct Matrix *c, const struct Matrix *d,
                                   const struct Preference *preference, int most, struct Heuristic *found, int *count) {
    *count = 0;
    if (most < 1 || !fits(product, a, b, c, d)) {
        return refuse("the layouts of a product");
    }
    *count = 1;
    memset(found, 0, sizeof(*found));
    found->algorithm = (struct Algorithm){preference->workspace, preference->alignment, d->rows, d->columns, a->rows};
    found->workspace = preference->workspace;
    return SUCCESS;
}

static float widen(uint16_t bits, int type) {
    float wide;
    if (type == BF16) {
        const uint32_t all = (uint32_t)bits << 16;
        memcpy(&wide, &all, sizeof(wide));
    } else {
        _Float16 half;
        memcpy(&half, &bits, sizeof(half));
        wide = half;
    }
    return wide;
}

// Rounds to nearest even.
static uint16_t narrow(float wide, int type) {
    uint16_t bits;
    if (type == BF16) {
        uint32_t all;
        memcpy(&all, &wide, sizeof(all));
        bits = (all + 0x7fff + (all >> 16 & 1)) >> 16;
    } else {
        const _Float16 half = wide;
        memcpy(&bits, &half, sizeof(bits));
    }
    return bits;
}

// An element of a matrix, or of its transpose.
static float at(const uint16_t *values, const struct Matrix *matrix, int transposed, uint64_t row, uint64_t column) {
    const uint64_t place = transposed ? row * matrix->stride + column : column * matrix->stride + row;
    return widen(values[place], matrix->type);
}

int cublasLtMatmul(void *handle, const struct Product *product, const float *alpha, const uint16_t *a_values,
                   const struct Matrix *a, const uint16_t *b_values, const struct Matrix *b, const float *beta,
                   const uint16_t *c_values, const struct Matrix *c, uint16_t *d_values, const struct Matrix *d,
                   const struct Algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    if (!fits(product, a, b, c, d)) {
        return refuse("the layouts of a product");
    }
    if (algorithm->rows != d->rows || algorithm->columns != d->columns || algorithm->steps != a->rows) {
        return refuse("another product's algorithm");
    }
    const uintptr_t addresses = (uintptr_t)a_values | (uintptr_t)b_values | (uintptr_t)c_values | (uintptr_t)d_values;
    if (addresses % algorithm->alignment != 0) {
        return refuse("addresses that are not as aligned as was said");
    }
    if (workspace == NULL || workspace_bytes < algorithm->workspace) {
        return refuse("the workspace");
    }
    const uint64_t steps = product->transposed_a ? a->rows : a->columns;
    if (d->rows * d->columns * steps > LOOKED_AT) {
        return SUCCESS;
    }
    for (uint64_t column = 0; column < d->columns; column += 1) {
        for (uint64_t row = 0; row < d->rows; row += 1) {
            float sum = 0;
            for (uint64_t step = 0; step < steps; step += 1) {
                sum += at(a_values, a, product->transposed_a, row, step) *
                       at(b_values, b, product->transposed_b, step, column);
            }
            float value = *alpha * sum;
            if (*beta != 0) {
                value += *beta * at(c_values, c, 0, row, column);
            }
            if (product->epilogue == EPILOGUE_BIAS) {
                value += widen(((const uint16_t *)product->bias)[row], d->type);
            }
            d_values[column * d->stride + row] = narrow(value, d->type);
        }
    }
    return SUCCESS;
}
