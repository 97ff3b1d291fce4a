"""What the source distribution leaves out, and the skip of the tests that need it.

Files of more than 100 KB in tests/data/ are in a clone of the repository only. There their absence
is an error as any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from places import DATA, ROOT

IN_SDIST = (ROOT / "PKG-INFO").is_file()


def missing(values: Iterable[Any]) -> str | None:
    """Return why a test that uses `values` is skipped: a file of tests/data/ that is not here."""
    for value in values:
        if isinstance(value, list | tuple):
            found = missing(value)
        elif isinstance(value, str | Path) and DATA in Path(value).parents:
            there = Path(value).exists()
            name = Path(value).relative_to(ROOT)
            found = None if there else f"{name} is not in the source distribution, but in a clone"
        else:
            continue
        if found:
            return found
    return None


def skip_reason(item: pytest.Item) -> str | None:
    """Return why a collected test is skipped: a file among its parameters and globals."""
    if not IN_SDIST or not isinstance(item, pytest.Function):
        return None
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    scope = item.function.__globals__
    used = [scope[name] for name in item.function.__code__.co_names if name in scope]
    return missing([*parameters, *used])


def skip_if_missing(error: FileNotFoundError) -> None:
    """Skip the running test where it looked for a file that the distribution leaves out."""
    reason = missing([error.filename]) if IN_SDIST else None
    if reason:
        pytest.skip(reason)
