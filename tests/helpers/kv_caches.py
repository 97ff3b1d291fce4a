"""Caches of keys and values, by the definition of struct oxb_cache."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import reference
from numpy.typing import NDArray

ELEMENTS = {"f16": np.float16, "f32": np.float32, "q8": np.int8}
ALIGNED = {"f16": 2, "f32": 2, "q8": 32}  # what head_dim is a multiple of


class KvCache:
    """A cache in bytes, and views of what is in them.

    Attributes
    ----------
    raw : uint8 [pages, layers, key-value heads, bytes]
        The whole cache. ``fill`` 0xFF makes everything NaN that a kernel must not meet.
    elements : [pages, layers, key-value heads, positions of a page, head_dim]
        The elements.
    words : uint16 [pages, layers, key-value heads, positions of a page, head_dim / 16], or None
        The low bits and the unit of the positions of q8.
    """

    def __init__(
        self,
        kv_dtype: str,
        n_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        n_layers: int = 1,
        n_pages: int = 1,
        fill: int = 0xFF,
        keys: bool = False,
    ) -> None:
        dtype = np.dtype(ELEMENTS[kv_dtype])
        n = page_size * head_dim * dtype.itemsize
        self.kv_dtype, self.page_size, self.keys = kv_dtype, page_size, keys
        self.head_stride = page_size * (head_dim + (head_dim // 8 if kv_dtype == "q8" else 0))
        shape = (n_pages, n_layers, n_kv_heads)
        self.raw = np.full((*shape, self.head_stride * dtype.itemsize), fill, np.uint8)
        self.elements = self.raw[..., :n].view(dtype).reshape(*shape, page_size, head_dim)
        self.words = None
        if kv_dtype == "q8":
            self.words = self.raw[..., n:].view(np.uint16).reshape(*shape, page_size, -1)

    def store(self, page: int, layer: int, slot: int | slice, rows: NDArray[Any]) -> None:
        """Store the keys or values of each head, rows [key-value heads, (slots,) head_dim]."""
        if self.words is None:
            with np.errstate(over="ignore"):
                self.elements[page, layer, :, slot] = rows.astype(self.elements.dtype)
        else:
            turned = reference.hadamard(rows) if self.keys else rows
            elements, words = reference.quantize_q8(turned)
            self.elements[page, layer, :, slot] = elements
            self.words[page, layer, :, slot] = words

    def write(self, table: Sequence[int], layer: int, rows: NDArray[Any]) -> None:
        """Store rows [positions, key-value heads, head_dim] of a sequence from its start on."""
        for i, start in enumerate(range(0, len(rows), self.page_size)):
            part = rows[start : start + self.page_size]
            self.store(table[i], layer, slice(0, len(part)), part.transpose(1, 0, 2))

    def args(
        self, layer: int, max_seq: int, table_size: int = 0, layer_offset: int | None = None
    ) -> bytes:
        """Return struct oxb_cache; without tables, of one page."""
        n_pages, n_layers, n_kv_heads, _ = self.raw.shape
        layer_stride = n_kv_heads * self.head_stride
        return struct.pack(
            "<3Q6I",
            n_layers * layer_stride if table_size else 0,
            layer * layer_stride if layer_offset is None else layer_offset,
            self.head_stride,
            self.page_size,
            n_pages,
            table_size,
            max_seq,
            0,
            0,
        )


def held(kv_dtype: str, rows: NDArray[Any], *, keys: bool = False) -> NDArray[Any]:
    """Return what a cache holds of rows [..., head_dim], float32 for q8."""
    if kv_dtype != "q8":
        return rows.astype(ELEMENTS[kv_dtype])
    turned = reference.hadamard(rows) if keys else rows
    kept = reference.dequantize_q8(*reference.quantize_q8(turned)).astype(np.float32)
    return reference.hadamard(kept) / np.float32(32) if keys else kept


def representable(kv_dtype: str, rows: NDArray[Any], *, keys: bool = False) -> NDArray[Any]:
    """Return rows near those [..., head_dim] that a cache holds as they are."""
    kept = held(kv_dtype, rows, keys=keys)
    while not np.array_equal(kept, rows):  # its unit may be smaller than that of `rows`
        rows, kept = kept, held(kv_dtype, kept, keys=keys)
    return kept


def tables_of(pages: Sequence[Sequence[int]], gap: int = 0) -> tuple[NDArray[np.uint32], list[int]]:
    """Return the tables of some sequences in one array, `gap` elements apart, and their starts."""
    tables, starts = [], []
    for own in pages:
        tables += [0xDEAD] * gap
        starts.append(len(tables))
        tables += own
    return np.array(tables, np.uint32), starts
