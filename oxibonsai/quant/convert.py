"""Quantise matrices, dequantise them and extract their codes, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxibonsai import formats
from oxibonsai.formats import Format
from oxibonsai.quant._decode import decode_codes, decode_values
from oxibonsai.quant._encode import encode_rows
from oxibonsai.quant.tensor import QTensor

__all__ = ["codes", "dequantize", "quantize"]

# Weights converted at once: this bounds temporary arrays to some tens of megabytes.
_CHUNK_WEIGHTS = 1 << 20


def quantize(w: ArrayLike, format: str | Format) -> QTensor:
    """Quantise the matrix `w` to `format`.

    Parameters
    ----------
    w : array_like of float16, float32 or float64, shape [n_rows, k]
        Finite weights, in any memory order; they are converted to float32 first. `k` is a positive
        multiple of the weights in a block.
    format : str or Format
        A name that :func:`oxibonsai.formats.get` knows.

    Returns
    -------
    QTensor
        The blocks, shape [n_rows, k]; it owns its memory, for ``F32`` too.

    Raises
    ------
    TypeError
        If `w` is not real floating-point.
    ValueError
        If the format is unknown, `w` is empty or not 2-D, its rows do not fill whole blocks, a
        weight is NaN or infinite, or a value or scale rounds to infinity in the format.
    """
    fmt = formats.get(format)
    matrix = _float_matrix(w)
    n_rows, k = matrix.shape
    out = np.empty((n_rows, fmt.row_bytes(k)), np.uint8)
    for start, stop in _row_chunks(n_rows, k):
        rows = _finite_float32(matrix[start:stop], start)
        encode_rows(rows, fmt, start, out[start:stop])
    return QTensor(out, (n_rows, k), fmt)


def dequantize(q: QTensor) -> NDArray[np.float32]:
    """Return the weights of `q` in float32.

    A weight of a coded format or of ``Q8_0`` is its integer value times the half scale ``d``; the
    product is exact in float32. Infinite and NaN scales follow IEEE arithmetic: zero times infinity
    is NaN. Code 3 stands for 0 in ``TQ2_0_g128`` and for ``+2 d`` in the other 2-bit formats.

    Parameters
    ----------
    q : QTensor
        Of any format.

    Returns
    -------
    ndarray of float32, shape [n_rows, k]
        A new array.

    Raises
    ------
    TypeError
        If `q` is not a :class:`QTensor`.
    """
    fmt = _format_of(q)
    n_rows, k = q.shape
    out = np.empty((n_rows, k), np.float32)
    for start, stop in _row_chunks(n_rows, k):
        decode_values(q.data[start:stop], fmt, out[start:stop])
    return out


def codes(q: QTensor) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return the codes and scales of `q` in its device format.

    Parameters
    ----------
    q : QTensor
        Of a coded format: one of :data:`oxibonsai.formats.BLOCK_FORMATS`.

    Returns
    -------
    codes : ndarray of uint8, shape [n_rows, k]
        1-bit formats: code 1 stands for ``+d``, code 0 for ``-d``. 2-bit formats: code ``c`` stands
        for ``(c - 1) * d`` (``TQ2_0_g128``'s code 3, which stands for 0 there, becomes 1).
    scales : ndarray of float16, shape [n_rows, k // group_size]
        The scale ``d`` of each scale group of 64 or 128 weights. The two groups of a ``TQ2_0``
        block have its one scale.

    Raises
    ------
    TypeError
        If `q` is not a :class:`QTensor`.
    ValueError
        If the format has no codes (``F32``, ``F16``, ``BF16``, ``Q8_0``).
    """
    fmt = _format_of(q)
    if not fmt.coded:
        raise ValueError(
            f"{fmt.name} has no 1-bit or 2-bit codes: one of {', '.join(formats.BLOCK_FORMATS)}, "
            "or take dequantize(q)"
        )
    n_rows, k = q.shape
    out = np.empty((n_rows, k), np.uint8)
    scales = np.empty((n_rows, k // fmt.group_size), np.float16)
    for start, stop in _row_chunks(n_rows, k):
        decode_codes(q.data[start:stop], fmt, out[start:stop], scales[start:stop])
    return out, scales


def _float_matrix(w: ArrayLike) -> NDArray[np.floating[Any]]:
    matrix = np.asarray(w)
    if matrix.dtype.kind != "f":
        raise TypeError(
            f"weights must be real floating-point, not {matrix.dtype}: convert them with "
            ".astype(np.float32)"
        )
    if matrix.ndim != 2:
        raise ValueError(
            f"weights must have the shape [n_rows, k], not {matrix.shape}: reshape a vector to "
            "(1, k)"
        )
    if matrix.size == 0:
        raise ValueError(f"weights of shape {matrix.shape} are empty: nothing to quantise")
    return matrix


def _format_of(q: QTensor) -> Format:
    if not isinstance(q, QTensor):
        raise TypeError(
            f"expected a QTensor, not {type(q).__name__}: QTensor(data, shape, format) makes one"
        )
    return formats.get(q.format)


def _row_chunks(n_rows: int, k: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_WEIGHTS // k)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _finite_float32(rows: NDArray[np.floating[Any]], first_row: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore"):
        result = np.ascontiguousarray(rows, np.float32)
    bad = ~np.isfinite(result)
    if bad.any():
        row, column = np.unravel_index(int(bad.argmax()), bad.shape)
        raise ValueError(
            f"weight {rows[row, column]} at row {first_row + row}, column {column} is not a finite "
            "float32: a quantised matrix cannot represent it"
        )
    return result
