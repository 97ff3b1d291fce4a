// The text of errors: who, and where in the source.
#include <cstdarg>
#include <cstdio>

#include "state.h"

namespace msl {

void report(Launch *launch, const char *format, ...) {
    bool failed = false;
    if (!launch->failed.compare_exchange_strong(failed, true)) return;
    va_list list;
    va_start(list, format);
    vsnprintf(launch->error, launch->error_size, format, list);
    va_end(list);
    launch->stop = true;
}

std::string here() {
    Worker *w = current_worker;
    const msl_thread_ids &ids = w->fibers[w->current].ids;
    char text[300];
    snprintf(text, sizeof text,
             "kernel %s, threadgroup (%u,%u,%u), thread %u (simdgroup %u lane %u)",
             w->launch->kernel->name, w->group[0], w->group[1], w->group[2], ids.thread_index,
             ids.simdgroup, ids.lane);
    return text;
}

std::string source_line(const Launch *launch, u64 pc) {
    return library_line(launch->library, pc - library_base(launch->library));
}

std::string site_name(u32 kind) {
    switch (kind) {
    case MSL_THREADGROUP_BARRIER: return "threadgroup_barrier";
    case MSL_SIMDGROUP_BARRIER: return "simdgroup_barrier";
    case MSL_SIMD_REDUCE: return "a simd_ reduction";
    case MSL_SIMD_PREFIX: return "simd_prefix";
    case MSL_SIMD_SHUFFLE: return "a simd_ shuffle";
    case MSL_SIMD_VOTE: return "a simd_ vote";
    case MSL_QUAD: return "a quad_ function";
    case MSL_MATRIX_MULTIPLY: return "simdgroup_multiply";
    default: return "simdgroup_load or simdgroup_store";
    }
}

} // namespace msl
