"""Every kernel through NVRTC, as the cuda driver compiles it. Needs no GPU."""

from __future__ import annotations

import os
import re

import nvrtc
import pytest
from shader_sources import embed_shaders

from oxibonsai.msl.cuda import translate

FAMILIES = embed_shaders.cuda_families()
PRELUDE = embed_shaders.cuda_prelude()
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.library()
    except FileNotFoundError as error:
        if os.environ.get("OXIBONSAI_REQUIRE_NVRTC"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def architectures() -> list[int]:
    """Return the oldest that the driver admits and this NVRTC knows, and a newer one."""
    try:
        known = nvrtc.architectures()
    except FileNotFoundError:
        return [75, 90]
    return [max(min(known), 70), 90]


def compiled(source: str, arch: int = 90, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    return nvrtc.compile_cubin(source, PRELUDE, arch, options)


@pytest.mark.parametrize("arch", architectures())
@pytest.mark.parametrize("family", FAMILIES, ids=[f.name for f in FAMILIES])
def test_every_kernel_that_ships_compiles(family, arch):
    cubin, log = compiled(family.source, arch, ("--ptxas-options=-v",))
    for name in family.functions:
        assert f"msl_entry_{name}\0".encode() in cubin
        assert f"msl_table_{name}\0".encode() in cubin
    assert "warning" not in log
    reported = re.findall(r"Compiling entry function 'msl_entry_(\w+)'", log)
    assert sorted(reported) == sorted(family.functions)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    assert set(spills) == {("0", "0")}


def test_two_threadgroups_of_a_rotation_fit_32_kib():
    family = next(f for f in FAMILIES if "hadamard" in f.functions)
    _, log = compiled(family.source, 90, ("--ptxas-options=-v",))
    entry = log.partition("Compiling entry function 'msl_entry_hadamard'")[2]
    used = re.search(r"Used \d+ registers.*?(\d+) bytes smem", entry)
    assert used is not None
    assert int(used[1]) <= 16384


def ahead_of_the_wait(entry: str) -> list[str]:
    """Return the instructions of a kernel's PTX before it waits for the one before it."""
    begin, wait = entry.index("{\n"), entry.find("griddepcontrol.wait")
    assert wait > 0, entry[:200]
    lines = (line.strip() for line in entry[begin:wait].splitlines()[1:])
    return [line for line in lines if line and not line.startswith(("//", "."))]


def read_ahead(instructions: list[str]) -> set[int]:
    """Return the parameters through which instructions in a line read memory.

    Nothing else may happen: a jump could miss the wait, and nothing may be written yet.
    """
    origins: dict[str, set[int]] = {}
    found: set[int] = set()
    for line in instructions:
        operation, _, operands = line.rstrip(";").partition(" ")
        assert not re.match(r"@|bra|ret|exit|call|st\.|atom|red|bar|griddep", operation), line
        registers = re.findall(r"%[a-z]+\d+", operands)
        n_targets = operands.partition("}")[0].count("%") if "{" in operands[:2] else 1
        targets, sources = registers[:n_targets], registers[n_targets:]
        of = set().union(*(origins.get(r, set()) for r in sources))
        if operation.startswith("ld.param"):
            of = {int(n) for n in re.findall(r"_param_(\d+)", operands)}
        elif operation.startswith("ld."):
            assert of, line
            found |= of
            of = set()
        for target in targets:
            origins[target] = of
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=[f.name for f in FAMILIES])
def test_every_kernel_waits_for_the_one_before_ahead_of_any_access_but_to_weights(family):
    ptx = nvrtc.compile_ptx(family.source, PRELUDE, 90)
    entries = re.split(r"^\.visible \.entry msl_entry_", ptx, flags=re.M)[1:]
    assert len(entries) == len(family.functions)
    for entry in entries:
        # The matrix is the first binding, and its place in it comes from the argument struct; the
        # norm's weights are the third.
        last = max(int(n) for n in re.findall(r"_param_(\d+)", entry.partition(")")[0]))
        ahead = read_ahead(ahead_of_the_wait(entry))
        weights = {0, last} | ({2} if "_norm_" in entry[:80] else set())
        assert ahead <= (weights if family.name == "slices" else set()), entry[:200]
        assert (0 in ahead) == (family.name == "slices"), entry[:200]


# What shim/gpu/geometry.c sets: rows; tiles; matrices of eight vectors; tiles and eights of a
# SIMD-group, SIMD-groups over the rows, in one number for gemm_half; queries, width, length of a
# head; head_dim, loads ahead, splits; elements of a key.
CONSTANTS: dict[str, list[tuple[int, ...]]] = {
    "gemv": [(1,), (4,)],
    "swiglu": [(1,), (4,)],
    "shuffle": [(1,), (4,)],
    "select": [(1,), (4,)],
    "slices": [(1,), (2,), (3,), (4,), (6,)],
    "gemm": [(1,), (4,)],
    "gemm_halves": [(21, 1), (41, 4), (22, 1), (42, 4)],
    "attention_prompt": [(64, 1), (128, 1)],
    "attention_step": [(64, 1, 8), (128, 1, 16)],
    "gemm_half": [(242,), (442,), (444,)],
    "recurrent": [(32,), (128,), (256,)],
    "attention": [(1, 2, 1), (1, 4, 1), (4, 2, 0), (4, 4, 0), (1, 16, 0), (4, 16, 0), (2, 4, 2)],
}


@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for name, sets in CONSTANTS.items() for values in sets]
)
def test_no_choice_of_constants_leaves_the_registers(name, values):
    (family,) = (f for f in FAMILIES if f.name == name)
    options = [f"-DMSL_CONSTANT_{i}={value}u" for i, value in enumerate(values)]
    if name == "slices":  # which take long to compile: those of most registers
        options += ["-DMSL_ONE", *(f"-DMSL_ONE_{f}" for f in family.functions if "_norm_" in f)]
    _, log = compiled(family.source, 90, ("--ptxas-options=-v", *options))
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    assert set(spills) == {("0", "0")}
    if name == "slices":  # of up to 16 SIMD-groups
        assert max(map(int, re.findall(r"Used (\d+) registers", log))) <= 65536 // (32 * 16)


def test_one_kernel_is_compiled_by_itself():
    (family,) = (f for f in FAMILIES if f.name == "gemv")
    cubin, _ = compiled(family.source, 90, ("-DMSL_ONE", "-DMSL_ONE_gemv_f16"))
    assert set(re.findall(rb"msl_entry_(\w+)\0", cubin)) == {b"gemv_f16"}


def test_a_program_that_uses_all_of_the_library():
    calls = ", ".join(
        f"{name}(x)"
        for name in [
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
            "sinh",
            "cosh",
            "tanh",
            "asinh",
            "acosh",
            "atanh",
            "exp",
            "exp2",
            "exp10",
            "log",
            "log2",
            "log10",
            "sqrt",
            "rsqrt",
            "floor",
            "ceil",
            "trunc",
            "round",
            "rint",
            "fabs",
            "sign",
            "saturate",
            "fract",
            "abs",
        ]
    )
    source = f"""{HEADER}
    template <typename T> void floats(T x, T y, device T* out)
    {{
        const T found[] = {{{calls}, min(x, y), max(x, y), clamp(x, y, y), fma(x, y, x), pow(x, y),
                          fmod(x, y), atan2(x, y), copysign(x, y), fmin(x, y), fmax(x, y)}};
        for (uint i = 0; i < sizeof(found) / sizeof(T); i++)
            out[i] = found[i];
    }}
    template <typename T> void integers(T x, device T* out)
    {{
        out[0] = popcount(x); out[1] = clz(x); out[2] = ctz(x); out[3] = reverse_bits(x);
        out[4] = rotate(x, T(3)); out[5] = extract_bits(x, 1, 3); out[6] = insert_bits(x, x, 1, 3);
        out[7] = absdiff(x, T(1)); out[8] = min(x, T(4)); out[9] = numeric_limits<T>::max();
    }}
    kernel void k(device float* f [[buffer(0)]], device half* h [[buffer(1)]],
                  device float4* v [[buffer(2)]], device uint* u [[buffer(3)]],
                  device short* s [[buffer(4)]], device ulong* l [[buffer(5)]])
    {{
        floats(f[0], f[1], f); floats(h[0], h[1], h); floats(v[0], v[1], v);
        integers(u[0], u); integers(s[0], s); integers(l[0], l);
        f[99] = precise::exp(f[0]) + fast::divide(f[0], f[1]) + numeric_limits<float>::infinity();
        v[3].xy = v[2].zw + float2(1.0f); v[4] = float4(float3(v[0].xyz) * 2.0f, 1.0f);
        v[5] = float4(uint4(u[0], u[1], 0u, 1u) >> 2u) * half(0.5h);
        u[9] = isnan(h[0]) || any(isinf(v[0])) ? 1u : mulhi(u[0], u[1]);
        packed_half4 p = packed_half4(half4(h[0], h[1], h[2], h[3]));
        h[9] = p[2] + dot(half4(p), half4(1.0h));
        h[8] += h[7]; h[8] = -h[8] * 2.0f; h[7] = select(h[0], h[1], h[2] < h[3]);
    }}
    """
    compiled(translate(source, "all.metal"), 75)


def test_an_error_names_the_line_of_the_source():
    source = (
        HEADER + "\n\nkernel void k(device float* y [[buffer(0)]])\n{\n    y[0] = nothing;\n}\n"
    )
    with pytest.raises(nvrtc.NvrtcError, match=r'k\.metal\(7\): error: identifier "nothing"'):
        compiled(translate(source, "k.metal"))
    with pytest.raises(nvrtc.NvrtcError, match=r"k\.metal\(9\): error: "):
        compiled(translate(source.replace("nothing", "1.0f") + "int x = nothing;\n", "k.metal"))
