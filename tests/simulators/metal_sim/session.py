"""A child process with the simulated Metal loaded, in which scenarios run one after the other.

The driver stays loaded for the life of a process and would be every other test's default device, so
that it gets a process of its own. A scenario is a function of scenarios_*.py that takes the
Simulation; a test names it. After each one nothing may be alive, no injected failure left, and
nothing written to stderr, where the Objective-C runtime complains of objects without a pool.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SIMULATORS = Path(__file__).resolve().parent.parent
HELPERS = SIMULATORS.parent / "helpers"
ROOT = SIMULATORS.parent.parent
NO_REASON, WITH_ERROR, RAISE = range(3)
WRAPS, WRAPS_EMPTY, WRAPS_OTHER, WRAPS_COPY = range(4)
SECONDS = 300  # for one scenario
# Errors that macOS gives of a command buffer.
INTERACTIVITY, TIMEOUT, PAGE_FAULT, IGNORED, OUT_OF_MEMORY = 1, 2, 3, 4, 8
VICTIM = 105  # the simulation's own number


class Record(NamedTuple):
    """A finished command buffer."""

    seconds: float
    dispatches: int
    code: int  # 0: completed


class _Record(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_double),
        ("dispatches", ctypes.c_uint32),
        ("code", ctypes.c_int32),
    )


class Simulation:
    """The controls of metal_sim.h."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.library = ctypes.CDLL(path)
        self.counts = hasattr(self.library, "metal_sim_live")  # other drivers export no controls
        if self.counts:
            self.library.metal_sim_live.restype = ctypes.c_int64
            self.library.metal_sim_made.restype = ctypes.c_uint64
            self.library.metal_sim_records.restype = ctypes.c_uint64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, f"metal_sim_{name}")

    def live(self, name: str | None = None) -> int:
        return int(self.library.metal_sim_live(name.encode() if name else None))

    def made(self, name: str) -> int:
        return int(self.library.metal_sim_made(name.encode()))

    def live_text(self) -> str:
        text = ctypes.create_string_buffer(1024)
        self.library.metal_sim_live_text(text, ctypes.c_uint64(len(text)))
        return text.value.decode()

    def fail(self, call: str, how: int = NO_REASON, *, skip: int = 0, times: int = 1) -> None:
        self.library.metal_sim_fail(call.encode(), skip, times, how)

    def set_working_set(self, nbytes: int) -> None:
        self.library.metal_sim_set_working_set(ctypes.c_uint64(nbytes))

    def set_max_buffer_length(self, length: int) -> None:
        self.library.metal_sim_set_max_buffer_length(ctypes.c_uint64(length))

    def set_name(self, name: str) -> None:
        self.library.metal_sim_set_name(name.encode())

    def set_cost(self, kernel: str | None, seconds: float) -> None:
        """Set the seconds of a thread of one kernel, or of any other."""
        name = kernel.encode() if kernel is not None else None
        self.library.metal_sim_set_cost(name, ctypes.c_double(seconds))

    def set_blit_cost(self, seconds: float) -> None:
        self.library.metal_sim_set_blit_cost(ctypes.c_double(seconds))

    def set_budget(self, seconds: float, code: int = INTERACTIVITY) -> None:
        self.library.metal_sim_set_budget(ctypes.c_double(seconds), code)

    def end(self, code: int, *, skip: int = 0, dispatch: int = 0) -> None:
        """End the command buffer after the next `skip` with an error, at a dispatch of it."""
        self.library.metal_sim_end(skip, code, dispatch)

    def records(self, *, work: bool = True) -> list[Record]:
        """Return the finished command buffers in order, or only those with dispatches."""
        count = self.library.metal_sim_records(None, ctypes.c_uint64(0))
        found = (_Record * count)()
        self.library.metal_sim_records(found, ctypes.c_uint64(count))
        records = [Record(r.seconds, r.dispatches, r.code) for r in found]
        return [r for r in records if r.dispatches != 0 or r.code != 0 or not work]

    def set_prelude(self, lines: str) -> None:
        self.library.metal_sim_set_prelude(lines.encode())

    def refuse_kernels(self, prefix: str) -> None:
        self.library.metal_sim_refuse_kernels(prefix.encode())

    def set_kernel_width(self, prefix: str, width: int) -> None:
        self.library.metal_sim_set_kernel_width(prefix.encode(), width)

    def set_compile_seconds(self, seconds: float) -> None:
        self.library.metal_sim_set_compile_seconds(ctypes.c_double(seconds))

    def set_page_size(self, nbytes: int) -> None:
        self.library.metal_sim_set_page_size(ctypes.c_uint64(nbytes))

    @contextmanager
    def hang(self, skip: int = 0) -> Iterator[None]:
        """Hold the device before the command buffer after the next `skip`."""
        self.library.metal_sim_hang(skip)
        try:
            yield
        finally:
            self.library.metal_sim_release_hang()


def run_one(simulation: Simulation, module: str, name: str) -> str:
    """Return what went wrong, or nothing."""
    try:
        getattr(importlib.import_module(module), name)(simulation)
    except BaseException:
        problem = traceback.format_exc()
        simulation.release_hang()
    else:
        gc.collect()
        problem = ""
        if simulation.live() != 0:
            problem = f"left alive: {simulation.live_text()}\n"
        if simulation.pending_failures() != 0:
            problem += f"{simulation.pending_failures()} injected failures were not met\n"
    simulation.reset()
    return problem


def main(path: str) -> None:
    from oxibonsai import metal

    metal.load_driver(path)
    simulation = Simulation(path)
    for line in sys.stdin:
        module, name = json.loads(line)
        sys.stdout.write(json.dumps(run_one(simulation, module, name)) + "\n")
        sys.stdout.flush()


class Session:
    """The parent's side: one child, started again where it has died."""

    def __init__(self, library: Path, environment: dict[str, str] | None = None) -> None:
        self.library = library
        self.environment = environment or {}
        self.child: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != "OXIBONSAI_DEVICE"}
        paths = os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))
        environment |= {"PYTHONPATH": paths, **self.environment}
        # Open until close(): each scenario reads what was added to it.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        return subprocess.Popen(
            [sys.executable, "-m", "metal_sim.session", str(self.library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )

    def run(self, module: str, name: str) -> None:
        """Run a scenario; raises AssertionError with what went wrong in the child."""
        child = self.child = self.child or self.start()
        assert child.stdin is not None
        assert child.stdout is not None
        begin = self.errors.seek(0, os.SEEK_END)
        watch = threading.Timer(SECONDS, child.kill)
        watch.start()
        try:
            child.stdin.write(json.dumps([module, name]) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        finally:
            watch.cancel()
        self.errors.seek(begin)
        errors = self.errors.read()
        if not answer:
            status = child.wait()
            self.close()
            raise AssertionError(f"the process ended with status {status}\n{errors}")
        problem = json.loads(answer)
        if problem or errors:
            self.close()  # What it left behind is not for the next scenario.
        assert not problem, problem + errors
        assert not errors, f"written to stderr:\n{errors}"

    def close(self) -> None:
        if self.child is not None:
            assert self.child.stdin is not None
            assert self.child.stdout is not None
            self.child.stdin.close()
            self.child.stdout.close()
            self.child.wait()
            self.errors.close()
            self.child = None


if __name__ == "__main__":
    main(sys.argv[1])
