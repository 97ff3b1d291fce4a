// State of a launch, shared by the parts of the runtime.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../include/msl_abi.h"
#include "../msl_runtime.h"

#define MSL_API extern "C" __attribute__((visibility("default")))

namespace msl {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;

constexpr u32 kStackBytes = 128 << 10;
constexpr u32 kStackGuard = 4096;
constexpr u32 kStackStep = kStackBytes + 2 * kStackGuard;
constexpr u32 kArenaBytes = 256 << 10; // threadgroup memory with what stands between variables
constexpr u32 kVariableGap = 64;
constexpr u32 kDynamic = 1u << 31; // variable number of a [[threadgroup(n)]] argument: kDynamic + n

constexpr u64 round_up(u64 value, u64 step) { return (value + step - 1) / step * step; }

using EntryFunction = void (*)(const msl_arguments *, const msl_thread_ids *);

// Who touched a byte last; see check.cpp.
struct Cell {
    u64 write, read;
    u32 write_pc, read_pc;
};

// One bound buffer as far as the kernel may touch it. Ranges that overlap share their cells.
struct Range {
    u64 begin, end;
    u64 base; // of the whole buffer: offsets in messages count from here
    u32 index;
    bool writable;
    Cell *cells; // of `begin`; null where no range around here is writable
};

struct Launch {
    const msl_library *library;
    const msl_kernel *kernel;
    EntryFunction run;
    const msl_launch *options;
    msl_arguments arguments{};
    u32 grid[3], n_groups;
    u32 max_threadgroup_bytes;
    bool check;
    u64 image_begin, image_end; // of the compiled library
    std::vector<Range> ranges;
    std::vector<std::pair<void *, u64>> cell_maps;

    std::atomic<u32> next_group{0};
    std::atomic<bool> stop{false}, failed{false};
    char *error;
    size_t error_size;
    u32 pending = 0; // helper threads still at work; under the pool's lock
};

enum class State : u8 { kFresh, kReady, kWaiting, kDone };

// A point in the source where threads wait for each other. The same point may have several
// addresses in the machine code, so that line and column identify it.
struct Site {
    u64 key; // line, column, kind from the highest bit down: one word, which is compared at once
    u64 pc;
    Site() = default;
    Site(u32 kind, u32 line, u32 column, u64 pc)
        : key(static_cast<u64>(line) << 32 | static_cast<u64>(column & 0xfffffff) << 4 | kind),
          pc(pc) {}
    u32 kind() const { return key & 15; }
    bool same(const Site &o) const { return key == o.key; }
    bool before(const Site &o) const { return key >> 4 < o.key >> 4; }
};

struct alignas(64) Fiber { // what a switch touches is in one cache line
    void *sp;
    u32 stack;
    State state;
    u32 mem_flags;
    Site site;
    msl_thread_ids ids;
};

struct SimdGroup {
    u32 first, size, live, arrived;
    Site site;  // of the lane that came first
    bool mixed; // lanes wait at different sites
    u32 device_epoch, threadgroup_epoch;
    u32 parity;
    msl_exchange exchange[2]; // in turn: a lane may still read one when others fill the next
};

struct Variable {
    u32 number, size;
    u8 *memory;
    const char *name;
};

// Runs threadgroups one after another on one host thread.
struct Worker {
    Launch *launch;
    Fiber fibers[MSL_MAX_THREADS];
    SimdGroup simdgroups[MSL_MAX_THREADS / MSL_SIMD_WIDTH];
    u32 n_threads, n_simdgroups, live, current;
    u32 group[3], group_number;
    u32 ids_size[3]; // of the threadgroup that the fibers' ids were last set for; 0 before the
                     // first
    void *scheduler_sp;
    u64 random_state;

    u32 ready[MSL_MAX_THREADS + 1], ready_head, ready_tail;
    u8 *stacks;
    u32 free_stacks[MSL_MAX_THREADS], n_free_stacks;

    u32 barrier_arrived;
    Site barrier_site;
    bool barrier_mixed;
    u32 device_epoch, threadgroup_epoch;

    u8 *arena;
    u32 arena_used, arena_dirty = 0;
    std::vector<Variable> variables;
    std::vector<u8> initialised; // of each byte of the arena; check builds
    Cell *arena_cells = nullptr; // check builds

    msl_arguments arguments;
    bool in_fiber = false, aborted = false;
    alignas(16) u8 signal_stack[32768];

    Worker();
    u32 random();
    void push_ready(u32 thread) {
        ready[ready_tail] = thread;
        ready_tail = ready_tail == MSL_MAX_THREADS ? 0 : ready_tail + 1;
    }
    void push_ready_first(u32 thread) {
        ready_head = ready_head ? ready_head - 1 : MSL_MAX_THREADS;
        ready[ready_head] = thread;
    }
    bool pop_ready(u32 *thread) {
        if (ready_head == ready_tail) return false;
        *thread = ready[ready_head];
        ready_head = ready_head == MSL_MAX_THREADS ? 0 : ready_head + 1;
        return true;
    }
};

// Not thread_local, whose every use would ask whether it is initialised.
extern __thread Worker *current_worker __attribute__((tls_model("initial-exec")));

// schedule.cpp
void run_group(Worker *worker, u32 number);
[[noreturn]] void leave_fiber(); // to the scheduler, for good

// groupmem.cpp
void reset_group_memory(Worker *worker);
void *group_variable(u32 number, u64 size, const char *name);
bool variable_overrun(Worker *worker); // reports it

// report.cpp: the first error of a launch wins
void report(Launch *launch, const char *format, ...) __attribute__((format(printf, 2, 3)));
std::string here(); // kernel, threadgroup, thread
std::string source_line(const Launch *launch, u64 pc);
std::string site_name(u32 kind);
#define MSL_FAIL(...)                                \
    do {                                             \
        report(current_worker->launch, __VA_ARGS__); \
        leave_fiber();                               \
    } while (0)

// memory.cpp
long stray_write(const void *memory, u64 *size); // offset of one in an allocation's padding, or 0

// check.cpp
void prepare_ranges(Launch *launch);
void release_ranges(Launch *launch);
std::string nearest_buffer(const Launch *launch, u64 address);

// fault.cpp
void install_handlers();
void remove_handlers();
bool enter_signal_stack(Worker *worker, void *saved);
void leave_signal_stack(void *saved);

// pool.cpp
void run_on_workers(Launch *launch, u32 n_workers);

// library.cpp
std::string library_line(const msl_library *library, u64 offset);
u64 library_base(const msl_library *library);
void describe_launch(const msl_library *library, const msl_kernel *kernel, Launch *launch);
bool library_checks(const msl_library *library);

} // namespace msl
