"""Attention of one token over the caches of all layers of Bonsai-1.7B's shape, read from memory."""

from __future__ import annotations

import numpy as np
import pytest
from measure import Meter
from numpy.typing import NDArray

from oxibonsai import metal

LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM = 28, 16, 8, 128
PAGE_SIZE = 128
CONTEXTS = [128, 2048, 8192]


def head_of(kv_dtype: str, positions: int) -> NDArray[np.uint8]:
    """Return the bytes of some positions of each key-value head."""
    rng = np.random.default_rng(positions)
    x = rng.standard_normal((N_KV_HEADS, positions * HEAD_DIM), np.float32)
    if kv_dtype != "q8":
        return x.astype({"f16": np.float16, "f32": np.float32}[kv_dtype]).view(np.uint8)
    elements = np.clip(np.rint(x * 32), -127, 127).astype(np.int8)
    words = rng.integers(0, 2**16, (N_KV_HEADS, positions, HEAD_DIM // 16), np.uint16)
    words[..., -1] = 0x3C80  # the unit, 1/64 as bfloat16
    return np.concatenate([elements, words.reshape(N_KV_HEADS, -1).view(np.int8)], axis=1).view(
        "u1"
    )


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("paged", [False, True], ids=["one", "pages"])
@pytest.mark.parametrize("kv_dtype", ["f16", "q8", "f32"])
def test_attention(
    graph: metal.MetalGraph, meter: Meter, kv_dtype: str, paged: bool, context: int
) -> None:
    device, storage = graph.device, graph.device.working_storage
    rng = np.random.default_rng(context)
    page_size = PAGE_SIZE if paged else context
    n_pages = context // page_size
    head = head_of(kv_dtype, page_size)
    data = np.ascontiguousarray(np.broadcast_to(head, (n_pages, LAYERS, *head.shape)))
    k, v = (device.upload(data, storage=storage) for _ in range(2))
    n_qkv = (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM
    qkv = device.upload(rng.standard_normal(n_qkv, np.float32), storage=storage)
    out = device.buffer(4 * N_HEADS * HEAD_DIM, storage=storage)
    state = device.upload(np.array([context - 1, 0, 0, 0], np.uint32), storage=storage)
    table = device.upload(rng.permutation(n_pages).astype(np.uint32), storage=storage)
    pages = {"pages": table, "page_size": page_size, "n_layers": LAYERS, "n_pages": n_pages}
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
                max_seq=context,
                kv_dtype=kv_dtype,
                **(pages if paged else {}),
            )
        meter(commands.replay, nbytes=2 * data.nbytes)
    meter.add(kv_dtype=kv_dtype, paged=paged, context=context, layers=LAYERS)
    assert np.isfinite(out.read(np.empty(N_HEADS * HEAD_DIM, np.float32))).all()
    for buffer in (k, v, qkv, out, state, table):
        buffer.close()
