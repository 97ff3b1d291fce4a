"""The phases of MetalGraph.

They run without the GIL, on intermediate buffers that they hold from upload to download.

Lock order: the GIL is outermost. A native lock, a BufferSet's, is only waited for without the GIL,
and so is the device.
"""

from typing_extensions import disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._core import Device

@disjoint_base
class BufferSet:
    """Intermediate buffers of one phase, held by one thread at a time.

    Attributes
    ----------
    key : tuple of int
        What the set was made for, the lengths in elements of its buffers.
    buffers : list of Buffer
        float32 buffers of those lengths.
    """
    def __init__(self, device: Device, key: tuple[int, ...]) -> None: ...
    @property
    def key(self) -> tuple[int, ...]:
        """What the set was made for, the lengths in elements of its buffers."""
    @property
    def buffers(self) -> list[Buffer]:
        """float32 buffers of those lengths."""

@disjoint_base
class BufferPool:
    """A few sets of intermediate buffers by their sizes; the least recently used one goes.

    `lock` guards the dict and is a leaf.
    """
    def __init__(self, device: Device) -> None: ...
    def retire(self, held: BufferSet) -> None:
        """Forget a set that the device may still write to, so that nothing uses it again."""
    def clear(self) -> None:
        """Forget all sets."""

class BufferGuard:
    """Holds a BufferSet for the body of a with statement."""
    def __init__(self, pool: BufferPool, key: tuple[int, ...]) -> None: ...
    def __enter__(self) -> list[Buffer]: ...
    def __exit__(self, *exc: object) -> None: ...
