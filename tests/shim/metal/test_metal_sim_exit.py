"""The end of a process with work in flight: it never aborts, hangs or complains."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from metal_sim import build, exits
from places import HELPERS, ROOT, SIMULATORS
from tiny_models import chain, write_chain

VERSIONS = range(10, 20)  # of Python 3
SECONDS = 300  # for one process: the first of its kind compiles kernels
EXITS = 200


@functools.cache
def interpreters() -> dict[str, str]:
    """Return the Pythons on the PATH that have the package built, this one first."""
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in VERSIONS:
        path = shutil.which(f"python3.{minor}")
        if path is None or f"3.{minor}" in found:
            continue
        done = subprocess.run(
            [path, "-c", "import oxibonsai.metal, oxibonsai.model"],
            env=environment(),
            capture_output=True,
        )
        if done.returncode == 0:
            found[f"3.{minor}"] = path
    return found


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OXIBONSAI_")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))}


@pytest.fixture(scope="session")
def driver() -> Path:
    try:
        return build.build()
    except build.Unavailable as error:
        if os.environ.get("OXIBONSAI_REQUIRE_METAL_SIM") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "abcdefghijklmnopqrstuvwxyz"
    return write_chain(tmp_path_factory.mktemp("exits") / "abc.gguf", chain(text))


def end(python: str, driver: Path, model: Path, name: str, number: int = 0) -> str:
    """Let a process end that way; return what went wrong, or nothing."""
    command = [python, "-m", "metal_sim.exits", *map(str, (driver, name, model, number))]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        return f"{name} {number}: no end within {SECONDS} s\n{(error.stderr or b'').decode()}"
    if done.returncode == exits.ENDINGS[name] and not done.stderr:
        return ""
    return f"{name} {number}: exit status {done.returncode}\n{done.stderr}"


@pytest.mark.parametrize("name", exits.ENDINGS)
def test_a_process_ends_well(driver: Path, model: Path, name: str) -> None:
    problem = end(sys.executable, driver, model, name)
    assert not problem, problem


@pytest.mark.slow
@pytest.mark.parametrize("version", interpreters())
def test_two_hundred_processes_end_well(driver: Path, model: Path, version: str) -> None:
    python = interpreters()[version]
    names = list(exits.ENDINGS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(
            lambda number: end(python, driver, model, names[number % len(names)], number),
            range(EXITS),
        )
    wrong = [*filter(None, problems)]
    assert not wrong, f"{len(wrong)} of {EXITS}\n" + "\n".join(wrong)
