/* The driver "cpu": memory is the host's, and a submission runs on the caller's thread and the
 * pool. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/builtin_drivers.h"
#include "panels.h"

#define MAP_BYTES     ((size_t)1 << 20) /* from this size on, pages of their own */
#define HUGE_BYTES    ((size_t)2 << 20) /* a huge page of Linux */
#define CPU_ALIGNMENT 4u /* of a binding's offset: kernels load 32-bit elements at least */

typedef struct cpu_device {
    const cpu_isa *isa;
    uint32_t threads;
} cpu_device;

typedef struct cpu_buffer {
    void *address;
    void *mapping; /* NULL where the memory is not a mapping of ours */
    size_t mapped;
    int wrapped;
} cpu_buffer;

static const oxb_host *host;

static oxb_status device_count(uint32_t *count) {
    *count = 1;
    return OXB_OK;
}

static oxb_status thread_count(const oxb_device_options *options, uint32_t *threads) {
    const uint32_t asked = options != NULL ? options->threads : 0;
    *threads = 1;
    if (asked > CPU_MAX_THREADS)
        return host->fail(OXB_DEVICE_NOT_FOUND,
                          "threads is %" PRIu32 ": the cpu device takes 1 to %u", asked,
                          CPU_MAX_THREADS);
    const char *text = getenv("OXIBONSAI_THREADS");
    if (asked != 0) {
        *threads = asked;
    } else if (text != NULL && *text != '\0') {
        char *end;
        errno = 0;
        const long value = strtol(text, &end, 10);
        if (errno != 0 || end == text || *end != '\0' || value < 1 || value > (long)CPU_MAX_THREADS)
            return host->fail(
                OXB_DEVICE_NOT_FOUND,
                "the environment variable OXIBONSAI_THREADS is '%.64s': set a whole number "
                "from 1 to %u, or unset it",
                text, CPU_MAX_THREADS);
        *threads = (uint32_t)value;
    } else {
        *threads = cpu_count();
    }
    return OXB_OK;
}

static const char *variant(uint32_t index) {
    const cpu_isa *isa = cpu_variant(index);
    return isa != NULL ? isa->name : NULL;
}

static oxb_status choose_isa(const oxb_device_options *options, const cpu_isa **isa) {
    const char *asked = options != NULL ? options->variant : NULL;
    const char *where = "variant";
    if (asked == NULL || *asked == '\0') {
        asked = getenv("OXIBONSAI_CPU_VARIANT");
        where = "the environment variable OXIBONSAI_CPU_VARIANT";
    }
    *isa = asked == NULL || *asked == '\0' ? cpu_variant(0) : cpu_variant_named(asked);
    if (*isa != NULL) return OXB_OK;
    char known[128] = "";
    const char *name;
    for (uint32_t i = 0; (name = variant(i)) != NULL; i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", name);
    }
    return host->fail(OXB_DEVICE_NOT_FOUND,
                      "%s is '%.64s': the cpu device has %s on this processor", where, asked,
                      known);
}

static oxb_status device_open(uint32_t index, const oxb_device_options *options, void **device) {
    uint32_t threads;
    if (index != 0)
        return host->fail(OXB_DEVICE_NOT_FOUND,
                          "there is no cpu device %" PRIu32 ": the only one is 0", index);
    const cpu_isa *isa;
    oxb_status status = thread_count(options, &threads);
    if (status == OXB_OK) status = choose_isa(options, &isa);
    if (status != OXB_OK) return status;
    cpu_device *self = malloc(sizeof *self);
    if (self == NULL)
        return host->fail(OXB_DEVICE_NOT_FOUND, "out of memory opening the cpu device");
    self->isa = isa;
    self->threads = threads;
    *device = self;
    return OXB_OK;
}

static void device_close(void *device) { free(device); }

static void device_info(void *device, oxb_device_info *info) {
    const cpu_device *self = device;
    memset(info, 0, sizeof *info);
    cpu_brand(info->name, sizeof info->name);
    snprintf(info->driver, sizeof info->driver, "cpu");
    snprintf(info->variant, sizeof info->variant, "%s", self->isa->name);
    info->simd_width = 1; /* one thread runs a threadgroup */
    info->unified_memory = 1;
    info->threads = self->threads;
    info->max_buffer_length = cpu_memory();
    info->recommended_working_set = info->max_buffer_length;
}

/* Zeroed, so that a buffer never shows what the process freed before. */
static int allocate(cpu_buffer *buffer, size_t length) {
    if (length < MAP_BYTES) {
        const size_t size = (length + 63) / 64 * 64 + (length == 0 ? 64 : 0);
        if (posix_memalign(&buffer->address, 64, size) != 0) return 0;
        memset(buffer->address, 0, size);
        return 1;
    }
    /* Room to start on a huge page: row strides touch many pages at once. */
    const size_t size = length + HUGE_BYTES;
    void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (mapping == MAP_FAILED) return 0;
    buffer->mapping = mapping;
    buffer->mapped = size;
    const uintptr_t skip = (HUGE_BYTES - (uintptr_t)mapping % HUGE_BYTES) % HUGE_BYTES;
    buffer->address = (char *)mapping + skip;
#if defined(MADV_HUGEPAGE)
    (void)madvise(buffer->address, length, MADV_HUGEPAGE); /* a hint: pages work without it */
#endif
    return 1;
}

static oxb_status buffer_new(void *device, uint64_t length, oxb_storage storage, void **buffer,
                             void **contents) {
    (void)device;
    const uint64_t limit = cpu_memory();
    if (length > limit || length > SIZE_MAX / 2)
        return host->fail(OXB_BUFFER_CREATION_FAILED,
                          "a buffer of %" PRIu64 " bytes is larger than the memory of %" PRIu64
                          " bytes",
                          length, limit);
    cpu_buffer *self = calloc(1, sizeof *self);
    if (self == NULL || !allocate(self, (size_t)length)) {
        free(self);
        return host->fail(OXB_BUFFER_CREATION_FAILED,
                          "the system has no memory for a buffer of %" PRIu64 " bytes", length);
    }
    *buffer = self;
    *contents = storage == OXB_STORAGE_SHARED ? self->address : NULL;
    return OXB_OK;
}

static oxb_status buffer_wrap(void *device, void *address, uint64_t length, void **buffer) {
    (void)device;
    cpu_buffer *self = calloc(1, sizeof *self);
    if (self == NULL)
        return host->fail(OXB_BUFFER_CREATION_FAILED,
                          "the system has no memory to wrap %" PRIu64 " bytes", length);
    self->address = address;
    self->wrapped = 1;
    *buffer = self;
    return OXB_OK;
}

static void buffer_free(void *device, void *buffer) {
    cpu_buffer *self = buffer;
    (void)device;
    if (self->mapping != NULL)
        munmap(self->mapping, self->mapped);
    else if (!self->wrapped)
        free(self->address);
    free(self);
}

static oxb_status buffer_read(void *device, void *buffer, uint64_t offset, void *to,
                              uint64_t length) {
    (void)device;
    memcpy(to, (char *)((cpu_buffer *)buffer)->address + offset, (size_t)length);
    return OXB_OK;
}

static oxb_status buffer_write(void *device, void *buffer, uint64_t offset, const void *from,
                               uint64_t length) {
    (void)device;
    memcpy((char *)((cpu_buffer *)buffer)->address + offset, from, (size_t)length);
    return OXB_OK;
}

static oxb_status buffer_fill(void *device, void *buffer, uint64_t offset, uint64_t length,
                              uint8_t value) {
    (void)device;
    memset((char *)((cpu_buffer *)buffer)->address + offset, value, (size_t)length);
    return OXB_OK;
}

static void abilities(void *device, oxb_abilities *found) {
    cpu_abilities(((const cpu_device *)device)->isa, found);
}

static oxb_status tile(void *device, oxb_op op, const oxb_op_shape *shape, oxb_tile *found) {
    (void)device;
    cpu_tile(op, shape, found);
    return OXB_OK;
}

static uint64_t int8_vector_bytes(void *device, oxb_device_format format, uint32_t layout,
                                  uint64_t k, uint64_t n_vectors) {
    return cpu_int8_vector_bytes(((const cpu_device *)device)->isa, format, layout, k, n_vectors);
}

static int uses_layout(const cpu_device *device, uint32_t format, uint32_t layout) {
    const cpu_packing packing = cpu_panel_packing(format, layout);
    return packing != CPU_PACKING_COUNT && device->isa->f32->packing[packing].rows != NULL;
}

static uint32_t weight_layouts(void *device, oxb_device_format format, uint64_t n_rows, uint64_t k,
                               oxb_weight_layout layouts[OXB_MAX_LAYOUTS]) {
    static const uint32_t best_first[] = {CPU_LAYOUT_TRITS, CPU_LAYOUT_PANELS, CPU_LAYOUT_DIGITS};
    uint32_t n = 0;
    for (unsigned i = 0; i < sizeof best_first / sizeof best_first[0]; i++) {
        if (!uses_layout(device, format, best_first[i])) continue;
        oxb_weight_layout *layout = &layouts[n++];
        layout->id = best_first[i];
        layout->size = cpu_panel_bytes(cpu_panel_packing(format, layout->id), cpu_group(format),
                                       n_rows, k, &layout->codes_offset);
    }
    return n;
}

static oxb_status weight_pack(void *device, uint32_t layout, oxb_file_format format,
                              const void *from, uint64_t n_rows, uint64_t k, void *to, int *fits) {
    const cpu_device *self = device;
    *fits = cpu_pack(self->isa, host, format, layout, from, n_rows, k, to, self->threads);
    return OXB_OK;
}

static oxb_status library_new(void *device, const char *source, size_t length, void **library) {
    (void)device;
    (void)source;
    (void)length;
    (void)library;
    return host->fail(
        OXB_COMPILATION_FAILED,
        "the cpu device runs only the kernels that ship: compile Metal source on a metal or a "
        "cuda device");
}

static void library_free(void *device, void *library) {
    (void)device;
    (void)library;
}

/* Whether the device's variant has what the kernel is made of. */
static int has_kernel(const cpu_device *device, const cpu_kernel *kernel) {
    if (kernel->layout != OXB_LAYOUT_PLAIN && !uses_layout(device, kernel->format, kernel->layout))
        return 0;
    return !kernel->int8 || device->isa->int8 != NULL;
}

/* The kernel's buffers, then its argument struct. binding_bytes() has what each buffer must hold.
 */
static void list_arguments(const cpu_kernel *kernel, oxb_pipeline_info *info) {
    for (uint32_t i = 0; i < kernel->n_bindings; i++) {
        const int writes = kernel->written >> i & 1;
        info->arguments[i] = (oxb_argument){.kind = OXB_ARGUMENT_BUFFER,
                                            .index = i,
                                            .alignment = CPU_ALIGNMENT,
                                            .access = writes ? OXB_ACCESS_WRITE : OXB_ACCESS_READ};
    }
    info->arguments[kernel->n_bindings] = (oxb_argument){.kind = OXB_ARGUMENT_STRUCT,
                                                         .index = kernel->n_bindings,
                                                         .size = kernel->args_size,
                                                         .access = OXB_ACCESS_READ};
    info->n_arguments = kernel->n_bindings + 1;
}

static oxb_status pipeline_new(void *device, void *library, const char *function,
                               const oxb_constant *constants, uint32_t n_constants, void **pipeline,
                               oxb_pipeline_info *info) {
    const cpu_device *self = device;
    (void)library;
    const cpu_kernel *kernel = cpu_find(function);
    if (kernel == NULL)
        return host->fail(OXB_COMPILATION_FAILED, "the cpu device has no kernel '%.64s'", function);
    if (!has_kernel(self, kernel))
        return host->fail(OXB_COMPILATION_FAILED,
                          "the %s variant of the cpu device has no kernel '%s'", self->isa->name,
                          function);
    if (n_constants != 0)
        return host->fail(OXB_COMPILATION_FAILED,
                          "the cpu kernel '%s' has no function constant %" PRIu32 ": it takes none",
                          function, constants[0].index);
    *pipeline = (void *)(uintptr_t)kernel;
    *info = (oxb_pipeline_info){.max_threads = 1, .simd_width = 1};
    list_arguments(kernel, info);
    return OXB_OK;
}

static void pipeline_free(void *device, void *pipeline) {
    (void)device;
    (void)pipeline;
}

static uint64_t binding_bytes(void *device, void *pipeline, const void *args, uint32_t index) {
    const cpu_kernel *kernel = pipeline;
    (void)device;
    return kernel->need(kernel, args, index);
}

static void make_step(const cpu_device *device, const oxb_driver_dispatch *dispatch,
                      cpu_step *step) {
    const cpu_kernel *kernel = dispatch->pipeline;
    const oxb_size grid = dispatch->threadgroups;
    uint64_t bytes = 0;
    *step = (cpu_step){.groups = cpu_mul((uint64_t)grid.x * grid.y, grid.z),
                       .call = {.kernel = kernel, .isa = device->isa, .args = dispatch->args}};
    for (uint32_t i = 0; i < kernel->n_bindings; i++) {
        const oxb_driver_binding *binding = &dispatch->bindings[i];
        bytes = cpu_add(bytes, kernel->need(kernel, dispatch->args, i));
        step->call.bindings[i] = (cpu_span){
            .address = (char *)((cpu_buffer *)binding->buffer)->address + binding->offset,
            .length = binding->length - binding->offset};
    }
    step->worth = bytes / CPU_SHARE;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static oxb_status submit(void *device, const oxb_driver_dispatch *list, uint32_t n, void **replay,
                         oxb_driver_done done, void *context) {
    const cpu_device *self = device;
    cpu_step *steps = *replay; /* made once: the list stays as it is */
    if (steps == NULL) {
        steps = malloc(n * sizeof *steps);
        if (steps == NULL)
            return host->fail(OXB_EXECUTION_FAILED, "out of memory for %" PRIu32 " dispatches", n);
        for (uint32_t i = 0; i < n; i++) make_step(self, &list[i], &steps[i]);
        *replay = steps;
    }
    oxb_times times = {.start = seconds(), .end = 0};
    cpu_pool_run(steps, n, self->threads);
    times.end = seconds();
    done(context, OXB_OK, NULL, times);
    return OXB_OK;
}

static void replay_free(void *device, void *replay) {
    (void)device;
    free(replay);
}

const oxb_driver *cpu_driver(const oxb_host *services) {
    static const oxb_driver driver = {
        .abi_version = OXB_ABI_VERSION,
        .struct_size = sizeof(oxb_driver),
        .name = "cpu",
        .device_count = device_count,
        .device_open = device_open,
        .device_close = device_close,
        .device_info = device_info,
        .buffer_new = buffer_new,
        .buffer_wrap = buffer_wrap,
        .buffer_free = buffer_free,
        .buffer_read = buffer_read,
        .buffer_write = buffer_write,
        .buffer_fill = buffer_fill,
        .abilities = abilities,
        .tile = tile,
        .int8_vector_bytes = int8_vector_bytes,
        .weight_layouts = weight_layouts,
        .weight_pack = weight_pack,
        .variant = variant,
        .library_new = library_new,
        .library_free = library_free,
        .pipeline_new = pipeline_new,
        .pipeline_free = pipeline_free,
        .binding_bytes = binding_bytes,
        .submit = submit,
        .replay_free = replay_free,
    };
    host = services;
    return &driver;
}
