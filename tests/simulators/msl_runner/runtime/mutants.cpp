// Which of the mutants in a program is taken, and which would change something; see mutate.py.
#include "state.h"

namespace msl {
namespace {

u32 taken;
u8 *matters;

} // namespace
} // namespace msl

using namespace msl;

MSL_API void msl_take_mutant(u32 number, u8 *matter) {
    taken = number;
    matters = matter;
}

MSL_API bool msl_rt_mutant(u32 number) { return number == taken; }

MSL_API bool msl_rt_guard(u32 number, bool value, bool without) {
    if (value != without && matters) __atomic_store_n(&matters[number], 1, __ATOMIC_RELAXED);
    return value;
}
