"""Rows of one format or ggml type in another format that holds the same values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oxibonsai.formats import ConvertedType, Format
from oxibonsai.quant import _ggml_types, _packing
from oxibonsai.quant._decode import decode_codes, decode_values

__all__ = ["rewrite_rows"]

_U8 = NDArray[np.uint8]
_I8 = NDArray[np.int8]
_F16 = NDArray[np.float16]
_F32 = NDArray[np.float32]


def rewrite_rows(raw: _U8, source: Format | ConvertedType, target: Format, out: _U8) -> None:
    """Fill `out` with the weights of rows in another format, exactly.

    Parameters
    ----------
    raw : ndarray of uint8, shape [n, row_bytes]
        Rows of blocks.
    source : Format or ConvertedType
        What they are.
    target : Format
        A format that holds their values: what ``oxibonsai.formats.common`` returns, or what a
        ConvertedType becomes.
    out : ndarray of uint8, shape [n, row_bytes of target]
        Where the rows go; C-contiguous.
    """
    if source.name == target.name:
        out[...] = raw
    # Products of an infinite scale follow IEEE's rules: no warning is due.
    elif target.name == "F32":
        with np.errstate(all="ignore"):
            _decode(raw, source, out.view("<f4"))
    elif target.name == "BF16":
        values = np.empty((len(raw), out.shape[1] // 2), np.float32)
        with np.errstate(all="ignore"):
            _decode(raw, source, values)
        out.view("<u2")[...] = values.view(np.uint32) >> 16
    elif target.name == "Q8_0":
        _write_q8_0(*_integers(raw, source), out)
    else:
        codes, scales = _codes(raw, source)
        _write_codes(codes, scales, target, out)


def _decode(raw: _U8, source: Format | ConvertedType, out: _F32) -> None:
    if isinstance(source, Format):
        decode_values(raw, source, out)
        return
    blocks = raw.reshape(-1, source.block_bytes)
    flat = out.reshape(-1, source.block_weights)
    if source.name in _ggml_types.VALUES:
        flat[...] = _ggml_types.VALUES[source.name](blocks)
        return
    scales, integers = _integers(raw, source)
    np.multiply(
        integers.reshape(len(scales), -1).astype(np.float32),
        scales.astype(np.float32)[:, None],
        out=out.reshape(len(scales), -1),
    )


def _integers(raw: _U8, source: Format | ConvertedType) -> tuple[_F16, _I8]:
    """Return halves [n] and small integers whose products are the weights, in row order."""
    if source.name in _ggml_types.INTEGERS:
        return _ggml_types.INTEGERS[source.name](raw.reshape(-1, source.block_bytes))
    if source.name == "Q8_0":
        blocks = raw.reshape(-1, source.block_bytes)
        d = np.ascontiguousarray(blocks[:, :2]).view("<f2")[:, 0]
        return d, blocks[:, 2:].view(np.int8)
    codes, scales = _codes(raw, source)
    return scales, codes.view(np.int8) - np.int8(1)


def _codes(raw: _U8, source: Format | ConvertedType) -> tuple[_U8, _F16]:
    """Return codes [weights], where c stands for (c - 1) d, and the d of each scale group."""
    if isinstance(source, ConvertedType):
        scales, codes = _ggml_types.decode_tq1_0(raw.reshape(-1, source.block_bytes))
        return codes.reshape(-1), scales
    weights = raw.size // source.block_bytes * source.block_weights
    codes = np.empty(weights, np.uint8)
    scales = np.empty(weights // source.group_size, np.float16)
    decode_codes(raw, source, codes, scales)
    if source.bits == 1:
        codes += codes
    return codes, scales


def _write_q8_0(scales: _F16, integers: _I8, out: _U8) -> None:
    blocks = out.reshape(-1, 34)
    repeated = np.repeat(scales.astype("<f2", copy=False), len(blocks) // len(scales))
    blocks[:, :2] = repeated.view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = integers.view(np.uint8).reshape(-1, 32)


def _write_codes(codes: _U8, scales: _F16, target: Format, out: _U8) -> None:
    blocks = out.reshape(-1, target.block_bytes)
    pack = _packing.pack_strided_pairs if target.name == "TQ2_0" else _packing.pack_pairs
    payload = pack(codes.reshape(-1, target.block_weights))
    at = target.scale_offset
    # A smaller block repeats the scale of the larger one that it comes from.
    repeated = np.repeat(scales.astype("<f2", copy=False), len(blocks) // len(scales))
    blocks[:, at : at + 2] = repeated.view(np.uint8).reshape(-1, 2)
    blocks[:, :at] = payload[:, :at]
    blocks[:, at + 2 :] = payload[:, at:]
