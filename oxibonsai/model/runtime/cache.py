"""The keys and values of a text on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, Device, DeviceInfo
from oxibonsai.model.arguments import one_of
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.recurrent import RING, RecurrentStates
from oxibonsai.model.workingset import warn_of_working_set

__all__ = [
    "KV_DTYPES",
    "KVCache",
    "KVDtype",
    "check_kv_dtype",
    "length_bucket",
    "warn_of_kv_cache",
]

KVDtype: TypeAlias = Literal["f16", "f32", "q8"]
KV_DTYPES: tuple[KVDtype, ...] = get_args(KVDtype)
_SHORTEST = 256


def length_bucket(n_positions: int, max_seq: int) -> int:
    """Return the least of 256, 512, 1024, ... max_seq that holds n_positions."""
    bucket = _SHORTEST
    while bucket < n_positions:
        bucket *= 2
    return min(bucket, max_seq)


def check_kv_dtype(kv_dtype: str, config: ModelConfig) -> None:
    """Raise TypeError or ValueError for no kv_dtype, or one that heads of the model cannot have."""
    one_of("kv_dtype", kv_dtype, KV_DTYPES)
    if kv_dtype == "q8" and config.head_dim % 32:
        raise ValueError(
            f"kv_dtype = 'q8' needs a head_dim that is a multiple of 32, the model's is "
            f"{config.head_dim}: use 'f16'"
        )


def warn_of_kv_cache(
    model: LoadedModel,
    nbytes: int,
    sizes: str,
    kv_dtype: KVDtype,
    *,
    replaced: int = 0,
    states: int = 0,
) -> None:
    """Warn where a cache of nbytes goes past what the device recommends.

    Smaller `sizes` make it smaller; `replaced` bytes are those of the cache that it replaces, and
    `states` those of recurrent states beside it.
    """
    what = "the K/V cache and the recurrent states take" if states else "the K/V cache takes"
    fewer = "" if kv_dtype == "q8" else ", or kv_dtype='q8'"
    warn_of_working_set(
        model.device,
        nbytes + states,
        f"{model.path}: {what}",
        f"a smaller {sizes}{fewer}",
        replaced=replaced,
        crossing=True,
    )


class KVCache:
    """Keys and values, [layer, n_kv_heads, capacity, head_dim] each; of layers that have them.

    In 8 bits, words with the low bits and the unit of each position, uint16 [capacity, head_dim /
    16], follow the elements of a head.

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
        self._parts = self._parts_of(config, kv_dtype)
        self._n_heads = config.n_attention_layers * config.n_kv_heads
        self.k = device.buffer(nbytes, storage=device.working_storage)
        self.v = device.buffer(nbytes, storage=device.working_storage)

    @staticmethod
    def _parts_of(config: ModelConfig, kv_dtype: KVDtype) -> tuple[int, ...]:
        """Return the bytes of a position in each array of a head."""
        n = config.head_dim
        return {"f32": (4 * n,), "f16": (2 * n,), "q8": (n, n // 8)}[kv_dtype]

    @classmethod
    def row_bytes_of(cls, config: ModelConfig, kv_dtype: KVDtype) -> int:
        """Bytes of a position of a head."""
        return sum(cls._parts_of(config, kv_dtype))

    @classmethod
    def nbytes_of(cls, config: ModelConfig, kv_dtype: KVDtype, n_positions: int) -> int:
        """Bytes of the keys, or of the values, of n_positions."""
        heads = config.n_attention_layers * config.n_kv_heads
        return heads * n_positions * cls.row_bytes_of(config, kv_dtype)

    @classmethod
    def most_positions(cls, config: ModelConfig, kv_dtype: KVDtype, info: DeviceInfo) -> int:
        """Return how many of the model's positions a cache on a device can have; 1 at least.

        Keys and values are a buffer each, and the cosines and sines of the positions one more.
        """
        each = cls.nbytes_of(config, kv_dtype, 1)
        fits = info.max_buffer_length // max(each, 4 * config.rotary_dim)
        left = info.recommended_working_set - RecurrentStates.nbytes_of(config, RING)
        fits = min(fits, left // (2 * each))
        return max(1, min(config.context_length, fits))

    def read(self, buffer: Buffer, n_positions: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the first n_positions of each head of each layer, as bytes.

        The array is the same one each time.
        """
        rows = np.empty(n_positions * sum(self._parts), np.uint8)
        for head in range(self._n_heads):
            for part, at in self._pieces(head, rows):
                buffer.read(part, at)
            yield rows

    def write(self, buffer: Buffer, head: int, rows: npt.NDArray[np.uint8]) -> None:
        """Set the first positions of a head, counted over all layers."""
        for part, at in self._pieces(head, rows):
            buffer.write(part, at)

    def _pieces(
        self, head: int, rows: npt.NDArray[np.uint8]
    ) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """Yield the arrays of some positions of a head, and where they lie in a buffer."""
        row_bytes = sum(self._parts)
        n_positions = rows.size // row_bytes
        at = head * self.capacity * row_bytes
        first = 0
        for nbytes in self._parts:
            if n_positions:
                yield rows[first : first + n_positions * nbytes], at
            first += n_positions * nbytes
            at += self.capacity * nbytes

    def copy_from(self, other: KVCache, n_positions: int) -> None:
        """Take over the first n_positions of another cache of the same shape."""
        for source, target in ((other.k, self.k), (other.v, self.v)):
            for head, rows in enumerate(other.read(source, n_positions)):
                self.write(target, head, rows)

    def close(self) -> None:
        """Release both buffers."""
        self.k.close()
        self.v.close()
