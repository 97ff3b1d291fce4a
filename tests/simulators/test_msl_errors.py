"""Each kind of mistake that a kernel can make at run time is found, and named with its line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from msl_runner import Buffer, LaunchError, Library, Threadgroup
from msl_runner.testing import HEADER, buffers, floats, require_runner, source

require_runner()

BOTH = ("check", "fast")
CHECK = ("check",)
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
OUT = "device float* o [[buffer(0)]]"
TID = "uint tid [[thread_index_in_threadgroup]]"
GID = "uint gid [[thread_position_in_grid]]"


def reduction(first, inside):
    """The sum of 256 numbers by a tree, with two barriers to leave out or to get wrong."""
    return source(
        f"""threadgroup float s[256];
s[tid] = x[tid];
{first}
for (uint n = 128u; n > 0u; n >>= 1u) {{
if (tid < n) s[tid] += s[tid + n];
{inside}
}}
if (tid == 0u) o[0] = s[0];""",
        OUT,
        "device const float* x [[buffer(1)]]",
        TID,
    )


def addition(guard, index):
    return source(
        f"{guard}\na[gid] += b[{index}];",
        "device float* a [[buffer(0)]]",
        "device const float* b [[buffer(1)]]",
        "constant uint& n [[buffer(2)]]",
        GID,
    )


TREE: tuple[Any, dict[str, Any]] = (
    [floats(1), np.arange(256, dtype=np.float32)],
    {"groups": 1, "threads": 256},
)
ONE: dict[str, Any] = {"groups": 1, "threads": 32}
GUARD = "if (gid >= n) return;"


def arrays(n):
    return [floats(n), floats(n), np.uint32(n)]


# What is wrong: the builds that see it, the error (a pattern), its line, the source, the launch.
MISTAKES: dict[str, Any] = {
    "no barrier before the tree": (
        CHECK,
        "data race|uninitialised",
        8,
        reduction("", BARRIER),
        *TREE,
    ),
    "no barrier in the tree": (CHECK, "data race", 8, reduction(BARRIER, ""), *TREE),
    "barrier of device memory": (
        CHECK,
        "data race",
        8,
        reduction(BARRIER, "threadgroup_barrier(mem_flags::mem_device);"),
        *TREE,
    ),
    "barrier of a SIMD-group": (
        CHECK,
        "data race",
        8,
        reduction(BARRIER, "simdgroup_barrier(mem_flags::mem_threadgroup);"),
        *TREE,
    ),
    "race in device memory": (
        CHECK,
        r"data race.*buffer\(0\)",
        4,
        source("o[tid] = o[(tid + 1u) % 64u];", OUT, TID),
        [floats(64)],
        {"groups": 1, "threads": 64},
    ),
    "race of threadgroups": (
        CHECK,
        "data race.*of another threadgroup",
        4,
        source("if (gid % 32u == 5u) o[0] = 1.0f;", OUT, GID),
        [floats(1)],
        {"groups": 4, "threads": 32},
    ),
    "read of another threadgroup's result": (
        CHECK,
        "data race.*of another threadgroup",
        5,
        source("o[gid] = 1.0f;\no[gid] += o[gid ^ 32u];", OUT, GID),
        [floats(64)],
        {"groups": 2, "threads": 32},
    ),
    "divergent barrier": (
        BOTH,
        "divergence.*40 threads.*wait in threadgroup_barrier",
        5,
        source(
            "if (tid < 40u) {\nthreadgroup_barrier(mem_flags::mem_none);\n}\n"
            "o[tid] = simd_sum(1.0f);",
            OUT,
            TID,
        ),
        [floats(64)],
        {"groups": 1, "threads": 64},
    ),
    "return before a barrier": (
        BOTH,
        r"divergence.*14 threads \(50-63\) have returned",
        5,
        source("if (tid >= n) return;\n" + BARRIER, "constant uint& n [[buffer(0)]]", TID),
        [np.uint32(50)],
        {"groups": 1, "threads": 64},
    ),
    "divergent SIMD functions": (
        BOTH,
        "divergence.*16 threads.*a simd_ reduction",
        5,
        source(
            "float x = 1.0f;\nif (tid & 1u) x = simd_sum(x);\nelse x = simd_shuffle_xor(x, 2);\n"
            "o[tid] = x;",
            OUT,
            TID,
        ),
        [floats(32)],
        ONE,
    ),
    "shuffle from a lane that returned": (
        BOTH,
        "undefined shuffle.*lane 20",
        5,
        source("if (tid >= 20u) return;\no[tid] = simd_shuffle_down(1.0f, 1);", OUT, TID),
        [floats(32)],
        ONE,
    ),
    "shuffle from lane 40": (
        BOTH,
        "undefined shuffle.*lane 40",
        4,
        source("o[tid] = simd_shuffle(1.0f, 40);", OUT, TID),
        [floats(32)],
        ONE,
    ),
    "matrix of half a SIMD-group": (
        CHECK,
        "SIMD-group matrix",
        6,
        source(
            "if (tid >= 16u) return;\nsimdgroup_float8x8 m;\nsimdgroup_load(m, o, 8);", OUT, TID
        ),
        [floats(64)],
        ONE,
    ),
    "matrix product of half a SIMD-group": (
        BOTH,
        "SIMD-group matrix",
        6,
        source(
            "if (tid >= 16u) return;\nsimdgroup_float8x8 m(1.0f);\nsimdgroup_multiply(m, m, m);",
            OUT,
            TID,
        ),
        [floats(64)],
        ONE,
    ),
    "matrix at another place for each lane": (
        CHECK,
        "SIMD-group matrix",
        5,
        source("simdgroup_float8x8 m;\nsimdgroup_load(m, o + tid, 8);", OUT, TID),
        [floats(128)],
        ONE,
    ),
    "matrix transposed for some lanes": (
        CHECK,
        "SIMD-group matrix",
        5,
        source("simdgroup_float8x8 m;\nsimdgroup_load(m, o, 8, 0, tid < 8u);", OUT, TID),
        [floats(64)],
        ONE,
    ),
    "matrix loaded before all lanes have written": (
        CHECK,
        "race",
        7,
        source(
            "threadgroup float s[64];\ns[tid] = s[tid + 32u] = 1.0f;\nsimdgroup_float8x8 m;\n"
            "simdgroup_load(m, s, 8);\nsimdgroup_store(m, o, 8);",
            OUT,
            TID,
        ),
        [floats(64)],
        ONE,
    ),
    "matrix of threadgroup memory that nobody wrote": (
        CHECK,
        "uninitialised",
        6,
        source(
            "threadgroup float s[64];\nsimdgroup_float8x8 m;\nsimdgroup_load(m, s, 8);\n"
            "simdgroup_store(m, o, 8);",
            OUT,
        ),
        [floats(64)],
        ONE,
    ),
    "matrix beyond its buffer": (
        CHECK,
        r"out of bounds.*reads.*buffer\(0\)",
        5,
        source("simdgroup_float8x8 m;\nsimdgroup_load(m, o, 9);\nsimdgroup_store(m, o, 8);", OUT),
        [floats(64)],
        ONE,
    ),
    "no bounds guard": (
        BOTH,
        r"out of bounds.*buffer\([01]\)",
        5,
        addition("", "gid"),
        arrays(1000),
        {"groups": 4, "threads": 256},
    ),
    "read of one too many": (
        BOTH,
        r"out of bounds.*reads.*at offset 4000 of buffer\(1\)",
        5,
        addition(GUARD, "gid + 1u"),
        arrays(1000),
        {"groups": 4, "threads": 256},
    ),
    "read of one too few": (
        CHECK,
        r"out of bounds.*reads.*of buffer\([01]\)",  # 16 GiB away from both
        5,
        addition(GUARD, "gid - 1"),
        arrays(1000),
        {"groups": 4, "threads": 256},
    ),
    "read before the start": (
        CHECK,
        r"out of bounds.*at offset -4 of buffer\(1\)",
        5,
        addition(GUARD, "int(gid) - 1"),
        arrays(1000),
        {"groups": 4, "threads": 256},
    ),
    "write of some bytes too many": (
        BOTH,
        r"out of bounds.*writ.*at offset 8004 of buffer\(0\)|out of bounds.*offset 8004",
        None,
        source("o[gid + 1u] = 1.0f;", OUT, GID),
        [floats(2001)],
        {"groups": 2001, "threads": 1},
    ),
    "vector of three elements past the end": (
        CHECK,
        r"out of bounds.*reads.*of buffer\(1\)",
        4,
        source(
            "const float3 a = v[gid]; o[gid] = a.x + a.y + a.z;",
            OUT,
            "device const float3* v [[buffer(1)]]",
            GID,
        ),
        [floats(2), floats(6)],
        {"groups": 1, "threads": 2},
    ),
    "struct copied from past the end": (
        CHECK,
        r"out of bounds.*reads.*of buffer\(1\)",
        4,
        HEADER
        + "struct S { float a[9]; }; kernel void k(device S* o [[buffer(0)]], "
        + "device const S* v [[buffer(1)]], uint gid [[thread_position_in_grid]]) {\n"
        + "o[gid] = v[gid + 1u];\n}\n",
        [floats(18), floats(18)],
        {"groups": 1, "threads": 2},
    ),
    "pointer from nowhere": (
        BOTH,
        "out of bounds",
        4,
        source("o[tid] = *(device float*)(ulong(tid) + 4096ul);", OUT, TID),
        [floats(32)],
        ONE,
    ),
    "threadgroup array too short": (
        CHECK,
        r"out of bounds.*offset 256 of threadgroup variable s \(broken.metal:4\) \(256 bytes\)",
        6,
        source(
            f"threadgroup float s[64];\nthreadgroup float* p = s;\np[tid] = 1.0f;\n{BARRIER}\n"
            "o[tid] = p[tid];",
            OUT,
            TID,
        ),
        [floats(65)],
        {"groups": 1, "threads": 65},
    ),
    "threadgroup array overwritten": (
        ("fast",),
        r"out of bounds.*wrote at offset 256 of threadgroup variable s",
        None,
        source(
            f"threadgroup float s[64];\nthreadgroup float* p = s;\np[tid] = 1.0f;\n{BARRIER}\n"
            "o[tid] = p[tid];",
            OUT,
            TID,
        ),
        [floats(65)],
        {"groups": 1, "threads": 65},
    ),
    "threadgroup argument too short": (
        CHECK,
        r"out of bounds.*of threadgroup variable s \(64 bytes\)",
        4,
        source("s[tid] = 1.0f;", "threadgroup float* s [[threadgroup(0)]]", TID),
        [Threadgroup(64)],
        ONE,
    ),
    "thread array too short": (
        CHECK,
        "undefined behaviour",
        5,
        source(
            "float a[8];\nfor (uint i = 0; i <= n; i++) a[i] = float(i) * o[tid];\n"
            "float r = 0;\nfor (uint i = 0; i < n; i++) r += a[i];\no[tid] = r;",
            OUT,
            "constant uint& n [[buffer(1)]]",
            TID,
        ),
        [floats(32), np.uint32(8)],
        ONE,
    ),
    "division by zero": (
        BOTH,
        "undefined behaviour",
        4,
        source(
            "o[tid] = 7u / n;",
            "device uint* o [[buffer(0)]]",
            "constant uint& n [[buffer(1)]]",
            TID,
        ),
        [np.zeros(32, np.uint32), np.uint32(0)],
        ONE,
    ),
    "uninitialised threadgroup memory": (
        CHECK,
        "uninitialised.*threadgroup variable s",
        7,
        source(
            f"threadgroup float s[64];\nif (tid < 32u) s[tid] = 1.0f;\n{BARRIER}\no[tid] = s[tid];",
            OUT,
            TID,
        ),
        [floats(64)],
        {"groups": 1, "threads": 64},
    ),
    "sum onto uninitialised memory": (
        CHECK,
        "uninitialised.*threadgroup variable s",
        5,
        source("threadgroup float s[32];\ns[tid] += 1.0f;\no[tid] = s[tid];", OUT, TID),
        [floats(32)],
        ONE,
    ),
    "misaligned load": (
        CHECK,
        "misaligned.*reads",
        4,
        source(
            "o[tid] = (*(device const uint4*)(x + 2u + tid * 16u)).y;",
            "device uint* o [[buffer(0)]]",
            "device const uchar* x [[buffer(1)]]",
            TID,
        ),
        [np.zeros(32, np.uint32), np.zeros(1024, np.uint8)],
        ONE,
    ),
    "write to const": (
        CHECK,
        r"read-only.*buffer\(1\)",
        4,
        source(
            "((device float*)x)[gid] = 1.0f;\no[gid] = x[gid];",
            OUT,
            "device const float* x [[buffer(1)]]",
            GID,
        ),
        [floats(32), floats(32)],
        ONE,
    ),
    "large thread array": (
        BOTH,
        "stack overflow",
        None,
        source(
            "volatile float a[65536];\na[gid] = 1.0f;\no[gid] = a[0] + a[65535 - gid];", OUT, GID
        ),
        [floats(32)],
        ONE,
    ),
    "access before the offset": (
        CHECK,
        r"offset 0 of buffer\(0\), whose bytes 4 to 132 are bound",
        4,
        source("o[int(gid) - 1] = 1.0f;", OUT, GID),
        [(floats(33), 4)],
        ONE,
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_finds(case):
    modes, pattern, line, text, arguments, launch = MISTAKES[case]
    for mode in modes:
        kernel = Library(text, "broken.metal", mode=mode)["k"]
        for order in ("forward", "reverse", "random"):
            with pytest.raises(LaunchError, match=f"(?s){pattern}") as caught:
                kernel(buffers(arguments), order=order, seed=3, **launch)
            message = str(caught.value)
            assert "kernel k" in message
            if line is not None:
                assert re.search(rf"at broken\.metal:{line}\b", message), message


def test_finds_nothing_wrong_with_the_correct_reduction():
    arguments, launch = TREE
    for mode in BOTH:
        kernel = Library(reduction(BARRIER, BARRIER), "right.metal", mode=mode)["k"]
        for order in ("forward", "reverse", "random"):
            out, x = buffers(arguments)
            kernel([out, x], order=order, **launch)
            assert out.array[0] == np.arange(256).sum()


def test_names_threadgroup_and_thread():
    text = addition("", "gid")
    with pytest.raises(LaunchError) as caught:
        Library(text, "broken.metal")["k"](
            [*buffers(arrays(1000))[:2], np.uint32(1000)], groups=4, threads=256
        )
    assert "kernel k, threadgroup (3,0,0), thread 232 (simdgroup 7 lane 8)" in str(caught.value)


def test_a_failed_launch_leaves_the_runner_usable():
    good = Library(addition(GUARD, "gid"), "right.metal", mode="fast")["k"]
    bad = Library(addition("", "gid + 100000u"), "broken.metal", mode="fast")["k"]
    for _ in range(20):
        with pytest.raises(LaunchError):
            bad(buffers(arrays(1000)), groups=4, threads=256)
        a, b, n = Buffer(floats(1000)), Buffer(np.ones(1000, np.float32)), np.uint32(1000)
        good([a, b, n], groups=4, threads=256)
        assert (a.array == 1).all()


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_race_changes_the_result_with_the_order_of_threads(order):
    """The fast build does not look, so that its result shows what the order does."""
    text = source("o[0] = float(tid);", OUT, TID)
    results = []
    for seed in range(5):
        out = Buffer(floats(1))
        Library(text, "race.metal", mode="fast")["k"]([out], order=order, seed=seed, **ONE)
        results.append(out.array[0])
    if order == "random":
        assert len(set(results)) > 1
    else:
        assert set(results) == {31.0 if order == "forward" else 0.0}


def test_an_unchecked_launch_leaves_no_marks_to_a_checked_one():
    # Who writes first differs from launch to launch: a mark of an earlier one would be a race.
    head = OUT, "constant uint& n [[buffer(1)]]", TID
    group = f"threadgroup float s[4];\nif (tid == n) s[0] = 1.0f;\n{BARRIER}\n"
    checked = Library(source(f"{group}if (tid == 0u) o[0] = s[0];", *head), "marks.metal")["k"]
    fast = Library(source("if (tid == n) o[0] = 1.0f;", *head), "other.metal", mode="fast")["k"]
    for n, kernel in enumerate([checked, fast, checked, fast, checked]):
        kernel([Buffer(floats(1)), np.uint32(n)], groups=1, threads=32)
