"""Functions of Metal's standard library that the runner has, by language version.

The versions are those of Apple's Metal Shading Language Specification. What is not here does not
compile.
"""

from __future__ import annotations

_BASE = """
    sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 exp10 log log2 log10 sqrt
    rsqrt floor ceil trunc round rint fabs sinpi cospi sign saturate fract pow powr fmod atan2
    copysign fmin fmax fdim step fma mix smoothstep ldexp frexp isnan isinf isfinite signbit min max
    min3 max3 clamp abs divide select any all dot length_squared length normalize cross
    popcount clz ctz rotate mulhi extract_bits insert_bits reverse_bits mul24 mad24
    absdiff addsat subsat as_type
    threadgroup_barrier simdgroup_barrier
    simd_sum simd_product simd_and simd_or simd_xor simd_max simd_min
    simd_prefix_inclusive_sum simd_prefix_exclusive_sum
    simd_prefix_inclusive_product simd_prefix_exclusive_product
    simd_shuffle simd_broadcast simd_shuffle_xor simd_shuffle_rotate_up simd_shuffle_rotate_down
    simd_shuffle_up simd_shuffle_down quad_shuffle quad_broadcast quad_shuffle_xor
    simd_shuffle_and_fill_up simd_shuffle_and_fill_down
    simd_broadcast_first simd_is_first simd_any simd_all simd_ballot simd_active_threads_mask
    quad_sum quad_max quad_min
    make_filled_simdgroup_matrix simdgroup_load simdgroup_store
    simdgroup_multiply simdgroup_multiply_accumulate
    atomic_load_explicit atomic_store_explicit atomic_exchange_explicit
    atomic_compare_exchange_weak_explicit atomic_fetch_add_explicit atomic_fetch_sub_explicit
    atomic_fetch_and_explicit atomic_fetch_or_explicit atomic_fetch_xor_explicit
    atomic_fetch_max_explicit atomic_fetch_min_explicit
"""

_LATER = {
    300: "atomic_float",
    310: "bfloat bfloat2 bfloat3 bfloat4 simdgroup_bfloat8x8",
}

AVAILABLE_SINCE = dict.fromkeys(_BASE.split(), 240) | {
    name: version for version, names in _LATER.items() for name in names.split()
}
