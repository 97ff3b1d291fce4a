"""The toy driver, and what ran on its device."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sysconfig
from pathlib import Path

from places import SIMULATORS

import oxibonsai
from oxibonsai.metal import Device

SOURCE = SIMULATORS / "toy_driver" / "toy_driver.c"
GEMV_ROWS, ADD_ELEMENTS, THREADS = 5, 13, 3


def build(folder: Path, gap: str = "NONE") -> Path:
    library = folder / f"toy_{gap.lower()}.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [compiler[0], "-shared", "-fPIC", "-fvisibility=hidden", "-O1", "-Wall", "-Wextra"]
    command += ["-Werror", "-I", oxibonsai.get_include(), f"-DTOY_GAP={gap}", str(SOURCE)]
    subprocess.run([*command, "-o", str(library), "-lm"], check=True)
    return library


class Toy:
    """The device, and what it ran."""

    def __init__(self, device: Device, library: ctypes.CDLL) -> None:
        self.device = device
        self.library = library
        library.toy_kernel.restype = ctypes.c_char_p

    def ran(self) -> list[tuple[str, tuple[int, int, int], int, int]]:
        """Return kernel, grid, threads and function constant of every dispatch."""
        n = ctypes.c_int.in_dll(self.library, "toy_log_length").value
        of = self.library
        return [
            (
                of.toy_kernel(i).decode(),
                (of.toy_grid(i, 0), of.toy_grid(i, 1), of.toy_grid(i, 2)),
                of.toy_threads(i),
                of.toy_rows(i),
            )
            for i in range(n)
        ]
