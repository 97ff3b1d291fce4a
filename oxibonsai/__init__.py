"""Run 1-bit and ternary language models on Apple's Metal, or on a CPU without it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

__all__ = ["__version__", "demo_model", "get_include"]

__version__ = "0.1.0"

_SUBMODULES = ("chat", "formats", "gguf", "metal", "model", "quant")


def __getattr__(name: str) -> ModuleType:
    # On first use: `import oxibonsai` alone loads nothing and needs no compiled module.
    if name in _SUBMODULES:
        return importlib.import_module(f"oxibonsai.{name}")
    raise AttributeError(f"module 'oxibonsai' has no attribute {name!r}")


def demo_model() -> Path:
    """Return the path of the small model that ships: 1 bit, trained on *Alice in Wonderland*."""
    return Path(__file__).resolve().parent / "data" / "alice-q1_0.gguf"


def get_include() -> str:
    """Return the directory of the C headers, for extensions that use the C API."""
    here = Path(__file__).resolve().parent
    packaged = here / "include"
    # An editable install has no copy: the headers are the repository's own.
    return str(packaged if packaged.is_dir() else here.parent / "shim" / "include")
