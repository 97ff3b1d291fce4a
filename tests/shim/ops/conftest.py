"""The toy driver for the tests of this folder."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from toys import Toy, build

from oxibonsai import metal
from oxibonsai.metal import Device


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory) -> ctypes.CDLL:
    path = build(tmp_path_factory.mktemp("toy"))
    metal.load_driver(path)
    return ctypes.CDLL(str(path))


@pytest.fixture
def toy(toy_library) -> Iterator[Toy]:
    ctypes.c_int.in_dll(toy_library, "toy_log_length").value = 0
    present = ctypes.c_int.in_dll(toy_library, "toy_present")
    present.value = 1
    with Device("toy") as device:
        yield Toy(device, toy_library)
    present.value = 0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OXIBONSAI_TUNING")
    return tmp_path / "oxibonsai" / "tuning"


@pytest.fixture
def clock(toy):
    """Set the time of a dispatch by the rows of its tile; what it leaves is one speed for all."""
    seconds = (ctypes.c_double * 8).in_dll(toy.library, "toy_seconds")

    def set_seconds(fives, threes):
        seconds[5], seconds[3] = fives, threes

    set_seconds(1e-3, 1e-3)
    yield set_seconds
    ctypes.memset(seconds, 0, 64)
