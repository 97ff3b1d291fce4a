"""Where the PyPI packages of NVIDIA's run-time compiler have put it.

The cuda driver asks the system's loader for ``libnvrtc.so.<major>``. A copy in a Python package is
not on the loader's path, but a library that a process has loaded already is found by that name: so
it is loaded here, before the driver looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
import threading
from pathlib import Path

# By CUDA's major version, the package that holds the library since.
_PACKAGES = {13: "nvidia.cu13", 12: "nvidia.cuda_nvrtc"}

_lock = threading.Lock()
_loaded: list[ctypes.CDLL] | None = None


def find() -> dict[int, Path]:
    """Return the libraries in installed packages by CUDA's major version, the newest first."""
    found = {}
    for major, package in _PACKAGES.items():
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # there is no package nvidia at all
            continue
        for folder in spec.submodule_search_locations or () if spec else ():
            path = Path(folder, "lib", f"libnvrtc.so.{major}")
            if path.is_file():
                found[major] = path
    return found


def preload() -> None:
    """Load those libraries, once per process; one that the loader refuses is left out."""
    global _loaded
    if sys.platform != "linux":
        return
    with _lock:
        if _loaded is not None:
            return
        _loaded = []
        for path in find().values():
            with contextlib.suppress(OSError):
                _loaded.append(ctypes.CDLL(str(path)))
