// Switching between stacks: only what a called function has to preserve is saved.
#include "state.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl msl_switch_context
.hidden msl_switch_context
.type msl_switch_context,@function
msl_switch_context:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size msl_switch_context,.-msl_switch_context
)");

namespace msl {

void *prepare_stack(u8 *top, void (*entry)()) {
    u64 *sp = reinterpret_cast<u64 *>(reinterpret_cast<u64>(top) & ~15ull);
    *--sp = 0;  // where a return address would be: the entry sees the alignment of a call
    *--sp = reinterpret_cast<u64>(entry);
    for (int i = 0; i < 6; i++) *--sp = 0;
    return sp;
}

}  // namespace msl

#elif defined(__aarch64__)
asm(R"(
.text
.globl msl_switch_context
.hidden msl_switch_context
.type msl_switch_context,%function
msl_switch_context:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size msl_switch_context,.-msl_switch_context
)");

namespace msl {

void *prepare_stack(u8 *top, void (*entry)()) {
    u64 *sp = reinterpret_cast<u64 *>(reinterpret_cast<u64>(top) & ~15ull) - 20;
    for (int i = 0; i < 20; i++) sp[i] = 0;
    sp[11] = reinterpret_cast<u64>(entry);  // x30
    return sp;
}

}  // namespace msl

#else
#error "the MSL runner switches stacks on x86-64 and AArch64 only"
#endif
