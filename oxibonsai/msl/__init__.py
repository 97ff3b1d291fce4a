"""A front end for Metal Shading Language: tokens, kernels, and their translation to CUDA C++.

It reads from a source what the drivers and the tests' interpreter need, namely kernels with their
parameters and function constants, and leaves the rest to a C++ compiler. It imports only the
standard library: the build runs it before the package is compiled.
"""

from __future__ import annotations

from .errors import CompileError, MslError

__all__ = ["CompileError", "MslError"]
