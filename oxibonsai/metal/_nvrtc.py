"""Find NVIDIA's run-time compiler, NVRTC, in the packages of PyPI that bring it.

The cuda driver asks the system's loader for ``libnvrtc.so.<major>``. A copy in a Python package is
not on the loader's path, but the loader also finds a library by name that the process has loaded
already: so it is loaded here, before the driver looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
import threading
from pathlib import Path

# CUDA's major version -> the package that holds the library.
_PACKAGES = {13: "nvidia.cu13", 12: "nvidia.cuda_nvrtc"}

_lock = threading.Lock()
_loaded: list[ctypes.CDLL] | None = None


def find() -> dict[int, Path]:
    """Find the libraries in installed packages.

    Returns
    -------
    dict of int to Path
        The library by CUDA's major version, the newest first.
    """
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
    """Load the libraries that find() returns, once per process, on Linux.

    One that the loader refuses is left out: the driver reports what it misses.
    """
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
