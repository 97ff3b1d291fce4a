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


def rope_table(positions: int, dim: int) -> NDArray[np.float32]:
    """Return cosines, then sines, of each position."""
    angle = np.arange(positions)[:, None] * 1e4 ** (-2 * np.arange(dim // 2) / dim)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


class Making(NamedTuple):
    """How queries and keys are made."""

    rotary_dim: int
    interleaved: bool = False
    has_norm: bool = True
    eps: float = 1e-5

    def weights(self, heads: Heads) -> list[NDArray[np.float32]]:
        """Return the weights of the norms and the table of angles."""
        rope = rope_table(heads.max_seq, self.rotary_dim)
        norms = np.random.default_rng(7).uniform(0.5, 1.5, (2, heads.head_dim))
        return [*norms.astype(np.float32), rope] if self.has_norm else [rope] * 3


def make_and_attend(
    heads: Heads,
    caches: list[KvCache],
    qkv: NDArray[np.float32],
    states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None,
    making: Making,
    *,
    simdgroups: int = 8,
    splits: int = 1,
    batch: int = 0,
    order: str = "random",
    ahead: bool = True,
) -> list[NDArray[Any]]:
    """Return both caches after qkv_attention_f16_step of qkv [tokens, heads], and what it gives."""
    n_tokens, n = len(qkv), heads.head_dim
    width = (n,) if splits == 1 else (splits, n + 2)
    counts = (n_tokens, splits, heads.n_heads // heads.n_kv_heads, 1, batch, 0)
    after = run(
        "qkv_attention_f16_step",
        [
            qkv,
            *making.weights(heads),
            *(c.raw for c in caches),
            states,
            states if tables is None else tables,
            np.full((n_tokens, heads.n_heads, *width), SENTINEL),
        ],
        caches[0].args(heads.layer, heads.max_seq, 0 if tables is None else len(tables))
        + struct.pack("<3If6I8x", *heads[:3], n**-0.5, *counts)
        + struct.pack("<3If", *making),
        groups=(heads.n_kv_heads, n_tokens, splits),
        threads=32 * simdgroups,
        constants={0: n, 1: int(ahead), 2: 16},
        order=order,
    )
    np.testing.assert_array_equal(after[0], qkv)
    return [*after[4:6], after[8]]


def make_then_attend(
    heads: Heads,
    caches: list[KvCache],
    qkv: NDArray[np.float32],
    states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None,
    making: Making,
    *,
    simdgroups: int = 8,
    splits: int = 1,
    batch: int = 0,
) -> list[NDArray[Any]]:
    """Return the same of two kernels, one after the other."""
    n_tokens = len(qkv)
    cache = caches[0].args(heads.layer, heads.max_seq, 0 if tables is None else len(tables))
    after = run(
        "qkv_to_cache_f16",
        [
            qkv,
            *making.weights(heads),
            *(c.raw for c in caches),
            states,
            states if tables is None else tables,
        ],
        cache
        + struct.pack("<3I", *heads[:3])
        + struct.pack("<3If", *making)
        + struct.pack("<2I12x", n_tokens, batch),
        groups=(tiles_for(heads.n_qkv, 4), n_tokens),
        threads=128,
        mode="fast",
        prepares=True,
    )
    for cache_after, raw in zip(caches, after[4:6], strict=True):
        cache_after.raw[:] = raw
    tile = Tile(heads.n_heads // heads.n_kv_heads, simdgroups=simdgroups)
    q = after[0][:, : heads.n_heads]
    y = attend(
        "step", heads, caches, q, states, tables, tile, splits=splits, batch=batch, mode="fast"
    )
    return [*after[4:6], y]
