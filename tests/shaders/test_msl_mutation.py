"""A shader with one barrier or bounds guard taken out does not get past the shader tests.

So the shaders have none that is superfluous, and the tests and the runner would notice if one of
them were missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import shader_runs
from msl_runner.mutate import Mutant, guards, mutants
from places import ROOT

SHADER_TESTS = sorted(str(path) for path in Path(__file__).parent.glob("test_shaders*.py"))


def shader_tests(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """Run all tests of the shaders in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        [*command, *SHADER_TESTS],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def cases() -> dict[str, tuple[Mutant, list[tuple[str, str]]]]:
    """Return each mutant by its name, with the families it is in and the source in each of them.

    What several families include is mutated once, and may be noticed in any that uses it.
    """
    found: dict[str, tuple[Mutant, list[tuple[str, str]]]] = {}
    for family in shader_runs.FAMILIES.values():
        for mutant in mutants(family.source):
            _, sources = found.setdefault(mutant.name, (mutant, []))
            if mutant.is_used:
                sources.append((family.name, mutant.source))
    return found


CASES = cases()


@pytest.mark.slow
def test_every_kernel_is_run_in_every_order_with_every_access_checked(tmp_path: Path):
    log = tmp_path / "log"
    done = shader_tests({"OXIBONSAI_SHADER_LOG": str(log)})
    assert done.returncode == 0, done.stdout
    runs = set(log.read_text().splitlines())
    needed = {f"{k} {o} check" for k in shader_runs.FAMILY_OF for o in shader_runs.ORDERS}
    assert not needed - runs


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_shader_with_less_is_found_out(tmp_path: Path, name: str):
    mutant, sources = CASES[name]
    assert sources, f"nothing calls {mutant.function}()"
    for family, source in sources:
        path = tmp_path / f"{family}.metal"
        path.write_text(source)
        done = shader_tests({"OXIBONSAI_SHADER_MUTANT": f"{family}:{path}"}, "-x")
        if done.returncode == pytest.ExitCode.TESTS_FAILED:
            return
        assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    pytest.fail(f"no test of the shaders fails without {mutant.original}")


def test_there_are_mutants_of_both_kinds_in_every_file_that_has_them():
    for family in shader_runs.FAMILIES.values():
        kinds = {mutant.kind for mutant in mutants(family.source)}
        assert ("barrier" in kinds) == ("barrier(" in family.source)
        assert "guard" in kinds


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if (row >= args.n_rows) return;", ["if (false) return;"]),
        ("if (i < n)\n  x = 1;", ["if (true)\n  x = 1;"]),
        ("if (a && i < n) x = 1;", ["if (a && true) x = 1;"]),
        ("if (h >= n || p >= m.n_rows) { return; }", [
            "if (false || p >= m.n_rows) { return; }",
            "if (h >= n || false) { return; }",
        ]),
        ("y = i < args.n ? x[i] : 0;", ["y = true ? x[i] : 0;"]),
        ("if (a < b) x = 1;", ["if (true) x = 1;"]),
        ("if (a == b) x = 1;", []),
    ],
)  # fmt: skip
def test_a_guard_is_taken_out(source, expected):
    assert [mutant.source for mutant in guards(source)] == expected


def test_a_mutant_names_its_function_and_whether_something_uses_it():
    source = """
// it's a comment; threadgroup_barrier(mem_flags::mem_none);
inline float a(uint i, uint n) { if (i < n) return 0.0f; return 1.0f; }
[[kernel]] void k(device float* x [[buffer(0)]]) { x[0] = b(0, 1); simdgroup_barrier(m); }
inline float b(uint i, uint n) { return i < n ? 0.0f : 1.0f; }
"""
    found = [(m.kind, m.line, m.function, m.is_used) for m in mutants(source)]
    assert found == [("guard", 3, "a", False), ("barrier", 4, "k", True), ("guard", 5, "b", True)]
