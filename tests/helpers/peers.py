"""What tests against other implementations share.

``OXIBONSAI_REQUIRE_PEERS=1`` makes a missing peer a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, NoReturn

import pytest


def missing_peer(how: str) -> NoReturn:
    """Skip, or fail where peers are required; `how` says what is missing and how to get it."""
    if os.environ.get("OXIBONSAI_REQUIRE_PEERS") == "1":
        pytest.fail(how)
    pytest.skip(how)


def require_peer(module: str) -> None:
    """Skip, or fail where peers are required, unless `module` can be imported."""
    if importlib.util.find_spec(module) is not None:
        return
    missing_peer(
        f"{module} is not installed: make test-peer, or pip install '.[peers]' in the checkout"
    )


def import_peer(module: str) -> Any:
    """Import `module`; where it is missing, as require_peer."""
    require_peer(module)
    return importlib.import_module(module)
