"""A process of its own with the fake libcuda: build(), run(), and what a program in it uses.

from fake_cuda import fake            # loads the library ahead of the driver
fake.hold = 1                         # fake_hold of fake_cuda.c
fake.fail("cuMemAlloc", 2, after=1)
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COUNTERS = ("contexts", "memory", "host_memory", "registrations", "streams", "events", "modules",
            "graphs", "execs", "depth")  # fmt: skip
ENVIRONMENT = "OXIBONSAI_FAKE_CUDA"


def build(folder: Path, *options: str) -> Path:
    """Compile the library, under the name by which the driver asks for it.

    "-DFAKE_NO_EDGES" leaves out what CUDA 12.3 brought.
    """
    target = folder / "libcuda.so.1"
    command = [
        "gcc",
        "-std=c11",
        "-O1",
        "-g",
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
    ]
    command += ["-fPIC", "-fvisibility=hidden", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, *options, "-o", target, HERE / "fake_cuda.c"], check=True)
    return target


class Fake:
    """The controls and counters of the loaded library."""

    library: ctypes.CDLL

    def __init__(self, library: ctypes.CDLL) -> None:
        self.__dict__["library"] = library

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"fake_{name}").value

    def __setattr__(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, f"fake_{name}").value = value

    def fail(self, call: str, result: int = 1, *, after: int = 0, always: bool = False) -> None:
        """Let `call` give `result` after some that succeed, once or from then on."""
        self.fail_result, self.fail_after, self.fail_always = result, after, int(always)
        (ctypes.c_char * 64).in_dll(self.library, "fake_fail_call").value = call.encode()

    @property
    def pending(self) -> str:
        """The call that is still to fail."""
        return bytes((ctypes.c_char * 64).in_dll(self.library, "fake_fail_call").value).decode()

    def forgive(self) -> None:
        self.fail("")

    def forget(self) -> None:
        """Count nothing as alive any more."""
        self.library.fake_forget()

    def release(self) -> None:
        """Let events be reached."""
        self.library.fake_release()

    @property
    def seen(self) -> list[str]:
        """Names of the calls so far."""
        text = bytes((ctypes.c_char * 1024).in_dll(self.library, "fake_seen").value).decode()
        return [name for name in text.split(",") if name]

    def last(self) -> dict[str, Any]:
        """What the last launch was given."""
        word = ctypes.c_uint * 3
        kernel = bytes((ctypes.c_char * 128).in_dll(self.library, "fake_kernel").value).decode()
        return {
            "kernel": kernel,
            "grid": tuple(word.in_dll(self.library, "fake_grid")),
            "block": tuple(word.in_dll(self.library, "fake_block")),
            "parameters": list((ctypes.c_ulonglong * 32).in_dll(self.library, "fake_parameters")),
        }

    def alive(self) -> dict[str, int]:
        """What is alive, without what is not, once the driver's threads have had their time."""
        for _ in range(200):
            found = {name: getattr(self, name) for name in COUNTERS}
            if not any(found.values()):
                break
            time.sleep(0.01)
        return {name: count for name, count in found.items() if count}


@functools.cache
def _load() -> Fake:
    return Fake(ctypes.CDLL(os.environ[ENVIRONMENT]))


def __getattr__(name: str) -> Any:
    if name == "fake":
        return _load()
    raise AttributeError(name)


@functools.cache
def library() -> Path:
    """The library, compiled once for this process."""
    return build(Path(tempfile.mkdtemp(prefix="fake-cuda-")))
