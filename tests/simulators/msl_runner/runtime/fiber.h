// Switching between stacks. Inlined, so that the return from where a fiber waited is one that the
// processor foresees: a call to a function that returns on another stack never is. All registers
// but the stack's are left to the compiler to save.
#pragma once

#include <cstdint>

namespace msl {

#if defined(__x86_64__)

__attribute__((always_inline)) inline void switch_context(void **save_sp, void *to_sp) {
    asm volatile("leaq -128(%%rsp), %%rsp\n\t" // what is below the stack pointer may be in use
                 "pushq %%rbp\n\t"
                 "leaq 1f(%%rip), %%rax\n\t"
                 "pushq %%rax\n\t"
                 "movq %%rsp, (%0)\n\t"
                 "movq %1, %%rsp\n\t"
                 "popq %%rax\n\t"
                 "jmpq *%%rax\n"
                 "1:\n\t"
                 "popq %%rbp\n\t"
                 "leaq 128(%%rsp), %%rsp"
                 : "+D"(save_sp), "+S"(to_sp)
                 :
                 : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}

inline void *prepare_stack(uint8_t *top, void (*entry)()) {
    uint64_t *sp = reinterpret_cast<uint64_t *>(reinterpret_cast<uint64_t>(top) & ~15ull);
    *--sp = 0; // where a return address would be: the entry sees the alignment of a call
    *--sp = reinterpret_cast<uint64_t>(entry);
    return sp;
}

#elif defined(__aarch64__)

__attribute__((always_inline)) inline void switch_context(void **save_sp, void *to_sp) {
    register void **x0 asm("x0") = save_sp;
    register void *x1 asm("x1") = to_sp;
    asm volatile("stp x29, x30, [sp, #-32]!\n\t"
                 "adr x9, 1f\n\t"
                 "str x9, [sp, #16]\n\t"
                 "mov x9, sp\n\t"
                 "str x9, [x0]\n\t"
                 "mov sp, x1\n\t"
                 "ldr x9, [sp, #16]\n\t"
                 "br x9\n"
                 "1:\n\t"
                 "ldp x29, x30, [sp], #32"
                 : "+r"(x0), "+r"(x1)
                 :
                 : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
                   "x14", "x15", "x16", "x17", "x19", "x20", "x21", "x22", "x23", "x24", "x25",
                   "x26", "x27", "x28", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9",
                   "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20",
                   "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31",
                   "cc", "memory");
}

inline void *prepare_stack(uint8_t *top, void (*entry)()) {
    uint64_t *sp = reinterpret_cast<uint64_t *>(reinterpret_cast<uint64_t>(top) & ~15ull) - 4;
    sp[0] = sp[1] = sp[3] = 0;
    sp[2] = reinterpret_cast<uint64_t>(entry);
    return sp;
}

#else
#error "the MSL runner switches stacks on x86-64 and AArch64 only"
#endif

} // namespace msl
