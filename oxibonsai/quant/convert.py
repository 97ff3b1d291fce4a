"""Quantise matrices, dequantise them and extract their codes, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxibonsai import formats
from oxibonsai.formats import ConvertedType, Format
from oxibonsai.quant._decode import decode_codes, decode_values
from oxibonsai.quant._encode import encode_rows
from oxibonsai.quant._rows import rewrite_rows
from oxibonsai.quant.tensor import QTensor, flat_bytes, matrix_shape

__all__ = ["codes", "dequantize", "from_ggml", "quantize", "rewritten"]

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


def from_ggml(data: Any, shape: Sequence[SupportsIndex], type: str) -> QTensor:
    """Convert a matrix of a ggml type without kernels to a format that holds its values exactly.

    Parameters
    ----------
    data : bytes-like or C-contiguous ndarray
        The blocks in row order.
    shape : (int, int)
        ``(n_rows, k)``; `k` fills whole blocks.
    type : str
        A key of :data:`oxibonsai.formats.CONVERTED`, such as ``"Q6_K"``, or any name that
        :func:`oxibonsai.formats.get` knows: its blocks are copied.

    Returns
    -------
    QTensor
        In the format that the type becomes, such as ``F32`` for ``Q6_K``, ``Q8_0`` for ``Q4_0``.

    Raises
    ------
    TypeError
        If `data` has no buffer, or `shape` is not two integers.
    ValueError
        If the type is unknown, `k` does not fill whole blocks, or `data` has another length than
        `shape` and `type` ask for.

    Examples
    --------
    >>> q = from_ggml(bytes(210), (1, 256), "Q6_K")
    >>> q.format, float(dequantize(q).max())
    ('F32', 0.0)
    """
    source = formats.file_type(type)
    target = formats.get(source.becomes if isinstance(source, ConvertedType) else source.name)
    n_rows, k = matrix_shape(shape)
    pieces = rewritten(data, (n_rows, k), source, target)
    out = np.empty((n_rows, target.row_bytes(k)), np.uint8)
    row = 0
    for piece in pieces:
        out[row : row + len(piece)] = piece
        row += len(piece)
    return QTensor(out, (n_rows, k), target)


def rewritten(
    data: Any, shape: tuple[int, int], source: Format | ConvertedType, target: Format
) -> Iterator[NDArray[np.uint8]]:
    """Return the rows of a matrix in another format that holds their values, a few at a time.

    Parameters
    ----------
    data : bytes-like or C-contiguous ndarray
        The blocks in row order.
    shape : (int, int)
        ``(n_rows, k)``.
    source : Format or ConvertedType
        What the blocks are.
    target : Format
        The format that a ConvertedType becomes, or one that ``oxibonsai.formats.common`` returns
        for the source.

    Returns
    -------
    iterator of ndarray of uint8, shape [n, row_bytes of target]
        Some tens of megabytes of weights each, in order.

    Raises
    ------
    ValueError
        If `k` does not fill whole blocks, or `data` has another length than `shape` asks for.
    """
    n_rows, k = shape
    raw = flat_bytes(data)
    row_bytes = source.row_bytes(k)
    if raw.size != n_rows * row_bytes:
        raise ValueError(
            f"{source.name} of shape ({n_rows}, {k}) takes {n_rows} x {row_bytes} = "
            f"{n_rows * row_bytes} bytes, the data has {raw.size}"
        )
    return _rewritten(raw.reshape(n_rows, row_bytes), k, source, target)


def _rewritten(
    rows: NDArray[np.uint8], k: int, source: Format | ConvertedType, target: Format
) -> Iterator[NDArray[np.uint8]]:
    for start, stop in _row_chunks(len(rows), k):
        out = np.empty((stop - start, target.row_bytes(k)), np.uint8)
        rewrite_rows(np.ascontiguousarray(rows[start:stop]), source, target, out)
        yield out


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
