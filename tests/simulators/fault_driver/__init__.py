"""The driver of faults: build(), and the switches and counters of the loaded library."""

from __future__ import annotations

import ctypes
import functools
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

import oxibonsai
from oxibonsai import metal

SOURCE = Path(__file__).resolve().parent / "fault_driver.c"
COUNTERS = ("submissions", "reached", "dispatches", "unchecked")
SWITCHES = ("refused", "count_fails", "open_fails", "compile_fails", "mode", "fill")


def build(folder: Path, *flags: str) -> Path:
    """Compile the driver into a new library in `folder`."""
    library = folder / f"fault{len(list(folder.iterdir()))}.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [compiler[0], "-shared", "-fPIC", "-fvisibility=hidden", "-O1", "-Wall", "-Werror"]
    command += ["-I", oxibonsai.get_include(), *flags, str(SOURCE), "-o", str(library), "-pthread"]
    subprocess.run(command, check=True)
    return library


@functools.cache
def loaded() -> ctypes.CDLL:
    """Build the driver and load it, once in a process: of two of a name the later one counts."""
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder))
        metal.load_driver(path)
        return ctypes.CDLL(str(path))


class Ran(NamedTuple):
    """A dispatch: its multiply-adds, the offsets of its bindings and its threadgroups."""

    work: int
    offsets: tuple[int, ...]
    grid: tuple[int, ...]


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

    def set_dispatch_work(self, work: int) -> None:
        """Set the bound of the work of a dispatch, for devices that are opened from here on."""
        ctypes.c_uint64.in_dll(self.library, "fault_dispatch_work").value = work

    def ran(self) -> list[Ran]:
        """Return what reached the device since the last reset, the first 64 dispatches."""
        of = self.library
        of.fault_work_of.restype = of.fault_offset.restype = ctypes.c_uint64
        of.fault_grid.restype = ctypes.c_uint32
        return [
            Ran(
                of.fault_work_of(i),
                tuple(of.fault_offset(i, b) for b in range(8)),
                tuple(of.fault_grid(i, axis) for axis in range(3)),
            )
            for i in range(self.dispatches)
        ]

    def finish(self, count: int = 64, fails: bool = False) -> int:
        return int(self.library.fault_finish(count, int(fails)))

    def reset(self) -> None:
        self.finish()
        for name in (*SWITCHES, *COUNTERS):
            setattr(self, name, 0)
        self.buffer_fails = -1
        self.set_work_rate(0)
        self.set_dispatch_work(0)
