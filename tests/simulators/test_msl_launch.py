"""A launch that does not fit its kernel is refused before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msl_runner import CompileError, LaunchError, Library, Threadgroup
from msl_runner.build import Options, build
from msl_runner.testing import HEADER, buffers, floats, require_runner, source

require_runner()

OUT = "device float* o [[buffer(0)]]"
TID = "uint tid [[thread_index_in_threadgroup]]"
GID = "uint gid [[thread_position_in_grid]]"
ONE: dict[str, Any] = {"groups": 1, "threads": 32}

MISFITS: dict[str, Any] = {
    # The launch does not fit the kernel.
    "argument too short": (
        r"buffer\(2\) 'n' needs 4 bytes, 2 are bound",
        source("o[gid] = float(n);", OUT, "constant uint& n [[buffer(2)]]", GID),
        [floats(32), np.uint16(8)],
        ONE,
    ),
    "offset too large": (
        r"buffer\(0\) 'o' has 128 bytes, its offset is 132",
        source("o[gid] = 1.0f;", OUT, GID),
        [(floats(32), 132)],
        ONE,
    ),
    "offset misaligned": (
        r"buffer\(0\) 'o' is bound at offset 2, not aligned to 4 bytes",
        source("o[gid] = 1.0f;", OUT, GID),
        [(floats(32), 2)],
        ONE,
    ),
    "threadgroup length not of 16": (
        r"threadgroup\(0\) 's' has a length of 20 bytes",
        source("s[tid] = 1.0f;", "threadgroup float* s [[threadgroup(0)]]", TID),
        [Threadgroup(20)],
        ONE,
    ),
    "threadgroup memory over the limit": (
        r"33024 bytes of threadgroup memory \(32000 static\), the limit is 32768",
        source(
            "threadgroup float s[8000];\ns[tid] = 1.0f;\nd[tid] = s[tid];\no[tid] = d[tid];",
            OUT,
            "threadgroup float* d [[threadgroup(0)]]",
            TID,
        ),
        [floats(32), Threadgroup(1024)],
        ONE,
    ),
    "too many threads": (
        "1025 threads in a threadgroup, the limit is 1024",
        source("o[gid] = 1.0f;", OUT, GID),
        [floats(32)],
        {"groups": 1, "threads": 1025},
    ),
    "more threads than the kernel takes": (
        "64 threads in a threadgroup, the limit is 32",
        source("o[gid] = 1.0f;", OUT, GID).replace(
            "kernel", "[[max_total_threads_per_threadgroup(32)]] kernel"
        ),
        [floats(64)],
        {"groups": 1, "threads": 64},
    ),
    "empty grid": (
        "the grid is empty",
        source("o[gid] = 1.0f;", OUT, GID),
        [floats(32)],
        {"groups": (4, 0), "threads": 32},
    ),
    "nothing bound": (
        r"buffer\(0\) 'o' is not bound",
        source("o[gid] = 1.0f;", OUT, GID),
        {},
        ONE,
    ),
    "constant without value": (
        "function constant 3 'N' was given no value",
        HEADER
        + "constant uint N [[function_constant(3)]];\n"
        + "kernel void k(device float* o [[buffer(0)]]) { o[0] = float(N); }\n",
        [floats(1)],
        ONE,
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_refuses(case):
    pattern, text, arguments, launch = MISFITS[case]
    for mode in ("check", "fast"):
        with pytest.raises(LaunchError, match=pattern) as caught:
            Library(text, "broken.metal", mode=mode)["k"](buffers(arguments), **launch)
        assert "kernel k" in str(caught.value)


def test_refuses_a_constant_of_another_type():
    text = HEADER + (
        "constant uint N [[function_constant(0)]];\n"
        "kernel void k(device float* o [[buffer(0)]]) { o[0] = float(N); }\n"
    )
    with pytest.raises(
        CompileError, match=r"t\.metal:3: error: function constant 0 'N' is of type"
    ):
        build(text, "t.metal", Options(values=((0, "bool", "true"),)))
