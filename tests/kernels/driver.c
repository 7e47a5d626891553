// SPDX-License-Identifier: MIT OR Apache-2.0
// A mock CUDA driver with one Hopper GPU, so that host code which launches kernels runs without a
// GPU. Device memory is host memory, and calls that a driver would reject report an error. For
// scripts/cuda-dry-run, which generates no-op stubs for all other functions. Kernels compute
// nothing, except with DRIVER_EMULATED.
//
// Environment:
// DRIVER_CAPABILITY=X.Y
//     Compute capability of the device instead of 9.0.
// DRIVER_MIB=N
//     Memory of the device in MiB instead of 80 GiB.
// DRIVER_EMULATED=DIR
//     Folder of libraries built from tests/kernels/emulated.cpp. Their kernels are computed until
//     the first launch of a kernel that none of them has: emulating a network would take days.
// DRIVER_LOG=FILE
//     Appends the kernel's name for each launch.
// DRIVER_FAULT=WHAT:NAME
//     Makes kernels whose name begins with NAME fail to load (load), fail to launch (launch), fail
//     while running, after which all calls fail (run), or never end (hang).

// For memmem.
#define _GNU_SOURCE

#include <dlfcn.h>
#include <glob.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NO_BINARY = 209, NOT_FOUND = 500 };
enum { NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701 };
// Attributes of a device and of a kernel, with their values in cuda.h.
enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MOST_SHARED = 97, MEMORY_POOLS = 115 };
enum { DYNAMIC_SHARED = 8 };
// Attributes of a memory pool.
enum { RESERVED = 5, USED = 7, USED_HIGH = 8 };

#define SHARED_BYTES 232448
// Larger allocations are never read, so their contents are not copied.
#define LOOKED_AT (1 << 20)

typedef uint64_t Pointer;

static size_t used, high;
// The error that every call returns from now on, or 0.
static int lost;
// Whether a kernel that never ends is running.
static int hangs;

// Memory of the device: DRIVER_MIB in MiB, by default 80 GiB.
static size_t total_bytes(void) {
    const char *mib = getenv("DRIVER_MIB");
    return (mib != NULL ? strtoull(mib, NULL, 10) : 80ull << 10) << 20;
}

static int refuse(const char *what, const char *name) {
    fprintf(stderr, "the driver would refuse %s of %s\n", what, name);
    return INVALID_VALUE;
}

// Whether DRIVER_FAULT applies to a kernel in a given way.
static int has_fault(const char *way, const char *name) {
    const char *fault = getenv("DRIVER_FAULT");
    const size_t length = strlen(way);
    if (fault == NULL || strncmp(fault, way, length) != 0 || fault[length] != ':') {
        return 0;
    }
    const char *begin = fault + length + 1;
    return strncmp(name, begin, strlen(begin)) == 0;
}

// Fresh pages are zero and take no physical memory until they are touched.
__attribute__((constructor)) static void map_what_is_large(void) {
    mallopt(M_MMAP_THRESHOLD, LOOKED_AT);
    mallopt(M_MMAP_MAX, 1 << 20);
}

int cuGetErrorString(int error, const char **text) {
    *text = "an error of the stand-in driver";
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Stand-in GPU");
    return SUCCESS;
}

static int capability(int part) {
    const char *text = getenv("DRIVER_CAPABILITY");
    int parts[2] = {9, 0};
    if (text != NULL) {
        sscanf(text, "%d.%d", &parts[0], &parts[1]);
    }
    return parts[part];
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MULTIPROCESSORS    ? 132
             : attribute == CAPABILITY_MAJOR ? capability(0)
             : attribute == CAPABILITY_MINOR ? capability(1)
             : attribute == MOST_SHARED      ? SHARED_BYTES
                                             : 1;
    return SUCCESS;
}

// A non-null dummy handle.
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
    size_t *memory = used + bytes > total_bytes() ? NULL : aligned_alloc(room, (bytes + 2 * room - 1) / room * room);
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
    // Emulated kernels read all data.
    if (bytes < LOOKED_AT || getenv("DRIVER_EMULATED") != NULL) {
        memcpy((void *)to, from, bytes);
    }
    return lost;
}

int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *stream) {
    memcpy(to, (void *)from, bytes);
    return lost;
}

int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void *stream) {
    if (bytes < LOOKED_AT) {
        memcpy((void *)to, (void *)from, bytes);
    }
    return lost;
}

int cuEventQuery(void *event) { return hangs ? NOT_READY : lost; }
int cuStreamSynchronize(void *stream) { return lost; }
int cuCtxSynchronize(void) { return lost; }

int cuMemGetInfo_v2(size_t *left, size_t *total) {
    *total = total_bytes();
    *left = total_bytes() - used;
    return SUCCESS;
}

int cuMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) {
    // The pool does not cache freed memory.
    *value = attribute == USED || attribute == RESERVED ? used : high;
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

// The text of a PTX file, or an image of a fatbin for the device.
struct Module {
    const char *bytes;
    size_t size;
    int is_image;
};

static uint32_t number(const char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

// Finds an image in a fatbin for the device's compute capability or an earlier minor version.
static int find_image(struct Module *module, const char *fatbin) {
    uint64_t total;
    memcpy(&total, fatbin + 8, sizeof(total));
    uint32_t best = 0;
    // The format is a header of 16 bytes, then images, each with a header that holds both lengths.
    for (const char *at = fatbin + 16; at < fatbin + 16 + total;) {
        const uint32_t header = number(at + 4), size = number(at + 8), architecture = number(at + 28);
        const int fits = architecture / 10 == capability(0) && architecture % 10 <= capability(1);
        if (fits && architecture > best && memcmp(at + header, "\177ELF", 4) == 0) {
            best = architecture;
            *module = (struct Module){at + header, size, 1};
        }
        at += header + size;
    }
    return best > 0;
}

static int contains(const struct Module *module, const char *text, size_t length) {
    return memmem(module->bytes, module->size, text, length) != NULL;
}

int cuModuleLoadData(struct Module **to, const char *data) {
    struct Module *module = calloc(1, sizeof(*module));
    *to = module;
    if (number(data) != 0xba55ed50) {
        *module = (struct Module){strdup(data), strlen(data), 0};
        return lost;
    }
    if (!find_image(module, data)) {
        fprintf(stderr, "the driver would refuse a fatbin without an image for the device\n");
        return NO_BINARY;
    }
    // cudarc frees the image that it has loaded.
    char *copy = malloc(module->size);
    module->bytes = memcpy(copy, module->bytes, module->size);
    const char *fault = getenv("DRIVER_FAULT");
    char section[200] = "";
    if (fault != NULL && strncmp(fault, "load:", 5) == 0) {
        snprintf(section, sizeof(section), ".text.%s", fault + 5);
    }
    return section[0] != 0 && contains(module, section, strlen(section)) ? NO_BINARY : lost;
}

int cuModuleGetFunction(struct Kernel **kernel, const struct Module *module, const char *name) {
    char entry[200];
    // An image has a section for each kernel, with a zero-terminated name.
    const int length = snprintf(entry, sizeof(entry), module->is_image ? ".text.%s" : ".entry %s(", name);
    if (!contains(module, entry, length + module->is_image)) {
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

// Function of emulated.cpp that runs a kernel by name and returns whether it exists.
typedef int Emulate(const char *name, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments);

static int emulate(const char *name, const unsigned *grid, const unsigned *block, unsigned shared, void **arguments) {
    static Emulate *libraries[16];
    static size_t count;
    static int ended;
    if (count == 0) {
        char pattern[1000];
        snprintf(pattern, sizeof(pattern), "%s/*.so", getenv("DRIVER_EMULATED"));
        glob_t found;
        if (glob(pattern, 0, NULL, &found) != 0) {
            fprintf(stderr, "there is no %s\n", pattern);
            abort();
        }
        for (; count < found.gl_pathc && count < 16; count += 1) {
            void *library = dlopen(found.gl_pathv[count], RTLD_NOW | RTLD_LOCAL);
            libraries[count] = library == NULL ? NULL : (Emulate *)dlsym(library, "emulate");
            if (libraries[count] == NULL) {
                fprintf(stderr, "%s\n", dlerror());
                abort();
            }
        }
    }
    for (size_t n = 0; n < count && !ended; n += 1) {
        if (libraries[n](name, grid, block, shared, arguments)) {
            return 1;
        }
    }
    ended = 1;
    return 0;
}

static void note(const char *name) {
    const char *path = getenv("DRIVER_LOG");
    FILE *log = path == NULL ? NULL : fopen(path, "a");
    if (log != NULL) {
        fprintf(log, "%s\n", name);
        fclose(log);
    }
}

int cuLaunchKernel(struct Kernel *kernel, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
    const unsigned long long threads = (unsigned long long)block_x * block_y * block_z;
    if (x == 0 || y == 0 || z == 0 || x > INT32_MAX || y > 65535 || z > 65535 || threads == 0 || threads > 1024) {
        return refuse("the grid or the blocks", kernel->name);
    }
    if (shared > kernel->shared) {
        return refuse("the blocks' shared memory", kernel->name);
    }
    if (lost != SUCCESS || has_fault("launch", kernel->name)) {
        return lost != SUCCESS ? lost : OUT_OF_RESOURCES;
    }
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&one_at_a_time);
    note(kernel->name);
    if (getenv("DRIVER_EMULATED") != NULL) {
        const unsigned grid[3] = {x, y, z}, block[3] = {block_x, block_y, block_z};
        emulate(kernel->name, grid, block, shared, arguments);
    }
    if (has_fault("run", kernel->name)) {
        lost = ILLEGAL_ADDRESS;
    }
    hangs |= has_fault("hang", kernel->name);
    pthread_mutex_unlock(&one_at_a_time);
    return SUCCESS;
}

// Layout in tests/kernels/hopper.h, as the emulated kernels expect it.
struct TensorMap {
    const void *base;
    int columns, width, height, depth, tile_width, tile_height;
};

int cuTensorMapEncodeTiled(struct TensorMap *map, int type, uint32_t rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    // Elements of two bytes, in boxes no wider than the swizzle.
    int fits = (uintptr_t)map % 64 == 0 && (uintptr_t)address % 16 == 0 && box[0] * 2 <= 128;
    for (uint32_t n = 0; n < rank; n += 1) {
        fits &= sizes[n] > 0 && sizes[n] <= 1ull << 32 && box[n] > 0 && box[n] <= 256 && steps[n] == 1;
        fits &= n + 1 == rank || (strides[n] % 16 == 0 && strides[n] < 1ull << 40);
    }
    // Four dimensions, innermost first.
    *map = (struct TensorMap){address, sizes[0], sizes[1], sizes[2], sizes[3], box[1], box[2]};
    return fits && rank == 4 ? SUCCESS : refuse("the map", "a tensor");
}
