"""The driver "metal" on the simulated Metal, for the tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from metal_sim import build


@pytest.fixture(scope="session")
def driver() -> Path:
    """The driver built against the simulated Metal."""
    try:
        return build.build()
    except build.Unavailable as error:
        if os.environ.get("OXIBONSAI_REQUIRE_METAL_SIM") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
