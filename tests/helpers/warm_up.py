"""The first use of a kernel on a Mac, ahead of the tests that limit a time.

Metal compiles a whole family of kernels when the first of it is used: 2 to 6 s each where the
system has not seen them. The simulated Metal compiles single kernels, and keeps them on disk.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from places import TOOLS

if TYPE_CHECKING:
    from oxibonsai import metal


def is_slow_at_first(device: metal.Device, platform: str) -> bool:
    return platform == "darwin" and device.driver == "metal"


def compile_families(device: metal.Device) -> list[str]:
    """Make one pipeline of each family of shaders/; return the kernels' names."""
    sys.path.insert(0, str(TOOLS))
    try:
        import embed_shaders
    finally:
        sys.path.remove(str(TOOLS))
    first = [family.functions[0] for family in embed_shaders.families()]
    for function in first:
        device.pipeline(function)
    return first
