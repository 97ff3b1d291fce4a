"""Options, the device, the bandwidth probe, and a table of the figures at the end.

Assertions here are about results, never about times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
from measure import Meter

from oxibonsai import metal

SYNTHETIC_FORMATS = ("Q1_0", "TQ2_0_g128")
meters = pytest.StashKey[list[Meter]]()
shared = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oxibonsai")
    group.addoption("--device", metavar="NAME", help='such as "metal" or "cpu"; else the default')
    group.addoption("--threads", type=int, metavar="N", help="threads of the cpu device")
    group.addoption(
        "--synthetic",
        action="store_true",
        help="also run random models of Bonsai-1.7B's shape (0.7 GB of disk, a minute more)",
    )


def pytest_configure(config: pytest.Config) -> None:
    probes.use_defaults()
    config.stash[meters] = []
    config.stash[shared] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        names = ["demo"]
        if metafunc.config.getoption("--synthetic"):
            names += [f"1.7b-{name}" for name in SYNTHETIC_FORMATS]
        metafunc.parametrize("model_name", names, scope="session")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[metal.Device]:
    name = request.config.getoption("--device") or os.environ.get("OXIBONSAI_DEVICE") or None
    with metal.Device(name, threads=request.config.getoption("--threads")) as device:
        request.config.stash[shared]["device"] = device.info
        yield device


@pytest.fixture
def graph(device: metal.Device) -> Iterator[metal.MetalGraph]:
    with metal.MetalGraph(device) as graph:
        yield graph


@pytest.fixture(scope="session")
def bandwidth(device: metal.Device, request: pytest.FixtureRequest) -> float:
    """Bytes a second that the device's threads read from memory."""
    found = probes.read_bandwidth(device)
    request.config.stash[shared]["read"] = found
    return found


@pytest.fixture(scope="session")
def copy_bandwidth(request: pytest.FixtureRequest) -> float:
    """Bytes a second that one thread copies from memory to memory."""
    found = probes.copy_bandwidth()
    request.config.stash[shared]["copy"] = found
    return found


@pytest.fixture
def meter(
    benchmark: Any, device: metal.Device, bandwidth: float, request: pytest.FixtureRequest
) -> Meter:
    made = Meter(benchmark, request.node, device.info, bandwidth)
    request.config.stash[meters].append(made)
    return made


@pytest.fixture(scope="session")
def model_path(model_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if model_name == "demo":
        import oxibonsai

        yield Path(oxibonsai.__file__).parent / "data" / "alice-q1_0.gguf"
        return
    path = tmp_path_factory.mktemp("models") / f"{model_name}.gguf"
    probes.make_synthetic_model(path, model_name.removeprefix("1.7b-"))
    yield path
    path.unlink()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = [meter.row() for meter in config.stash[meters] if meter.done]
    if not rows:
        return
    info = config.stash[shared]["device"]
    out = terminalreporter
    out.section("figures at the median")
    out.line(f"device: {info.name} ({info.driver}), kernels {info.variant}, {info.threads} threads")
    out.line(f"memory read by those threads: {config.stash[shared]['read'] / 1e9:.1f} GB/s")
    if "copy" in config.stash[shared]:
        out.line(f"memory copied by one thread: {config.stash[shared]['copy'] / 1e9:.1f} GB/s")
    width = max(len(row[0]) for row in rows)
    out.line(f"{'':{width}}  {'fastest':>8}  {'median':>8}  {'GB/s':>7}  {'share':>6}")
    for name, fastest, median, speed, share, more in rows:
        out.line(
            f"{name:{width}}  {fastest:>8}  {median:>8}  {speed:>7}  {share:>6}  {more}".rstrip()
        )
