"""What a call costs besides the arithmetic: Python, checks, locks, recording and submission."""

from __future__ import annotations

import numpy as np
import probes
from measure import Meter

from oxibonsai import metal

N_RECORDED = 1000


def test_encode_gemv_128x128(graph: metal.MetalGraph, meter: Meter) -> None:
    """The smallest GEMV, from Python's call to its result."""
    weight = graph.upload_q1_weight_soa(probes.random_weight("Q1_0", 128, 128))
    x, y = probes.activations(128), np.empty(128, np.float32)
    meter(lambda: graph.encode_gemv(weight, x, y), per_call=100)


def test_record_gemv(graph: metal.MetalGraph, meter: Meter) -> None:
    """1000 GEMVs recorded into a Commands."""
    device = graph.device
    weight = graph.upload_q1_weight_soa(probes.random_weight("Q1_0", 128, 128))
    x, y = device.buffer(512), device.buffer(512)
    commands = device.commands()

    def record() -> None:
        for _ in range(N_RECORDED):
            commands.gemv(weight, x, y)

    meter(record, before=commands.reset)
    meter.per_second("ops", N_RECORDED)
    assert len(commands) >= N_RECORDED


def test_submit_and_wait_for_one_op(device: metal.Device, meter: Meter) -> None:
    """The shortest list there is: an addition of one number."""
    with device.buffer(16) as x, device.buffer(16) as y, device.commands() as commands:
        commands.add(x, y, 1)

        def run() -> None:
            commands.submit()
            commands.wait()

        meter(run, per_call=100)


def test_replay_1000_ops(device: metal.Device, meter: Meter) -> None:
    """1000 additions of one number in one submission: the device's cost of an op."""
    with device.buffer(16) as x, device.buffer(16) as y, device.commands() as commands:
        for _ in range(N_RECORDED):
            commands.add(x, y, 1)
        meter(commands.replay)
        meter.per_second("ops", N_RECORDED)


def test_weight_cache_hit(graph: metal.MetalGraph, meter: Meter) -> None:
    def fail() -> bytes:
        raise AssertionError("the weight is cached")

    q = probes.random_weight("Q1_0", 128, 128)
    graph.get_or_upload_q1_weight_soa(1, q)
    meter(lambda: graph.get_or_upload_q1_weight_soa_lazy(1, fail), per_call=100)


def test_new_buffer(device: metal.Device, meter: Meter) -> None:
    """A buffer of 4 KB made and released."""
    meter(lambda: device.buffer(4096).close(), per_call=100)
