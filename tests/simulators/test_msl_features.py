"""The language as kernels use it, executed in both builds and in three thread orders."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from msl_runner import Buffer, LaunchError, Library, Threadgroup
from msl_runner.stdlib_names import AVAILABLE_SINCE
from msl_runner.testing import HEADER, require_runner
from msl_runner.testing import check_kernel as check
from msl_runner.toolchain import find_compiler, header_flags, kernel_flags

require_runner()

f16, f32, u32 = np.float16, np.float32, np.uint32
rng = np.random.default_rng(0)


OUT = "device float* o [[buffer(0)]]"
GID = "uint i [[thread_position_in_grid]]"


def test_thread_positions_of_a_grid_of_three_dimensions():
    members = [
        "gid.x", "gid.y", "gid.z", "tid.x", "tid.y", "tid.z", "group.x", "group.y", "group.z",
        "size.x", "size.y", "size.z", "groups.x", "groups.y", "groups.z", "index", "lane", "sg",
        "n_sg", "width",
    ]  # fmt: skip
    stores = "".join(f"o[n++] = {member};" for member in members)
    source = f"""
kernel void k(device uint* o [[buffer(0)]],
              uint3 gid [[thread_position_in_grid]],
              uint3 tid [[thread_position_in_threadgroup]],
              uint3 group [[threadgroup_position_in_grid]],
              ushort3 size [[threads_per_threadgroup]],
              uint3 groups [[threadgroups_per_grid]],
              uint index [[thread_index_in_threadgroup]],
              ushort lane [[thread_index_in_simdgroup]],
              uint sg [[simdgroup_index_in_threadgroup]],
              uint n_sg [[simdgroups_per_threadgroup]],
              uint width [[threads_per_simdgroup]]) {{
    ulong n = ((ulong(gid.z) * 12 + gid.y) * 10 + gid.x) * {len(members)};
    {stores}
}}"""
    groups, threads = (2, 3, 2), (5, 4, 3)
    want = np.zeros((6, 12, 10, len(members)), u32)
    for z, y, x in np.ndindex(want.shape[:3]):
        tid = x % 5, y % 4, z % 3
        index = tid[0] + 5 * tid[1] + 20 * tid[2]
        want[z, y, x] = [
            *(x, y, z), *tid, *(x // 5, y // 4, z // 3), *threads, *groups,
            *(index, index % 32, index // 32, 2, 32),
        ]  # fmt: skip
    check(source, [np.zeros_like(want)], {0: want}, groups=groups, threads=threads)


def test_partial_threadgroups_at_the_edge_of_a_grid():
    x = rng.standard_normal(50).astype(f32)
    check(
        """
kernel void k(device const float* x [[buffer(0)]], device float* o [[buffer(1)]],
              threadgroup float* s [[threadgroup(2)]], uint i [[thread_position_in_grid]],
              uint t [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  s[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = s[n - 1 - t];
}""",
        [x, np.zeros_like(x), Threadgroup(128)],
        {1: np.concatenate([x[:32][::-1], x[32:][::-1]])},
        grid=50,
        threads=32,
    )


TEMPLATE = """
struct square { static float f(float x) { return x * x; } };
struct negate { static float f(float x) { return -x; } };
template <typename F, int N>
[[kernel]] void map(device const float* x [[buffer(0)]], device float* o [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  float v = x[i];
  for (int n = 0; n < N; n++) v = F::f(v);
  o[i] = v;
}
"""
INSTANCES = {
    "typedef": """
typedef decltype(map<square, 2>) map_t;
template [[host_name("fourth")]] kernel map_t map<square, 2>;
typedef decltype(map<negate, 1>) negate_t;
template [[host_name("minus")]] [[kernel]] negate_t map<negate, 1>;""",
    "parameters": """
template [[host_name("fourth")]] [[kernel]]
void map<square, 2>(device const float*, device float*, uint);
template [[host_name("minus")]] [[kernel]]
void map<negate, 1>(device const float*, device float*, uint);""",
    "macro": """
#define INSTANCE(name, ...) \\
    template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
INSTANCE("fourth", map<square, 2>)
INSTANCE("minus", map<negate, 1>)""",
}


@pytest.mark.parametrize("form", INSTANCES)
def test_template_kernels_are_found_by_their_host_names(form):
    x = rng.standard_normal(64).astype(f32)
    source = TEMPLATE + INSTANCES[form]
    assert set(Library(HEADER + source)) == {"fourth", "minus"}
    arguments = [x, np.zeros_like(x)]
    check(source, arguments, {1: (x * x) * (x * x)}, kernel="fourth", groups=2, threads=32)
    check(source, arguments, {1: -x}, kernel="minus", groups=2, threads=32)


def test_compiles_the_chosen_kernels_only():
    source = (
        HEADER + TEMPLATE + INSTANCES["macro"] + "kernel void k(device int* o [[buffer(0)]]) {}\n"
    )
    assert list(Library(source, kernels=["minus", "k"])) == ["k", "minus"]


CONSTANTS = """
inline float first_of(constant float& at) { return at; }
constant int SCALE [[function_constant(0)]];
constant bool NEGATE [[function_constant(1)]];
constant float ADD [[function_constant(7)]];
constant bool negate = is_function_constant_defined(NEGATE) ? NEGATE : false;
inline float sign_of() { return negate ? -1.0f : 1.0f; }
kernel void k(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  o[i] = sign_of() * float(SCALE) * float(i) + ADD;
}
kernel void plain(device float* o [[buffer(0)]]) { o[0] = 1.0f; }
"""


def test_function_constants_have_the_values_given():
    i = np.arange(32)
    zeros = np.zeros(32, f32)
    launch = {"groups": 1, "threads": 32}
    check(CONSTANTS, [zeros], {0: 5 * i + 0.5}, constants={0: 5, 7: 0.5}, **launch)
    check(CONSTANTS, [zeros], {0: -5 * i}, constants={0: 5, 1: True, 7: 0.0}, **launch)


def test_a_kernel_lists_the_function_constants_that_it_uses():
    library = Library(HEADER + CONSTANTS)
    assert library["k"].constants == {
        0: ("SCALE", "int", True),
        1: ("NEGATE", "bool", False),
        7: ("ADD", "float", True),
    }
    assert library["plain"].constants == {}
    library["plain"]([Buffer(np.zeros(1, f32))], groups=1)
    with pytest.raises(LaunchError, match="function constant 0 'SCALE' was given no value"):
        library["k"]([Buffer(np.zeros(1, f32))], groups=1)


def test_a_kernel_describes_its_arguments():
    library = Library(
        HEADER
        + """
struct args { ulong a; uint b; uint pad; };
kernel void k(device const half4* x [[buffer(3)]], constant args& a [[buffer(1)]],
              device atomic_uint& n [[buffer(30)]], threadgroup float* s [[threadgroup(2)]]) {
  threadgroup float t[3];
  threadgroup uchar u[17], v;
  t[0] = s[0]; u[0] = v = 1;
}"""
    )
    k = library["k"]
    assert k.arguments == ["x", "a", "n", "s"]
    assert [list(k.describe(a).values()) for a in k.arguments] == [
        ["device", 3, 0, 0, 8, 8],
        ["constant", 1, 0, 1, 16, 8],
        ["device", 30, 1, 1, 4, 4],
        ["threadgroup", 2, 1, 0, 4, 4],
    ]
    assert k.static_threadgroup_bytes == 16 + 32 + 16


def test_the_extent_of_a_threadgroup_variable_may_be_a_product():
    source = f"kernel void k({OUT}) {{ threadgroup float t[4 * 8]; t[0] = 1.0f; o[0] = t[0]; }}"
    assert Library(HEADER + source)["k"].static_threadgroup_bytes == 128


def test_atomics():
    v = rng.integers(0, 100, 256).astype(u32)
    histogram = np.bincount(v % 8, minlength=8)
    check(
        """
kernel void k(device const uint* v [[buffer(0)]], device atomic_uint* h [[buffer(1)]],
              device atomic_float* f [[buffer(2)]], uint i [[thread_position_in_grid]],
              uint t [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint c;
  if (t == 0) atomic_store_explicit(&c, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&h[v[i] % 8], 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&c, v[i], memory_order_relaxed);
  atomic_fetch_max_explicit(&h[8], v[i], memory_order_relaxed);
  uint e = atomic_load_explicit(&h[10], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&h[10], &e, e + 2, memory_order_relaxed,
                                                memory_order_relaxed)) {}
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) {
    uint sum = atomic_load_explicit(&c, memory_order_relaxed);
    atomic_fetch_add_explicit(&h[9], sum, memory_order_relaxed);
    atomic_fetch_add_explicit(f, 0.5f, memory_order_relaxed);
  }
}""",
        [v, np.zeros(11, u32), np.zeros(1, f32)],
        {1: [*histogram, v.max(), v.sum(), 512], 2: [2.0]},
        version="3.0",
        groups=4,
        threads=64,
    )


def test_half_rounds_after_every_operation():
    h = rng.standard_normal(64).astype(f16)
    check(
        """kernel void k(device const half* x [[buffer(0)]], device half* o [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
  half a = x[i];
  o[i] = a * a * 3.1h + a - 0.1h;
}""",
        [h, np.zeros_like(h)],
        {1: h * h * f16(3.1) + h - f16(0.1)},
        groups=2,
        threads=32,
    )


def test_products_and_sums_are_not_contracted():
    x = rng.standard_normal((3, 64)).astype(f32)
    check(
        """kernel void k(device const float* x [[buffer(0)]], device float* o [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
  o[i] = x[i] * x[64 + i] + x[128 + i];
  o[64 + i] = fma(x[i], x[64 + i], x[128 + i]);
}""",
        [x, np.zeros(128, f32)],
        {
            1: np.r_[
                x[0] * x[1] + x[2],
                (x[0].astype(np.float64) * x[1] + x[2].astype(np.float64)).astype(f32),
            ]
        },
        groups=1,
        threads=64,
    )


def test_conversions_keep_values():
    check(
        f"""kernel void k({OUT}, {GID}) {{
  float4 f = float4(1.75f, float2(2.5f, -3.5f), i);
  uint4 u = uint4(f * 2.0f + 10.0f);
  int4 s = (int4)f;
  float4 g = (float4)u;
  half4 h = half4(g);
  vec<float, 2> q = vec<float, 2>(h.zw);
  o[i * 8] = u.x; o[i * 8 + 1] = s.z; o[i * 8 + 2] = g.y; o[i * 8 + 3] = q.y;
  o[i * 8 + 4] = float(char4(s).y);
  f.zw = f.xy; f.x += 1;
  o[i * 8 + 5] = f.z + f.x;
  o[i * 8 + 6] = as_type<float>(0x40490fdbu);
  o[i * 8 + 7] = select(float4(1), float4(2), f > 2.0f).x;
}}""",
        [np.zeros((4, 8), f32)],
        {0: [[13, -3, 15, 10 + 2 * i, 2, 1.75 + 2.75, f32(np.pi), 2] for i in range(4)]},
        groups=1,
        threads=4,
    )


def test_packed_vectors_have_no_padding():
    x = rng.standard_normal((5, 3)).astype(f32)
    check(
        """kernel void k(device const packed_float3* x [[buffer(0)]],
                         device packed_float3* o [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
  float3 v = x[i];
  o[i] = packed_float3(v.zyx);
  o[i][1] += 1.0f;
}""",
        [x, np.zeros_like(x)],
        {1: x[:, ::-1] + np.array([0, 1, 0], f32)},
        groups=1,
        threads=5,
    )


def test_bfloat():
    x = (np.arange(8, dtype=f32).view(u32) >> 16).astype(np.uint16)
    check(
        """kernel void k(device const bfloat* x [[buffer(0)]], device float* o [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
  o[i] = float(x[i]) + float(bfloat4(x[0], x[1], bfloat(2.0f), bfloat(1.0f)).z);
}""",
        [x, np.zeros(8, f32)],
        {1: np.arange(8) + 2},
        version="3.1",
        groups=1,
        threads=8,
    )


def test_a_branch_on_the_language_version():
    body = f"""
#if __METAL_VERSION__ >= 310
#define VALUE float(bfloat(3.0f))
#else
#define VALUE 2.0f
#endif
kernel void k({OUT}) {{ o[0] = VALUE; }}"""
    for version, value in (("2.4", 2), ("3.0", 2), ("3.1", 3), ("3.2", 3)):
        check(body, [np.zeros(1, f32)], {0: [value]}, version=version, groups=1)


def test_math_and_integer_functions():
    each = {
        "exp(x)": np.exp(1.5), "precise::exp(x)": np.exp(1.5), "fast::log(x)": np.log(1.5),
        "rsqrt(x)": 1 / np.sqrt(1.5), "pow(x, 3.0f)": 1.5**3, "tanh(x)": np.tanh(1.5),
        "max(-x, 0.0f)": 0, "min(NAN, x)": 1.5, "clamp(x, 0.0f, 1.0f)": 1, "abs(-x)": 1.5,
        "mix(0.0f, 4.0f, 0.25f)": 1, "float(isnan(NAN)) + float(isinf(INFINITY))": 2,
        "float(isfinite(x))": 1, "dot(float3(x), float3(1.0f, 2.0f, 3.0f))": 9,
        "length(float2(3.0f, 4.0f))": 5, "sign(-x)": -1, "fract(x)": 0.5, "rint(2.5f)": 2,
        "float(popcount(0xf0f0u))": 8, "float(clz(1u))": 31, "float(ctz(8u))": 3,
        "float(clz(ushort(1)))": 15, "float(reverse_bits(1u) >> 31)": 1,
        "float(mulhi(1u << 31, 6u))": 3, "float(extract_bits(0xabcdu, 4, 8))": 0xBC,
        "float(extract_bits(-2, 0, 4))": -2, "float(insert_bits(0u, 5u, 3, 4))": 40,
        "float(absdiff(3u, 5u))": 2, "float(rotate(0x80000001u, 1u))": 3,
        "float(addsat(uchar(250), uchar(10)))": 255, "float(any(int2(0, 1) != 0))": 1,
        "float(select(1, 2, true))": 2, "copysign(x, -1.0f)": -1.5, "ldexp(x, 3)": 12,
    }  # fmt: skip
    stores = "".join(f"o[{n}] = {expression};\n" for n, expression in enumerate(each))
    check(
        f"kernel void k({OUT}, constant float& x [[buffer(1)]]) {{\n{stores}}}",
        [np.zeros(len(each), f32), f32(1.5)],
        {0: list(each.values())},
        rtol=2e-7,
        groups=1,
    )


def test_includes_are_found_and_named(tmp_path):
    (tmp_path / "part.h").write_text(
        "inline float part(device const float* x, uint i) {\n  return x[i];\n}\n"
    )
    source = (
        HEADER
        + f'#include "part.h"\nkernel void k({OUT}, {GID}) {{\n  o[i] = part(o, i + 1);\n}}\n'
    )
    library = Library(source, "whole.metal", include=[tmp_path])
    with pytest.raises(LaunchError, match=r"part\.h:2"):
        library["k"]([Buffer(np.zeros(4, f32))], groups=1, threads=4)


def test_offsets_and_overlapping_bindings():
    source = """kernel void k(device const float* x [[buffer(0)]], device float* o [[buffer(1)]],
                              uint i [[thread_position_in_grid]]) { o[i] = x[i]; }"""
    for mode in ("check", "fast"):
        both = Buffer(np.arange(16, dtype=f32))
        Library(HEADER + source, mode=mode)["k"]([(both, 32), both], groups=1, threads=8)
        assert (both.array == np.r_[8:16, 8:16]).all()


def test_fast_math_is_off_unless_asked_for():
    """Fast math assumes that there is no NaN; a comparison shows it."""
    body = (
        f"kernel void k({OUT}, constant float& x [[buffer(1)]]) {{ o[0] = x != x ? 1.0f : 2.0f; }}"
    )
    results = []
    for fast_math in (False, True):
        library = Library(HEADER + body, mode="fast", fast_math=fast_math)
        out = Buffer(np.zeros(1, f32))
        library["k"]([out, f32(np.nan)], groups=1)
        results.append(out.array[0])
    assert results == [1, 2]


def test_many_threadgroups_on_several_host_threads():
    source = f"""kernel void k({OUT}, {GID}, uint t [[thread_index_in_threadgroup]]) {{
  threadgroup float s[32];
  s[t] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = s[31 - t] + simd_sum(1.0f);
}}"""
    kernel = Library(HEADER + source, mode="fast")["k"]
    want = np.arange(32 * 1000).reshape(1000, 32)[:, ::-1].ravel() + 32

    def run(_):
        out = Buffer(np.zeros(32000, f32))
        kernel([out], groups=1000, threads=32, workers=3)
        return (out.array == want).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(20)))


def test_every_function_of_the_library_has_a_language_version():
    """A function that the table of versions lacks would pass for one of every version."""
    version = "3.1"
    flags = [part for part in kernel_flags(version) if part != "-Wno-everything"]
    header = header_flags(version)  # makes the header's folder known to be complete
    assert header
    dump = subprocess.run(
        [
            *find_compiler().command,
            *flags,
            "-include",
            "msl_emu.h",
            "-fsyntax-only",
            "-Xclang",
            "-ast-dump",
            "-x",
            "clcpp",
            "/dev/null",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    inside = dump[dump.index("NamespaceDecl") :]
    names = set(re.findall(r"^\| \|-Function(?:Template)?Decl [^'\n]* (\w+)(?: '|$)", inside, re.M))
    names = {name for name in names if not name.startswith(("msl_", "operator"))}
    assert {"exp", "simd_sum", "simdgroup_load", "atomic_load_explicit"} <= names
    assert names <= AVAILABLE_SINCE.keys()
