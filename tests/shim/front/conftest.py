"""The driver of faults, loaded once, and a device of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from fault_driver import Fault, loaded

from oxibonsai.metal import Device


@pytest.fixture
def fault() -> Iterator[Fault]:
    fault = Fault(loaded())
    fault.reset()
    fault.present = 1
    yield fault
    unchecked = fault.unchecked
    fault.reset()
    gc.collect()
    fault.present = 0
    assert unchecked == 0  # the driver saw only what was checked
    assert (fault.devices_live, fault.buffers_live, fault.wraps_live) == (0, 0, 0)
    assert fault.pipelines_live == 0


@pytest.fixture
def faulty(fault) -> Iterator[Device]:
    with Device("fault") as device:
        yield device
