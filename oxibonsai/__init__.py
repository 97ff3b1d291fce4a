"""Run 1-bit and ternary language models on Apple's Metal, or on a CPU without it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["__version__", "get_include"]

__version__ = "0.1.0"


def get_include() -> str:
    """Return the directory of the C headers, for extensions that use the C API."""
    here = Path(__file__).resolve().parent
    packaged = here / "include"
    # An editable install has no copy: the headers are the repository's own.
    return str(packaged if packaged.is_dir() else here.parent / "shim" / "include")
