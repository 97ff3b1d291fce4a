"""Commands.feed_forward: the half-layer that models record, against float64 and its own parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from cases import activations, dense, random_weight, relative_error, upload
from rotated_models import transformed

from oxibonsai.metal import Buffer, EncodingError, MetalGraph, Rotation

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


class Rotated(Half):
    """A half-layer whose products take in rotated vectors."""

    def __init__(self, graph: MetalGraph, n: int, name: str = "Q1_0", block: int = 64) -> None:
        super().__init__(graph, n, name)
        widths = {"attn": ATTN, "gate_up": HIDDEN, "down": INTER}
        rng = np.random.default_rng(4)
        self.signs = {what: rng.choice([-1.0, 1.0], k) for what, k in widths.items()}
        self.block = block
        self.rotations: dict[str, Any] = {
            f"{what}_rotation": Rotation(
                graph.device.upload(signs.astype(np.float32)),
                block,
                *((64, 3) if what == "attn" else ()),
            )
            for what, signs in self.signs.items()
        }

    def record(self, **changes: Any) -> Any:
        return super().record(**{**self.rotations, **changes})

    def turned(self, what: str, x: np.ndarray) -> np.ndarray:
        if what == "attn":  # heads of 64 in 3 groups of 2: from r * 2 + j to j * 3 + r
            x = x.reshape(*x.shape[:-1], 3, 2, 64).swapaxes(-3, -2).reshape(x.shape)
        return transformed(self.signs[what] * x, self.block)

    def expected(self, rotated: tuple[str, ...] = ("attn", "gate_up", "down")) -> np.ndarray:
        def turned(what: str, x: np.ndarray) -> np.ndarray:
            return self.turned(what, x) if what in rotated else x

        proj, gate_up, down = (dense(q).astype(np.float64) for q in self.tensors)
        hidden = self.hidden + turned("attn", self.attn.astype(np.float64)) @ proj.T
        gates = turned("gate_up", reference.rmsnorm(hidden, self.norm, EPS)) @ gate_up.T
        activated = reference.swiglu(gates[:, :INTER], gates[:, INTER:])
        return hidden + turned("down", activated) @ down.T


@pytest.mark.parametrize("n", [1, 2, 9, 65])
@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q8_0", "F16"])
def test_rotations_match_the_definition(graph, name, n):
    half = Rotated(graph, n, name)
    half.record().replay()
    assert relative_error(half.result(), half.expected()) <= 3e-6


@pytest.mark.parametrize("block", [16, 32, 128])
def test_rotations_have_blocks_of_any_size(graph, block):
    half = Rotated(graph, 3, block=block)
    half.record().replay()
    assert relative_error(half.result(), half.expected()) <= 3e-6


@pytest.mark.parametrize("what", ["attn", "gate_up", "down"])
def test_each_rotation_is_of_its_product_alone(graph, what):
    half = Rotated(graph, 2)
    others = {name: None for name in half.rotations if name != f"{what}_rotation"}
    half.record(**others).replay()
    assert relative_error(half.result(), half.expected((what,))) <= 3e-6


@pytest.mark.parametrize("n", [1, 9, 70])
def test_rotations_have_the_bits_of_their_ops_one_by_one(graph, n):
    half, other = Rotated(graph, n), Rotated(graph, n)
    half.record().replay()
    p, r, commands = other.places, other.rotations, graph.commands()
    turned = {k: graph.device.buffer(4 * n * k) for k in (ATTN, HIDDEN, INTER)}

    def rotate(x: Any, what: str, k: int, **options: Any) -> Any:
        rotation = r[f"{what}_rotation"]
        options |= {"block": rotation.block, "n_vectors": n, "n_groups": rotation.n_groups}
        options["head_size"] = rotation.head_size
        commands.hadamard(x, rotation.signs, turned[k], k, **options)
        return turned[k]

    x = rotate(p["attn"], "attn", ATTN)
    commands.gemv(p["attn_proj"], x, p["hidden"], residual=True, n_vectors=n)
    x = rotate(p["hidden"], "gate_up", HIDDEN, norm=p["norm"], eps=EPS)
    commands.gate_up_swiglu(p["gate_up"], x, p["activated"], n_vectors=n)
    x = rotate(p["activated"], "down", INTER)
    commands.gemv(p["down"], x, p["hidden"], residual=True, n_vectors=n)
    commands.replay()
    np.testing.assert_array_equal(half.result(), other.result())
    activated = [
        h.places["activated"].read(np.empty((n, INTER), np.float32)) for h in (half, other)
    ]
    np.testing.assert_array_equal(*activated)


@pytest.mark.parametrize("activations", ["int8", "half"])
def test_rotated_vectors_are_rounded_like_others(graph, activations):
    n = 64
    half = Rotated(graph, n)
    try:
        commands = graph.commands(activations=activations)
    except EncodingError:
        assert (graph.device.driver == "cpu") != (activations == "int8")
        return
    commands.feed_forward(**half.places, **half.rotations, n_vectors=n, eps=EPS)
    commands.replay()
    error = relative_error(half.result(), half.expected())
    assert 1e-6 < error <= 3e-2


def test_deterministic_rows_have_the_bits_that_they_have_alone(graph):
    n = 9
    half = Rotated(graph, n)
    commands = graph.commands(deterministic=True)
    commands.feed_forward(**half.places, **half.rotations, n_vectors=n, eps=EPS)
    commands.replay()
    for row, found in enumerate(half.result()):
        alone = Rotated(graph, n)
        commands = graph.commands(deterministic=True)
        p = alone.places
        moved = {
            "attn": (p["attn"], 4 * ATTN * row),
            "hidden": (p["hidden"], 4 * HIDDEN * row),
            "activated": (p["activated"], 4 * INTER * row),
        }
        commands.feed_forward(**{**p, **moved}, **alone.rotations, eps=EPS)
        commands.replay()
        np.testing.assert_array_equal(alone.result()[row], found)


def test_error_of_any_rotation_records_nothing(graph):
    half = Rotated(graph, 3)
    device, r = graph.device, half.rotations
    signs, down = r["gate_up_rotation"].signs, r["down_rotation"]
    short = device.buffer(4 * HIDDEN - 4)
    turned = "feed_forward: gate_up_rotation: "
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"attn_rotation": Rotation(signs, 64)},
            "feed_forward: attn_proj: signs too short: need 1536",
        ),
        (
            {"gate_up_rotation": Rotation(short, 64)},
            "feed_forward: gate_up: signs too short: need 1024",
        ),
        (
            {"down_rotation": Rotation((down.signs, 4), 64)},
            "feed_forward: down: signs too short: need 512",
        ),
        ({"down_rotation": Rotation((signs, 2), 64)}, "feed_forward: down: signs starts at byte 2"),
        (
            {"gate_up_rotation": Rotation(signs, 8)},
            f"{turned}block = 8 must be a power of two in 16",
        ),
        ({"gate_up_rotation": Rotation(signs, 48)}, f"{turned}block = 48 must be a power of two"),
        (
            {"gate_up_rotation": Rotation(signs, 512)},
            f"{turned}k = 256 must be a multiple of block = 512",
        ),
        (
            {"gate_up_rotation": Rotation(signs, 8192)},
            f"{turned}block = 8192 must be a power of two",
        ),
        ({"gate_up_rotation": Rotation(signs, 0)}, f"{turned}block = 0 must be a power of two"),
        (
            {"attn_rotation": Rotation(r["attn_rotation"].signs, 8)},
            "feed_forward: attn_rotation: block = 8 must",
        ),
        (
            {"down_rotation": Rotation(down.signs, 8)},
            "feed_forward: down_rotation: block = 8 must",
        ),
        ({"gate_up_rotation": Rotation(signs, -64)}, "block of gate_up_rotation = -64"),
        ({"gate_up_rotation": Rotation(signs, 1 << 32)}, "block of gate_up_rotation = 4294967296"),
        ({"gate_up_rotation": Rotation(signs, 64, 64, 0)}, f"{turned}n_groups = 0 must lie in 1"),
        (
            {"gate_up_rotation": Rotation(signs, 64, 64, 3)},
            f"{turned}k = 256 must be a multiple of n_groups = 3 times head_size = 64",
        ),
        (
            {"gate_up_rotation": Rotation(signs, 64, 0, 2)},
            f"{turned}k = 256 must be a multiple of n_groups = 2 times head_size = 0",
        ),
        (
            {"gate_up_rotation": Rotation(half.places["activated"], 64)},
            "feed_forward: gate_up: signs and output overlap",
        ),
    ]
    commands = graph.commands()
    for changes, message in wrong:
        with pytest.raises(EncodingError, match=f"^{message}"):
            commands.feed_forward(**{**half.places, **r, "n_vectors": 3, "eps": EPS, **changes})
        assert len(commands) == 0
    for value in (signs, 64, (signs, 64)):
        with pytest.raises(TypeError, match="down_rotation must be a Rotation"):
            commands.feed_forward(**half.places, n_vectors=3, down_rotation=value)
    with pytest.raises(TypeError):
        commands.feed_forward(**half.places, down_rotation=Rotation(None, 64))  # type: ignore[arg-type]
    other = Rotated(MetalGraph(device.driver), 3)
    with pytest.raises(EncodingError, match="another device"):
        half.record(down_rotation=other.rotations["down_rotation"])
    down.signs.close()
    with pytest.raises(EncodingError, match="closed"):
        half.record()
    assert len(commands) == 0
    np.testing.assert_array_equal(half.result(), half.hidden)
