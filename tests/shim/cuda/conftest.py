"""Programs on the fake libcuda, in a process each."""

from __future__ import annotations

import os
from collections.abc import Callable

import fake_cuda
import nvrtc
import pytest
from cases import run_python

BEGIN = """
import gc, threading, time
import numpy as np
from fake_cuda import fake
from oxibonsai import metal, quant
from oxibonsai.metal import Device, MetalGraph
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    try:
        nvrtc.library()
    except FileNotFoundError as error:
        if os.environ.get("OXIBONSAI_REQUIRE_NVRTC"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    cache = tmp_path_factory.mktemp("cache")
    return {
        fake_cuda.ENVIRONMENT: str(fake_cuda.library()),
        "XDG_CACHE_HOME": str(cache),
        "OXIBONSAI_DEVICE": "",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., list[str]]:
    """Run a program with the fake, and return the lines that it prints."""

    def run(code: str, **more: str) -> list[str]:
        return run_python(BEGIN + code, env=environment | more).stdout.splitlines()

    return run
