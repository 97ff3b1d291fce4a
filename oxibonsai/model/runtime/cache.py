"""The keys and values of a text on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, Device
from oxibonsai.model.config import ModelConfig

__all__ = ["KVCache", "KVDtype", "length_bucket"]

KVDtype: TypeAlias = Literal["f16", "f32"]
_SHORTEST = 256


def length_bucket(n_positions: int, max_seq: int) -> int:
    """Return the least of 256, 512, 1024, ... max_seq that holds n_positions."""
    bucket = _SHORTEST
    while bucket < n_positions:
        bucket *= 2
    return min(bucket, max_seq)


class KVCache:
    """Keys and values, [layer, n_kv_heads, capacity, head_dim] each.

    Attributes
    ----------
    k, v : Buffer
        On the device.
    capacity : int
        Positions that fit.
    """

    def __init__(
        self, device: Device, config: ModelConfig, kv_dtype: KVDtype, capacity: int
    ) -> None:
        nbytes = self.nbytes_of(config, kv_dtype, capacity)
        self.capacity = capacity
        self._row_bytes = config.head_dim * self.itemsize_of(kv_dtype)
        self._n_heads = config.n_layers * config.n_kv_heads
        self.k = device.buffer(nbytes, storage=device.working_storage)
        self.v = device.buffer(nbytes, storage=device.working_storage)

    @staticmethod
    def itemsize_of(kv_dtype: KVDtype) -> int:
        """Bytes of an element."""
        return 2 if kv_dtype == "f16" else 4

    @classmethod
    def nbytes_of(cls, config: ModelConfig, kv_dtype: KVDtype, n_positions: int) -> int:
        """Bytes of the keys, or of the values, of n_positions."""
        heads = config.n_layers * config.n_kv_heads
        return heads * n_positions * config.head_dim * cls.itemsize_of(kv_dtype)

    def read(self, buffer: Buffer, n_positions: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the first n_positions of each head of each layer, as bytes.

        The array is the same one each time.
        """
        rows = np.empty(n_positions * self._row_bytes, np.uint8)
        for head in range(self._n_heads):
            if n_positions:
                buffer.read(rows, head * self.capacity * self._row_bytes)
            yield rows

    def write(self, buffer: Buffer, head: int, rows: npt.NDArray[np.uint8]) -> None:
        """Set the first positions of a head, counted over all layers."""
        if rows.size:
            buffer.write(rows, head * self.capacity * self._row_bytes)

    def copy_from(self, other: KVCache, n_positions: int) -> None:
        """Take over the first n_positions of another cache of the same shape."""
        for source, target in ((other.k, self.k), (other.v, self.v)):
            for head, rows in enumerate(other.read(source, n_positions)):
                self.write(target, head, rows)

    def close(self) -> None:
        """Release both buffers."""
        self.k.close()
        self.v.close()
