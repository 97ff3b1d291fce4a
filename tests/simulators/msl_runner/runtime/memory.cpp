// Buffers between inaccessible pages. A buffer ends at such a page, up to a multiple of 16 bytes;
// the bytes of padding hold a pattern that tells of a stray write.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "state.h"

namespace msl {
namespace {

// Wide enough that an index off by some rows, or a negative one, meets no other buffer.
constexpr u64 kGuard = 16 << 20;
constexpr u8 kPadding = 0xC5;

struct Allocation {
    u8 *mapping;
    u64 mapped;
    u8 *first_page, *end;
    u64 size;
};

std::mutex lock;

std::map<const void *, Allocation> &allocations() {
    static auto *map = new std::map<const void *, Allocation>; // outlives static destructors
    return *map;
}

} // namespace

long stray_write(const void *memory, u64 *size) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = allocations().find(memory);
    if (found == allocations().end()) return 0;
    const Allocation &a = found->second;
    const u8 *start = static_cast<const u8 *>(memory);
    *size = a.size;
    for (const u8 *p = a.first_page; p < start; p++)
        if (*p != kPadding) return p - start;
    for (const u8 *p = start + a.size; p < a.end; p++)
        if (*p != kPadding) return p - start;
    return 0;
}

} // namespace msl

using namespace msl;

MSL_API void *msl_alloc(u64 size) {
    const u64 page = static_cast<u64>(sysconf(_SC_PAGESIZE));
    if (size > 1ull << 46) return nullptr;
    const u64 used = round_up(std::max<u64>(size, 1), 16), pages = round_up(used, page);
    const u64 mapped = pages + 2 * kGuard;
    void *mapping =
        mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    u8 *first = static_cast<u8 *>(mapping) + kGuard;
    if (mprotect(first, pages, PROT_READ | PROT_WRITE)) {
        munmap(mapping, mapped);
        return nullptr;
    }
    u8 *memory = first + pages - used;
    memset(first, kPadding, static_cast<size_t>(memory - first));
    memset(memory + size, kPadding, used - size);
    std::lock_guard<std::mutex> guard(lock);
    allocations()[memory] = {static_cast<u8 *>(mapping), mapped, first, first + pages, size};
    return memory;
}

MSL_API void msl_free(void *memory) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = allocations().find(memory);
    if (found == allocations().end()) return;
    munmap(found->second.mapping, found->second.mapped);
    allocations().erase(found);
}
