"""The translation of Metal Shading Language to CUDA C++, by its exact text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shader_sources import FAMILIES, embed_shaders

from oxibonsai.msl import CompileError
from oxibonsai.msl.cuda import MARK, kernel_names, translate
from oxibonsai.msl.tokens import tokenize

ARGUMENT = "MSL_ARGUMENT({}, decltype({}))"


def body(source: str) -> str:
    """Translate, and leave out the mark and the marker of the first line."""
    text = translate(source, "k.metal")
    head = f'{MARK}\n#line 1 "k.metal"\n'
    assert text.startswith(head)
    return text.removeprefix(head)


def entry(name: str, parameters: str, call: str, rows: str, line: int, bounds: str = "") -> str:
    return (
        f"\n#if !defined(MSL_ONE) || defined(MSL_ONE_{name})\n"
        f'extern "C" __global__ void {bounds}msl_entry_{name}({parameters})\n'
        f"{{ msl_begin(); {call}; }}\n"
        f'extern "C" __device__ unsigned msl_table_{name}[] = {{{rows}}};\n#endif\n'
        f'#line {line} "k.metal"\n'
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("inline float f(device const float* p) { return *p; }",
         "inline float f(const float* p) { return *p; }"),
        ("void f(threadgroup float* p, thread uint& n);", "void f(float* p, uint& n);"),
        ("float f(constant args& a) { constant args* p = &a; return p->x; }",
         "float f(const args& a) { const args* p = &a; return p->x; }"),
        ("constant float table[2] = {1.0f, 2.0f};",
         "static __constant__ constexpr float table[2] = {1.0f, 2.0f};"),
        ("namespace n { constant uint size = 3; }",
         "namespace n { static __constant__ constexpr uint size = 3; }"),
        ("constant float* f(uint i);", "const float* f(uint i);"),
        ("void f() { threadgroup float a[32], b; }", "void f() { __shared__ float a[32], b; }"),
        ("void f() { g((threadgroup float*)p); }", "void f() { g((float*)p); }"),
        ("half h = 1.5h + 2h + 1e3H;", "half h = half(1.5f) + half(2.f) + half(1e3f);"),
        ("#include <metal_stdlib>\n#include <metal_simdgroup>\nint x;", "\n\nint x;"),
        ("#include <stdint.h>\n", "#include <stdint.h>\n"),
        ("#define P device float*\n#define Q constant uint&\n",
         "#define P float*\n#define Q const uint&\n"),
        ("  #define TWO \\\n  2\nint x;", "#define TWO   2\n\nint x;"),
        ("int a; // a device\n/* a\nkernel */ int b;", "int a;  \n \n int b;"),
        ('int s = sizeof("device // no comment");', 'int s = sizeof("device // no comment");'),
        ("float f(device const uchar* p) { return *(device const packed_float4*)(p + 4)[0]; }",
         "float f(const uchar* p) { return *(msl_reader<packed_float4>)(p + 4)[0]; }"),
        ("void f(device float* p) { *(device float2*)p = 0.0f; }",
         "void f(float* p) { *(float2*)p = 0.0f; }"),
        ("template <typename T> struct s {}; template struct s<int>;",
         "template <typename T> struct s {}; template struct s<int>;"),
        ("void f() { switch (x) { case 1: break; } } [[maybe_unused]] int y;",
         "void f() { switch (x) { case 1: break; } }  int y;"),
    ],
)  # fmt: skip
def test_what_is_no_kernel_loses_its_address_spaces(source, expected):
    assert body(source) == expected


def test_a_kernel_gets_an_entry_that_passes_its_arguments_and_positions():
    source = (
        "[[kernel]] void k(device float* y [[buffer(0)]], constant args& a [[buffer(2)]],\n"
        "    device const half* x [[buffer(1)]], uint2 g [[threadgroup_position_in_grid]],\n"
        "    ushort lane [[thread_index_in_simdgroup]])\n{ y[0] = 1.0f; }\nint after;"
    )
    f = "k"
    assert body(source) == (
        " inline void k(float* y , const args& a ,\n    const half* x , uint2 g ,\n"
        "    ushort lane )\n{ y[0] = 1.0f; }"
        + entry(
            "k",
            f"msl_pointer<0, decltype({f})> a0, "
            f"const __grid_constant__ msl_value<1, decltype({f})> a1, "
            f"msl_pointer<2, decltype({f})> a2",
            f"{f}(a0, a1, a2, msl_group_in_grid(), msl_lane())",
            f"1, 3, 0, 0, 0, {ARGUMENT.format(0, f)}, 1, 2, {ARGUMENT.format(1, f)}, "
            f"0, 1, {ARGUMENT.format(2, f)}",
            4,
        )
        + "\nint after;"
    ).replace(" inline", "inline ", 1)


def test_only_the_constant_reference_at_the_last_index_is_passed_by_value():
    text = body(
        "kernel void k(constant uint& n [[buffer(0)]], device uint& y [[buffer(1)]]) { y = n; }"
    )
    assert "msl_pointer<0, decltype(k)> a0, msl_pointer<1, decltype(k)> a1" in text
    assert "{ msl_begin(); k(*a0, *a1); }" in text


def test_a_kernel_that_waits_by_itself_does_not_wait_at_its_entry():
    text = body(
        "inline void wait() { msl_begin(); }\n"
        "kernel void k(device uint& y [[buffer(0)]]) { wait(); y = 1; }\n"
        "kernel void other(device uint& y [[buffer(0)]]) { y = 1; }"
    )
    assert "{ k(*a0); }" in text
    assert "{ msl_begin(); other(*a0); }" in text


def test_attributes_of_a_kernel():
    text = body(
        "[[max_total_threads_per_threadgroup(4 * 64)]] kernel void k(\n"
        "threadgroup float* s [[threadgroup(0)]]) {}"
    )
    assert (
        "void __launch_bounds__(256) msl_entry_k()\n{ msl_begin(); k(msl_group_argument()); }"
        in text
    )
    assert f"{{1, 1, 0, 2, 0, {ARGUMENT.format(0, 'k')}}}" in text


def test_an_instance_of_a_template_stands_where_it_was_asked_for():
    source = (
        "template <typename T, bool B>\nkernel void t(device T* y [[buffer(0)]]) { y[0] = B; }\n"
        'template [[host_name("t_half")]] [[kernel]] decltype(t<half, true>) t<half, true>;\n'
        'template [[host_name("t_int")]] kernel void t<int, false>(device int* y [[buffer(0)]]);\n'
    )
    text = body(source)
    for name, f, line in (("t_half", "t< half , true >", 3), ("t_int", "t< int , false >", 4)):
        rows = f"1, 1, 0, 0, 0, {ARGUMENT.format(0, f)}"
        assert entry(name, f"msl_pointer<0, decltype({f})> a0", f"{f}(a0)", rows, line) in text
    assert "template <typename T, bool B>\nvoid t(T* y ) { y[0] = B; }\n" in text
    assert kernel_names(text) == ["t_half", "t_int"]


def test_a_macro_with_a_kernel_in_it_is_expanded():
    source = (
        "#define K(name, ...) template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) "
        "__VA_ARGS__;\n#define NAMED(n) kernel void n##_k() {}\n"
        "template <typename A, typename B> kernel void t() {}\n"
        'K("x", t<int,\n       float>)\nNAMED(plain)\nint after;\n'
    )
    text = body(source)
    assert kernel_names(text) == ["x", "plain_k"]
    assert "{ msl_begin(); t< int , float >(); }" in text
    assert '#line 5 "k.metal"\n\n' not in text
    at = text.split("\n")
    assert at[at.index("int after;") - 2].startswith('#line 6 "k.metal"')


def test_a_kernel_under_a_condition_keeps_it():
    lines = body("#if 0\nkernel void k() {}\n#endif\n").split("\n")
    assert lines.index("#if 0") < lines.index("#if !defined(MSL_ONE) || defined(MSL_ONE_k)")
    assert lines[-2:] == ["#endif", ""]


def test_function_constants_take_their_values_from_macros():
    source = (
        "constant uint rows [[function_constant(3)]];\n"
        "constant uint n = is_function_constant_defined(rows) ? rows : 2u;\n"
        "constant float f [[function_constant(4)]];\n"
        "kernel void k(device uint* y [[buffer(0)]]) { y[0] = n; }\n"
        "kernel void other() { g(f); }\n"
    )
    text = body(source)
    assert text.startswith(
        "\n#ifdef MSL_CONSTANT_3\nconstexpr uint rows = uint(MSL_CONSTANT_3);\n"
        "#define MSL_GIVEN_3 true\n#else\nconstexpr uint rows = 0;\n#define MSL_GIVEN_3 false\n"
        '#endif\n#line 1 "k.metal"\n\n'
        "static __constant__ constexpr uint n = MSL_GIVEN_3 ? rows : 2u;\n"
    )
    assert (
        f"{{1, 1, 1, 0, 0, {ARGUMENT.format(0, 'k')}, 3, msl_constant_type<uint>::value, 0}}"
        in text
    )
    assert "msl_table_other[] = {1, 0, 1, 4, msl_constant_type<float>::value, 1};" in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kernel void k(uint i [[nonsense]]) {}", "the attribute [[nonsense]] is unknown"),
        ("\nkernel void k(device float* y) {}",
         "k.metal:2: error: kernel k: 'y' needs [[buffer(n)]]"),
        ("kernel void k(threadgroup float* s [[threadgroup(1)]]) {}",
         "only [[threadgroup(0)]] can be given"),
        ("kernel void k() {} kernel void k() {}", "two kernels have the name 'k'"),
        ('template <int N> kernel void t() {}\ntemplate [[host_name("a b")]] kernel void t<1>();',
         "a kernel needs a name of letters, digits and _, not 'a b'"),
        ('template [[host_name("x")]] [[kernel]] decltype(f<1>) f<1>;',
         "an instantiation of what is no kernel template"),
        ("constant uint a [[function_constant(0)]]; constant uint b [[function_constant(0)]];",
         "[[function_constant(0)]] is used twice"),
        ("constant uint a [[function_constant(x)]];", "has no index in 0..65535"),
        ("bool b = is_function_constant_defined(c);", "'c' is no function constant"),
        ("kernel void k(device float* y [[buffer(0)]]) { (", "is not closed"),
        ("kernel int;", "'kernel' is not followed by a function"),
        ("constant uint a [[function_constant(0)]]", "function constant 'a' has no ';' after it"),
        ("void f() { is_function_constant_defined", "is not followed by (name)"),
        ("template <int N> kernel void t() {}\ntemplate [[kernel]] void t<1>()",
         "k.metal:2: error: an instantiation has no ';' after it"),
        ("kernel void k([[buffer(0)]]) {}", "k.metal:1: error: a parameter has no type"),
        ("kernel void k(device float* y [[buffer(1 / 0)]]) {}", "is not an integer constant"),
        ("kernel void k(device float* y [[buffer(1 << 999999999)]]) {}",
         "is not an integer constant"),
        ("kernel void k(device float* y [[buffer(31)]]) {}", "[[buffer(31)]] is outside 0..30"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_to_the_driver_is_refused(source, message):
    with pytest.raises(CompileError) as raised:
        translate(source, "k.metal")
    assert message in str(raised.value)


PROGRAM = """constant int n [[function_constant(3)]];
template <typename T> [[kernel, max_total_threads_per_threadgroup(64)]]
void f(device const T* p [[buffer(0)]], constant args& a [[buffer(1)]],
       uint2 i [[thread_position_in_grid]]) {
    threadgroup float s[32];
    if (is_function_constant_defined(n)) s[0] = *(device const T*)(p + 1) + 2h;
}
template [[host_name("f_x")]] [[kernel]] void f<float>(device const float*, constant args&, uint2);
kernel void g(device float* p [[buffer(0)]], threadgroup float* t [[threadgroup(0)]],
              uint k [[thread_index_in_threadgroup]]) { p[k] = t[k]; }
#define K(N, T) template [[host_name(#N)]] [[kernel]] void f<T>(device const T*, constant args&);
K(h_##y, half)
"""
WORDS = [token.text for token in tokenize(PROGRAM, "k.metal")]


@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(["cut", "delete", "insert"]),
            st.integers(0, len(WORDS)),
            st.sampled_from(WORDS),
        ),
        min_size=1,
        max_size=4,
    )
)
@example(edits=[("cut", WORDS.index("threadgroup") + 3, "")])
@example(edits=[("delete", WORDS.index("["), "")])
def test_a_broken_program_is_translated_or_refused(edits):
    assert kernel_names(translate(PROGRAM, "k.metal")) == ["f_x", "g", "h_y"]
    words = list(WORDS)
    for edit, at, word in edits:
        if edit == "cut":
            del words[at:]
        elif edit == "delete":
            del words[at : at + 1]
        else:
            words.insert(at, word)
    try:
        text = translate("".join(words), "k.metal")
    except CompileError as e:
        text = str(e)
    assert re.match(rf"k\.metal:\d+: error: |{re.escape(MARK)}\n", text)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_kernel_that_ships_has_an_entry(family):
    (translated,) = (f for f in embed_shaders.cuda_families() if f.name == family.name)
    assert sorted(kernel_names(translated.source)) == sorted(family.functions)
    assert translated.functions == family.functions
