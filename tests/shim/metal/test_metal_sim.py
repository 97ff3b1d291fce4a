"""The driver "metal", run against the simulated Metal of tests/metal_sim."""

from __future__ import annotations

import importlib
import inspect
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from metal_sim import build, scenarios_devices
from metal_sim.session import Session

MODULES = [
    importlib.import_module(f"metal_sim.{path.stem}")
    for path in sorted(build.HERE.glob("scenarios_*.py"))
]

# What is written to its own folder needs a driver of its own.
METALLIB = (
    "a_metallib_beside_the_driver_waits_to_be_asked_for",
    "a_metallib_that_is_asked_for_is_used",
    "a_metallib_that_cannot_be_had_is_an_error_that_names_it",
)

MISUSE = {
    "double_commit": "double commit",
    "commit_with_an_open_encoder": "encoder not ended",
    "encoder_let_go_open": "encoder not ended",
    "unbound_buffer": "unbound argument",
    "unbound_threadgroup_memory": "unbound argument",
    "bytes_too_long": "setBytes over 4096 bytes",
    "bytes_too_short": "setBytes shorter than the struct",
    "buffer_too_short": "buffer shorter than the struct",
    "offset_off_the_type": "wrong offset alignment",
    "offset_off_the_constant_space": "wrong offset alignment",
    "index_31": "index over 30",
    "no_threadgroups": "empty grid",
    "too_many_threads": "threadgroup over the pipeline's maximum",
    "too_much_threadgroup_memory": "threadgroup memory over 32 KiB",
    "odd_threadgroup_memory": "threadgroup memory not a multiple of 16",
    "constant_unset": "function constant unset",
    "constant_unset_in_the_pipeline": "function constant unset",
    "constant_of_the_wrong_type": "function constant of the wrong type",
    "buffer_of_another_device": "object of another device",
    "pipeline_of_another_device": "object of another device",
    "sixty_five_command_buffers": "64 command buffers in flight",
    "bytes_for_a_written_argument": "bytes bound to a writable argument",
    "use_after_end": "use after endEncoding",
    "handler_after_commit": "handler after commit",
    "references_not_retained": "references not retained",
    "released_in_flight": "released in flight",
    "fast_math_left_on": "fast math",
    "math_mode_left_fast": "fast math",
    "math_functions_left_fast": "fast math",
    "math_mode_on_an_old_system": "unknown selector",
    "residency_set_on_an_old_system": "unknown selector",
    "residency_set_of_an_intel_mac": "no residency sets",
    "thirty_three_residency_sets": "over 32 residency sets",
    "residency_of_another_device": "object of another device",
    "buffer_in_no_committed_set": "buffer outside the residency set",
    "blit_of_odd_bytes": "blit range not a multiple of 4",
    "blit_past_the_end": "range outside the buffer",
    "wrap_of_a_part_of_a_page": "wrapped memory not whole pages",
}


def scenarios() -> list[tuple[str, str]]:
    return [
        (module.__name__, name)
        for module in MODULES
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and list(inspect.signature(function).parameters) == ["sim"]
    ]


@pytest.mark.parametrize("macos", [12, 26])
def test_the_driver_compiles_without_a_warning(driver: Path, macos: int) -> None:
    build.check_driver(macos)


@pytest.fixture(scope="session")
def simulation(driver: Path) -> Iterator[Session]:
    session = Session(driver)
    yield session
    session.close()


@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(*s, id=s[1]) for s in scenarios() if s[1] not in METALLIB],
)
def test_the_driver(simulation: Session, module: str, name: str) -> None:
    simulation.run(module, name)


@pytest.mark.parametrize("name", METALLIB)
def test_the_driver_with_a_metallib(driver: Path, tmp_path: Path, name: str) -> None:
    session = Session(Path(shutil.copy(driver, tmp_path)))
    try:
        session.run(scenarios_devices.__name__, name)
    finally:
        session.close()


@pytest.fixture(scope="session")
def misuses(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How the child ended that broke a rule, and what it wrote to stderr."""
    program = build.compile_program(
        build.HERE / "programs" / "misuse.m", tmp_path_factory.mktemp("misuse") / "misuse"
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (int(ended), text) for name, ended, text in rows}


def test_what_keeps_the_rules_runs(misuses: dict[str, tuple[int, str]]) -> None:
    assert misuses["nothing_wrong"] == (0, "")
    assert set(misuses) - {"nothing_wrong"} == set(MISUSE)


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_aborts_with_the_name_of_the_rule(
    misuses: dict[str, tuple[int, str]], name: str
) -> None:
    ended, text = misuses[name]
    assert ended == signal.SIGABRT
    assert text.startswith(f"metal_sim: {MISUSE[name]}: ")


@pytest.fixture(scope="session")
def sanitized(driver: Path) -> Iterator[Session]:
    session = Session(build.build(sanitize=True), build.sanitizer_environment())
    yield session
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [pytest.param(*s, id=s[1]) for s in scenarios() if s[1] not in METALLIB],
)
def test_the_driver_under_the_sanitizers(sanitized: Session, module: str, name: str) -> None:
    sanitized.run(module, name)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "NEEDED_HEADERS", ("/nonexistent/Foundation.h",))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    build.compiler.cache_clear()
    try:
        with pytest.raises(build.Unavailable, match=r"Foundation.h.*clang.*gcc.*apt-get install"):
            build.build()
    finally:
        build.compiler.cache_clear()
