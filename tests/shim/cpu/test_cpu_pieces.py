"""Attention of the cpu by dispatches of some of the tokens, as drivers with a bound get it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from op_runs import SENTINEL, Heads
from paged_runs import caches_of, queries, states_of, text

from oxibonsai.metal import Device, EncodingError

TILE = 8  # tokens
HEADS = Heads(4, 2, 32, 96, 0, "f32")
N_TOKENS, START = 21, 70


def attention(device: Device, pieces: list[tuple[int, int]]) -> np.ndarray:
    """Return the rows of `pieces`, first tokens and ends, of a prompt."""
    caches = caches_of(HEADS)
    for cache, rows in zip(caches, text(HEADS, START + N_TOKENS), strict=True):
        cache.write([0], 0, rows)
    states, _ = states_of([START], [[]])
    out = np.full((N_TOKENS, HEADS.n_heads, HEADS.head_dim), SENTINEL)
    arrays = [queries(HEADS, N_TOKENS), *(c.raw for c in caches), states, states, out]
    with device.commands() as commands:
        buffers = [device.upload(np.ascontiguousarray(a)) for a in arrays]
        for first, end in pieces:
            args = caches[0].args(0, HEADS.max_seq) + struct.pack(
                "<3If8I",
                *(HEADS.n_heads, HEADS.n_kv_heads, HEADS.head_dim, 0.25),
                *(end, 1, HEADS.n_heads // HEADS.n_kv_heads, TILE, 0, first, 0, 0),
            )
            groups = (HEADS.n_kv_heads, -(-max(end - first, 1) // TILE), 1)
            commands.dispatch(device.pipeline("attention_f32"), buffers, args, threadgroups=groups)
        commands.replay()
        buffers[-1].read(out)
    return out


def test_tokens_have_the_bits_of_one_dispatch() -> None:
    with Device("cpu") as device:
        whole = attention(device, [(0, N_TOKENS)])
        assert np.isfinite(whole).all()
        for pieces in ([(0, 8), (8, 16), (16, 21)], [(0, 16), (16, 21)]):
            np.testing.assert_array_equal(attention(device, pieces), whole)
        part = attention(device, [(8, 16)])
        np.testing.assert_array_equal(part[8:16], whole[8:16])
        assert (np.delete(part, slice(8, 16), axis=0) == SENTINEL).all()


@pytest.mark.parametrize("piece", [(21, 21), (24, 21), (2**32 - 8, 21)])
def test_tokens_past_the_end_are_refused(piece: tuple[int, int]) -> None:
    with Device("cpu") as device, pytest.raises(EncodingError, match="describe no matrix or shape"):
        attention(device, [piece])
