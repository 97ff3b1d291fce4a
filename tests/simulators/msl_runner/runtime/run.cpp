// msl_run: hold a launch against what its kernel declares, then run it.
#include <algorithm>
#include <thread>

#include "state.h"

namespace msl {
namespace {

using ull = unsigned long long;

constexpr u32 kMostThreadgroupBytes = 128 << 10;
constexpr u64 kMostGroups = (1u << 22) - 2; // what a stamp of the check build can number

// Sets the error and returns false where the grid cannot be run.
bool check_grid(Launch *launch) {
    const msl_launch *o = launch->options;
    const msl_kernel *k = launch->kernel;
    u64 threads = 1, groups = 1;
    for (int i = 0; i < 3; i++) {
        threads = std::min<u64>(threads * o->threads_per_threadgroup[i], 1ull << 31);
        groups = std::min<u64>(groups * o->threadgroups[i], 1ull << 32);
    }
    const u32 limit = k->max_threads ? k->max_threads : MSL_MAX_THREADS;
    if (!threads || !groups)
        return report(launch, "kernel %s: the grid is empty: (%u,%u,%u) threadgroups of (%u,%u,%u)",
                      k->name, o->threadgroups[0], o->threadgroups[1], o->threadgroups[2],
                      o->threads_per_threadgroup[0], o->threads_per_threadgroup[1],
                      o->threads_per_threadgroup[2]),
               false;
    if (threads > limit)
        return report(launch, "kernel %s: %llu threads in a threadgroup, the limit is %u", k->name,
                      static_cast<ull>(threads), limit),
               false;
    if (groups > (launch->check ? kMostGroups : (1ull << 31)))
        return report(launch, "kernel %s: %llu threadgroups are more than the runner takes",
                      k->name, static_cast<ull>(groups)),
               false;
    launch->n_groups = static_cast<u32>(groups);
    for (int i = 0; i < 3; i++) {
        const u64 whole = static_cast<u64>(o->threadgroups[i]) * o->threads_per_threadgroup[i];
        const u64 grid = o->threads_per_grid[i] ? o->threads_per_grid[i] : whole;
        if (grid > whole || grid > 0xffffffffull || whole - grid >= o->threads_per_threadgroup[i])
            return report(launch,
                          "kernel %s: a grid of %llu threads along axis %d does not fit %u "
                          "threadgroups of %u",
                          k->name, static_cast<ull>(grid), i, o->threadgroups[i],
                          o->threads_per_threadgroup[i]),
                   false;
        launch->grid[i] = static_cast<u32>(grid);
    }
    return true;
}

bool check_threadgroup_memory(Launch *launch) {
    const msl_launch *o = launch->options;
    const msl_kernel *k = launch->kernel;
    launch->max_threadgroup_bytes = o->max_threadgroup_bytes ? o->max_threadgroup_bytes : 32768;
    if (launch->max_threadgroup_bytes > kMostThreadgroupBytes)
        return report(launch, "max_threadgroup_bytes is %u, the runner has at most %u",
                      launch->max_threadgroup_bytes, kMostThreadgroupBytes),
               false;
    u64 total = k->static_threadgroup_bytes;
    for (u64 bytes : o->threadgroup_bytes) total += std::min<u64>(round_up(bytes, 16), 1ull << 32);
    if (total > launch->max_threadgroup_bytes)
        return report(
                   launch,
                   "kernel %s needs %llu bytes of threadgroup memory (%u static), the limit is %u",
                   k->name, static_cast<ull>(total), k->static_threadgroup_bytes,
                   launch->max_threadgroup_bytes),
               false;
    return true;
}

bool bind(Launch *launch, const msl_argument &a) {
    const char *kernel = launch->kernel->name;
    if (a.kind == MSL_ARGUMENT_THREADGROUP) {
        const u64 bytes = launch->options->threadgroup_bytes[a.index];
        if (!bytes || bytes % 16 != 0)
            return report(launch,
                          "kernel %s: threadgroup(%u) '%s' has a length of %llu bytes; a positive "
                          "multiple of 16 is needed",
                          kernel, a.index, a.name, static_cast<ull>(bytes)),
                   false;
        return true;
    }
    const msl_binding &b = launch->options->buffers[a.index];
    if (!b.base)
        return report(launch, "kernel %s: buffer(%u) '%s' is not bound", kernel, a.index, a.name),
               false;
    if (b.offset > b.length)
        return report(launch, "kernel %s: buffer(%u) '%s' has %llu bytes, its offset is %llu",
                      kernel, a.index, a.name, static_cast<ull>(b.length),
                      static_cast<ull>(b.offset)),
               false;
    if (a.by_reference && b.length - b.offset < a.size)
        return report(launch, "kernel %s: buffer(%u) '%s' needs %llu bytes, %llu are bound", kernel,
                      a.index, a.name, static_cast<ull>(a.size),
                      static_cast<ull>(b.length - b.offset)),
               false;
    const u64 base = reinterpret_cast<u64>(b.base), address = base + b.offset;
    if (address % a.alignment != 0)
        return report(
                   launch,
                   "kernel %s: buffer(%u) '%s' is bound at offset %llu, not aligned to %llu bytes",
                   kernel, a.index, a.name, static_cast<ull>(b.offset),
                   static_cast<ull>(a.alignment)),
               false;
    launch->arguments.buffers[a.index] = reinterpret_cast<void *>(address);
    launch->ranges.push_back({address, base + b.length, base, a.index, a.writable != 0, nullptr});
    return true;
}

bool prepare(Launch *launch) {
    const msl_kernel *k = launch->kernel;
    if (!check_grid(launch) || !check_threadgroup_memory(launch)) return false;
    for (u32 i = 0; i < k->n_constants; i++) {
        const msl_constant &c = k->constants[i];
        if (c.required && !c.defined)
            return report(launch, "kernel %s: function constant %u '%s' was given no value",
                          k->name, c.index, c.name),
                   false;
    }
    for (u32 i = 0; i < k->n_arguments; i++)
        if (!bind(launch, k->arguments[i])) return false;
    return true;
}

void check_padding(Launch *launch) {
    for (u32 i = 0; i < MSL_MAX_BUFFERS; i++) {
        u64 size = 0;
        const long offset = stray_write(launch->options->buffers[i].base, &size);
        if (offset)
            report(launch,
                   "out of bounds: kernel %s wrote at offset %ld of buffer(%u) (%llu bytes)",
                   launch->kernel->name, offset, i, static_cast<ull>(size));
    }
}

} // namespace
} // namespace msl

using namespace msl;

MSL_API int msl_run(const msl_library *library, const msl_kernel *kernel, const msl_launch *options,
                    char *error, size_t error_size) {
    char unused[1];
    Launch launch;
    launch.error = error_size ? error : unused;
    launch.error_size = error_size ? error_size : sizeof unused;
    launch.error[0] = 0;
    launch.options = options;
    describe_launch(library, kernel, &launch);
    if (prepare(&launch)) {
        if (launch.check) prepare_ranges(&launch);
        install_handlers();
        const u32 processors = std::max(1u, std::thread::hardware_concurrency());
        run_on_workers(&launch, launch.check       ? 1
                                : options->workers ? options->workers
                                                   : processors);
        remove_handlers();
        release_ranges(&launch);
        check_padding(&launch);
    }
    return launch.failed ? 1 : 0;
}
