"""Run the tests of the shaders with all mutants of one family.

    python -m shader_mutants FAMILY REPORT [ARGUMENT ...]

Each test runs with no mutant first, which tells those that it reaches: in all others it would
repeat itself. It runs again with each of the reached that no test has failed for. Where it fails,
it has to pass once more with none: a test that cannot run twice would find every mutant, and fails
itself. REPORT gets, in JSON, the test that failed for each mutant, and kernel, order and mode of
what ran. Arguments are pytest's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


def passes(item: pytest.Item, mutant: int) -> bool:
    """Return whether a test that has run passes again with a mutant."""
    from msl_runner.launch import take_mutant

    take_mutant(mutant)
    try:
        item.runtest()
    except (Exception, pytest.fail.Exception):
        return False
    finally:
        take_mutant(0)
    return True


class Hunt:
    """A plugin of pytest that fails each test on purpose, if it can."""

    def __init__(self, family: str) -> None:
        from msl_runner.mutate import mutants
        from shader_sources import FAMILIES

        self.names = [mutant.name for mutant in mutants(FAMILIES[family].source)]
        self.found: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from msl_runner.launch import watched_mutants

        with watched_mutants(len(self.names)) as reached:
            result = yield
        new = [n for n in sorted(reached) if self.names[n - 1] not in self.found]
        failing = [number for number in new if not passes(item, number)]
        if failing:
            item.runtest()
        self.found |= {self.names[number - 1]: item.nodeid for number in failing}
        return result


def main(arguments: list[str]) -> int:
    family, report, *rest = arguments
    os.environ["OXIBONSAI_MUTATED_SHADER"] = family
    hunt = Hunt(family)
    status = pytest.main(["-q", "-p", "no:cacheprovider", *rest], plugins=[hunt])
    from shader_runs import RUNS

    Path(report).write_text(json.dumps({"found": hunt.found, "runs": sorted(RUNS)}))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
