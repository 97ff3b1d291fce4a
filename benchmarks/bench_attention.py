"""Attention of one token over caches of Bonsai-1.7B's shape, read from memory.

All 28 layers at the shorter contexts, seven at the longest, whose caches are as large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from measure import Meter

from oxibonsai import metal

N_HEADS, N_KV_HEADS, HEAD_DIM = 16, 8, 128
CONTEXTS = {256: 28, 2000: 28, 8000: 7}  # layers by position
ROW_BYTES = {"q8": HEAD_DIM + 4, "f16": 2 * HEAD_DIM, "f32": 4 * HEAD_DIM}


def random_layer(rng: np.random.Generator, kv_dtype: str, max_seq: int) -> npt.NDArray[Any]:
    """Return the keys, or values, of one layer as the cache holds them, [kv head, bytes]."""
    rows = rng.standard_normal((N_KV_HEADS, max_seq, HEAD_DIM), np.float32)
    if kv_dtype != "q8":
        found = rows.astype({"f16": np.float16, "f32": np.float32}[kv_dtype])
        return found.reshape(N_KV_HEADS, -1).view(np.uint8)
    scales = np.abs(rows).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(rows / scales).astype(np.int8).reshape(N_KV_HEADS, -1)
    # The codes of all positions, then their scales.
    return np.hstack([codes.view(np.uint8), scales.reshape(N_KV_HEADS, -1).view(np.uint8)])


@pytest.mark.parametrize("position", CONTEXTS)
@pytest.mark.parametrize("kv_dtype", ROW_BYTES)
def test_attention(graph: metal.MetalGraph, meter: Meter, kv_dtype: str, position: int) -> None:
    device, storage = graph.device, graph.device.working_storage
    rng = np.random.default_rng(position)
    n_layers = CONTEXTS[position]
    max_seq = 1 << position.bit_length()
    layer = random_layer(rng, kv_dtype, max_seq)
    data = np.broadcast_to(layer, (n_layers, *layer.shape))
    k, v = (device.upload(np.ascontiguousarray(data), storage=storage) for _ in range(2))
    n_qkv = (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM
    qkv = device.upload(rng.standard_normal(n_qkv, np.float32), storage=storage)
    out = device.buffer(4 * N_HEADS * HEAD_DIM, storage=storage)
    state = device.upload(np.array([position, 0, 0, 0], np.uint32), storage=storage)
    with graph.commands() as commands:
        for i in range(n_layers):
            commands.attention(
                qkv,
                k,
                v,
                state,
                out,
                layer=i,
                n_heads=N_HEADS,
                n_kv_heads=N_KV_HEADS,
                head_dim=HEAD_DIM,
                max_seq=max_seq,
                kv_dtype=kv_dtype,
            )
        read = n_layers * 2 * N_KV_HEADS * (position + 1) * ROW_BYTES[kv_dtype]
        meter(commands.replay, nbytes=read)
    meter.add(kv_dtype=kv_dtype, position=position, layers=n_layers)
    assert np.isfinite(out.read(np.empty(N_HEADS * HEAD_DIM, np.float32))).all()
    for buffer in (k, v, qkv, out, state):
        buffer.close()
