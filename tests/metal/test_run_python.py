"""The helper that runs a program in an interpreter of its own: what it takes for silence."""

from __future__ import annotations

import pytest
from cases import run_python

PREFIX = "2026-01-31 10:11:12.345 python3.12[1234:56789] "
PRINT = "import sys; print({!r}, file=sys.stderr)"
LAYERS = {"MTL_DEBUG_LAYER": "1", "MTL_SHADER_VALIDATION": "1"}


@pytest.fixture(autouse=True)
def no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAYERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("name", LAYERS)
def test_notices_of_the_validation_layers_are_silence(prefix, name):
    text = f"{prefix}Metal API Validation Enabled\n{prefix}Metal GPU Validation Enabled"
    done = run_python(PRINT.format(text), env={name: "1"})
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (f"{PREFIX}Metal API Validation Enabled", {}),
        (f"{PREFIX}Metal API Validation Enabled: x", LAYERS),
        (f"{PREFIX}Metal API Validation Enabled\n{PREFIX}-[MTLDebugDevice x]: failed", LAYERS),
    ],
)
def test_anything_else_is_not(text, env):
    with pytest.raises(AssertionError):
        run_python(PRINT.format(text), env=env)
