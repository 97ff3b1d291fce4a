"""Attention of one token over the caches of all layers of Bonsai-1.7B's shape, read from memory."""

from __future__ import annotations

import numpy as np
import pytest
from measure import Meter

from oxibonsai import metal

LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM, MAX_SEQ = 28, 16, 8, 128, 2048
DTYPES = {"f16": np.float16, "f32": np.float32}


@pytest.mark.parametrize("position", [256, 2000])
@pytest.mark.parametrize("kv_dtype", DTYPES)
def test_attention(graph: metal.MetalGraph, meter: Meter, kv_dtype: str, position: int) -> None:
    device, storage = graph.device, graph.device.working_storage
    rng = np.random.default_rng(position)
    layer = rng.standard_normal((N_KV_HEADS, MAX_SEQ, HEAD_DIM), np.float32)
    data = np.broadcast_to(layer.astype(DTYPES[kv_dtype]), (LAYERS, *layer.shape))
    k, v = (device.upload(np.ascontiguousarray(data), storage=storage) for _ in range(2))
    n_qkv = (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM
    qkv = device.upload(rng.standard_normal(n_qkv, np.float32), storage=storage)
    out = device.buffer(4 * N_HEADS * HEAD_DIM, storage=storage)
    state = device.upload(np.array([position, 0, 0, 0], np.uint32), storage=storage)
    with graph.commands() as commands:
        for i in range(LAYERS):
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
                max_seq=MAX_SEQ,
                kv_dtype=kv_dtype,
            )
        read = LAYERS * 2 * N_KV_HEADS * (position + 1) * HEAD_DIM * data.itemsize
        meter(commands.replay, nbytes=read)
    meter.add(kv_dtype=kv_dtype, position=position, layers=LAYERS)
    assert np.isfinite(out.read(np.empty(N_HEADS * HEAD_DIM, np.float32))).all()
    for buffer in (k, v, qkv, out, state):
        buffer.close()
