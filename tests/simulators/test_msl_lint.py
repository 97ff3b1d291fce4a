"""The runner refuses what Apple's compiler refuses, and what the shaders' subset leaves out."""

from __future__ import annotations

import re

import pytest
from msl_runner import CompileError, Library
from msl_runner.testing import HEADER, require_runner

require_runner()

OUT = "device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]"
IN = "device const float* x [[buffer(1)]]"


def kernel(body: str, parameters: str = OUT, before: str = "") -> str:
    """A kernel whose body begins at line 4, where `before` is one line or none."""
    return f"{HEADER}{before or '// nothing before'}\nkernel void k({parameters}) {{ {body} }}\n"


# What is wrong, where (4 in the body, 3 before the kernel), what the log says, the source.
REFUSED = {
    # Address spaces.
    "device to threadgroup": (
        4,
        "cannot initialize",
        kernel("threadgroup float* p = o; o[i] = p[0];"),
    ),
    "device to thread": (4, "cannot initialize", kernel("thread float* p = o; o[i] = p[0];")),
    "C cast to threadgroup": (
        4,
        "address space",
        kernel("threadgroup float* p = (threadgroup float*)o; o[i] = p[0];"),
    ),
    "C cast to thread": (
        4,
        "address space",
        kernel("thread float* p = (thread float*)o; o[i] = p[0];"),
    ),
    "two elements to those of a matrix": (
        4,
        "no viable overloaded '='",
        kernel("simdgroup_half8x8 m; m.thread_elements() = half2(0.0h); o[i] = 1.0f;"),
    ),
    "local pointer": (4, "'p' has no address space", kernel("float* p = o; o[i] = p[0];")),
    "helper's pointer": (
        3,
        "'p' has no address space",
        kernel("o[i] = h(o);", before="inline float h(const float* p) { return p[0]; }"),
    ),
    "helper's reference": (
        3,
        "'p' has no address space",
        kernel("float a = 1.0f; o[i] = h(a);", before="inline float h(float& p) { return p; }"),
    ),
    "cast without space": (4, "without an address space", kernel("o[i] = ((float*)o)[1];")),
    "field without space": (
        3,
        "'p' has no address space",
        kernel("S s; s.p = o; o[i] = s.p[0];", before="struct S { float* p; };"),
    ),
    "result without space": (
        3,
        "without address space",
        kernel("o[i] = h(o)[0];", before="inline const float* h(device float* p) { return p; }"),
    ),
    "kernel's pointer": (
        4,
        "'o' has no address space",
        kernel("o[i] = 1.0f;", "float* o [[buffer(0)]], uint i [[thread_position_in_grid]]"),
    ),
    "device lvalue for thread&": (
        4,
        "",
        kernel("h(o[i]);", before="inline void h(thread float& p) { p = 1.0f; }"),
    ),
    "write to const": (4, "const", kernel("x[i] = 1.0f;", f"{OUT}, {IN}")),
    "write to constant": (
        4,
        "const",
        kernel("x[i] = 1.0f;", f"{OUT}, constant float* x [[buffer(1)]]"),
    ),
    # Alignment.
    "threadgroup floats as float4": (
        4,
        "asks for an alignment of 16, and what it points to has 4",
        kernel("threadgroup float t[8]; t[i] = 1; o[i] = ((threadgroup float4*)t)[1][0];"),
    ),
    "threadgroup parameter as float2": (
        3,
        "asks for an alignment of 8, and what it points to has 4",
        kernel(
            "threadgroup float t[8]; t[i] = 1; o[i] = h(t);",
            before="inline float h(threadgroup const float* t) "
            "{ return (*reinterpret_cast<threadgroup const float2*>(t + 2))[0]; }",
        ),
    ),
    "threadgroup vector of a template": (
        3,
        "asks for an alignment of 16, and what it points to has 8",
        kernel(
            "threadgroup half4 t[8]; t[i] = half4(1); o[i] = h<uint4>(t);",
            before="template <typename T> inline float h(threadgroup half4* t) "
            "{ return ((threadgroup T*)t)[0][0]; }",
        ),
    ),
    # What the language lacks.
    "double": (4, "no double", kernel("double a = 1.0f; o[i] = a;")),
    "literal without f": (4, "'0.5'", kernel("o[i] = o[i] * 0.5;")),
    "literal with exponent": (4, "'1e3'", kernel("o[i] = o[i] * 1e3;")),
    "long long": (4, "long long", kernel("long long a = 1; o[i] = a;")),
    "long long literal": (4, "'1LL'", kernel("long a = 1LL; o[i] = a;")),
    "recursion": (
        3,
        "'f' is recursive",
        kernel("o[i] = f(3);", before="int f(int a) { return a ? f(a - 1) + 1 : 0; }"),
    ),
    "mutual recursion": (
        3,
        "is recursive",
        kernel(
            "o[i] = f(3);",
            before="int g(int a); int f(int a) { return a ? g(a - 1) : 0; } "
            "int g(int a) { return a ? f(a - 1) : 0; }",
        ),
    ),
    "new": (4, "no new", kernel("thread float* p = new float; o[i] = *p;")),
    "std": (4, "'std'", kernel("o[i] = std::max(1.0f, o[i]);")),
    "virtual": (3, "virtual", kernel("o[i] = 1;", before="struct S { virtual float f(); };")),
    "exceptions": (4, "exceptions", kernel("try { o[i] = 1; } catch (...) { }")),
    "goto": (4, "goto", kernel("l: o[i] += 1; if (o[i] < 3) goto l;")),
    "stdint": (4, "stdint.h", "// 1\n// 2\n// 3\n#include <stdint.h>\n"),
    "bit-field": (
        3,
        "bit-field",
        kernel("S s; s.a = i; o[i] = s.a;", before="struct S { uint a : 4; uint b : 28; };"),
    ),
    "function pointer": (
        4,
        "function pointer",
        kernel("float (*p)(float) = h; o[i] = p(1.0f);", before="float h(float a) { return a; }"),
    ),
    "function as template argument": (
        4,
        "no matching function",
        kernel(
            "o[i] = t<h>(1.0f);",
            before="float h(float a) { return a; } "
            "template <float (*F)(float)> float t(float a) { return F(a); }",
        ),
    ),
    "variable length array": (
        4,
        "",
        kernel("float a[n]; a[0] = 1; o[i] = a[0];", f"{OUT}, constant uint& n [[buffer(1)]]"),
    ),
    "mutable global": (3, "constant memory", kernel("o[i] = g;", before="float g = 1.0f;")),
    "static variable": (4, "constant memory", kernel("static int c = 0; c++; o[i] = c;")),
    "global not constant": (
        3,
        "constant memory",
        kernel("o[i] = t[i & 1u];", before="const float t[2] = {1, 2};"),
    ),
    "reserved word": (4, "'fragment'", kernel("float fragment = 1.0f; o[i] = fragment;")),
    "reserved name": (4, "'__x'", kernel("float __x = 1.0f; o[i] = __x;")),
    "name of the library": (
        3,
        "namespace metal",
        kernel("o[i] = clamp(o[i]);", before="float clamp(float a) { return a; }"),
    ),
    "method on device": (
        4,
        "outside thread memory",
        kernel(
            "o[i] = p[i].get();",
            f"{OUT}, device const S* p [[buffer(1)]]",
            "struct S { float x; float get() const { return x; } };",
        ),
    ),
    "qualified method": (
        3,
        "outside thread memory",
        kernel(
            "o[i] = p[i].get();",
            f"{OUT}, device const S* p [[buffer(1)]]",
            "struct S { float x; float get() const device { return x; } };",
        ),
    ),
    # Vectors.
    "half4 as float4": (
        4,
        "",
        kernel("half4 a = half4(1.0h); float4 b = a; o[i] = b.x;"),
    ),
    "half4 times float": (4, "", kernel("half4 a = half4(1.0h); o[i] = (a * o[i]).x;")),
    "float3 as float4": (4, "", kernel("float4 a = float3(1.0f); o[i] = a.x;")),
    "too few components": (
        4,
        "number of components",
        kernel("float4 a = float4(1.0f, 2.0f, 3.0f); o[i] = a.x;"),
    ),
    "as_type of other size": (4, "sizes differ", kernel("o[i] = as_type<float>(ushort(1));")),
    # Functions.
    "undeclared": (4, "undeclared", kernel("o[i] = foo(1.0f);")),
    "undocumented": (
        4,
        "elements",
        kernel("simdgroup_float8x8 m; o[i] = m.elements[0];"),
    ),
    "OpenCL": (4, "OpenCL", kernel("o[get_global_id(0)] = 1;")),
    "exp of an int": (4, "ambiguous", kernel("o[i] = exp(2);")),
    "max of float and int": (4, "", kernel("o[i] = max(o[i], 0);")),
    "barrier without flags": (4, "", kernel("threadgroup_barrier(); o[i] = 1;")),
    "later function": (
        4,
        "came with Metal 3.1",
        kernel("o[i] = float(bfloat(1.0f));"),
    ),
    "float atomics in 2.4": (
        4,
        "came with Metal 3.0",
        kernel("o[i] = 1;", f"{OUT}, device atomic_float* a [[buffer(1)]]"),
    ),
    "simd_sum of bool": (4, "SIMD-group functions", kernel("o[i] = simd_sum(i == 0);")),
    # Atomics.
    "acquire": (
        4,
        "memory_order",
        kernel(
            "atomic_fetch_add_explicit(a, 1u, memory_order_acquire);",
            "device atomic_uint* a [[buffer(0)]]",
        ),
    ),
    "++ on an atomic": (4, "", kernel("a[0]++;", "device atomic_uint* a [[buffer(0)]]")),
    "waiting for a flag": (
        4,
        "waits for an atomic",
        kernel(
            "while (atomic_load_explicit(a, memory_order_relaxed) == 0u) {}",
            "device atomic_uint* a [[buffer(0)]]",
        ),
    ),
    "waiting in do": (
        4,
        "waits for an atomic",
        kernel(
            "do {} while (atomic_load_explicit(a, memory_order_relaxed) == 0u);",
            "device atomic_uint* a [[buffer(0)]]",
        ),
    ),
    # Signatures.
    "index twice": (
        4,
        "used twice",
        kernel("o[i] = x[i];", f"{OUT}, device float* x [[buffer(0)]]"),
    ),
    "index 31": (4, "outside 0..30", kernel("o[0] = 1;", "device float* o [[buffer(31)]]")),
    "no index": (4, "needs [[buffer(n)]]", kernel("o[0] = 1;", "device float* o")),
    "2 and 3 components": (
        4,
        "of 2 and of 3",
        kernel(
            "o[a.x + b.x] = 1;",
            "device float* o [[buffer(0)]], uint2 a [[thread_position_in_grid]], "
            "uint3 b [[threadgroup_position_in_grid]]",
        ),
    ),
    "int position": (
        4,
        "uint or ushort",
        kernel("o[i] = 1;", "device float* o [[buffer(0)]], int i [[thread_position_in_grid]]"),
    ),
    "unknown attribute": (
        4,
        "unknown",
        kernel("o[i] = 1;", "device float* o [[buffer(0)]], uint i [[thread_position_in_gird]]"),
    ),
    "parameter by value": (
        4,
        "neither a pointer nor a reference",
        kernel("o[i] = n;", f"{OUT}, uint n [[buffer(1)]]"),
    ),
    "threadgroup as buffer": (
        4,
        "does not bind",
        kernel("s[0] = 1;", "threadgroup float* s [[buffer(0)]]"),
    ),
    "not void": (
        3,
        "must return void",
        HEADER + "kernel int k(device float* o [[buffer(0)]]) { return 1; }\n",
    ),
    # Threadgroup memory.
    "threadgroup in a helper": (
        3,
        "only be declared in a kernel",
        kernel(
            "o[i] = h(i);",
            before="float h(uint i) { threadgroup float s[32]; s[i] = 1; return s[0]; }",
        ),
    ),
    "threadgroup initialiser": (
        4,
        "initialiser",
        kernel("threadgroup float s = 0.0f; o[i] = s;"),
    ),
    "too much threadgroup memory": (
        4,
        "33280 bytes of threadgroup variables",
        kernel("threadgroup float s[8192]; threadgroup uint t[128]; s[i] = t[i] = 1; o[i] = s[i];"),
    ),
    # Function constants.
    "constant sizes an array": (
        4,
        "sizes an array",
        kernel(
            "float a[N]; a[0] = 1.0f; o[i] = a[0];",
            before="constant uint N [[function_constant(0)]];",
        ),
    ),
    "constant index twice": (
        3,
        "used twice",
        kernel(
            "o[i] = A + B;",
            before="constant int A [[function_constant(0)]]; "
            "constant int B [[function_constant(0)]];",
        ),
    ),
    # Values.
    "uninitialised variable": (4, "uninitialized", kernel("float a; o[i] = a;")),
    "missing return": (
        3,
        "",
        kernel("o[i] = h(i);", before="float h(uint i) { if (i > 2u) return 1.0f; }"),
    ),
}

ACCEPTED = {
    "threadgroup float4 as floats": kernel(
        "threadgroup float4 t[8]; ((threadgroup float*)t)[i] = 1; "
        "o[i] = ((threadgroup const float2*)t)[1][0] + ((threadgroup packed_float4*)t)[0][1];"
    ),
    "device bytes as float4": kernel(
        "o[i] = ((device const float4*)b)[1][0];", f"{OUT}, device const uchar* b [[buffer(1)]]"
    ),
    "struct from device": kernel(
        "S s = p[i]; s.a += 1; p[i + 1u] = s;",
        "device S* p [[buffer(0)]], uint i [[thread_position_in_grid]]",
        "struct S { float a; uint b[3]; };",
    ),
    "struct from constant": kernel(
        "o[i] = f(a);",
        f"{OUT}, constant A& a [[buffer(1)]]",
        "struct A { int n; float4 v; }; float f(A a) { return a.n + a.v.w; }",
    ),
    "overloads by space": kernel(
        "threadgroup float s[32]; s[i] = 1; float z = 2; o[i] = ld(o) + ld(s) + ld(&z);",
        before="template<typename T> T ld(const device T* p) { return *p; } "
        "template<typename T> T ld(const threadgroup T* p) { return *p; } "
        "template<typename T> T ld(const thread T* p) { return *p; }",
    ),
    "conversions and swizzles": kernel(
        "uint4 u = uint4(float4(1.5f, float2(2, 3), 4)); float4 f = (float4)u; "
        "half4 h = half4(f.wzyx); f.xy += float2(h.zw); o[i] = f.x + dot(f, float4(h));"
    ),
    "constant tables": kernel(
        "o[i] = t[i & 3u] * N + 0.5f;",
        before="constant float t[4] = {1, 2, 3, 4}; constexpr constant int N = 4;",
    ),
    "lambda and auto": kernel(
        "auto f = [&](uint j) { return o[j] * 2; }; auto p = o + 1; o[i] = f(i) + p[0];"
    ),
    "vector comparison": kernel(
        "float4 a = float4(o[i]); bool4 m = a < float4(1.0f); o[i] = m.x ? 1 : 2;"
    ),
    "braces": kernel("float4 a{1, 2, 3, 4}; float4 b = {a.x, 1, 2, 3}; o[i] = a.y + b.z;"),
    "elements of a matrix one by one": kernel(
        "simdgroup_half8x8 m; m.thread_elements()[0] = 1.0h; m.thread_elements()[1] = 2.0h; "
        "o[i] = m.thread_elements()[i % 2u];"
    ),
    "packed": kernel(
        "float3 v = p[i]; v *= 2.0f; p[i] = packed_float3(v); o[i] = p[i].y;",
        f"{OUT}, device packed_float3* p [[buffer(1)]]",
    ),
    "types in templates": kernel(
        "o[i] = f<half>(o[i]);",
        before="template<typename T> T f(float a) { vec<T, 4> v = vec<T, 4>(T(a), T(2), T(3), "
        "T(4)); using V = vec<T, 4>; V w = V(float4(1.0f)); return v.x + w.y; }",
    ),
    "compare and exchange": kernel(
        "uint e = 0u; while (!atomic_compare_exchange_weak_explicit(a, &e, e + 1u, "
        "memory_order_relaxed, memory_order_relaxed)) {}",
        "device atomic_uint* a [[buffer(0)]]",
    ),
    "method on thread object": kernel(
        "S s = {o[i]}; o[i] = s.twice();",
        before="struct S { float x; float twice() const { return 2 * x; } };",
    ),
    "functor as template argument": kernel(
        "o[i] = t<H>(1.0f);",
        before="struct H { static float f(float a) { return a; } }; "
        "template <typename F> float t(float a) { return F::f(a); }",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    line, text, source = REFUSED[case]
    with pytest.raises(CompileError) as caught:
        Library(source, "shader.metal", mode="fast")
    log = str(caught.value)
    assert re.search(rf"shader\.metal:{line}:(\d+:)? (fatal )?error: ", log) or (
        # A failed assertion of the library names the caller in a note.
        re.search(rf"shader\.metal:{line}:\d+: note: ", log) and "error:" in log
    ), log
    assert text in log


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts(case):
    assert list(Library(ACCEPTED[case], "shader.metal", mode="fast")) == ["k"]


def test_names_the_file_and_line_of_a_line_directive():
    source = HEADER + '#line 7 "other.metal"\nkernel void k(device float* o [[buffer(0)]]) { x; }\n'
    with pytest.raises(CompileError, match=r"other\.metal:7:\d+: error: use of undeclared"):
        Library(source, "shader.metal")


def test_warns_where_constant_memory_cannot_be_told_from_device():
    library = Library(ACCEPTED["struct from constant"], "shader.metal", mode="fast")
    assert "copied out of constant memory" in library.warnings[0]
    assert Library(ACCEPTED["braces"], "shader.metal", mode="fast").warnings == ()
