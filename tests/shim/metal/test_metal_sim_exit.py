"""The end of a process with work in flight: it never aborts, hangs or complains."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from metal_sim import exits
from msl_runner import cache
from places import HELPERS, ROOT, SIMULATORS
from tiny_models import chain, write_chain

SECONDS = 300  # for one process: the first of its kind compiles kernels
EXITS = 200


def supported() -> list[str]:
    """Return the versions of Python that the package is for, as pyproject.toml has them."""
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


@functools.cache
def interpreters() -> list[Any]:
    """Return the supported Pythons on the PATH, this one first; a skip for those without it."""
    own = f"3.{sys.version_info.minor}"
    found = [pytest.param(sys.executable, id=own)]
    for version in supported():
        path = shutil.which(f"python{version}")
        if path is None or version == own:
            continue
        done = subprocess.run(
            [path, "-c", "import oxibonsai.metal, oxibonsai.model"],
            env=environment(),
            capture_output=True,
            text=True,
        )
        marks = []
        if done.returncode != 0:
            # A traceback has the error at its end, a launcher its message first.
            error = re.search(r"^\w+Error: .*", done.stderr, re.MULTILINE)
            why = error[0] if error else done.stderr.strip().partition("\n")[0]
            marks.append(pytest.mark.skip(reason=f"{path} does not import the package: {why}"))
        found.append(pytest.param(path, id=version, marks=marks))
    return found


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OXIBONSAI_")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))}


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


def test_a_python_without_the_package_is_a_skip_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = supported()
    assert {"3.10", "3.14"} <= set(versions)
    other = "3.12" if sys.version_info.minor != 12 else "3.13"
    python = tmp_path / f"python{other}"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'x'\" >&2\nexit 1\n")
    python.chmod(0o755)
    (tmp_path / "python3.99").symlink_to(python)
    monkeypatch.setenv("PATH", str(tmp_path))
    own, skipped = interpreters.__wrapped__()
    assert own.values == (sys.executable,)
    assert (skipped.id, skipped.values) == (other, (str(python),))
    assert skipped.marks[0].kwargs["reason"] == (
        f"{python} does not import the package: ModuleNotFoundError: No module named 'x'"
    )


@pytest.mark.parametrize("name", exits.ENDINGS)
def test_a_process_ends_well(driver: Path, model: Path, name: str) -> None:
    problem = end(sys.executable, driver, model, name)
    assert not problem, problem


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_two_hundred_processes_end_well(driver: Path, model: Path, python: str) -> None:
    rounds = -(-EXITS // len(exits.ENDINGS))
    cases = [(name, number) for number in range(rounds) for name in exits.ENDINGS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(lambda case: end(python, driver, model, *case), cases)
    wrong = [*filter(None, problems)]
    assert not wrong, f"{len(wrong)} of {len(cases)}\n" + "\n".join(wrong)


def test_what_the_compiler_said_is_asked_again_where_its_library_is_gone(
    driver: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "msl"
    folder.mkdir()
    for path in cache.folder().iterdir():  # so that kernels alone are compiled
        if not path.name.startswith(("sim-", "kernels-", "tmp-")):
            (folder / path.name).symlink_to(path)
    kept = environment() | {"OXIBONSAI_CACHE_DIR": str(tmp_path)}
    monkeypatch.setattr(sys.modules[__name__], "environment", lambda: kept)
    assert not end(sys.executable, driver, model, "main_returns")
    libraries = list(folder.glob("kernels-*.so"))
    answers = {path: path.read_bytes() for path in folder.glob("sim-*")}
    assert all(any(str(path).encode() in a for a in answers.values()) for path in libraries)
    for path in libraries:
        path.unlink()
    for path in answers:
        path.write_bytes(path.read_bytes()[:-30])
    assert not end(sys.executable, driver, model, "main_returns")
    assert all(path.exists() for path in libraries)
    assert {path: path.read_bytes() for path in folder.glob("sim-*")} == answers
