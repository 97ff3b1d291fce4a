"""The fused phases of a layer, with weights that come from memory."""

from __future__ import annotations

import itertools

import numpy as np
import probes
import pytest
from measure import Meter

from oxibonsai import metal

# hidden, intermediate, rows of Q, K and V
LAYERS = {"1.7b": (2048, 6144, 4096), "8b": (4096, 12288, 6144)}
FORMATS = ("Q1_0", "TQ2_0_g128")


def layers_in_memory(device: metal.Device, nbytes: int) -> int:
    """Return how many layers of `nbytes` are too much for the caches."""
    return 1 + -(-3 * probes.last_level_cache(device) // nbytes)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("size", LAYERS)
def test_ffn_phase(graph: metal.MetalGraph, meter: Meter, size: str, format_name: str) -> None:
    hidden_size, inter, _ = LAYERS[size]
    weights = [
        probes.random_weight(format_name, *shape)
        for shape in ((hidden_size, hidden_size), (2 * inter, hidden_size), (hidden_size, inter))
    ]
    nbytes = sum(q.nbytes for q in weights)
    copies = layers_in_memory(graph.device, nbytes)
    layers = [tuple(graph.upload_weight_soa(q) for q in weights) for _ in range(copies)]
    norm = graph.upload_f32_weight(np.ones(hidden_size, np.float32))
    start = probes.activations(hidden_size)
    hidden, attn_out = start.copy(), probes.activations(hidden_size)
    layer = itertools.cycle(layers)

    def run() -> None:
        attn_proj, gate_up, down = next(layer)
        graph.encode_ffn_phase(hidden, attn_out, norm, attn_proj, gate_up, down)

    meter(
        run,
        nbytes=nbytes,
        warmup=copies,
        before=lambda: np.copyto(hidden, start),
    )
    meter.add(format=format_name, hidden=hidden_size, intermediate=inter, copies=copies)
    for handle in itertools.chain(*layers):
        handle.close()
    assert np.isfinite(hidden).all()


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("size", LAYERS)
def test_qkv_phase(graph: metal.MetalGraph, meter: Meter, size: str, format_name: str) -> None:
    hidden_size, _, n_rows = LAYERS[size]
    q = probes.random_weight(format_name, n_rows, hidden_size)
    copies = layers_in_memory(graph.device, q.nbytes)
    handles = probes.upload_copies(graph, q, copies)
    x, y = probes.activations(hidden_size), np.empty(n_rows, np.float32)
    weight = itertools.cycle(handles)
    meter(lambda: graph.encode_qkv_phase(x, y, next(weight)), nbytes=q.nbytes, warmup=copies)
    meter.add(format=format_name, shape=(n_rows, hidden_size), copies=copies)
    for handle in handles:
        handle.close()
    assert np.isfinite(y).all()
