/* Linked into every compiled library, and hidden in it: the access hooks have the thread
 * sanitizer's names, and a real one may run in the same process. Compiled by the compiler of the
 * kernels. */

#if MSL_CHECK_BUILD
void msl_rt_access(unsigned long address, unsigned long size, unsigned what, unsigned long pc);

enum { IS_WRITE = 1, IS_ALIGNED = 2, IS_ATOMIC = 4 };

#define PC                          ((unsigned long)__builtin_return_address(0))
#define ACCESS(address, size, what) msl_rt_access((unsigned long)(address), size, what, PC)

#define PLAIN(n, infix, what)                                                   \
    void __tsan_##infix##read##n(void *p) { ACCESS(p, n, what); }               \
    void __tsan_##infix##write##n(void *p) { ACCESS(p, n, (what) | IS_WRITE); } \
    void __tsan_##infix##read_write##n(void *p) {                               \
        ACCESS(p, n, what);                                                     \
        ACCESS(p, n, (what) | IS_WRITE);                                        \
    }
PLAIN(1, , IS_ALIGNED)
PLAIN(2, , IS_ALIGNED)
PLAIN(4, , IS_ALIGNED)
PLAIN(8, , IS_ALIGNED)
PLAIN(16, , IS_ALIGNED)
PLAIN(2, unaligned_, 0)
PLAIN(4, unaligned_, 0)
PLAIN(8, unaligned_, 0)
PLAIN(16, unaligned_, 0)

void __tsan_func_entry(void *pc) { (void)pc; }
void __tsan_func_exit(void) {}
void __tsan_init(void) {}
void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
    ACCESS(from, n, 0);
    ACCESS(to, n, IS_WRITE);
    return __builtin_memmove(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, unsigned long n) {
    ACCESS(from, n, 0);
    ACCESS(to, n, IS_WRITE);
    return __builtin_memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, unsigned long n) {
    ACCESS(to, n, IS_WRITE);
    return __builtin_memset(to, value, n);
}

#define UPDATE IS_WRITE | IS_ALIGNED | IS_ATOMIC
#define RMW(bits, type, op)                                                \
    type __tsan_atomic##bits##_##op(volatile type *p, type v, int order) { \
        (void)order;                                                       \
        ACCESS(p, bits / 8, UPDATE);                                       \
        return __atomic_##op(p, v, __ATOMIC_RELAXED);                      \
    }
#define CAS(bits, type, kind)                                                                      \
    int __tsan_atomic##bits##_compare_exchange_##kind(volatile type *p, type *expected, type v,    \
                                                      int order, int on_failure) {                 \
        (void)order;                                                                               \
        (void)on_failure;                                                                          \
        ACCESS(p, bits / 8, UPDATE);                                                               \
        return __atomic_compare_exchange_n(p, expected, v, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
    }
#define ATOMICS(bits, type)                                                                  \
    type __tsan_atomic##bits##_load(const volatile type *p, int order) {                     \
        (void)order;                                                                         \
        ACCESS(p, bits / 8, IS_ALIGNED | IS_ATOMIC);                                         \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                         \
    }                                                                                        \
    void __tsan_atomic##bits##_store(volatile type *p, type v, int order) {                  \
        (void)order;                                                                         \
        ACCESS(p, bits / 8, UPDATE);                                                         \
        __atomic_store_n(p, v, __ATOMIC_RELAXED);                                            \
    }                                                                                        \
    type __tsan_atomic##bits##_exchange(volatile type *p, type v, int order) {               \
        (void)order;                                                                         \
        ACCESS(p, bits / 8, UPDATE);                                                         \
        return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                  \
    }                                                                                        \
    type __tsan_atomic##bits##_compare_exchange_val(volatile type *p, type expected, type v, \
                                                    int order, int on_failure) {             \
        (void)order;                                                                         \
        (void)on_failure;                                                                    \
        ACCESS(p, bits / 8, UPDATE);                                                         \
        __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
        return expected;                                                                     \
    }                                                                                        \
    RMW(bits, type, fetch_add)                                                               \
    RMW(bits, type, fetch_sub)                                                               \
    RMW(bits, type, fetch_and)                                                               \
    RMW(bits, type, fetch_or)                                                                \
    RMW(bits, type, fetch_xor)                                                               \
    CAS(bits, type, strong)                                                                  \
    CAS(bits, type, weak)
ATOMICS(8, unsigned char)
ATOMICS(16, unsigned short)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
#endif

#if MSL_BFLOAT
/* What the compiler's own library would have, for processors without the instruction. */
__bf16 __truncsfbf2(float value) {
    unsigned bits;
    unsigned short high;
    __bf16 result;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        high = (unsigned short)(bits >> 16 | 64);
    else
        high = (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    __builtin_memcpy(&result, &high, sizeof result);
    return result;
}
#endif
