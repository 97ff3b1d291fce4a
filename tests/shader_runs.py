"""Single dispatches of the kernels in shaders/, executed by the MSL runner (tests/msl)."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "tools"))
import embed_shaders  # noqa: E402

INSTALL = "apt-get install clang-19, or pip install ziglang"
FAMILIES = embed_shaders.families()
ORDERS = ("forward", "reverse", "random")
MAX_BUFFERS = 31
SENTINEL = np.float32(-12345.5)

every_order = pytest.mark.parametrize("order", ORDERS)


def groups_for(units: int, per_group: int) -> int:
    return -(-units // per_group)


def state(position: int) -> NDArray[np.uint32]:
    """Return struct oxb_decode_state with padding that a kernel must leave alone."""
    return np.array([position, 0xAAAA, 0xBBBB, 0xCCCC], np.uint32)


class Placed(NamedTuple):
    """An array in a buffer that is larger than it."""

    array: NDArray[Any]
    offset: int = 0  # bytes of the array that the binding leaves out
    before: int = 0  # bytes that the binding has before the array; there is no memory for them


class Binding(ctypes.Structure):
    """struct msl_binding."""

    _fields_ = [
        ("base", ctypes.c_void_p),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
    ]


class Launch(ctypes.Structure):
    """struct msl_launch."""

    _fields_ = [
        ("buffers", Binding * MAX_BUFFERS),
        ("threadgroup_bytes", ctypes.c_uint64 * MAX_BUFFERS),
        ("threadgroups", ctypes.c_uint32 * 3),
        ("threads_per_threadgroup", ctypes.c_uint32 * 3),
        ("threads_per_grid", ctypes.c_uint32 * 3),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("max_threadgroup_bytes", ctypes.c_uint32),
    ]


class RunError(Exception):
    """The runner's report on a kernel."""


@functools.cache
def compile_family(name: str, mode: str, constants: tuple[str, ...]) -> dict[str, str]:
    """Return the runner's answer, or its reason for having none under ``unavailable``."""
    (family,) = (f for f in FAMILIES if f.name == name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"{name}.metal")
        source.write_text(family.source)
        command = [sys.executable, "-m", "msl.compile", "--mode", mode, str(source)]
        for constant in constants:
            command += ["--constant", constant]
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 2:
        return {"unavailable": f"no compiler for the MSL runner: {INSTALL}. {done.stderr.strip()}"}
    if done.returncode:
        raise RunError(done.stderr)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())  # type: ignore[misc]


@functools.cache
def runtime(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    library.msl_library_open.restype = ctypes.c_void_p
    library.msl_library_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    library.msl_library_find.restype = ctypes.c_void_p
    library.msl_library_find.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.msl_alloc.restype = ctypes.c_void_p
    library.msl_alloc.argtypes = [ctypes.c_uint64]
    library.msl_free.argtypes = [ctypes.c_void_p]
    pointers: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(Launch)]
    library.msl_run.argtypes = [*pointers, ctypes.c_char_p, ctypes.c_size_t]
    return library


@functools.cache
def open_family(path: str, runtime_path: str) -> int:
    message = ctypes.create_string_buffer(4096)
    library = runtime(runtime_path).msl_library_open(path.encode(), message, len(message))
    if not library:
        raise RunError(message.value.decode())
    return int(library)


class Memory:
    """A copy of an array between guard pages."""

    def __init__(self, lib: ctypes.CDLL, array: NDArray[Any]) -> None:
        self.lib = lib
        self.shape, self.dtype = array.shape, array.dtype
        self.nbytes = array.nbytes
        self.address = lib.msl_alloc(array.nbytes)
        ctypes.memmove(self.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def contents(self) -> NDArray[Any]:
        raw = ctypes.string_at(self.address, self.nbytes)
        return np.frombuffer(raw, self.dtype).reshape(self.shape).copy()

    def free(self) -> None:
        self.lib.msl_free(self.address)


def run(
    kernel: str,
    arrays: Sequence[NDArray[Any] | Placed],
    args: bytes,
    *,
    groups: int | tuple[int, ...],
    threads: int,
    constants: Mapping[int, tuple[str, int]] | None = None,
    order: str = "random",
    mode: str = "check",
) -> list[NDArray[Any]]:
    """Run a kernel on copies of `arrays`, bound from 0, and `args` behind them; return the copies.

    The same array twice is one buffer bound twice. `constants` are (type, value) by index.
    """
    (family,) = (f.name for f in FAMILIES if kernel in f.functions)
    given = tuple(f"{i}:{kind}={value}" for i, (kind, value) in (constants or {}).items())
    built = compile_family(family, mode, given)
    if "unavailable" in built:
        if os.environ.get("OXIBONSAI_REQUIRE_METAL_SIM"):
            pytest.fail(built["unavailable"])
        pytest.skip(built["unavailable"])
    lib = runtime(built["runtime"])
    library = open_family(built["library"], built["runtime"])
    placed = [a if isinstance(a, Placed) else Placed(a) for a in arrays]
    memories = {id(p.array): Memory(lib, p.array) for p in placed}
    struct = Memory(lib, np.frombuffer(args, np.uint8))
    launch = Launch(order=ORDERS.index(order), seed=7)
    for i, p in enumerate(placed):
        memory = memories[id(p.array)]
        length = memory.nbytes + p.before
        launch.buffers[i] = Binding(memory.address - p.before, length, p.offset)
    launch.buffers[len(placed)] = Binding(struct.address, struct.nbytes, 0)
    extents = groups if isinstance(groups, tuple) else (groups,)
    launch.threadgroups[:] = [*extents, 1, 1][:3]
    launch.threads_per_threadgroup[:] = [threads, 1, 1]
    message = ctypes.create_string_buffer(8192)
    try:
        function = lib.msl_library_find(library, kernel.encode())
        if not function:
            raise RunError(f"the runner finds no kernel {kernel}")
        if lib.msl_run(library, function, ctypes.byref(launch), message, len(message)):
            raise RunError(message.value.decode())
        return [memories[id(p.array)].contents() for p in placed]
    finally:
        for memory in [*memories.values(), struct]:
            memory.free()
