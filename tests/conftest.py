"""Fixtures that run a test on every device present, and count what it leaves there.

A further driver joins through ``--driver LIBRARY`` or the paths in ``OXIBONSAI_TEST_DRIVERS``.
``OXIBONSAI_REQUIRE_DEVICES="cpu,metal"`` makes the run fail where one of them is missing.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sdist
import warm_up
from cases import held_by
from hypothesis import HealthCheck, settings
from metal_sim.session import Simulation

from oxibonsai import metal

HYPOTHESIS = {
    "deadline": None,
    # The device is the same for all examples, and holds nothing of the last one.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("local", max_examples=25, **HYPOTHESIS)
settings.register_profile("ci", max_examples=25, derandomize=True, print_blob=True, **HYPOTHESIS)
settings.load_profile("ci" if os.environ.get("CI") else "local")

TESTS = Path(__file__).resolve().parent
# The marker of all tests below a folder: a new file there has it whatever its name.
MARKER_OF = {
    "simulators": "simulated",
    "shaders": "simulated",
    "shim/metal": "simulated",
    "peers": "peer",
}
LOADED_DRIVERS: dict[str, str] = {}  # the path of each by its name
failed_key = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--driver",
        action="append",
        default=[],
        metavar="LIBRARY",
        help="load a device driver and run the device tests on it too; repeatable",
    )


@functools.cache
def device_names() -> list[str]:
    """List the devices once, when all drivers are loaded: opening one may take a while."""
    return list(dict.fromkeys(f"{info.driver}:{info.index}" for info in metal.devices()))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "large: more arithmetic than the sanitized simulation can do in a fast test"
    )
    os.environ["OXIBONSAI_TUNING"] = "0"  # what the user's machine was tuned to is no test's
    paths = os.environ.get("OXIBONSAI_TEST_DRIVERS", "").split(os.pathsep)
    for path in [*config.getoption("--driver"), *filter(None, paths)]:
        path = str(Path(path).resolve())
        metal.load_driver(path)
        # A driver that was loaded goes first in the list.
        LOADED_DRIVERS[metal.devices()[0].driver] = path
    required = os.environ.get("OXIBONSAI_REQUIRE_DEVICES", "")
    present = {name.partition(":")[0] for name in device_names()}
    missing = sorted({name.strip() for name in required.split(",") if name.strip()} - present)
    if missing:
        raise pytest.UsageError(
            f"OXIBONSAI_REQUIRE_DEVICES asks for {', '.join(missing)}; present: "
            f"{', '.join(sorted(present))}"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, before pytest deselects by markers."""
    for item in items:
        for folder, marker in MARKER_OF.items():
            if TESTS / folder in item.path.parents:
                item.add_marker(marker)
        reason = sdist.skip_reason(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    try:
        return (yield)
    except FileNotFoundError as error:
        sdist.skip_if_missing(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    try:
        return (yield)
    except FileNotFoundError as error:
        sdist.skip_if_missing(error)
        raise


def pytest_report_header(config: pytest.Config) -> str:
    return "devices: " + ", ".join(
        f"{info.driver}:{info.index} ({info.name}, {info.variant})" for info in metal.devices()
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `device_name` the devices that the test's markers admit."""
    if "device_name" not in metafunc.fixturenames:
        return
    names = device_names()
    only = metafunc.definition.get_closest_marker("device")
    if only:
        names = [name for name in names if name.partition(":")[0] in only.args]
    metafunc.parametrize("device_name", names, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call):
    report = yield
    # The Objective-C runtime complains there, of objects without a pool for one.
    if not report.failed and report.capstderr and simulations():
        report.outcome = "failed"
        report.longrepr = f"written to stderr:\n{report.capstderr}"
    if report.failed:
        item.stash[failed_key] = True
    return report


def simulations() -> list[Simulation]:
    """Return the controls of the loaded drivers that count their objects."""
    found = [Simulation(path) for path in LOADED_DRIVERS.values()]
    return [simulation for simulation in found if simulation.counts]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the last test, and all other fixtures, nothing of a simulated device is alive."""
    yield
    if request.session.testsfailed:
        return  # The tracebacks keep objects alive.
    gc.collect()
    for simulation in simulations():
        assert simulation.live() == 0, f"left alive: {simulation.live_text()}"


@pytest.fixture(scope="session")
def opened_device(device_name: str) -> Iterator[metal.Device]:
    """One Device for all tests: opening one may compile a library."""
    with metal.Device(device_name) as device:
        if warm_up.is_slow_at_first(device, sys.platform):
            warm_up.compile_families(device)
        yield device


@pytest.fixture
def device(opened_device: metal.Device, request: pytest.FixtureRequest) -> Iterator[metal.Device]:
    """The device, with a check that the test left no buffer and no work behind."""
    if any(held_by(opened_device).values()):
        gc.collect()  # What the last test left in reference cycles.
    before = held_by(opened_device)
    yield opened_device
    if request.node.stash.get(failed_key, False):
        return  # The traceback keeps the test's objects alive.
    if held_by(opened_device) != before:
        gc.collect()
    after = held_by(opened_device)
    assert all(after[name] <= before[name] for name in before), f"left behind: {after}"


@pytest.fixture
def graph(device: metal.Device) -> Iterator[metal.MetalGraph]:
    with metal.MetalGraph(device) as graph:
        yield graph


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Let threads take turns some hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(before)
