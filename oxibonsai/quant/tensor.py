"""The quantised matrix: blocks, shape and format."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from oxibonsai import formats
from oxibonsai.formats import Format

__all__ = ["QTensor"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class QTensor:
    """A matrix in the blocks of a file format.

    Parameters
    ----------
    data : bytes-like or C-contiguous ndarray
        The blocks in row order, ``n_rows * row_bytes`` bytes. The memory is used, not copied.
    shape : (int, int)
        ``(n_rows, k)``: rows and weights per row.
    format : str or Format
        A name that :func:`oxibonsai.formats.get` knows.

    Attributes
    ----------
    data : ndarray of uint8, shape [n_rows, row_bytes]
        The blocks, C-contiguous; a view of the memory that was given.
    shape : (int, int)
        ``(n_rows, k)``.
    format : str
        Canonical name of the format.

    Raises
    ------
    TypeError
        If `data` has no buffer, or `shape` is not two integers.
    ValueError
        If the format is unknown, `k` does not fill whole blocks, or `data` is not contiguous or has
        another length than `shape` and `format` ask for.
    """

    data: NDArray[np.uint8]
    shape: tuple[int, int]
    format: str

    def __init__(self, data: Any, shape: Sequence[SupportsIndex], format: str | Format) -> None:
        fmt = formats.get(format)
        n_rows, k = matrix_shape(shape)
        row_bytes = fmt.row_bytes(k)
        raw = flat_bytes(data)
        if raw.size != n_rows * row_bytes:
            raise ValueError(
                f"{fmt.name} of shape ({n_rows}, {k}) takes {n_rows} x {row_bytes} = "
                f"{n_rows * row_bytes} bytes, the data has {raw.size}"
            )
        object.__setattr__(self, "data", raw.reshape(n_rows, row_bytes))
        object.__setattr__(self, "shape", (n_rows, k))
        object.__setattr__(self, "format", fmt.name)

    @property
    def nbytes(self) -> int:
        """Size of all blocks in bytes."""
        return self.data.nbytes

    def __repr__(self) -> str:
        return f"QTensor(format={self.format!r}, shape={self.shape}, nbytes={self.nbytes})"


def matrix_shape(shape: Sequence[SupportsIndex]) -> tuple[int, int]:
    """Return (n_rows, k) as ints; TypeError or ValueError for anything but two positive ones."""
    try:
        n_rows, k = (operator.index(n) for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape must be two integers (n_rows, k), not {shape!r}") from None
    if n_rows <= 0 or k <= 0:
        raise ValueError(f"shape must be positive, not ({n_rows}, {k})")
    return n_rows, k


def flat_bytes(data: Any) -> NDArray[np.uint8]:
    """Return contiguous data as uint8 [n], without a copy; TypeError or ValueError for other."""
    if isinstance(data, np.ndarray):
        if data.dtype.hasobject:
            raise TypeError("blocks are bytes: an array of Python objects holds none")
        contiguous = data.flags.c_contiguous
    else:
        try:
            contiguous = memoryview(data).c_contiguous
        except TypeError:
            raise TypeError(
                f"blocks must be bytes-like or a NumPy array, not {type(data).__name__}"
            ) from None
    if not contiguous:
        raise ValueError("blocks must be C-contiguous: copy them with np.ascontiguousarray first")
    if isinstance(data, np.ndarray):
        return np.asarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)
