"""Launch compiled kernels from Python, on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .build import Options, build
from .errors import CompileError, LaunchError, MslError
from .toolchain import runtime_library

ORDERS = ("forward", "reverse", "random")
_MAX_BUFFERS = 31
_ARGUMENT_KINDS = ("device", "constant", "threadgroup")
_PARTIAL_SIMD, _FORBID_EXITED = 1, 2


class _Argument(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("writable", ctypes.c_uint32),
        ("by_reference", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("alignment", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    )


class _Constant(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint32),
        ("required", ctypes.c_uint32),
        ("defined", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
    )


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("arguments", ctypes.POINTER(_Argument)),
        ("constants", ctypes.POINTER(_Constant)),
        ("n_arguments", ctypes.c_uint32),
        ("n_constants", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
        ("static_threadgroup_bytes", ctypes.c_uint32),
    )


class _Binding(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("buffers", _Binding * _MAX_BUFFERS),
        ("threadgroup_bytes", ctypes.c_uint64 * _MAX_BUFFERS),
        ("threadgroups", ctypes.c_uint32 * 3),
        ("threads_per_threadgroup", ctypes.c_uint32 * 3),
        ("threads_per_grid", ctypes.c_uint32 * 3),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("max_threadgroup_bytes", ctypes.c_uint32),
    )


@functools.cache
def _runtime() -> ctypes.CDLL:
    """Load the runtime and declare its functions; see msl_runtime.h."""
    lib = ctypes.CDLL(str(runtime_library()))
    lib.msl_alloc.restype = ctypes.c_void_p
    lib.msl_alloc.argtypes = [ctypes.c_uint64]
    lib.msl_free.restype = None
    lib.msl_free.argtypes = [ctypes.c_void_p]
    lib.msl_library_open.restype = ctypes.c_void_p
    lib.msl_library_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    lib.msl_library_close.restype = None
    lib.msl_library_close.argtypes = [ctypes.c_void_p]
    lib.msl_library_count.restype = ctypes.c_uint32
    lib.msl_library_count.argtypes = [ctypes.c_void_p]
    lib.msl_library_kernel.restype = ctypes.POINTER(_Kernel)
    lib.msl_library_kernel.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.msl_run.restype = ctypes.c_int
    lib.msl_run.argtypes = [
        *(ctypes.c_void_p, ctypes.POINTER(_Kernel), ctypes.POINTER(_Launch)),
        *(ctypes.c_char_p, ctypes.c_size_t),
    ]
    lib.msl_take_mutant.restype = None
    lib.msl_take_mutant.argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    return lib


def take_mutant(number: int) -> None:
    """Take that mutant of every program that has mutants in it, see mutate.py."""
    _runtime().msl_take_mutant(number, None)


@contextmanager
def watched_mutants(count: int) -> Iterator[set[int]]:
    """Take no mutant; the set has, at the end, the numbers of those that would change something."""
    matter = (ctypes.c_uint8 * (count + 1))()
    found: set[int] = set()
    _runtime().msl_take_mutant(0, ctypes.byref(matter))
    try:
        yield found
    finally:
        take_mutant(0)
        found.update(i for i, matters in enumerate(matter) if matters)


class Buffer:
    """Device memory between inaccessible pages.

    Parameters
    ----------
    contents
        An array or anything that makes one, whose bytes are copied; an int is a length in bytes of
        zeros.
    """

    def __init__(self, contents: Any) -> None:
        array = None if isinstance(contents, int) else np.ascontiguousarray(contents)
        self.nbytes: int = contents if array is None else array.nbytes
        self.dtype = np.dtype(np.uint8) if array is None else array.dtype
        self.shape = (self.nbytes,) if array is None else array.shape
        self._free = _runtime().msl_free
        self.address: int | None = _runtime().msl_alloc(self.nbytes)
        if not self.address:
            raise MslError(f"no memory for a buffer of {self.nbytes} bytes")
        if array is not None:
            self.array[...] = array

    def view(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Give the buffer's own bytes as a flat array; valid while the buffer lives."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.address or 0)
        memory.owner = self  # type: ignore[attr-defined]
        return np.frombuffer(memoryview(memory), np.uint8).view(dtype)

    @property
    def array(self) -> npt.NDArray[Any]:
        """The contents, in the shape and type of the array that the buffer was made from."""
        return self.view(self.dtype).reshape(self.shape)

    def __del__(self) -> None:
        address, self.address = getattr(self, "address", None), None
        if address:
            self._free(address)


class Threadgroup(int):
    """The length in bytes of a [[threadgroup(n)]] argument."""


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    given = (value,) if isinstance(value, int | np.integer) else tuple(value)
    if not 1 <= len(given) <= 3:
        raise LaunchError(f"a grid has one to three numbers, not {given}")
    x, y, z = (*given, 1, 1)[:3]
    return int(x), int(y), int(z)


class Kernel:
    """A kernel of a library.

    Attributes
    ----------
    name
        Its host name.
    arguments
        Names of what has to be bound, in the order of the declaration.
    static_threadgroup_bytes
        Size of the kernel's own threadgroup variables.
    max_threads
        Its limit on the threads of a threadgroup, 0 where it has none.
    """

    def __init__(self, library: Library, struct: Any) -> None:
        self._library = library
        self._struct = struct
        kernel = struct.contents
        self.name: str = kernel.name.decode()
        self._arguments = {
            a.name.decode(): a for a in (kernel.arguments[i] for i in range(kernel.n_arguments))
        }
        self.arguments = list(self._arguments)
        self.constants = {
            c.index: (c.name.decode(), c.type.decode(), bool(c.required))
            for c in (kernel.constants[i] for i in range(kernel.n_constants))
        }
        self.static_threadgroup_bytes: int = kernel.static_threadgroup_bytes
        self.max_threads: int = kernel.max_threads

    def describe(self, name: str) -> dict[str, Any]:
        """Give kind, index, writable, by_reference, size and alignment of an argument."""
        argument = self._arguments[name]
        found = {field: getattr(argument, field) for field, _ in _Argument._fields_[:-1]}
        return found | {"kind": _ARGUMENT_KINDS[argument.kind]}

    def __call__(
        self,
        arguments: Sequence[Any] | Mapping[str, Any],
        *,
        groups: int | Sequence[int] | None = None,
        grid: int | Sequence[int] | None = None,
        threads: int | Sequence[int] = 1,
        order: str = "forward",
        seed: int = 0,
        partial_simd: bool = False,
        forbid_exited: bool = False,
        workers: int = 0,
        max_threadgroup_bytes: int = 0,
    ) -> None:
        """Run the kernel to its end.

        Parameters
        ----------
        arguments
            In the order of the declaration, or by name: a `Buffer`, a `Threadgroup`, or anything
            that makes an array, which is bound by value. A tuple of a buffer, an offset in bytes
            and perhaps a number of bytes binds it at the offset, as if it began so many bytes
            before its memory.
        groups, grid
            Threadgroups, or threads; one of them.
        threads
            Threads of a threadgroup.
        order, seed
            "forward", "reverse" or "random": in which order threads run.
        partial_simd, forbid_exited, workers, max_threadgroup_bytes
            As in msl_runtime.h.

        Raises
        ------
        LaunchError
            The launch does not fit the kernel, or the kernel did what it must not.
        """
        launch = _Launch()
        keep = self._bind(launch, arguments)
        size = _triple(threads)
        if (groups is None) == (grid is None):
            raise LaunchError("give either groups or grid")
        if order not in ORDERS:
            raise LaunchError(f"order '{order}' is not one of {', '.join(ORDERS)}")
        if grid is not None:
            total = _triple(grid)
            launch.threads_per_grid[:] = total
            launch.threadgroups[:] = [
                -(-n // t) if t else 0 for n, t in zip(total, size, strict=True)
            ]
        else:
            launch.threadgroups[:] = _triple(groups or 0)
        launch.threads_per_threadgroup[:] = size
        launch.order, launch.seed = ORDERS.index(order), seed
        launch.flags = _PARTIAL_SIMD * partial_simd | _FORBID_EXITED * forbid_exited
        launch.workers, launch.max_threadgroup_bytes = workers, max_threadgroup_bytes
        error = ctypes.create_string_buffer(4096)
        failed = _runtime().msl_run(
            self._library._handle, self._struct, ctypes.byref(launch), error, len(error)
        )
        del keep
        if failed:
            raise LaunchError(error.value.decode())

    def _bind(self, launch: _Launch, arguments: Sequence[Any] | Mapping[str, Any]) -> list[Buffer]:
        """Fill in the bindings; give the buffers that have to live until the launch is over."""
        if not isinstance(arguments, Mapping):
            if len(arguments) != len(self.arguments):
                raise LaunchError(
                    f"kernel {self.name} takes {len(self.arguments)} arguments "
                    f"({', '.join(self.arguments)}), not {len(arguments)}"
                )
            arguments = dict(zip(self.arguments, arguments, strict=True))
        keep = []
        for name, value in arguments.items():
            if name not in self._arguments:
                raise LaunchError(f"kernel {self.name} has no argument '{name}'")
            argument = self._arguments[name]
            if isinstance(value, Threadgroup):
                launch.threadgroup_bytes[argument.index] = value
                continue
            value, offset, before = (*value, 0)[:3] if isinstance(value, tuple) else (value, 0, 0)
            buffer = value if isinstance(value, Buffer) else Buffer(np.asarray(value))
            keep.append(buffer)
            launch.buffers[argument.index] = _Binding(
                (buffer.address or 0) - before, buffer.nbytes + before, offset
            )
        return keep


def _constant_value(value: bool | int | float) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return repr(int(value)) if isinstance(value, int | np.integer) else f"{float(value)!r}f"


class Library(Mapping[str, Kernel]):
    """Compiled kernels by host name.

    Parameters
    ----------
    source
        MSL.
    name
        What errors call the source.
    mode
        "check": every access is checked. "fast": optimised.
    version
        Language version, "2.4" to "3.2".
    constants
        Values of function constants, by index.
    kernels
        Compile these kernels only.
    include, defines
        Folders for ``#include "..."``; macros.
    fast_math
        Compile with fast math, which the project never does, to see what it would change.

    Raises
    ------
    CompileError
        The source is refused; the text is the log.
    CompilerMissingError
        There is no clang.
    """

    def __init__(
        self,
        source: str,
        name: str = "kernels.metal",
        *,
        mode: str = "check",
        version: str = "2.4",
        constants: Mapping[int, bool | int | float] | None = None,
        kernels: Sequence[str] = (),
        include: Sequence[str | Path] = (),
        defines: Sequence[str] = (),
        fast_math: bool = False,
    ) -> None:
        self._handle: int | None = None
        values = sorted((i, "", _constant_value(v)) for i, v in (constants or {}).items())
        options = Options(
            mode=mode,
            version=version,
            values=tuple(values),
            kernels=tuple(sorted(kernels)),
            include=tuple(map(str, include)),
            defines=tuple(defines),
            fast_math=fast_math,
        )
        result = build(source, name, options)
        self.warnings = result.warnings
        runtime = _runtime()
        self._close = runtime.msl_library_close
        error = ctypes.create_string_buffer(4096)
        self._handle = runtime.msl_library_open(str(result.library).encode(), error, len(error))
        if not self._handle:
            raise CompileError(error.value.decode())
        count = runtime.msl_library_count(self._handle)
        found = [Kernel(self, runtime.msl_library_kernel(self._handle, i)) for i in range(count)]
        self._kernels = {kernel.name: kernel for kernel in found}

    @classmethod
    def file(cls, path: str | Path, **options: Any) -> Library:
        """Compile a file, which errors call by its path as given."""
        return cls(Path(path).read_text(), str(path), **options)

    def __getitem__(self, name: str) -> Kernel:
        return self._kernels[name]

    def __iter__(self) -> Any:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)
