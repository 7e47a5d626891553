// SPDX-License-Identifier: MIT OR Apache-2.0
// Stands in for the driver of one Hopper GPU whose kernels do nothing, so that the code that starts them runs where
// there is no GPU: memory is the host's, and what a driver would refuse is an error that says so. For
// scripts/cuda-dry-run, which adds the functions that are not here: they do nothing either.

#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500 };
// Attributes of a device and of a kernel, by their numbers in cuda.h.
enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MOST_SHARED = 97, MEMORY_POOLS = 115 };
enum { DYNAMIC_SHARED = 8 };
// Of a pool of memory.
enum { USED = 7, USED_HIGH = 8 };

#define SHARED_BYTES 232448
#define TOTAL_BYTES (80ull << 30)
// What is larger is not copied, only given out: nobody looks at it.
#define LOOKED_AT (1 << 20)

typedef uint64_t Pointer;

static size_t used, high;

static int refuse(const char *what, const char *name) {
    fprintf(stderr, "the driver would refuse %s of %s\n", what, name);
    return INVALID_VALUE;
}

// Fresh pages are zeros, and take no memory before they are touched.
__attribute__((constructor)) static void map_what_is_large(void) {
    mallopt(M_MMAP_THRESHOLD, LOOKED_AT);
    mallopt(M_MMAP_MAX, 1 << 20);
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MULTIPROCESSORS    ? 132
             : attribute == CAPABILITY_MAJOR ? 9
             : attribute == CAPABILITY_MINOR ? 0
             : attribute == MOST_SHARED      ? SHARED_BYTES
                                             : 1;
    return SUCCESS;
}

// NVRTC asks for tables of a real driver.
int cuGetExportTable(void) { return NOT_FOUND; }

// Handles that only have to be there.
static int handle(void **to) {
    *to = &used;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
int cuCtxGetCurrent(void **context) { return handle(context); }
int cuStreamCreate(void **stream, unsigned flags) { return handle(stream); }
int cuEventCreate(void **event, unsigned flags) { return handle(event); }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return handle(pool); }

int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
    *milliseconds = 0.01;
    return SUCCESS;
}

int cuMemAllocAsync(Pointer *pointer, size_t bytes, void *stream) {
    const size_t room = 256;
    size_t *memory = used + bytes > TOTAL_BYTES ? NULL : aligned_alloc(room, (bytes + 2 * room - 1) / room * room);
    if (memory == NULL) {
        return OUT_OF_MEMORY;
    }
    *memory = bytes;
    *pointer = (Pointer)memory + room;
    if (bytes < LOOKED_AT) {
        memset((void *)*pointer, 0, bytes);
    }
    used += bytes;
    high = used > high ? used : high;
    return SUCCESS;
}

int cuMemFreeAsync(Pointer pointer, void *stream) {
    size_t *memory = (size_t *)(pointer - 256);
    used -= *memory;
    free(memory);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, void *stream) {
    if (bytes < LOOKED_AT) {
        memcpy((void *)to, from, bytes);
    }
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *stream) {
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void *stream) {
    if (bytes < LOOKED_AT) {
        memcpy((void *)to, (void *)from, bytes);
    }
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *left, size_t *total) {
    *total = TOTAL_BYTES;
    *left = TOTAL_BYTES - used;
    return SUCCESS;
}

int cuMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) {
    *value = attribute == USED ? used : high;
    return SUCCESS;
}

int cuMemPoolSetAttribute(void *pool, int attribute, uint64_t *value) {
    if (attribute == USED_HIGH) {
        high = used;
    }
    return SUCCESS;
}

struct Kernel {
    char name[128];
    unsigned shared;
};

int cuModuleLoadData(char **module, const char *ptx) {
    *module = strdup(ptx);
    return SUCCESS;
}

int cuModuleGetFunction(struct Kernel **kernel, const char *module, const char *name) {
    char entry[200];
    snprintf(entry, sizeof(entry), ".entry %s(", name);
    if (strstr(module, entry) == NULL) {
        refuse("a kernel by the name", name);
        return NOT_FOUND;
    }
    *kernel = calloc(1, sizeof(**kernel));
    strncpy((*kernel)->name, name, sizeof((*kernel)->name) - 1);
    (*kernel)->shared = 48 << 10;
    return SUCCESS;
}

int cuFuncSetAttribute(struct Kernel *kernel, int attribute, int value) {
    if (attribute != DYNAMIC_SHARED) {
        return SUCCESS;
    }
    kernel->shared = value;
    return value <= SHARED_BYTES ? SUCCESS : refuse("so much shared memory for blocks", kernel->name);
}

int cuLaunchKernel(struct Kernel *kernel, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
    const unsigned long long threads = (unsigned long long)block_x * block_y * block_z;
    if (x == 0 || y == 0 || z == 0 || x > INT32_MAX || y > 65535 || z > 65535 || threads == 0 || threads > 1024) {
        return refuse("the grid or the blocks", kernel->name);
    }
    return shared <= kernel->shared ? SUCCESS : refuse("the blocks' shared memory", kernel->name);
}

int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    // Of two bytes a number, in boxes as wide as the swizzle.
    int fits = (uintptr_t)map % 64 == 0 && (uintptr_t)address % 16 == 0 && box[0] * 2 <= 128;
    for (uint32_t n = 0; n < rank; n += 1) {
        fits &= sizes[n] > 0 && sizes[n] <= 1ull << 32 && box[n] > 0 && box[n] <= 256 && steps[n] == 1;
        fits &= n + 1 == rank || (strides[n] % 16 == 0 && strides[n] < 1ull << 40);
    }
    return fits ? SUCCESS : refuse("the map", "a tensor");
}
