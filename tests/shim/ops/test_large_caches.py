"""Caches past 2^32 elements: the 8B shape with room for 131,072 positions, in sparse files.

The kernels run on the places that matter; the pages between them never come to exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from cases import buffer_of, contents, relative_error
from numpy.typing import NDArray

from oxibonsai import metal

# Of a device that shares the host's memory.
pytestmark = pytest.mark.device("cpu")

LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM, MAX_SEQ = 36, 32, 8, 128, 1 << 17
SHAPE = {"n_heads": N_HEADS, "n_kv_heads": N_KV_HEADS, "head_dim": HEAD_DIM, "max_seq": MAX_SEQ}
# 32 layers are 2^32 elements: with 32-bit products these two would be one.
HIGH, LOW = LAYERS - 1, LAYERS - 1 - 32

Cache = NDArray[Any]


@pytest.fixture(params=["f16", "f32"])
def kv_dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def caches(tmp_path: Path, kv_dtype: str) -> tuple[Cache, Cache]:
    """K and V of [layer, head, position, dim], all zero."""
    made = []
    for name in ("k", "v"):
        made.append(
            np.memmap(
                tmp_path / name,
                np.float16 if kv_dtype == "f16" else np.float32,
                "w+",
                shape=(LAYERS, N_KV_HEADS, MAX_SEQ, HEAD_DIM),
            )
        )
        (tmp_path / name).unlink()  # The mapping keeps it.
        assert made[-1].size > 2**32
    return made[0], made[1]


@pytest.fixture
def buffers(
    device: metal.Device, caches: tuple[Cache, Cache]
) -> Iterator[tuple[metal.Buffer, metal.Buffer]]:
    k, v = (device.upload(cache, copy=False) for cache in caches)
    yield k, v
    k.close()
    v.close()


def qkv_rows(n_tokens: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    shape = (n_tokens, N_HEADS + 2 * N_KV_HEADS, HEAD_DIM)
    return rng.standard_normal(shape).astype(np.float32)


def run(
    device: metal.Device,
    buffers: tuple[metal.Buffer, metal.Buffer],
    qkv: NDArray[np.float32],
    position: int,
    layer: int,
    kv_dtype: str,
) -> NDArray[np.float32]:
    """Store the keys and values of `qkv` from `position` on; return the attention over them."""
    shape = {**SHAPE, "layer": layer, "kv_dtype": kv_dtype, "n_tokens": len(qkv)}
    state = np.zeros(4, np.uint32)
    state[0] = position
    with (
        buffer_of(device, qkv) as rows,
        buffer_of(device, state) as where,
        device.buffer(4 * len(qkv) * N_HEADS * HEAD_DIM) as out,
        device.commands() as commands,
    ):
        commands.kv_store(rows, *buffers, where, **shape)
        if position < 100:  # the pages below a late position are not there to be read
            commands.attention(rows, *buffers, where, out, **shape)
        commands.replay()
        return contents(out).reshape(len(qkv), N_HEADS, HEAD_DIM)


def split(qkv: NDArray[np.float32], dtype: Any) -> tuple[Any, Any, Any]:
    q, k, v = np.split(qkv, [N_HEADS, N_HEADS + N_KV_HEADS], axis=1)
    return q, k.astype(dtype), v.astype(dtype)


@pytest.mark.parametrize("n_tokens", [1, 3])
def test_layers_past_2_32_elements_are_not_those_below(device, caches, buffers, kv_dtype, n_tokens):
    qkv = {layer: qkv_rows(n_tokens, layer) for layer in (HIGH, LOW)}
    found = {layer: run(device, buffers, rows, 0, layer, kv_dtype) for layer, rows in qkv.items()}
    for layer, rows in qkv.items():
        q, k, v = split(rows, caches[0].dtype)
        for cache, expected in zip(caches, (k, v), strict=True):
            stored = cache[layer, :, :n_tokens].transpose(1, 0, 2)
            np.testing.assert_array_equal(stored, expected)
            assert not cache[layer, :, n_tokens].any()
        assert relative_error(found[layer], reference.attention(q, k, v)) < 1e-6
    # A second look, when both are there.
    again = run(device, buffers, qkv[LOW], 0, LOW, kv_dtype)
    np.testing.assert_array_equal(again, found[LOW])


def test_the_last_position_of_the_last_layer_is_stored_at_the_end(
    device, caches, buffers, kv_dtype
):
    qkv = qkv_rows(2, 9)
    run(device, buffers, qkv, MAX_SEQ - 2, HIGH, kv_dtype)
    _, k, v = split(qkv, caches[0].dtype)
    for cache, rows in zip(caches, (k, v), strict=True):
        np.testing.assert_array_equal(cache[HIGH, :, -2:].transpose(1, 0, 2), rows)
        np.testing.assert_array_equal(cache.reshape(-1)[-HEAD_DIM:], rows[1, -1])
        assert not cache[HIGH, :, -3].any()
        assert not cache[LOW, :, -3:].any()


@pytest.mark.parametrize("op", ["kv_store", "attention"])
def test_one_element_too_few_is_refused_with_both_sizes(device, caches, kv_dtype, op):
    shape = {**SHAPE, "layer": HIGH, "kv_dtype": kv_dtype}
    short = caches[0].reshape(-1)[:-1]
    with (
        device.upload(short, copy=False) as k,
        device.upload(caches[1], copy=False) as v,
        device.buffer(4 * (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM) as qkv,
        device.buffer(16) as state,
        device.buffer(4 * N_HEADS * HEAD_DIM) as out,
        device.commands() as commands,
    ):
        operands = [qkv, k, v, state] + ([out] if op == "attention" else [])
        with pytest.raises(metal.EncodingError) as caught:
            getattr(commands, op)(*operands, **shape)
        assert f"{caches[0].nbytes}" in str(caught.value)
        assert f"{short.nbytes}" in str(caught.value)
