/* A stand-in for libcuda.so.1 on a machine without a GPU: the part of the CUDA driver API that edgeseg uses, on host
 * memory, as strict as the documentation of the driver says ("CUDA Driver API", docs.nvidia.com/cuda/cuda-driver-api).
 *
 * Device memory is malloc'd, and its addresses are those of the host. Memory that is mapped (DEVICEMAP) has two
 * addresses for the same bytes, so that mixing them up shows. Work on a stream is done at once; with
 * STANDIN_CUDA_LAZY=1 it waits until the stream is synchronised, so that a forgotten synchronisation shows. While a
 * stream captures, its work is recorded, and done at each launch with what is then in the buffers.
 *
 * For a stand-in of an engine, which computes on the host what a kernel would compute on the device:
 *   int standin_cuda_capturing(void *stream);        1 while the stream is capturing, else 0
 *   int standin_cuda_run(void *stream, void (*fn)(void *), void *arg);
 *       puts fn(arg) on the stream, as a kernel: done at once, or recorded while capturing, or when the stream is
 *       synchronised. `arg` must live as long as what was captured. Needs a current context. Answers a CUresult.
 *   int standin_cuda_reads(const void *p, size_t n); 1 if the device may read and write those bytes
 *
 * For tests:
 *   long long standin_cuda_count(const char *what);  how many are alive: "contexts" (references to primary ones),
 *       "streams", "events", "graphs", "executables", "device_blocks", "device_bytes", "host_blocks", "host_bytes";
 *       how often: "launches", "calls:NAME"; "orphans": what a context still held when it was destroyed;
 *       "depth": contexts on this thread's stack
 *   void standin_cuda_fail(const char *name, int code);   the next call of that function answers code
 *
 * Switches, from the environment: STANDIN_CUDA_MEMORY (bytes of device memory), _INTEGRATED (1: a Jetson), _DEVICES,
 * _INIT (what cuInit answers), _DRIVER (12060: CUDA 12.6), _LAZY (1).
 *
 * gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 standin_cuda.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
    CAPTURE_WRONG_THREAD = 908
};
static const struct { int code; const char *name, *text; } ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
#define MANY ((int)(sizeof ERRORS / sizeof *ERRORS))
#define DEVICES 8

typedef struct Context { int device, alive; } Context;
typedef enum { COPY, CALL, STAMP } Kind;
typedef struct Op { Kind kind; void *to; const void *from; size_t n; void (*fn)(void *); void *arg; } Op;
typedef struct Ops { Op *items; size_t n, room; } Ops;
typedef enum { STREAM, EVENT, GRAPH, EXECUTABLE, BLOCK, HOST } Type;
typedef struct Thing {
    struct Thing *next;
    Type type;
    Context *context;
    Ops ops;             /* recorded, or waiting */
    int capturing;       /* a stream: 0 no, 1 yes, 2 invalidated */
    int mode;            /* of the capture: 0 global, 1 thread local, 2 relaxed */
    pthread_t thread;    /* that began it */
    struct timespec at;  /* an event */
    int recorded, timed;
    char *host, *device; /* memory: where the host, and where the device finds it */
    size_t size;
    int mapped;
} Thing;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Thing *things;
static Context *primary[DEVICES];
static int references[DEVICES], ready;
static long long launches, orphans;
static __thread Context *stack[16];
static __thread int depth;
static struct { char name[64]; long long calls; int fail; } book[128];

static long long setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

/* Count the call; what the test wants it to answer. */
static int entered(const char *name) {
    int i = 0;
    pthread_mutex_lock(&lock);
    while (i < 127 && book[i].name[0] && strcmp(book[i].name, name)) i++;
    if (!book[i].name[0]) snprintf(book[i].name, sizeof book[i].name, "%s", name);
    book[i].calls++;
    int code = book[i].fail;
    book[i].fail = 0;
    pthread_mutex_unlock(&lock);
    return code;
}

/* "cuMemAlloc_v2" counts as "cuMemAlloc". */
#define ENTER() do { \
        char plain[64]; snprintf(plain, sizeof plain, "%s", __func__); \
        char *v = strstr(plain, "_v"); if (v) *v = 0; \
        int told = entered(plain); if (told) return told; \
    } while (0)
#define NEED_INIT() do { if (!ready) return NOT_INITIALIZED; } while (0)
#define NEED_CONTEXT() do { \
        NEED_INIT(); if (!depth || !stack[depth - 1]) return INVALID_CONTEXT; \
        if (!stack[depth - 1]->alive) return CONTEXT_IS_DESTROYED; \
    } while (0)
#define HERE (stack[depth - 1])
#define LEAVE(code) do { int c = (code); pthread_mutex_unlock(&lock); return c; } while (0)

static Thing *add(Type type) {
    Thing *thing = calloc(1, sizeof *thing);
    thing->type = type;
    thing->context = depth ? HERE : NULL;
    thing->next = things;
    return things = thing;
}

static Thing *find(const void *handle, Type type) {
    for (Thing *t = things; t; t = t->next)
        if (t == handle && t->type == type) return t;
    return NULL;
}

static void discard(Thing *thing) {
    Thing **at = &things;
    while (*at != thing) at = &(*at)->next;
    *at = thing->next;
    if (thing->mapped) { munmap(thing->host, thing->size); munmap(thing->device, thing->size); }
    else free(thing->host);
    for (size_t i = 0; thing->type == STREAM && i < thing->ops.n; i++)
        if (thing->ops.items[i].kind == COPY) free(thing->ops.items[i].arg);
    free(thing->ops.items);
    free(thing);
}

static Thing *memory(const void *p, size_t n, int device) {
    for (Thing *t = things; t; t = t->next) {
        const char *at = t->type == BLOCK ? t->device : t->type != HOST ? NULL : device ? t->device : t->host;
        if (at && (const char *)p >= at && (const char *)p + n <= at + t->size) return t;
    }
    return NULL;
}

static void append(Ops *ops, Op op) {
    if (ops->n == ops->room) ops->items = realloc(ops->items, (ops->room = ops->room * 2 + 8) * sizeof op);
    ops->items[ops->n++] = op;
}

/* Do one piece of work, under the lock except for the call. */
static int perform(Op op) {
    if (op.kind == CALL) {
        pthread_mutex_unlock(&lock);
        op.fn(op.arg);
        pthread_mutex_lock(&lock);
    } else if (op.kind == STAMP) {
        Thing *event = find(op.to, EVENT);
        if (!event) return INVALID_HANDLE;
        clock_gettime(CLOCK_MONOTONIC, &event->at);
        event->recorded = 1;
    } else {
        if (!memory(op.to, op.n, 1) && !memory(op.from, op.n, 1)) return ILLEGAL_ADDRESS;
        memmove(op.to, op.from, op.n);
        free(op.arg);
    }
    return OK;
}

static int drain(Thing *stream) {
    int code = OK;
    Ops ops = stream->ops;
    if (stream->capturing) return OK;
    memset(&stream->ops, 0, sizeof ops);
    for (size_t i = 0; i < ops.n; i++) {
        int each = perform(ops.items[i]);
        if (each && !code) code = each;
    }
    free(ops.items);
    return code;
}

/* Put work on a stream. */
static int put(void *handle, Op op) {
    Thing *stream = find(handle, STREAM);
    if (!stream || stream->context != HERE) return INVALID_HANDLE;
    if (stream->capturing == 2) return CAPTURE_INVALIDATED;
    if (stream->capturing || setting("STANDIN_CUDA_LAZY", 0)) { append(&stream->ops, op); return OK; }
    return perform(op);
}

/* A call that a capture by this thread forbids (unless it is relaxed) breaks that capture. */
static int forbidden(void) {
    int code = OK;
    for (Thing *t = things; t; t = t->next)
        if (t->type == STREAM && t->capturing && t->mode != 2 && (t->mode == 0 || pthread_equal(t->thread, pthread_self()))) {
            t->capturing = 2;
            code = CAPTURE_UNSUPPORTED;
        }
    return code;
}

static size_t used(Type type) {
    size_t sum = 0;
    for (Thing *t = things; t; t = t->next)
        if (t->type == type) sum += t->size;
    return sum;
}

/* ---- for tests and for stand-ins of engines ---- */

long long standin_cuda_count(const char *what) {
    static const char *names[] = {"streams", "events", "graphs", "executables", "device_blocks", "host_blocks"};
    long long found = 0;
    pthread_mutex_lock(&lock);
    for (int type = STREAM; type <= HOST; type++)
        if (!strcmp(what, names[type]))
            for (Thing *t = things; t; t = t->next) found += (int)t->type == type;
    if (!strcmp(what, "device_bytes")) found = (long long)used(BLOCK);
    if (!strcmp(what, "host_bytes")) found = (long long)used(HOST);
    if (!strcmp(what, "launches")) found = launches;
    if (!strcmp(what, "orphans")) found = orphans;
    if (!strcmp(what, "depth")) found = depth;
    for (int i = 0; !strcmp(what, "contexts") && i < DEVICES; i++) found += references[i];
    for (int i = 0; !strncmp(what, "calls:", 6) && i < 128; i++)
        if (!strcmp(what + 6, book[i].name)) found = book[i].calls;
    pthread_mutex_unlock(&lock);
    return found;
}

void standin_cuda_fail(const char *name, int code) {
    int i = 0;
    pthread_mutex_lock(&lock);
    while (i < 127 && book[i].name[0] && strcmp(book[i].name, name)) i++;
    snprintf(book[i].name, sizeof book[i].name, "%s", name);
    book[i].fail = code;
    pthread_mutex_unlock(&lock);
}

int standin_cuda_capturing(void *stream) {
    pthread_mutex_lock(&lock);
    Thing *found = find(stream, STREAM);
    LEAVE(found != NULL && found->capturing != 0);
}

int standin_cuda_run(void *stream, void (*fn)(void *), void *arg) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    LEAVE(put(stream, (Op){.kind = CALL, .fn = fn, .arg = arg}));
}

int standin_cuda_reads(const void *p, size_t n) {
    pthread_mutex_lock(&lock);
    LEAVE(memory(p, n, 1) != NULL);
}

/* ---- the driver ---- */

CUresult cuGetErrorName(CUresult error, const char **out) {
    for (int i = 0; i < MANY; i++)
        if (ERRORS[i].code == error) { *out = ERRORS[i].name; return OK; }
    *out = NULL;
    return INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **out) {
    for (int i = 0; i < MANY; i++)
        if (ERRORS[i].code == error) { *out = ERRORS[i].text; return OK; }
    *out = NULL;
    return INVALID_VALUE;
}

CUresult cuInit(unsigned flags) {
    ENTER();
    int told = (int)setting("STANDIN_CUDA_INIT", 0);
    if (told) return told;
    if (flags) return INVALID_VALUE;
    if (setting("STANDIN_CUDA_DEVICES", 1) < 1) return NO_DEVICE;
    ready = 1;
    return OK;
}

CUresult cuDriverGetVersion(int *out) {
    *out = (int)setting("STANDIN_CUDA_DRIVER", 12060);
    return OK;
}

CUresult cuDeviceGetCount(int *out) {
    NEED_INIT();
    *out = (int)setting("STANDIN_CUDA_DEVICES", 1);
    return OK;
}

static int known(int device) { return device >= 0 && device < DEVICES && device < setting("STANDIN_CUDA_DEVICES", 1); }

CUresult cuDeviceGet(int *out, int ordinal) {
    NEED_INIT();
    if (!known(ordinal)) return INVALID_DEVICE;
    *out = ordinal;
    return OK;
}

CUresult cuDeviceGetName(char *out, int n, int device) {
    NEED_INIT();
    if (!known(device)) return INVALID_DEVICE;
    snprintf(out, (size_t)n, "Stand-in %d", device);
    return OK;
}

CUresult cuDeviceGetAttribute(int *out, int attribute, int device) {
    NEED_INIT();
    if (!known(device)) return INVALID_DEVICE;
    int integrated = setting("STANDIN_CUDA_INTEGRATED", 0) != 0;
    switch (attribute) {
        case 18: *out = integrated; return OK;
        case 75: *out = 8; return OK;
        case 76: *out = integrated ? 7 : 6; return OK;
        default: *out = 0; return INVALID_VALUE;
    }
}

CUresult cuDeviceComputeCapability(int *major, int *minor, int device) {
    CUresult code = cuDeviceGetAttribute(major, 75, device);
    return code ? code : cuDeviceGetAttribute(minor, 76, device);
}

CUresult cuDeviceTotalMem_v2(size_t *out, int device) {
    NEED_INIT();
    if (!known(device)) return INVALID_DEVICE;
    *out = (size_t)setting("STANDIN_CUDA_MEMORY", 1 << 30);
    return OK;
}

CUresult cuMemGetInfo_v2(size_t *left, size_t *total) {
    NEED_CONTEXT();
    *total = (size_t)setting("STANDIN_CUDA_MEMORY", 1 << 30);
    pthread_mutex_lock(&lock);
    *left = *total - used(BLOCK);
    LEAVE(OK);
}

CUresult cuDevicePrimaryCtxRetain(Context **out, int device) {
    ENTER();
    NEED_INIT();
    if (!known(device)) return INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (!references[device]++) {
        primary[device] = calloc(1, sizeof(Context)); /* never freed: a stale handle must be told from a live one */
        primary[device]->device = device;
        primary[device]->alive = 1;
    }
    *out = primary[device];
    LEAVE(OK);
}

CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER();
    NEED_INIT();
    if (!known(device)) return INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (!references[device]) LEAVE(INVALID_CONTEXT);
    if (!--references[device]) {
        primary[device]->alive = 0;
        for (Thing *t = things, *next; t; t = next) {
            next = t->next;
            if (t->context == primary[device]) { orphans++; discard(t); }
        }
    }
    LEAVE(OK);
}

CUresult cuCtxSetCurrent(Context *context) {
    ENTER();
    NEED_INIT();
    if (context && !context->alive) return CONTEXT_IS_DESTROYED;
    if (!context) { if (depth) depth--; return OK; }
    if (!depth) depth = 1;
    HERE = context;
    return OK;
}

CUresult cuCtxGetCurrent(Context **out) {
    NEED_INIT();
    *out = depth ? HERE : NULL;
    return OK;
}

CUresult cuCtxPushCurrent_v2(Context *context) {
    ENTER();
    NEED_INIT();
    if (!context || depth == 16) return INVALID_VALUE;
    if (!context->alive) return CONTEXT_IS_DESTROYED;
    stack[depth++] = context;
    return OK;
}

CUresult cuCtxPopCurrent_v2(Context **out) {
    ENTER();
    NEED_INIT();
    if (!depth) return INVALID_CONTEXT;
    if (out) *out = HERE;
    depth--;
    return OK;
}

CUresult cuCtxGetDevice(int *out) {
    NEED_CONTEXT();
    *out = HERE->device;
    return OK;
}

CUresult cuCtxSynchronize(void) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    int code = forbidden();
    for (Thing *t = things; t && !code; t = t->next)
        if (t->type == STREAM && t->context == HERE) code = drain(t);
    LEAVE(code);
}

CUresult cuStreamCreate(Thing **out, unsigned flags) {
    ENTER();
    NEED_CONTEXT();
    if (flags > 1) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    *out = add(STREAM);
    LEAVE(OK);
}

CUresult cuStreamDestroy_v2(Thing *handle) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    if (!stream) LEAVE(INVALID_HANDLE);
    int code = drain(stream);
    discard(stream);
    LEAVE(code);
}

CUresult cuStreamSynchronize(Thing *handle) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    if (!stream) LEAVE(INVALID_HANDLE);
    if (stream->capturing) { stream->capturing = 2; LEAVE(CAPTURE_UNSUPPORTED); }
    LEAVE(drain(stream));
}

CUresult cuStreamQuery(Thing *handle) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    LEAVE(!stream ? INVALID_HANDLE : stream->ops.n ? NOT_READY : OK);
}

CUresult cuStreamIsCapturing(Thing *handle, int *out) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    if (stream) *out = stream->capturing;
    LEAVE(stream ? OK : INVALID_HANDLE);
}

CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size) {
    ENTER();
    NEED_CONTEXT();
    if (!size) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int code = forbidden();
    if (code) LEAVE(code);
    if (used(BLOCK) + size > (size_t)setting("STANDIN_CUDA_MEMORY", 1 << 30)) LEAVE(OUT_OF_MEMORY);
    Thing *block = add(BLOCK);
    block->host = block->device = malloc(size);
    block->size = size;
    memset(block->host, 0xA5, size); /* new memory holds anything */
    *out = (CUdeviceptr)(uintptr_t)block->device;
    LEAVE(OK);
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    int code = forbidden();
    if (code) LEAVE(code);
    Thing *block = memory((void *)(uintptr_t)address, 1, 1);
    if (!block || block->type != BLOCK || block->device != (char *)(uintptr_t)address) LEAVE(INVALID_VALUE);
    discard(block);
    LEAVE(OK);
}

CUresult cuMemHostAlloc(void **out, size_t size, unsigned flags) {
    ENTER();
    NEED_CONTEXT();
    if (!size || flags > 7) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int code = forbidden();
    if (code) LEAVE(code);
    Thing *block = add(HOST);
    block->size = size;
    if (flags & 2) { /* DEVICEMAP */
        int file = memfd_create("mapped", 0);
        block->mapped = file >= 0 && !ftruncate(file, (off_t)size);
        block->host = block->mapped ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
        block->device = block->mapped ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
        close(file);
        if (block->host == MAP_FAILED || block->device == MAP_FAILED) abort();
    } else {
        block->host = malloc(size);
    }
    memset(block->host, 0xA5, size);
    *out = block->host;
    LEAVE(OK);
}

CUresult cuMemFreeHost(void *address) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *block = memory(address, 1, 0);
    if (!block || block->type != HOST || block->host != address) LEAVE(INVALID_VALUE);
    discard(block);
    LEAVE(OK);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *address, unsigned flags) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *block = memory(address, 1, 0);
    if (flags || !block || !block->mapped) LEAVE(INVALID_VALUE);
    *out = (CUdeviceptr)(uintptr_t)(block->device + ((char *)address - block->host));
    LEAVE(OK);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, Thing *stream) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    if (!memory((void *)(uintptr_t)to, n, 1)) LEAVE(INVALID_VALUE);
    Thing *at = find(stream, STREAM);
    void *staged = NULL;
    if (at && !at->capturing && !memory(from, n, 0)) /* pageable memory is staged before the call comes back */
        from = memcpy(staged = malloc(n ? n : 1), from, n);
    LEAVE(put(stream, (Op){.kind = COPY, .to = (void *)(uintptr_t)to, .from = from, .n = n, .arg = staged}));
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, Thing *stream) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    if (!memory((void *)(uintptr_t)from, n, 1)) LEAVE(INVALID_VALUE);
    int code = put(stream, (Op){.kind = COPY, .to = to, .from = (void *)(uintptr_t)from, .n = n});
    Thing *at = find(stream, STREAM);
    if (!code && at && !memory(to, n, 0)) code = drain(at); /* into pageable memory the call waits */
    LEAVE(code);
}

CUresult cuEventCreate(Thing **out, unsigned flags) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    *out = add(EVENT);
    (*out)->timed = !(flags & 2);
    LEAVE(OK);
}

CUresult cuEventDestroy_v2(Thing *handle) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *event = find(handle, EVENT);
    if (event) discard(event);
    LEAVE(event ? OK : INVALID_HANDLE);
}

CUresult cuEventRecord(Thing *event, Thing *stream) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    if (!find(event, EVENT)) LEAVE(INVALID_HANDLE);
    event->recorded = -1;
    LEAVE(put(stream, (Op){.kind = STAMP, .to = event}));
}

CUresult cuEventQuery(Thing *event) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    LEAVE(!find(event, EVENT) ? INVALID_HANDLE : event->recorded == -1 ? NOT_READY : OK);
}

CUresult cuEventSynchronize(Thing *event) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    int code = find(event, EVENT) ? OK : INVALID_HANDLE;
    for (Thing *t = things; t && !code && event->recorded == -1; t = t->next)
        if (t->type == STREAM) code = drain(t);
    LEAVE(code);
}

static CUresult elapsed(float *out, Thing *start, Thing *end) {
    pthread_mutex_lock(&lock);
    if (!find(start, EVENT) || !find(end, EVENT) || !start->timed || !end->timed) LEAVE(INVALID_HANDLE);
    if (!start->recorded || !end->recorded) LEAVE(INVALID_HANDLE);
    if (start->recorded < 0 || end->recorded < 0) LEAVE(NOT_READY);
    *out = (float)((double)(end->at.tv_sec - start->at.tv_sec) * 1e3 +
                   (double)(end->at.tv_nsec - start->at.tv_nsec) * 1e-6);
    LEAVE(OK);
}

CUresult cuEventElapsedTime(float *out, Thing *start, Thing *end) { NEED_CONTEXT(); return elapsed(out, start, end); }
CUresult cuEventElapsedTime_v2(float *out, Thing *start, Thing *end) { NEED_CONTEXT(); return elapsed(out, start, end); }

CUresult cuStreamBeginCapture_v2(Thing *handle, int mode) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    if (!stream) LEAVE(INVALID_HANDLE);
    if (stream->capturing || mode < 0 || mode > 2) LEAVE(INVALID_VALUE);
    int code = drain(stream);
    stream->capturing = 1;
    stream->mode = mode;
    stream->thread = pthread_self();
    LEAVE(code);
}

CUresult cuStreamEndCapture(Thing *handle, Thing **out) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *stream = find(handle, STREAM);
    *out = NULL;
    if (!stream) LEAVE(INVALID_HANDLE);
    if (!stream->capturing) LEAVE(INVALID_VALUE);
    if (stream->mode != 2 && !pthread_equal(stream->thread, pthread_self())) LEAVE(CAPTURE_WRONG_THREAD);
    int broken = stream->capturing == 2;
    stream->capturing = 0;
    if (broken) {
        stream->ops.n = 0;
        LEAVE(CAPTURE_INVALIDATED);
    }
    *out = add(GRAPH);
    (*out)->ops = stream->ops;
    memset(&stream->ops, 0, sizeof stream->ops);
    LEAVE(OK);
}

static CUresult instantiate(Thing **out, Thing *handle) {
    NEED_INIT();
    pthread_mutex_lock(&lock);
    Thing *graph = find(handle, GRAPH);
    if (!graph) LEAVE(INVALID_VALUE);
    *out = add(EXECUTABLE);
    (*out)->context = graph->context;
    for (size_t i = 0; i < graph->ops.n; i++) append(&(*out)->ops, graph->ops.items[i]);
    LEAVE(OK);
}

/* Three signatures by version: with a log to 11.3, with flags from 11.4, which is what the plain name means from 12. */
CUresult cuGraphInstantiate_v2(Thing **out, Thing *graph, Thing **node, char *log, size_t n) {
    entered("cuGraphInstantiate");
    if (node) *node = NULL;
    if (log && n) *log = 0;
    return instantiate(out, graph);
}

CUresult cuGraphInstantiateWithFlags(Thing **out, Thing *graph, unsigned long long flags) {
    int told = entered("cuGraphInstantiate");
    if (told) return told;
    return flags & ~15ULL ? INVALID_VALUE : instantiate(out, graph);
}

CUresult cuGraphDestroy(Thing *handle) {
    ENTER();
    pthread_mutex_lock(&lock);
    Thing *graph = find(handle, GRAPH);
    if (graph) discard(graph);
    LEAVE(graph ? OK : INVALID_VALUE);
}

CUresult cuGraphExecDestroy(Thing *handle) {
    ENTER();
    pthread_mutex_lock(&lock);
    Thing *exec = find(handle, EXECUTABLE);
    if (exec) discard(exec);
    LEAVE(exec ? OK : INVALID_VALUE);
}

CUresult cuGraphLaunch(Thing *handle, Thing *stream) {
    ENTER();
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    Thing *exec = find(handle, EXECUTABLE);
    if (!exec) LEAVE(INVALID_VALUE);
    launches++;
    int code = OK;
    for (size_t i = 0; i < exec->ops.n && !code; i++) code = put(stream, exec->ops.items[i]);
    LEAVE(code);
}

CUresult cuGetProcAddress(const char *name, void **out, int version, uint64_t flags);

/* The newest variant of a name that a caller of that CUDA version knows. */
static void *lookup(const char *name, int version) {
    char full[96];
    if (!strcmp(name, "cuGraphInstantiate") && version >= 12000) name = "cuGraphInstantiateWithFlags";
    if (!strcmp(name, "cuEventElapsedTime") && version < 12080) return (void *)cuEventElapsedTime;
    if (!strcmp(name, "cuGetProcAddress") && version < 12000) return (void *)cuGetProcAddress;
    Dl_info self;
    if (!dladdr((void *)cuInit, &self)) return NULL;
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return NULL;
    snprintf(full, sizeof full, "%s_v2", name);
    void *found = dlsym(library, full);
    if (!found) found = dlsym(library, name);
    Dl_info where;
    if (found && (!dladdr(found, &where) || where.dli_fbase != self.dli_fbase)) found = NULL;
    dlclose(library);
    return found;
}

CUresult cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status) {
    (void)flags;
    *out = lookup(name, version);
    if (status) *status = *out ? 0 : 1;
    return *out ? OK : NOT_FOUND;
}

CUresult cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
