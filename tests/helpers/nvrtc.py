"""NVIDIA's run-time compiler through ctypes: what the cuda driver does, without a GPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

from oxibonsai.metal import _nvrtc

# As the driver gives them (shim/cuda/compile.c).
OPTIONS = (
    "--std=c++17",
    "--device-as-default-execution-space",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--pre-include=prelude.h",
)


class NvrtcError(Exception):
    """The compiler's log."""


@functools.cache
def library() -> ctypes.CDLL:
    for path in _nvrtc.find().values():
        return ctypes.CDLL(str(path))
    raise FileNotFoundError("no NVRTC: pip install nvidia-cuda-nvrtc")


def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def architectures() -> list[int]:
    count = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    values = (ctypes.c_int * count.value)()
    library().nvrtcGetSupportedArchs(values)
    return list(values)


def compile_cubin(
    source: str, prelude: str, arch: int, options: Sequence[str] = (), name: str = "test.cu"
) -> tuple[bytes, str]:
    """Return the cubin and the log."""
    return _compile(source, prelude, f"sm_{arch}", options, name, "CUBIN")


def compile_ptx(source: str, prelude: str, arch: int, options: Sequence[str] = ()) -> str:
    """Return the assembly for a virtual architecture."""
    ptx, _ = _compile(source, prelude, f"compute_{arch}", options, "test.cu", "PTX")
    return ptx.decode()


def _compile(
    source: str, prelude: str, target: str, options: Sequence[str], name: str, kind: str
) -> tuple[bytes, str]:
    lib = library()
    program = ctypes.c_void_p()
    headers = (ctypes.c_char_p * 1)(prelude.encode())
    names = (ctypes.c_char_p * 1)(b"prelude.h")
    assert not lib.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 1, headers, names
    )
    flags = [f.encode() for f in (*OPTIONS, f"--gpu-architecture={target}", *options)]
    status = lib.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    try:
        if status:
            raise NvrtcError(log.value.decode())
        getattr(lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{kind}")(program, code)
        return code.raw, log.value.decode()
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
