"""Run Metal Shading Language kernels on a CPU, with every access checked.

    library = Library.file("shaders/norm.metal", include=["shaders", "shim"])
    y = Buffer(np.zeros(64, np.float32))
    library["rmsnorm"]([x, weight, y, args], groups=1, threads=64)

A source is preprocessed (build.py), rewritten (rewrite.py), held against Metal's rules (lint.py,
typelint.py, callgraph.py), compiled by clang as C++ for OpenCL with a standard library of our own
(include/), and run by the runtime (runtime/). C code uses msl_runtime.h and compile.py.

It cannot see features that a GPU family lacks, register pressure and a pipeline's own limit on
threads, memory ordering weaker than the host's (so loops that wait for an atomic are refused), the
order and precision of a GPU's own arithmetic, or an infinite loop. Textures, tensors and matrices
other than those of a SIMD-group are missing, and so are bool vectors from half comparisons. A wrong
address that falls into another bound buffer is taken for that buffer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CompileError, CompilerMissingError, LaunchError, MslError

if TYPE_CHECKING:
    from .launch import Buffer, Kernel, Library, Threadgroup

__all__ = [
    "Buffer",
    "CompileError",
    "CompilerMissingError",
    "Kernel",
    "LaunchError",
    "Library",
    "MslError",
    "Threadgroup",
]


def __getattr__(name: str) -> Any:
    """Import the launcher, and NumPy with it, only where it is used: compile.py starts faster."""
    if name in __all__:
        from . import launch

        return getattr(launch, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
