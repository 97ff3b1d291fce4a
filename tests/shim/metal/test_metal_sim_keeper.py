"""The thread that keeps memory resident, where its process exits or forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from metal_sim.session import HELPERS, ROOT, SIMULATORS

# Residency is asked for every 50 ms, and takes 40 of them.
KEEP = """
import sys
from metal_sim.kernels import Adder
from metal_sim.session import Simulation
from oxibonsai import metal

metal.load_driver(sys.argv[1])
sim = Simulation(sys.argv[1])
sim.set_request_time(40_000)
one = Adder()
commands = one.commands()
commands.replay()
"""
FORKS = """
import ctypes
import os
import signal

for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        ctypes.CDLL(None).exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
commands.close()
one.close()
"""
LEAVES = """
import ctypes

for left_open in (one, commands):  # beyond the end of the interpreter
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(left_open))
"""


def run(driver: Path, script: str) -> None:
    paths = os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))
    environment = {k: v for k, v in os.environ.items() if k != "OXIBONSAI_DEVICE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(driver)],
        env=environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_process_can_exit(driver: Path) -> None:
    run(driver, KEEP + FORKS)


def test_metal_is_left_alone_while_the_process_exits(driver: Path) -> None:
    for _ in range(3):
        run(driver, KEEP + LEAVES)
