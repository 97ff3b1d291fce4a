// Threadgroup memory: one arena a worker, filled with NaN patterns for each threadgroup.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace msl {
namespace {
constexpr u8 kUnset = 0xFF, kGap = 0xA5;
}

void reset_group_memory(Worker *w) {
    // An unchecked launch leaves the marks of the checked one before it to the next.
    if (w->launch->check) {
        if (w->arena_cells)
            memset(static_cast<void *>(w->arena_cells), 0, w->arena_dirty * sizeof(Cell));
        memset(w->initialised.data(), 0, w->arena_dirty);
        w->arena_dirty = 0;
    }
    w->arena_used = 0;
    w->variables.clear();
}

// The one instance of a variable in this threadgroup; the first thread that asks makes it.
void *group_variable(u32 number, u64 size, const char *name) {
    Worker *w = current_worker;
    Launch *launch = w->launch;
    u64 used = round_up(size, 16);
    for (Variable &v : w->variables) {
        if (v.number == number) return v.memory;
        used += round_up(v.size, 16);
    }
    if (used > launch->max_threadgroup_bytes) {
        report(launch, "kernel %s needs at least %llu bytes of threadgroup memory, the limit is %u",
               launch->kernel->name, static_cast<unsigned long long>(used),
               launch->max_threadgroup_bytes);
        if (w->in_fiber) leave_fiber();
        return w->arena;
    }
    u8 *memory = w->arena + w->arena_used;
    const u32 room = static_cast<u32>(round_up(size, 16)) + kVariableGap;
    w->arena_used += room;
    w->arena_dirty = std::max(w->arena_dirty, w->arena_used);
    memset(memory, kUnset, size);
    memset(memory + size, kGap, room - size);
    w->variables.push_back({number, static_cast<u32>(size), memory, name});
    return memory;
}

bool variable_overrun(Worker *w) {
    for (const Variable &v : w->variables)
        for (u32 i = v.size; i < round_up(v.size, 16) + kVariableGap; i++)
            if (v.memory[i] != kGap) {
                report(w->launch,
                       "out of bounds: kernel %s, threadgroup (%u,%u,%u) wrote at offset %u of "
                       "threadgroup variable %s (%u bytes)",
                       w->launch->kernel->name, w->group[0], w->group[1], w->group[2], i, v.name,
                       v.size);
                return true;
            }
    return false;
}

} // namespace msl

using namespace msl;

MSL_API void *msl_rt_variable(u32 number, u64 size, const char *name) {
    return group_variable(number, size, name);
}
