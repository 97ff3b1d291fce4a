"""The driver of faults: build(), and the switches and counters of the loaded library."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sysconfig
from pathlib import Path

import oxibonsai

SOURCE = Path(__file__).resolve().parent / "fault_driver.c"
COUNTERS = ("submissions", "reached", "dispatches", "unchecked")
SWITCHES = ("count_fails", "open_fails", "compile_fails", "mode", "fill")


def build(folder: Path, *flags: str) -> Path:
    """Compile the driver into a new library in `folder`."""
    library = folder / f"fault{len(list(folder.iterdir()))}.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [compiler[0], "-shared", "-fPIC", "-fvisibility=hidden", "-O1", "-Wall", "-Werror"]
    command += ["-I", oxibonsai.get_include(), *flags, str(SOURCE), "-o", str(library), "-pthread"]
    subprocess.run(command, check=True)
    return library


class Fault:
    """The switches and counters of the driver, as attributes."""

    library: ctypes.CDLL

    def __init__(self, library: ctypes.CDLL):
        object.__setattr__(self, "library", library)

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"fault_{name}").value

    def __setattr__(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, f"fault_{name}").value = value

    def set_work_rate(self, rate: float) -> None:
        """Set the multiply-adds a second that devices are to report."""
        ctypes.c_double.in_dll(self.library, "fault_work_rate").value = rate

    def finish(self, count: int = 64, fails: bool = False) -> int:
        return int(self.library.fault_finish(count, int(fails)))

    def reset(self) -> None:
        self.finish()
        for name in (*SWITCHES, *COUNTERS):
            setattr(self, name, 0)
        self.buffer_fails = -1
        self.set_work_rate(0)
