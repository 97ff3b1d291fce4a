"""Commands.feed_forward: the half-layer that models record, against float64 and its own parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from cases import activations, dense, random_weight, relative_error, upload

from oxibonsai.metal import Buffer, EncodingError, MetalGraph

HIDDEN, ATTN, INTER = 256, 384, 128
EPS = 1e-5


class Half:
    """A half-layer with everything that feed_forward takes, for n rows."""

    def __init__(self, graph: MetalGraph, n: int, name: str = "Q1_0") -> None:
        device = graph.device
        shapes = [(HIDDEN, ATTN), (2 * INTER, HIDDEN), (HIDDEN, INTER)]
        self.graph = graph
        self.n = n
        self.tensors = [random_weight(name, *shape, seed=i) for i, shape in enumerate(shapes)]
        self.attn = activations(n * ATTN, 1).reshape(n, ATTN)
        self.hidden = activations(n * HIDDEN, 2).reshape(n, HIDDEN)
        self.norm = 1 + activations(HIDDEN, 3) / 4
        proj, gate_up, down = (upload(graph, q) for q in self.tensors)
        self.places: dict[str, Any] = {
            "attn": device.upload(self.attn),
            "hidden": device.upload(self.hidden),
            "activated": device.buffer(4 * n * INTER),
            "attn_proj": proj,
            "norm": graph.upload_f32_weight(self.norm),
            "gate_up": gate_up,
            "down": down,
        }

    def record(self, **changes: Any) -> Any:
        commands = self.graph.commands()
        commands.feed_forward(**{**self.places, "n_vectors": self.n, "eps": EPS, **changes})
        return commands

    def result(self) -> np.ndarray:
        return self.places["hidden"].read(np.empty_like(self.hidden))


@pytest.mark.parametrize("n", [1, 5, 17])
@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q8_0"])
def test_matches_the_definition(graph, name, n):
    half = Half(graph, n, name)
    half.record().replay()
    weights = [dense(q) for q in half.tensors]
    expected = np.stack(
        [
            reference.ffn_phase(hidden, attn, half.norm, *weights, EPS)
            for hidden, attn in zip(half.hidden, half.attn, strict=True)
        ]
    )
    assert relative_error(half.result(), expected) <= 3e-6


def test_graph_and_models_compute_the_same(graph):
    half = Half(graph, 1)
    half.record().replay()
    hidden = half.hidden[0].copy()
    weights = [half.places[x] for x in ("attn_proj", "gate_up", "down")]
    graph.encode_ffn_phase(hidden, half.attn[0], half.norm, *weights, eps=EPS)
    assert relative_error(half.result()[0], hidden) <= 1e-6


@pytest.mark.parametrize("n", [1, 9])
def test_has_the_bits_of_its_ops_one_by_one(graph, n):
    half, other = Half(graph, n), Half(graph, n)
    half.record().replay()
    p, commands = other.places, graph.commands()
    commands.gemv(p["attn_proj"], p["attn"], p["hidden"], residual=True, n_vectors=n)
    commands.gate_up_swiglu(
        p["gate_up"], p["hidden"], p["activated"], n_vectors=n, norm=p["norm"], eps=EPS
    )
    commands.gemv(p["down"], p["activated"], p["hidden"], residual=True, n_vectors=n)
    commands.replay()
    np.testing.assert_array_equal(half.result(), other.result())


def test_error_of_any_argument_records_nothing(graph):
    half = Half(graph, 3)
    p, device = half.places, graph.device
    small = upload(graph, random_weight("Q1_0", 128, 128))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"gate_up": p["down"]}, "gate_up"),
        ({"gate_up": small}, "gate_up"),
        ({"down": small}, "gate_up|down"),
        ({"attn_proj": small}, "gate_up|down"),
        ({"down": p["norm"]}, "down"),
        ({"norm": device.buffer(4 * HIDDEN - 4)}, "gate_up: norm too short: need 1024"),
        (
            {"activated": device.buffer(4 * 3 * INTER - 4)},
            "gate_up: output .* need 1536 bytes, got 1532",
        ),
        (
            {"activated": (p["activated"], 4)},
            "gate_up: output .* need 1536 bytes, got 1532",
        ),
        ({"activated": (device.buffer(4 * 3 * INTER + 4), 2)}, "gate_up: output starts at byte 2"),
        ({"activated": p["hidden"]}, "gate_up: input and output overlap"),
        ({"hidden": device.buffer(4 * 3 * HIDDEN - 4)}, "output"),
        ({"attn": device.buffer(4 * 3 * ATTN - 4)}, "input"),
        ({"n_vectors": 0}, "n_vectors"),
        ({"n_vectors": 4}, "attn_proj: input too short"),
        ({"n_vectors": 1 << 31}, "n_vectors = 2147483648 must lie in 1..2147483647"),
        ({"eps": -1.0}, "eps = -1 must be finite"),
        ({"eps": float("nan")}, "eps = -?nan must be finite"),
    ]
    commands = graph.commands()
    for changes, message in wrong:
        with pytest.raises(EncodingError, match=message):
            commands.feed_forward(**{**p, "n_vectors": 3, "eps": EPS, **changes})
        assert len(commands) == 0
    np.testing.assert_array_equal(half.result(), half.hidden)


def test_read_only_output_of_a_later_product_records_nothing(graph):
    half = Half(graph, 1)
    memory = np.zeros(INTER + 64, np.float32)
    start = -memory.ctypes.data % 64 // 4  # wrapped memory is aligned to 16 bytes
    frozen = memory[start : start + INTER]
    frozen.flags.writeable = False
    commands = graph.commands()
    with (
        Buffer.from_data(graph.device, frozen, copy=False) as wrapped,
        pytest.raises(EncodingError, match="read-only memory"),
    ):
        commands.feed_forward(**{**half.places, "activated": wrapped})
    assert len(commands) == 0


@pytest.mark.parametrize("what", ["attn_proj", "norm", "gate_up", "down", "activated", "hidden"])
def test_closed_argument_records_nothing(graph, what):
    half = Half(graph, 1)
    half.places[what].close()
    commands = graph.commands()
    with pytest.raises(EncodingError, match="closed"):
        commands.feed_forward(**half.places)
    assert len(commands) == 0


def test_weights_of_another_device_are_refused(graph):
    half = Half(graph, 1)
    other = Half(MetalGraph(graph.device.driver), 1)
    for what in ("gate_up", "down", "norm", "activated", "attn_proj", "hidden", "attn"):
        with pytest.raises(EncodingError, match="another device"):
            half.record(**{what: other.places[what]})
