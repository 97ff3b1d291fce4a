"""Single dispatches of the kernels in shaders/, executed by the MSL runner (tests/msl).

Whatever a test runs through `run` counts: test_msl_mutation.py asks that each kernel is run in
every order, and that a test of test_shaders*.py fails for each barrier or guard that is taken out
of a shader. A new kernel needs its tests in such a file and nothing else.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from msl_runner.testing import require_runner
from numpy.typing import NDArray

require_runner()

from msl_runner import Buffer, Library  # noqa: E402
from msl_runner.launch import ORDERS  # noqa: E402
from msl_runner.mutate import with_mutants  # noqa: E402
from shader_sources import FAMILIES, FAMILY_OF  # noqa: E402

SENTINEL = np.float32(-12345.5)
# A family to run with all its mutants in it: tests of the others are skipped (shader_mutants.py).
MUTATED = os.environ.get("OXIBONSAI_MUTATED_SHADER", "")
RUNS: set[tuple[str, str, str]] = set()  # kernel, order and mode of each run

every_order = pytest.mark.parametrize("order", ORDERS)


def tiles_for(extent: int, size: int) -> int:
    """Return how many tiles of `size` cover `extent`."""
    return -(-extent // size)


def state(position: int) -> NDArray[np.uint32]:
    """Return struct oxb_decode_state of a text alone, whose pages and padding no kernel reads."""
    return np.array([position, 0, 0xBBBB, 0xCCCC], np.uint32)


class Placed(NamedTuple):
    """An array in a buffer that is larger than it."""

    array: NDArray[Any]
    offset: int = 0  # bytes of the array that the binding leaves out
    before: int = 0  # bytes that the binding has before the array; there is no memory for them


@functools.cache
def compile_family(name: str, mode: str, constants: tuple[tuple[int, Any], ...]) -> Library:
    source = FAMILIES[name].source
    if name == MUTATED:
        source = with_mutants(source)
    return Library(source, f"{name}.metal", mode=mode, constants=dict(constants))


def run(
    kernel: str,
    arrays: Sequence[NDArray[Any] | Placed],
    args: bytes,
    *,
    groups: int | tuple[int, ...],
    threads: int,
    constants: Mapping[int, Any] | None = None,
    order: str = "random",
    mode: str = "check",
    prepares: bool = False,
) -> list[NDArray[Any]]:
    """Run a kernel on copies of `arrays`, bound from 0, and `args` behind them; return the copies.

    The same array twice is one buffer bound twice. `constants` are values by index. A kernel that
    only prepares what the one under test takes runs as it is where another family has mutants.
    """
    family = FAMILY_OF[kernel]
    if MUTATED not in ("", family) and not prepares:
        pytest.skip("the mutants are another family's")
    library = compile_family(family, mode, tuple(sorted((constants or {}).items())))
    placed = [a if isinstance(a, Placed) else Placed(a) for a in arrays]
    buffers = {id(p.array): Buffer(p.array) for p in placed}
    bound: list[Any] = [(buffers[id(p.array)], p.offset, p.before) for p in placed]
    bound.append(np.frombuffer(args, np.uint8))
    RUNS.add((kernel, order, mode))
    function = library[kernel]
    names = {function.describe(name)["index"]: name for name in function.arguments}
    function(
        {names[i]: value for i, value in enumerate(bound)},
        groups=groups,
        threads=threads,
        order=order,
        seed=7,
    )
    return [buffers[id(p.array)].array.copy() for p in placed]
