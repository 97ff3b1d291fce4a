"""Random matrices in the block formats, made chunk by chunk when they are written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai import formats
from oxibonsai.formats import Format

CHUNK_BYTES = 2**22

Chunks = Callable[[], Iterator[npt.NDArray[Any]]]
Tensor = tuple[Chunks, tuple[int, ...], str]
"""A tensor as the writer takes it: its bytes, its shape and the name of its format."""

# Bytes of four 2-bit codes 0 to 2, each about as often: codes 3 would give the weights a mean.
_QUADS = np.array(
    [sum(c << 2 * i for i, c in enumerate(q)) for q in itertools.product(range(3), repeat=4)],
    np.uint8,
)
_TERNARY = _QUADS[np.arange(256) % len(_QUADS)]


def blocks(
    n: int, k: int, fmt: Format, rng: np.random.Generator, factor: float = 1.0
) -> npt.NDArray[Any]:
    """Return `n` random blocks for rows of `k` weights as an array of their bytes or values."""
    size = np.float32(factor / np.sqrt(k))
    if fmt.name in ("F32", "F16", "BF16"):
        values = rng.standard_normal(n, np.float32) * size
        if fmt.name == "BF16":
            return (values.view("<u4") >> 16).astype("<u2")
        return values.astype("<f4" if fmt.name == "F32" else "<f2")
    raw = np.frombuffer(rng.bytes(n * fmt.block_bytes), np.uint8)
    two_bit_codes = fmt.bits == 2 and fmt.name != "PTQ1_0"  # there any byte is five digits
    raw = (_TERNARY[raw] if two_bit_codes else raw.copy()).reshape(n, fmt.block_bytes)
    scale = (0.5 + rng.random((n, 1), np.float32)) * size
    if fmt.name == "Q8_0":
        scale /= 64
    at = fmt.scale_offset
    raw[:, at : at + 2] = scale.astype("<f2").view(np.uint8)
    return raw


def random_of(seed: int, name: str) -> np.random.Generator:
    """Return the numbers of one tensor: it is the same whatever else the file holds."""
    return np.random.Generator(np.random.SFC64([seed, *name.encode()]))


def matrix(
    name: str, n_rows: int, k: int, format_name: str, seed: int, factor: float = 1.0
) -> tuple[str, Tensor]:
    """Return a random matrix for the writer, in chunks of whole rows."""
    fmt = formats.get(format_name)
    blocks_of_row = fmt.row_bytes(k) // fmt.block_bytes

    def chunks() -> Iterator[npt.NDArray[Any]]:
        rng = random_of(seed, name)
        step = max(CHUNK_BYTES // (blocks_of_row * fmt.block_bytes), 1)
        for start in range(0, n_rows, step):
            yield blocks(min(step, n_rows - start) * blocks_of_row, k, fmt, rng, factor)

    return name, (chunks, (n_rows, k), fmt.name)


def cycling_head(embedding: Tensor, cycle: int, n_last: int) -> Tensor:
    """Return the head that gives each token of the embedding the next of its cycle.

    The `n_last` last tokens, special or unused, follow themselves. The last cycle may be shorter.
    """
    chunks, (vocab, k), format_name = embedding

    def rows() -> Iterator[npt.NDArray[Any]]:
        whole = np.concatenate([chunk.reshape(-1) for chunk in chunks()]).reshape(vocab, -1)
        before = np.arange(vocab)
        for start in range(0, vocab - n_last, cycle):
            group = before[start : min(start + cycle, vocab - n_last)]
            group[:] = np.roll(group, 1)
        step = max(CHUNK_BYTES // whole[0].nbytes, 1)
        for start in range(0, vocab, step):
            yield whole[before[start : start + step]]

    return rows, (vocab, k), format_name
