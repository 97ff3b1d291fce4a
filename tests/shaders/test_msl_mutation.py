"""A shader with one barrier or bounds guard taken out does not get past the shader tests.

So the shaders have none that is superfluous, and the tests and the runner would notice if one of
them were missing.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shader_runs
from msl_runner.launch import Buffer, Library, take_mutant, watched_mutants
from msl_runner.mutate import mutants, with_mutants
from places import HELPERS, ROOT, SIMULATORS

SHADER_TESTS = sorted(str(path) for path in Path(__file__).parent.glob("test_shaders*.py"))
SECONDS = 1500  # for all tests of a family, on a loaded machine; a mutant may never end


def families_of_mutants() -> dict[str, list[str]]:
    """Return the families that have each mutant: what several include may be noticed in any."""
    found: dict[str, list[str]] = {}
    for family in shader_runs.FAMILIES.values():
        for mutant in mutants(family.source):
            found.setdefault(mutant.name, []).append(family.name)
    return found


CASES = families_of_mutants()


def hunt(family: str, report: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run shader_mutants.py in a process of its own."""
    paths = os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))
    return subprocess.run(
        [sys.executable, "-m", "shader_mutants", family, str(report), *tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What shader_mutants.py writes of a family, which one process alone makes in this session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    @functools.cache
    def of(family: str) -> dict[str, Any]:
        path = folder / f"mutants-{family}.json"
        with open(folder / f"mutants-{family}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                done = hunt(family, path, *SHADER_TESTS)
                assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(path.read_text())

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_shader_with_less_is_found_out(report, name: str):
    assert any(name in report(family)["found"] for family in CASES[name]), (
        f"no test of the shaders fails without it: {', '.join(CASES[name])}"
    )


@pytest.mark.slow
def test_every_kernel_is_run_in_every_order_with_every_access_checked(report):
    runs = {tuple(run) for family in shader_runs.FAMILIES for run in report(family)["runs"]}
    needed = {(k, o, "check") for k in shader_runs.FAMILY_OF for o in shader_runs.ORDERS}
    assert not needed - runs


TWO_TESTS = """
import struct

import numpy as np
from shader_runs import run

RUNS = []


def rmsnorm():
    args = struct.pack("<IIfI", 96, 1, 1e-6, 0)
    x = np.ones((1, 96), np.float32)
    return run("rmsnorm", [x, x[0], x * 0], args, groups=1, threads=96)[2]


def test_that_can_run_twice():
    assert abs(rmsnorm() - 1).max() < 1e-5


def test_that_cannot():
    rmsnorm()
    RUNS.append(1)
    assert len(RUNS) == 1
"""


@pytest.mark.slow
def test_a_test_that_cannot_run_twice_finds_no_mutant_and_fails(tmp_path: Path):
    (tmp_path / "test_two.py").write_text(TWO_TESTS)
    report = tmp_path / "report.json"
    done = hunt("norm", report, str(tmp_path / "test_two.py"))
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    found = json.loads(report.read_text())["found"]
    assert found
    assert all(test.endswith("::test_that_can_run_twice") for test in found.values())


def test_there_are_mutants_of_both_kinds_in_every_file_that_has_them():
    for family in shader_runs.FAMILIES.values():
        kinds = {mutant.kind for mutant in mutants(family.source)}
        assert ("barrier" in kinds) == ("barrier(" in family.source)
        assert "guard" in kinds


def told(source: str) -> list[tuple[str, str]]:
    return [(mutant.original, mutant.replacement) for mutant in mutants(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if (row >= args.n_rows) return;", [("row >= args.n_rows", "false")]),
        ("if (i < n)\n  x = 1;", [("i < n", "true")]),
        ("if (a && i < n) x = 1;", [("i < n", "true")]),
        ("if (h >= n || p >= m.n) { return; }", [("h >= n", "false"), ("p >= m.n", "false")]),
        ("y = i < args.n ? x[i] : 0;", [("i < args.n", "true")]),
        ("y = a < 1 ? 2 : a > 3 ? 4 : 5;", [("a < 1", "true"), ("a > 3", "true")]),
        ("for (uint i = 0; i < n; i++) y += x[i] < a ? 1 : 0;", [("x[i] < a", "false")]),
        ("y *= a < b ? c : d;", [("a < b", "true")]),
        ("if (a < b) x = 1;", [("a < b", "true")]),
        ("if (a == b) x = 1;", []),
        ("// it's\nthreadgroup_barrier(m(1));", [("threadgroup_barrier(m(1))", "(void)0")]),
    ],
)
def test_a_mutant_is_a_barrier_or_a_comparison_that_a_statement_depends_on(source, expected):
    assert told(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "if (i < n) return;",
            "if ((msl_rt_mutant(1) ? false : msl_rt_guard(1, (i < n), false))) return;",
        ),
        (
            "simdgroup_barrier(m);",
            "(msl_rt_mutant(1) ? (void)0 : (msl_rt_guard(1, 1, 0), simdgroup_barrier(m)));",
        ),
        (  # one in the other, from the same token on
            "if (a < (b < c ? d : e)) x = 1;",
            "if ((msl_rt_mutant(1) ? true : msl_rt_guard(1, (a < ((msl_rt_mutant(2) ? true : "
            "msl_rt_guard(2, (b < c), true)) ? d : e)), true))) x = 1;",
        ),
    ],
)
def test_all_mutants_are_in_one_source_by_number(source, expected):
    assert with_mutants(source) == expected


def test_two_mutants_that_look_alike_have_names_of_their_own():
    names = [mutant.name for mutant in mutants("x = a < b ? 1 : 2; y = a < b ? 3 : 4;")]
    assert names == ["guard-:1-a < b", "guard-:1-a < b 2"]


SWITCHED = """#include <metal_stdlib>
using namespace metal;
kernel void k(device uint *y [[buffer(0)]], constant uint &n [[buffer(1)]],
              uint i [[thread_position_in_grid]]) {
    if (i >= n) return;
    y[i] = i > 100u ? 2u : n < 9u ? 1u : 3u;
}
"""


@pytest.mark.parametrize("mode", ["check", "fast"])
def test_a_mutant_is_taken_at_run_time_and_one_that_changes_nothing_is_not_reported(mode):
    kernel = Library(with_mutants(SWITCHED), "switched.metal", mode=mode)["k"]

    def run() -> list[int]:
        y = Buffer(np.zeros(4, np.uint32))
        kernel([y, np.uint32(2)], grid=4)
        return y.array.tolist()

    with watched_mutants(3) as reached:
        assert run() == [1, 1, 0, 0]
    assert reached == {1, 2}
    take_mutant(1)
    try:
        assert run() == [1, 1, 1, 1]
        take_mutant(2)
        assert run() == [2, 2, 0, 0]
    finally:
        take_mutant(0)
    assert run() == [1, 1, 0, 0]
