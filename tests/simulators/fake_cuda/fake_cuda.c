/* A libcuda.so.1 for tests: its device memory is the host's and its kernels do nothing.
 *
 * It counts what is alive, fails any call on request and ends submissions when it is told to.
 * Modules are cubins as NVRTC makes them: functions and globals are looked up in their symbol
 * tables. Work on a stream is done at once, but an event is reached only where nothing holds it.
 */
#include <elf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600, ALREADY = 712 };

EXPORT char fake_fail_call[64]; /* the call that fails next, "" for none */
EXPORT int fake_fail_after;     /* calls of that name that still succeed */
EXPORT int fake_fail_result;
EXPORT int fake_fail_always; /* keep failing */
EXPORT int fake_calls;
EXPORT int fake_gpus = 1, fake_version = 13000, fake_major = 9, fake_minor = 0, fake_cores = 4,
           fake_host_pointer = 1;
EXPORT int fake_hold;  /* events are not reached */
EXPORT int fake_async; /* what events, and then every other call, give: a lost context */
EXPORT int fake_contexts, fake_memory, fake_host_memory, fake_registrations, fake_streams,
    fake_events, fake_modules, fake_graphs, fake_execs, fake_depth;
EXPORT int fake_launches, fake_graph_launches, fake_nodes;
EXPORT int fake_serial_edges, fake_early_edges; /* of graphs */
/* The last launch, plain or in a graph. */
EXPORT char fake_kernel[128];
EXPORT unsigned fake_grid[3], fake_block[3], fake_shared;
EXPORT unsigned long long fake_parameters[32]; /* the first 8 bytes of each */
EXPORT char fake_seen[1024]; /* names of all calls so far, each once, with commas */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;

EXPORT void fake_forget(void);

static int enter(const char *name) {
    int result = OK;
    pthread_mutex_lock(&lock);
    fake_calls++;
    char marked[80] = ",";
    strcat(strcat(marked, name), ",");
    if (!strstr(fake_seen, marked) && strlen(fake_seen) + strlen(marked) < sizeof fake_seen) {
        if (!fake_seen[0]) strcpy(fake_seen, ",");
        strcat(fake_seen, marked + 1);
    }
    if (strcmp(fake_fail_call, name) == 0) {
        if (fake_fail_after > 0) {
            fake_fail_after--;
        } else {
            result = fake_fail_result;
            if (!fake_fail_always) fake_fail_call[0] = '\0';
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
#define ENTER(name)                \
    do {                           \
        int failed = enter(#name); \
        if (failed) return failed; \
    } while (0)
/* A call that a lost context fails. */
#define ENTER_CONTEXT(name) \
    ENTER(name);            \
    if (fake_async) return fake_async
#define COUNT(counter, by) __atomic_add_fetch(&(counter), by, __ATOMIC_SEQ_CST)

EXPORT void fake_release(void) {
    pthread_mutex_lock(&lock);
    fake_hold = 0;
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&lock);
}

EXPORT int cuInit(unsigned flags) {
    (void)flags;
    ENTER(cuInit);
    return OK;
}
EXPORT int cuDriverGetVersion(int *version) {
    ENTER(cuDriverGetVersion);
    *version = fake_version;
    return OK;
}
EXPORT int cuGetErrorName(int result, const char **name) {
    *name = result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE";
    return OK;
}
EXPORT int cuGetErrorString(int result, const char **text) {
    (void)result;
    *text = "a test made it fail";
    return OK;
}
EXPORT int cuDeviceGetCount(int *count) {
    ENTER(cuDeviceGetCount);
    *count = fake_gpus;
    return OK;
}
EXPORT int cuDeviceGet(int *gpu, int index) {
    ENTER(cuDeviceGet);
    *gpu = index;
    return OK;
}
EXPORT int cuDeviceGetName(char *name, int size, int gpu) {
    (void)gpu;
    ENTER(cuDeviceGetName);
    strncpy(name, "Fake GPU", (size_t)size);
    return OK;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int gpu) {
    (void)gpu;
    ENTER(cuDeviceTotalMem);
    *bytes = (size_t)1 << 32;
    return OK;
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int gpu) {
    static const int limits[] = {0, 1024, 1024, 1024, 64, 2147483647, 65535, 65535, 49152};
    (void)gpu;
    ENTER(cuDeviceGetAttribute);
    switch (attribute) {
    case 16: *value = fake_cores; break;
    case 18: *value = 0; break;
    case 75: *value = fake_major; break;
    case 76: *value = fake_minor; break;
    case 91: *value = fake_host_pointer; break;
    default:
        if (attribute < 1 || attribute > 8) return INVALID_VALUE;
        *value = limits[attribute];
    }
    return OK;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int gpu) {
    (void)gpu;
    ENTER(cuDevicePrimaryCtxRetain);
    if (fake_async && fake_contexts) return fake_async;
    *context = &fake_contexts;
    COUNT(fake_contexts, 1);
    return OK;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int gpu) {
    (void)gpu;
    ENTER(cuDevicePrimaryCtxRelease);
    if (COUNT(fake_contexts, -1) == 0 && fake_async) {
        /* All that the context had goes with it. */
        fake_async = 0;
        fake_forget();
    }
    return OK;
}
EXPORT int cuCtxPushCurrent_v2(void *context) {
    (void)context;
    ENTER(cuCtxPushCurrent);
    COUNT(fake_depth, 1);
    return OK;
}
EXPORT int cuCtxPopCurrent_v2(void **context) {
    *context = NULL;
    COUNT(fake_depth, -1);
    return OK;
}
EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total) {
    *available = 1000;
    *total = 2000;
    return OK;
}

/* NVRTC asks for it where a libcuda is loaded, and does without. */
EXPORT int cuGetExportTable(const void **table, const void *id) {
    (void)id;
    *table = NULL;
    return INVALID_VALUE;
}

/* Memory */
EXPORT int cuMemAlloc_v2(unsigned long long *address, size_t bytes) {
    ENTER_CONTEXT(cuMemAlloc);
    char *made = malloc(bytes);
    if (!made) return NO_MEMORY;
    memset(made, 0xA5, bytes);
    *address = (unsigned long long)(size_t)made;
    COUNT(fake_memory, 1);
    return OK;
}
EXPORT int cuMemFree_v2(unsigned long long address) {
    ENTER_CONTEXT(cuMemFree);
    free((void *)(size_t)address);
    COUNT(fake_memory, -1);
    return OK;
}
/* Host memory that the device can reach: what was registered, and what was allocated, in whole
 * pages. */
#define MAX_REGISTERED 64
#define MAX_PINNED     1024
typedef struct range {
    char *start;
    size_t bytes;
} range;
static range registered[MAX_REGISTERED], pinned[MAX_PINNED];
static int holds(const range *ranges, int n, const char *at) {
    for (int i = 0; i < n; i++)
        if (ranges[i].start && ranges[i].start <= at && at < ranges[i].start + ranges[i].bytes)
            return 1;
    return 0;
}
static range *range_of(range *ranges, int n, const char *start) {
    for (int i = 0; i < n; i++)
        if (ranges[i].start == start) return ranges + i;
    return NULL;
}
EXPORT int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    (void)flags;
    ENTER_CONTEXT(cuMemHostAlloc);
    bytes = (bytes + 4095) / 4096 * 4096;
    range *free_range = range_of(pinned, MAX_PINNED, NULL);
    if (!free_range || posix_memalign(memory, 4096, bytes) != 0) return NO_MEMORY;
    *free_range = (range){*memory, bytes};
    memset(*memory, 0xA5, bytes);
    COUNT(fake_host_memory, 1);
    return OK;
}
EXPORT int cuMemFreeHost(void *memory) {
    ENTER_CONTEXT(cuMemFreeHost);
    range *r = range_of(pinned, MAX_PINNED, memory);
    if (!r) return INVALID_VALUE;
    r->start = NULL;
    free(memory);
    COUNT(fake_host_memory, -1);
    return OK;
}
EXPORT int cuMemHostGetDevicePointer_v2(unsigned long long *address, void *memory, unsigned flags) {
    (void)flags;
    ENTER_CONTEXT(cuMemHostGetDevicePointer);
    if (!holds(registered, MAX_REGISTERED, memory) && !holds(pinned, MAX_PINNED, memory))
        return INVALID_VALUE;
    *address = (unsigned long long)(size_t)memory;
    return OK;
}
EXPORT int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags) {
    char *start = memory;
    (void)flags;
    ENTER_CONTEXT(cuMemHostRegister);
    for (int i = 0; i < MAX_REGISTERED; i++) {
        if (registered[i].start && start < registered[i].start + registered[i].bytes &&
            registered[i].start < start + bytes)
            return ALREADY;
    }
    if (holds(pinned, MAX_PINNED, start)) return INVALID_VALUE; /* as a driver of today says */
    for (int i = 0; i < MAX_REGISTERED; i++) {
        if (registered[i].start) continue;
        registered[i].start = start;
        registered[i].bytes = bytes;
        COUNT(fake_registrations, 1);
        return OK;
    }
    return NO_MEMORY;
}
/* Count nothing as alive any more. */
EXPORT void fake_forget(void) {
    fake_contexts = fake_memory = fake_host_memory = fake_registrations = fake_streams =
        fake_events = 0;
    fake_modules = fake_graphs = fake_execs = 0;
    memset(registered, 0, sizeof registered);
    memset(pinned, 0, sizeof pinned);
}
EXPORT int cuMemHostUnregister(void *memory) {
    ENTER_CONTEXT(cuMemHostUnregister);
    for (int i = 0; i < MAX_REGISTERED; i++) {
        if (registered[i].start != memory) continue;
        registered[i].start = NULL;
        COUNT(fake_registrations, -1);
        return OK;
    }
    return INVALID_VALUE;
}
EXPORT int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes,
                                void *stream) {
    (void)stream;
    ENTER_CONTEXT(cuMemcpyHtoDAsync);
    memcpy((void *)(size_t)to, from, bytes);
    return OK;
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    (void)stream;
    ENTER_CONTEXT(cuMemcpyDtoHAsync);
    memcpy(to, (void *)(size_t)from, bytes);
    return OK;
}
EXPORT int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    ENTER_CONTEXT(cuMemsetD8Async);
    memset((void *)(size_t)to, value, bytes);
    return OK;
}

/* Streams and events */
EXPORT int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    ENTER_CONTEXT(cuStreamCreate);
    *stream = &fake_streams;
    COUNT(fake_streams, 1);
    return OK;
}
EXPORT int cuStreamSynchronize(void *stream) {
    (void)stream;
    ENTER_CONTEXT(cuStreamSynchronize);
    return OK;
}
EXPORT int cuStreamDestroy_v2(void *stream) {
    (void)stream;
    ENTER_CONTEXT(cuStreamDestroy);
    COUNT(fake_streams, -1);
    return OK;
}
EXPORT int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    ENTER_CONTEXT(cuEventCreate);
    *event = malloc(1);
    COUNT(fake_events, 1);
    return OK;
}
EXPORT int cuEventRecord(void *event, void *stream) {
    (void)event;
    (void)stream;
    ENTER_CONTEXT(cuEventRecord);
    return OK;
}
EXPORT int cuEventQuery(void *event) {
    (void)event;
    ENTER_CONTEXT(cuEventQuery);
    return __atomic_load_n(&fake_hold, __ATOMIC_SEQ_CST) ? NOT_READY : OK;
}
EXPORT int cuEventSynchronize(void *event) {
    (void)event;
    ENTER_CONTEXT(cuEventSynchronize);
    pthread_mutex_lock(&lock);
    while (fake_hold) pthread_cond_wait(&change, &lock);
    pthread_mutex_unlock(&lock);
    return fake_async;
}
EXPORT int cuEventElapsedTime(float *milliseconds, void *begin, void *end) {
    (void)begin;
    (void)end;
    ENTER_CONTEXT(cuEventElapsedTime);
    *milliseconds = 2.5f;
    return OK;
}
EXPORT int cuEventDestroy_v2(void *event) {
    ENTER_CONTEXT(cuEventDestroy);
    free(event);
    COUNT(fake_events, -1);
    return OK;
}

/* Modules: ELF files. */
typedef struct function {
    char name[128];
    int n_parameters;
} function;
typedef struct module {
    function function; /* the last one that was asked for */
    char *bytes;
    const Elf64_Shdr *sections;
    const Elf64_Sym *symbols;
    size_t n_symbols;
    const char *names;
} module;

EXPORT int cuModuleLoadData(void **out, const void *image) {
    const Elf64_Ehdr *head = image;
    ENTER_CONTEXT(cuModuleLoadData);
    if (memcmp(head->e_ident, ELFMAG, SELFMAG) != 0) return INVALID_VALUE;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)((const char *)image + head->e_shoff);
    size_t end = head->e_shoff + (size_t)head->e_shnum * sizeof *sections;
    for (int i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
            end = sections[i].sh_offset + sections[i].sh_size;
    }
    module *made = calloc(1, sizeof *made);
    made->bytes = malloc(end);
    memcpy(made->bytes, image, end);
    made->sections = (const Elf64_Shdr *)(made->bytes + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++) {
        const Elf64_Shdr *s = made->sections + i;
        if (s->sh_type != SHT_SYMTAB) continue;
        made->symbols = (const Elf64_Sym *)(made->bytes + s->sh_offset);
        made->n_symbols = s->sh_size / sizeof(Elf64_Sym);
        made->names = made->bytes + made->sections[s->sh_link].sh_offset;
    }
    *out = made;
    COUNT(fake_modules, 1);
    return OK;
}
EXPORT int cuModuleUnload(void *handle) {
    module *m = handle;
    ENTER_CONTEXT(cuModuleUnload);
    free(m->bytes);
    free(m);
    COUNT(fake_modules, -1);
    return OK;
}
static const Elf64_Sym *symbol(const module *m, const char *name) {
    for (size_t i = 0; i < m->n_symbols; i++) {
        if (strcmp(m->names + m->symbols[i].st_name, name) == 0) return m->symbols + i;
    }
    return NULL;
}
EXPORT int cuModuleGetGlobal_v2(unsigned long long *address, size_t *bytes, void *handle,
                                const char *name) {
    module *m = handle;
    ENTER_CONTEXT(cuModuleGetGlobal);
    const Elf64_Sym *found = symbol(m, name);
    if (!found) return NOT_FOUND;
    const Elf64_Shdr *section = m->sections + found->st_shndx;
    *address = (unsigned long long)(size_t)(m->bytes + section->sh_offset + found->st_value);
    *bytes = found->st_size;
    return OK;
}
EXPORT int cuModuleGetFunction(void **out, void *handle, const char *name) {
    module *m = handle;
    ENTER_CONTEXT(cuModuleGetFunction);
    if (!symbol(m, name) || strlen(name) > 100) return NOT_FOUND;
    char table[128] = "msl_table_";
    const Elf64_Sym *found = symbol(m, strcat(table, name + strlen("msl_entry_")));
    if (!found) return NOT_FOUND;
    const unsigned *words =
        (const unsigned *)(m->bytes + m->sections[found->st_shndx].sh_offset + found->st_value);
    function *f = &m->function;
    strcpy(f->name, name);
    f->n_parameters = 0;
    for (unsigned i = 0; i < words[1]; i++) f->n_parameters += words[3 + 5 * i] != 2;
    *out = f;
    return OK;
}
EXPORT int cuFuncGetAttribute(int *value, int attribute, void *handle) {
    (void)handle;
    ENTER_CONTEXT(cuFuncGetAttribute);
    *value = attribute == 0 ? 1024 : 0;
    return OK;
}

/* Launches and graphs */
static void note(const function *f, const unsigned *sizes, unsigned shared, void **parameters) {
    pthread_mutex_lock(&lock);
    strcpy(fake_kernel, f->name);
    memcpy(fake_grid, sizes, sizeof fake_grid);
    memcpy(fake_block, sizes + 3, sizeof fake_block);
    fake_shared = shared;
    for (int i = 0; i < f->n_parameters && i < 32; i++)
        memcpy(fake_parameters + i, parameters[i], 8);
    pthread_mutex_unlock(&lock);
}
EXPORT int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                          unsigned by, unsigned bz, unsigned shared, void *stream,
                          void **parameters, void **extra) {
    (void)stream;
    (void)extra;
    ENTER_CONTEXT(cuLaunchKernel);
    const unsigned sizes[] = {gx, gy, gz, bx, by, bz};
    note(handle, sizes, shared, parameters);
    COUNT(fake_launches, 1);
    return OK;
}
struct node {
    void *function;
    unsigned sizes[6], shared;
    void **parameters, **extra;
};
EXPORT int cuGraphCreate(void **graph, unsigned flags) {
    (void)flags;
    ENTER_CONTEXT(cuGraphCreate);
    *graph = malloc(1);
    COUNT(fake_graphs, 1);
    return OK;
}
EXPORT int cuGraphAddKernelNode(void **node, void *graph, void *const *before, size_t n,
                                const struct node *kernel) {
    ENTER_CONTEXT(cuGraphAddKernelNode);
    if ((n != 0) != (before != NULL) || (n && !*before)) return INVALID_VALUE;
    note(kernel->function, kernel->sizes, kernel->shared, kernel->parameters);
    COUNT(fake_nodes, 1);
    COUNT(fake_serial_edges, (int)n);
    *node = graph;
    return OK;
}
#ifndef FAKE_NO_EDGES
struct edge {
    unsigned char from_port, to_port, type, reserved[5];
};
EXPORT int cuGraphAddDependencies_v2(void *graph, void *const *from, void *const *to,
                                     const struct edge *edges, size_t n) {
    ENTER_CONTEXT(cuGraphAddDependencies);
    for (size_t i = 0; i < n; i++) {
        if (from[i] != graph || to[i] != graph) return INVALID_VALUE;
        if (edges[i].from_port != 1 || edges[i].to_port != 0 || edges[i].type != 1)
            return INVALID_VALUE;
        for (size_t r = 0; r < sizeof edges[i].reserved; r++) {
            if (edges[i].reserved[r]) return INVALID_VALUE;
        }
    }
    COUNT(fake_early_edges, (int)n);
    return OK;
}
#endif
EXPORT int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    (void)graph;
    (void)flags;
    ENTER_CONTEXT(cuGraphInstantiate);
    *exec = malloc(1);
    COUNT(fake_execs, 1);
    return OK;
}
EXPORT int cuGraphLaunch(void *exec, void *stream) {
    (void)exec;
    (void)stream;
    ENTER_CONTEXT(cuGraphLaunch);
    COUNT(fake_graph_launches, 1);
    return OK;
}
EXPORT int cuGraphExecDestroy(void *exec) {
    ENTER_CONTEXT(cuGraphExecDestroy);
    free(exec);
    COUNT(fake_execs, -1);
    return OK;
}
EXPORT int cuGraphDestroy(void *graph) {
    ENTER_CONTEXT(cuGraphDestroy);
    free(graph);
    COUNT(fake_graphs, -1);
    return OK;
}
