"""Where things lie in the checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
HELPERS = TESTS / "helpers"
DATA = TESTS / "data"
SHIM = ROOT / "shim"
SHADERS = ROOT / "shaders"
TOOLS = ROOT / "tools"
SIMULATORS = TESTS / "simulators"
