"""Attention on matrix units by the MSL runner: the kernels of prompts and of single tokens."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from kv_caches import KvCache
from numpy.typing import NDArray
from shader_heads import Heads
from shader_runs import SENTINEL, run, tiles_for


class Tile(NamedTuple):
    """Queries of a threadgroup, and its SIMD-groups."""

    heads: int
    tokens: int = 1
    simdgroups: int = 8


def written(
    heads: Heads,
    texts: list[tuple[list[int], NDArray[Any], NDArray[Any]]],
    page_size: int = 0,
    n_pages: int = 1,
) -> list[KvCache]:
    """Return caches with the keys and values of texts (pages, k, v); all else in them is NaN."""
    caches = [
        KvCache(
            "f16",
            heads.n_kv_heads,
            heads.head_dim,
            page_size or heads.max_seq,
            n_layers=heads.layer + 1,
            n_pages=n_pages,
        )
        for _ in range(2)
    ]
    for pages, *rows in texts:
        for cache, own in zip(caches, rows, strict=True):
            with np.errstate(over="ignore"):
                cache.write(pages, heads.layer, own)
    return caches


def attend(
    kind: str,
    heads: Heads,
    caches: list[KvCache],
    q: NDArray[np.float32],
    states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None,
    tile: Tile,
    *,
    splits: int = 1,
    batch: int = 0,
    first_token: int = 0,
    order: str = "random",
    mode: str = "check",
    most_splits: int = 16,
    ahead: bool = True,
) -> NDArray[np.float32]:
    """Attend from q [tokens, n_heads, head_dim] by attention_f16_`kind`; return what is written.

    Of several splits that is [tokens, n_heads, splits, head_dim + 2].
    """
    n_tokens, n = len(q), heads.head_dim
    qkv = np.full((n_tokens, heads.n_qkv, n), np.nan, np.float32)
    qkv[:, : heads.n_heads] = q
    width = (n,) if splits == 1 else (splits, n + 2)
    counts = (n_tokens, splits, tile.heads, tile.tokens, batch, first_token)
    return run(
        f"attention_f16_{kind}",
        [
            qkv,
            *(c.raw for c in caches),
            states,
            states if tables is None else tables,
            np.full((n_tokens, heads.n_heads, *width), SENTINEL),
        ],
        caches[0].args(heads.layer, heads.max_seq, 0 if tables is None else len(tables))
        + struct.pack("<3If6I8x", *heads[:3], n**-0.5, *counts),
        groups=(
            heads.n_heads // tile.heads,
            tiles_for(n_tokens - first_token, tile.tokens),
            splits,
        ),
        threads=32 * tile.simdgroups,
        constants={0: n, 1: int(ahead)} | ({2: most_splits} if kind == "step" else {}),
        order=order,
        mode=mode,
    )[5]


def combine(splits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add up the splits [tokens, n_heads, splits, head_dim + 2]."""
    n_tokens, n_heads, n_splits, width = splits.shape
    rows = n_tokens * n_heads
    return run(
        "attention_combine",
        [splits, np.full((n_tokens, n_heads, width - 2), SENTINEL)],
        struct.pack("<QII", rows, width - 2, n_splits),
        groups=rows,
        threads=64,
        mode="fast",
        prepares=True,
    )[1]
