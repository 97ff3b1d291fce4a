"""A front end for Metal Shading Language: tokens, kernels, and their translation to CUDA C++.

It reads what the drivers and the tests' interpreter need of a source, its kernels with their
parameters and its function constants, and leaves everything else to a C++ compiler. It imports the
standard library alone: the build runs it before the package is compiled.
"""

from __future__ import annotations

from .errors import CompileError, MslError

__all__ = ["CompileError", "MslError"]
