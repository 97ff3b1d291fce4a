"""Reformat and upload of weights, against one thread's copy of as many bytes."""

from __future__ import annotations

import numpy as np
import probes
import pytest
from measure import Meter

from oxibonsai import formats, metal

# 151936 x 2048 is the embedding of Bonsai-1.7B; a block's bytes come to 40 to 80 MB.
SHAPE = (151936, 2048)


@pytest.mark.parametrize("format_name", formats.BLOCK_FORMATS)
def test_reformat(meter: Meter, copy_bandwidth: float, format_name: str) -> None:
    """Into memory that is there already; the share is of a copy of the input."""
    q = probes.random_weight(format_name, *SHAPE)
    out, _ = metal.reformat(q.data, format_name)
    meter(
        lambda: metal.reformat(q.data, format_name, out=out),
        nbytes=q.nbytes,
        against=copy_bandwidth,
    )
    meter.add(format=format_name, shape=SHAPE, copy_GBps=copy_bandwidth / 1e9)


@pytest.mark.parametrize("format_name", ["Q1_0", "TQ2_0_g128"])
def test_upload(
    graph: metal.MetalGraph, meter: Meter, copy_bandwidth: float, format_name: str
) -> None:
    """Into new memory of the device, whose first use costs page faults; freed outside the time."""
    q = probes.random_weight(format_name, *SHAPE)
    held: list[metal.WeightHandle] = []

    def free() -> None:
        while held:
            held.pop().close()

    meter(
        lambda: held.append(graph.upload_weight_soa(q)),
        nbytes=q.nbytes,
        before=free,
        against=copy_bandwidth,
    )
    meter.add(format=format_name, shape=SHAPE, copy_GBps=copy_bandwidth / 1e9)
    assert held[0].shape == SHAPE
    free()


def test_copy_into_new_memory(meter: Meter, copy_bandwidth: float) -> None:
    """The bound for an upload: NumPy's copy into memory that was never used."""
    source = np.ones(SHAPE[0] * formats.get("Q1_0").row_bytes(SHAPE[1]), np.uint8)
    held: list[object] = []
    meter(
        lambda: held.append(source.copy()),
        nbytes=source.nbytes,
        before=held.clear,
        against=copy_bandwidth,
    )
