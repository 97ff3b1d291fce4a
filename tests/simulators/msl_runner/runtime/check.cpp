// The check build's view of every access: bounds, alignment, uninitialised threadgroup memory,
// races.
//
// Each byte that can be written has a cell with its last write and last read. A stamp says who and
// when: threadgroup + 1 (22 bits), thread (10), epoch of the threadgroup (14), epoch of the
// SIMD-group (14), flags (4). A barrier with the right mem_flags starts a new epoch. Two accesses,
// one of them a write, race unless the same thread made both or a barrier stood between them.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "state.h"

namespace msl {
namespace {

// The last read stands for all since the last write; the flags say who else read.
constexpr u64 kAtomic = 1, kOtherGroups = 2, kOtherSimdGroups = 4, kOtherLanes = 8;

u64 make_stamp(u32 group, u32 thread, u32 group_epoch, u32 simd_epoch) {
    return static_cast<u64>(group + 1) << 42 | static_cast<u64>(thread) << 32 |
           static_cast<u64>(group_epoch & 0x3fff) << 18 |
           static_cast<u64>(simd_epoch & 0x3fff) << 4;
}
u32 group_of(u64 stamp) { return static_cast<u32>(stamp >> 42); }
u32 thread_of(u64 stamp) { return stamp >> 32 & 1023; }
u32 simdgroup_of(u64 stamp) { return thread_of(stamp) / MSL_SIMD_WIDTH; }
u32 group_epoch(u64 stamp) { return stamp >> 18 & 0x3fff; }
u32 simd_epoch(u64 stamp) { return stamp >> 4 & 0x3fff; }

// Is the earlier access ordered before the one happening now?
bool ordered(u64 earlier, u64 now) {
    if (group_of(earlier) != group_of(now)) return false;
    return thread_of(earlier) == thread_of(now) || group_epoch(earlier) != group_epoch(now) ||
           (simdgroup_of(earlier) == simdgroup_of(now) && simd_epoch(earlier) != simd_epoch(now));
}

struct Access {
    u64 address;
    u32 size;
    bool write, aligned, atomic;
    u64 pc;
    const char *verb() const { return write ? "writes" : "reads"; }
    std::string at() const { return source_line(current_worker->launch, pc); }
};

[[noreturn, gnu::noinline]] void race(const std::string &object, u64 earlier, u32 earlier_pc,
                                      bool earlier_write, const Access &a) {
    const Launch *launch = current_worker->launch;
    const bool same_group = group_of(earlier) == current_worker->group_number + 1;
    MSL_FAIL("data race: %s %s %s at %s; it was %s by thread %u of %s threadgroup at %s, with no "
             "barrier (of the right mem_flags) in between",
             here().c_str(), a.verb(), object.c_str(), a.at().c_str(),
             earlier_write ? "written" : "read", thread_of(earlier),
             same_group ? "the same" : "another",
             library_line(launch->library, earlier_pc).c_str());
}

bool races_with_readers(const Cell &cell, u64 now) {
    const u64 r = cell.read;
    if (!ordered(r, now) || (r & kOtherGroups)) return true;
    if (group_epoch(r) != group_epoch(now)) return false;
    if (r & kOtherSimdGroups) return true;
    return (r & kOtherLanes) && simdgroup_of(r) == simdgroup_of(now) &&
           simd_epoch(r) == simd_epoch(now);
}

u64 merge_readers(u64 before, u64 now) {
    if (!before) return now;
    u64 flags = before & kOtherGroups;
    if (group_of(before) != group_of(now)) return now | kOtherGroups;
    if (group_epoch(before) == group_epoch(now)) {
        flags |= before & kOtherSimdGroups;
        if (simdgroup_of(before) != simdgroup_of(now)) {
            flags |= kOtherSimdGroups;
        } else if (simd_epoch(before) == simd_epoch(now)) {
            flags |= before & kOtherLanes;
            if (thread_of(before) != thread_of(now)) flags |= kOtherLanes;
        }
    }
    return now | flags;
}

template <class Describe>
void track(Cell *cells, u64 now, const Access &a, Describe describe) {
    const u32 pc = static_cast<u32>(a.pc - library_base(current_worker->launch->library));
    for (u32 i = 0; i < a.size; i++) {
        Cell &c = cells[i];
        if (c.write && !ordered(c.write, now) && !(a.atomic && (c.write & kAtomic)))
            race(describe(i), c.write, c.write_pc, true, a);
        const u64 stamp = now | (a.atomic ? kAtomic : 0);
        if (a.write) {
            if (c.read && !(a.atomic && (c.read & kAtomic)) && races_with_readers(c, now))
                race(describe(i), c.read, c.read_pc, false, a);
            c.write = stamp;
            c.write_pc = pc;
        } else {
            c.read = merge_readers(c.read, stamp);
            c.read_pc = pc;
        }
    }
}

bool inside(u64 address, u64 size, u64 begin, u64 end) {
    return address >= begin && size <= end - begin && address - begin <= end - begin - size;
}

void check_variable(Worker *w, const Fiber &f, const Access &a) {
    const Variable *found = nullptr, *before = nullptr;
    for (const Variable &v : w->variables) {
        const u64 begin = reinterpret_cast<u64>(v.memory);
        if (a.address >= begin) before = &v;
        if (inside(a.address, a.size, begin, begin + v.size)) found = &v;
    }
    if (!found) {
        const long offset =
            before ? static_cast<long>(a.address - reinterpret_cast<u64>(before->memory)) : 0;
        MSL_FAIL(
            "out of bounds: %s %s %u bytes at offset %ld of threadgroup variable %s (%u bytes), "
            "at %s",
            here().c_str(), a.verb(), a.size, offset, before ? before->name : "?",
            before ? before->size : 0, a.at().c_str());
    }
    const u64 offset = a.address - reinterpret_cast<u64>(found->memory);
    const u64 in_arena = a.address - reinterpret_cast<u64>(w->arena);
    if (a.aligned && (a.address & (a.size - 1)))
        MSL_FAIL("misaligned: %s %s %u bytes at offset %llu of threadgroup variable %s, at %s",
                 here().c_str(), a.verb(), a.size, static_cast<unsigned long long>(offset),
                 found->name, a.at().c_str());
    if (a.write)
        memset(&w->initialised[in_arena], 1, a.size);
    else
        for (u32 i = 0; i < a.size; i++)
            if (!w->initialised[in_arena + i])
                MSL_FAIL("uninitialised: %s reads threadgroup variable %s at offset %llu, which no "
                         "thread has written, at %s",
                         here().c_str(), found->name, static_cast<unsigned long long>(offset + i),
                         a.at().c_str());
    if (!w->arena_cells) {
        void *cells = mmap(nullptr, kArenaBytes * sizeof(Cell), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (cells == MAP_FAILED) MSL_FAIL("no memory to check threadgroup memory with");
        w->arena_cells = static_cast<Cell *>(cells);
    }
    const SimdGroup &s = w->simdgroups[f.ids.simdgroup];
    const u64 now =
        make_stamp(w->group_number, f.ids.thread_index, w->threadgroup_epoch, s.threadgroup_epoch);
    track(w->arena_cells + in_arena, now, a, [&](u32 i) {
        return std::string("threadgroup variable ") + found->name + " offset " +
               std::to_string(offset + i);
    });
}

bool check_buffer(Worker *w, const Fiber &f, const Access &a) {
    const Range *found = nullptr;
    for (const Range &r : w->launch->ranges)
        if (inside(a.address, a.size, r.begin, r.end)) {
            found = &r;
            if (r.writable || !a.write) break;
        }
    if (!found) return false;
    const u64 offset = a.address - found->base;
    if (a.aligned && (a.address & (a.size - 1)))
        MSL_FAIL("misaligned: %s %s %u bytes at offset %llu of buffer(%u), at %s", here().c_str(),
                 a.verb(), a.size, static_cast<unsigned long long>(offset), found->index,
                 a.at().c_str());
    if (a.write && !found->writable)
        MSL_FAIL("read-only: %s writes %u bytes at offset %llu of buffer(%u), which the kernel "
                 "declares const, at %s",
                 here().c_str(), a.size, static_cast<unsigned long long>(offset), found->index,
                 a.at().c_str());
    if (found->cells) {
        const SimdGroup &s = w->simdgroups[f.ids.simdgroup];
        const u64 now =
            make_stamp(w->group_number, f.ids.thread_index, w->device_epoch, s.device_epoch);
        track(found->cells + (a.address - found->begin), now, a, [&](u32 i) {
            return "buffer(" + std::to_string(found->index) + ") offset " +
                   std::to_string(offset + i);
        });
    }
    return true;
}

void check_access(const Access &a) {
    Worker *w = current_worker;
    if (!w || !w->in_fiber) return;
    const Fiber &f = w->fibers[w->current];
    const u64 stack = reinterpret_cast<u64>(w->stacks) + static_cast<u64>(f.stack) * kStackStep;
    if (inside(a.address, a.size, stack, stack + kStackStep)) return;
    const u64 arena = reinterpret_cast<u64>(w->arena);
    if (a.address >= arena && a.address < arena + kArenaBytes) return check_variable(w, f, a);
    if (check_buffer(w, f, a)) return;
    const u64 own = reinterpret_cast<u64>(w); // arguments, thread positions, exchange areas
    if (inside(a.address, a.size, own, own + sizeof(Worker))) return;
    const Launch *launch = w->launch;
    if (!a.write && inside(a.address, a.size, launch->image_begin, launch->image_end)) return;
    MSL_FAIL("out of bounds: %s %s %u bytes %s, at %s", here().c_str(), a.verb(), a.size,
             nearest_buffer(launch, a.address).c_str(), a.at().c_str());
}

} // namespace

// "at offset O of buffer(I) (N bytes)" of the bound buffer that an address is closest to.
std::string nearest_buffer(const Launch *launch, u64 address) {
    const Range *best = nullptr;
    u64 best_distance = ~0ull;
    for (const Range &r : launch->ranges) {
        const u64 distance = address < r.begin  ? r.begin - address
                             : address >= r.end ? address - r.end + 1
                                                : 0;
        if (distance < best_distance) {
            best_distance = distance;
            best = &r;
        }
    }
    if (!best || best_distance > 1ull << 36) return "in memory that belongs to no argument";
    char text[160];
    snprintf(text, sizeof text, "at offset %lld of buffer(%u), whose bytes %llu to %llu are bound",
             static_cast<long long>(address - best->base), best->index,
             static_cast<unsigned long long>(best->begin - best->base),
             static_cast<unsigned long long>(best->end - best->base));
    return text;
}

// Give each cluster of overlapping ranges cells, where the kernel may write to one of them.
void prepare_ranges(Launch *launch) {
    std::vector<Range> &ranges = launch->ranges;
    std::sort(ranges.begin(), ranges.end(),
              [](const Range &a, const Range &b) { return a.begin < b.begin; });
    for (size_t i = 0; i < ranges.size();) {
        size_t j = i + 1;
        u64 end = ranges[i].end;
        bool writable = ranges[i].writable;
        for (; j < ranges.size() && ranges[j].begin < end; j++) {
            end = std::max(end, ranges[j].end);
            writable |= ranges[j].writable;
        }
        if (writable && end > ranges[i].begin) {
            const u64 bytes = (end - ranges[i].begin) * sizeof(Cell);
            void *cells = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (cells != MAP_FAILED) {
                launch->cell_maps.emplace_back(cells, bytes);
                for (size_t k = i; k < j; k++)
                    ranges[k].cells =
                        static_cast<Cell *>(cells) + (ranges[k].begin - ranges[i].begin);
            } else {
                report(launch, "no memory to check %llu bytes of buffers with",
                       static_cast<unsigned long long>(end - ranges[i].begin));
            }
        }
        i = j;
    }
}

void release_ranges(Launch *launch) {
    for (auto &[cells, bytes] : launch->cell_maps) munmap(cells, bytes);
    launch->cell_maps.clear();
}

} // namespace msl

using namespace msl;

enum { kIsWrite = 1, kIsAligned = 2, kIsAtomic = 4 };

MSL_API void msl_rt_access(u64 address, u64 size, u32 what, u64 pc) {
    // Copies of more than 4 GiB exist in no kernel; the cast keeps the counters small.
    check_access({address, static_cast<u32>(size), (what & kIsWrite) != 0, (what & kIsAligned) != 0,
                  (what & kIsAtomic) != 0, pc - 1});
}
