"""The work of each op as it reaches a driver, and the cut of what is above the driver's bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import random_weight, upload

from oxibonsai import metal
from oxibonsai.metal import Device, EncodingError

LOADS = 21  # the weight of a multiply-add of attention for which one query loads 4 bytes
HEADS = {
    "n_heads": 6, "n_kv_heads": 2, "head_dim": 16, "max_seq": 100, "layer": 0, "kv_dtype": "f32",
}  # fmt: skip
SLOTS = {"slot_size": 9000, "offset": 8}
DELTA = {"n_key_heads": 2, "n_value_heads": 4, "key_dim": 32, "value_dim": 64, **SLOTS}
K = 128


class Operands:
    """A large enough buffer for every operand, and a matrix of 24 rows."""

    def __init__(self, device: Device) -> None:
        self.buffers = iter([device.buffer(1 << 17) for _ in range(8)])
        self.graph = metal.MetalGraph(device)
        self.matrix = upload(self.graph, random_weight("Q1_0", 24, K))

    def some(self, n: int) -> list[metal.Buffer]:
        return [next(self.buffers) for _ in range(n)]


OPS: dict[str, tuple[Callable[[Any, Operands], None], list[int]]] = {
    "gemv": (lambda c, o: c.gemv(o.matrix, *o.some(2)), [24 * K]),
    "gemm": (lambda c, o: c.gemv(o.matrix, *o.some(2), n_vectors=5), [5 * 24 * K]),
    "swiglu": (lambda c, o: c.gate_up_swiglu(o.matrix, *o.some(2), n_vectors=5), [5 * 24 * K]),
    "rmsnorm": (lambda c, o: c.rmsnorm(*o.some(3), 64, n_vectors=3), [3 * 64]),
    "add": (lambda c, o: c.add(*o.some(2), 1000), [1000]),
    "add_bias": (lambda c, o: c.add_bias(*o.some(2), 64, n_vectors=3), [3 * 64]),
    "copy": (lambda c, o: c.copy(*o.some(2), 1000), [1000]),
    "conv": (
        lambda c, o: c.conv(*o.some(5), n_channels=20, width=4, n_tokens=5, **SLOTS),
        [20 * 4 * 5],
    ),
    "conv of a batch": (
        lambda c, o: c.conv(*o.some(5), n_channels=20, width=4, n_tokens=5, batch=True, **SLOTS),
        [20 * 4 * 5],
    ),
    "delta": (lambda c, o: c.delta(*o.some(7), n_tokens=3, **DELTA), [4 * 64 * 4 * 32 * 3]),
    "delta of a batch": (
        lambda c, o: c.delta(*o.some(7), n_tokens=3, batch=True, **DELTA),
        [4 * 64 * 4 * 32 * 3],
    ),
    "gate": (lambda c, o: c.gate(*o.some(3), n_heads=5, head_dim=16, n_vectors=3), [5 * 16 * 3]),
    "hadamard": (
        lambda c, o: c.hadamard(*o.some(3), 96, block=32, n_vectors=2),
        [96 * 2],
    ),
    "embed": (lambda c, o: c.embed(o.matrix, *o.some(3), n_tokens=4), [4 * K]),
    "qk_norm_rope": (
        lambda c, o: c.qk_norm_rope(*o.some(5), n_tokens=4, eps=1e-6, **HEADS),
        [8 * 16 * 4],
    ),
    "qkv_to_cache": (
        lambda c, o: c.qkv_to_cache(*o.some(7), n_tokens=4, eps=1e-6, **HEADS),
        [10 * 16 * 4],
    ),
    "kv_store": (lambda c, o: c.kv_store(*o.some(4), n_tokens=4, **HEADS), [2 * 16 * 4]),
    "attention": (
        lambda c, o: c.attention(*o.some(5), n_tokens=4, **HEADS),
        [6 * 4 * 100 * 16 * 2 * LOADS],
    ),
    "attention of a known length": (
        lambda c, o: c.attention(*o.some(5), n_tokens=4, max_length=30, **HEADS),
        [6 * 4 * 30 * 16 * 2 * LOADS],
    ),
    "qkv_attention": (
        lambda c, o: c.qkv_attention(*o.some(8), n_tokens=4, eps=1e-6, **HEADS),
        [10 * 16 * 4, 6 * 4 * 100 * 16 * 2 * LOADS],
    ),
    "argmax": (lambda c, o: c.argmax(*o.some(2), 5000, n_vectors=2), [2 * 5000, 2 * 2]),
    "sample": (
        lambda c, o: c.sample(*o.some(5), 5000, 64, n_vectors=1),
        [5000, 5000],
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_the_driver_gets_the_work_of_every_op(fault, faulty, op):
    record, expected = OPS[op]
    with faulty.commands() as commands:
        record(commands, Operands(faulty))
        commands.replay()
    assert [ran.work for ran in fault.ran()] == expected


def test_the_work_of_a_kernel_that_the_user_brings_is_not_known(fault, faulty):
    pipeline = faulty.library("kernel void f() {}").pipeline("f")
    with faulty.commands() as commands:
        commands.dispatch(pipeline, [], threadgroups=4, threads=32)
        commands.replay()
    assert [ran.work for ran in fault.ran()] == [0]


def pieces(fault: Any, bound: int, n_rows: int, k: int, n_vectors: int, **options: Any) -> Any:
    """Return what a product of vectors runs as, under a bound of the work of a dispatch."""
    fault.set_dispatch_work(bound)
    stride = options.get("y_stride", n_rows)
    with (
        Device("fault") as device,
        metal.MetalGraph(device) as graph,
        upload(graph, random_weight("Q1_0", n_rows, k)) as handle,
        device.buffer(4 * n_vectors * k) as x,
        device.buffer(4 * n_vectors * stride) as y,
        device.commands() as commands,
    ):
        commands.gemv(handle, x, y, n_vectors=n_vectors, **options)
        commands.replay()
    return fault.ran()


@pytest.mark.parametrize(
    ("bound", "vectors"),
    [
        (0, [37]),
        (2**64 - 1, [37]),
        (37 * 24 * K, [37]),
        (37 * 24 * K - 1, [19, 18]),  # nearly the same work in each
        (10 * 24 * K, [10, 10, 10, 7]),
        (24 * K, [1] * 37),
        (1, [1] * 37),  # a tile is never cut
    ],
)
def test_a_product_above_the_bound_runs_as_several(fault, bound, vectors):
    ran = pieces(fault, bound, 24, K, 37, y_stride=40)
    assert [r.grid for r in ran] == [(24, n, 1) for n in vectors]
    assert [r.work for r in ran] == [n * 24 * K for n in vectors]
    starts = np.cumsum([0, *vectors[:-1]])
    assert [r.offsets[:3] for r in ran] == [(0, 4 * K * s, 4 * 40 * s) for s in starts]


def test_one_vector_is_one_dispatch(fault):
    assert [r.work for r in pieces(fault, 1, 24, K, 1)] == [24 * K]


def test_the_largest_product_of_a_prompt_stays_below_the_bound(fault):
    # The head of an 8B model with a vocabulary of 151,936, over a chunk; rows an eighth as long.
    n_rows, k, bound = 151936, 512, 35_000_000_000 // 8
    ran = pieces(fault, bound, n_rows, k, 128)
    assert [r.grid for r in ran] == [(n_rows, n, 1) for n in (43, 43, 42)]
    assert sum(r.work for r in ran) == n_rows * k * 128
    assert max(r.work for r in ran) <= bound
    assert [r.offsets[2] for r in ran] == [0, 43 * n_rows * 4, 86 * n_rows * 4]


def test_attention_above_the_bound_runs_as_several_over_the_same_bindings(fault):
    token = 6 * 100 * 16 * 2 * LOADS
    fault.set_dispatch_work(2 * token)
    with Device("fault") as device, device.commands() as commands:
        commands.attention(*Operands(device).some(5), n_tokens=5, **HEADS)
        commands.replay()
    ran = fault.ran()
    assert [r.work for r in ran] == [2 * token, 2 * token, token]
    assert [r.grid for r in ran] == [(6, 2, 1), (6, 2, 1), (6, 1, 1)]
    assert {r.offsets for r in ran} == {(0,) * 8}


@pytest.mark.parametrize("batch", [False, True])
def test_the_delta_rule_above_the_bound_runs_as_several_over_the_same_bindings(fault, batch):
    heads, sequences = 5, 3 if batch else 1
    head = 64 * 4 * 32 * 3  # of three tokens
    fault.set_dispatch_work(2 * head)
    options = {**DELTA, "n_key_heads": 1, "n_value_heads": heads, "slot_size": 11000}
    with Device("fault") as device, device.commands() as commands:
        commands.delta(*Operands(device).some(7), n_tokens=3, batch=batch, **options)
        commands.replay()
    ran = fault.ran()
    assert [r.work for r in ran] == [2 * head, 2 * head, head]
    assert [r.grid for r in ran] == [(64, n, sequences) for n in (2, 2, 1)]
    assert {r.offsets for r in ran} == {(0,) * 8}


def test_nothing_of_a_cut_op_is_recorded_where_it_is_refused(fault):
    fault.set_dispatch_work(1)
    with Device("fault") as device, device.commands() as commands:
        o = Operands(device)
        x, y = o.some(2)
        commands.gemv(o.matrix, x, y, n_vectors=5)
        assert len(commands) == 5
        commands.submit()
        with pytest.raises(EncodingError, match="sealed"):
            commands.gemv(o.matrix, x, y, n_vectors=5)
        commands.wait()
        assert len(commands) == 5
