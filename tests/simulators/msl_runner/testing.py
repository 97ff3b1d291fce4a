"""What the tests of and with the runner share."""

from __future__ import annotations

import os

import numpy as np
import pytest

from .errors import CompilerMissingError
from .launch import Buffer, Library
from .toolchain import find_compiler

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


def require_runner() -> None:
    """Skip the module that calls this where there is no compiler for MSL.

    OXIBONSAI_REQUIRE_METAL_SIM=1 makes that an error instead.
    """
    try:
        find_compiler()
    except CompilerMissingError as error:
        if os.environ.get("OXIBONSAI_REQUIRE_METAL_SIM") == "1":
            raise
        pytest.skip(str(error), allow_module_level=True)


def check_kernel(
    source, arguments, expected, *, kernel="k", rtol=0.0, version="2.4", constants=None, **launch
):
    """Run in every build and order; `expected` maps the place of an argument to its contents."""
    for mode in ("check", "fast"):
        library = Library(
            HEADER + source, "feature.metal", mode=mode, version=version, constants=constants
        )
        for order in ("forward", "reverse", "random"):
            bound = [Buffer(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arguments]
            library[kernel](bound, order=order, seed=1, **launch)
            for place, values in expected.items():
                want = np.asarray(values, np.float64)
                got = bound[place].array.astype(np.float64).reshape(want.shape)
                np.testing.assert_allclose(
                    got, want, rtol=rtol, atol=rtol, err_msg=f"{mode} {order}"
                )


def floats(n):
    return np.zeros(n, np.float32)


def source(body, *parameters):
    """A kernel with one line a statement: the head is line 3."""
    return f"{HEADER}kernel void k({', '.join(parameters)}) {{\n{body}\n}}\n"


def buffers(arguments):
    """Fresh buffers: a launch that fails has written to some of them."""
    if isinstance(arguments, dict):
        return arguments
    made = []
    for value in arguments:
        array, *offset = value if isinstance(value, tuple) else (value,)
        if isinstance(array, np.ndarray) and array.ndim:
            array = Buffer(array)
        made.append((array, *offset) if offset else array)
    return made
