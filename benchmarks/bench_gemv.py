"""The GEMV y = W x in the shapes of Bonsai models, from memory (cold) and from the caches (hot)."""

from __future__ import annotations

import itertools

import numpy as np
import probes
import pytest
from measure import Meter

from oxibonsai import metal

SHAPES = {
    "1.7b": [(4096, 2048), (2048, 2048), (12288, 2048), (2048, 6144), (151936, 2048)],
    "8b": [(6144, 4096), (4096, 4096), (12288, 4096), (24576, 4096), (4096, 12288)],
}
FORMATS = ("Q1_0", "TQ2_0_g128", "Q2_0")


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("where", ["cold", "hot"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((n_rows, k), id=f"{size}-{n_rows}x{k}")
        for size, shapes in SHAPES.items()
        for n_rows, k in shapes
    ],
)
def test_gemv(
    graph: metal.MetalGraph, meter: Meter, shape: tuple[int, int], format_name: str, where: str
) -> None:
    n_rows, k = shape
    q = probes.random_weight(format_name, n_rows, k)
    first = graph.upload_weight_soa(q)
    # Three caches' worth: what a pass leaves in the cache is gone when its turn comes again.
    copies = 1
    if where == "cold":
        copies += -(-3 * probes.last_level_cache(graph.device) // first.nbytes)
    handles = [first, *probes.upload_copies(graph, q, copies - 1)]
    encode = probes.encoder(graph, format_name)
    x, y = probes.activations(k), np.empty(n_rows, np.float32)
    weight = itertools.cycle(handles)
    meter(lambda: encode(next(weight), x, y), nbytes=first.nbytes, warmup=copies + 2)
    meter.add(format=format_name, shape=shape, copies=copies)
    for handle in handles:
        handle.close()
    assert np.isfinite(y).all()
