"""Ops over caches of pages and batches of sequences, run on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cases import activations
from kv_caches import KvCache, representable, tables_of
from numpy.typing import NDArray
from op_runs import SENTINEL, Heads, rope_table, run

from oxibonsai import metal

IDLE = 2**32 - 1  # the position of a sequence that is not there


def text(heads: Heads, length: int, seed: int = 0) -> NDArray[Any]:
    """Return keys and values [2, length, key-value heads, dim] that the caches can hold."""
    rng = np.random.default_rng([seed, length, *heads[:3]])
    rows = rng.standard_normal((2, length, heads.n_kv_heads, heads.head_dim))
    kept = [representable(heads.kv_dtype, part, keys=i == 0) for i, part in enumerate(rows)]
    return np.stack(kept)


def queries(heads: Heads, n_tokens: int, seed: int = 0) -> NDArray[np.float32]:
    """Return qkv [n_tokens, heads, dim] with queries; keys and values are NaN."""
    qkv = np.full((n_tokens, heads.n_qkv, heads.head_dim), np.nan, np.float32)
    n = n_tokens * heads.n_heads * heads.head_dim
    qkv[:, : heads.n_heads] = activations(n, seed).reshape(n_tokens, heads.n_heads, -1)
    return qkv


def caches_of(
    heads: Heads,
    page_size: int = 0,
    n_pages: int = 1,
    n_layers: int = 0,
    fills: Sequence[int] = (0xFF, 0xFF),
) -> list[KvCache]:
    """Return caches of keys and values; of one page of max_seq where page_size is 0."""
    return [
        KvCache(
            heads.kv_dtype,
            heads.n_kv_heads,
            heads.head_dim,
            page_size or heads.max_seq,
            n_layers=n_layers or heads.layer + 1,
            n_pages=n_pages,
            fill=fill,
            keys=i == 0,
        )
        for i, fill in enumerate(fills)
    ]


def states_of(
    positions: Sequence[int], pages: Sequence[Sequence[int]]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return struct oxb_decode_state of each sequence, and the tables of all."""
    tables, starts = tables_of(pages, gap=1)
    states = [(p, 0, start, 99) for p, start in zip(positions, starts, strict=True)]
    return np.array(states, np.uint32), tables


def paging(caches: Sequence[KvCache], pages: metal.Buffer) -> dict[str, Any]:
    """Return the arguments of an op over pages."""
    n_pages, n_layers, *_ = caches[0].raw.shape
    size = caches[0].page_size
    return {"pages": pages, "page_size": size, "n_layers": n_layers, "n_pages": n_pages}


def attention(
    device: metal.Device,
    heads: Heads,
    caches: Sequence[KvCache],
    qkv: NDArray[Any],
    states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None = None,
    **options: Any,
) -> NDArray[Any]:
    """Return [n_tokens, heads, dim]; without tables over caches of one page."""

    def record(commands, qkv_, k, v, state, out, pages):
        more = paging(caches, pages) if tables is not None else {}
        commands.attention(
            qkv_, k, v, state, out, n_tokens=len(qkv), **heads.shape, **options, **more
        )

    out = np.full((len(qkv), heads.n_heads, heads.head_dim), SENTINEL)
    table = states if tables is None else tables
    return run(device, record, qkv, *(c.raw for c in caches), states, out, table)[4]


def store(
    device: metal.Device,
    op: str,
    heads: Heads,
    caches: Sequence[KvCache],
    qkv: NDArray[Any],
    states: NDArray[np.uint32],
    tables: NDArray[np.uint32] | None = None,
    **options: Any,
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """Run kv_store or qkv_to_cache, without a norm; return qkv and the caches after it."""

    def record(commands, qkv_, k, v, state, pages, rope):
        more = paging(caches, pages) if tables is not None else {}
        more |= {"n_tokens": len(qkv), **heads.shape, **options}
        if op == "kv_store":
            commands.kv_store(qkv_, k, v, state, **more)
        else:
            commands.qkv_to_cache(qkv_, None, None, rope, k, v, state, **more)

    table = states if tables is None else tables
    rope = rope_table(heads.max_seq, heads.head_dim)
    after = run(device, record, qkv, *(c.raw for c in caches), states, table, rope)
    return after[0], after[1:3]
