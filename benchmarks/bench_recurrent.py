"""The recurrent layers of Bonsai-27B's shape, from memory: the delta rule, the convolution before
it, the gate behind it, and rotations of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from measure import Meter

from oxibonsai import metal

LAYERS, N_KEY_HEADS, N_VALUE_HEADS, HEAD_DIM, WIDTH = 48, 16, 48, 128, 4
CHANNELS = (2 * N_KEY_HEADS + N_VALUE_HEADS) * HEAD_DIM
VALUES = N_VALUE_HEADS * HEAD_DIM
STATE, CONV_STATE = VALUES * HEAD_DIM, (WIDTH - 1) * CHANNELS
OPS = ("delta", "conv", "gate")
TOKENS = [1, 512]


class Layers:
    """Operands that every layer has, and the states of those that are run in turn."""

    def __init__(self, device: metal.Device, n_layers: int, n_tokens: int) -> None:
        rng = np.random.default_rng(n_tokens)
        self.buffers: list[metal.Buffer] = []
        self.n_tokens = n_tokens
        self.slot_size = n_layers * (STATE + CONV_STATE)

        def filled(*shape: int) -> metal.Buffer:
            data = rng.standard_normal(shape, np.float32)
            self.buffers.append(device.upload(data, storage=device.working_storage))
            return self.buffers[-1]

        self.recurrent = filled(self.slot_size)
        self.qkv, self.convolved = filled(n_tokens, CHANNELS), filled(n_tokens, CHANNELS)
        self.alpha_beta = filled(n_tokens, 2, N_VALUE_HEADS)
        self.y, self.z = filled(n_tokens, VALUES), filled(n_tokens, VALUES)
        self.weight, self.norm = filled(CHANNELS, WIDTH), filled(HEAD_DIM)
        self.decay = device.upload(-np.ones(N_VALUE_HEADS, np.float32))
        self.state = device.upload(np.array([1, 0, 0, 0], np.uint32))
        self.buffers += [self.decay, self.state]

    def place(self, layer: int, offset: int) -> dict[str, Any]:
        at = layer * (STATE + CONV_STATE) + offset
        return {"slot_size": self.slot_size, "offset": at, "n_tokens": self.n_tokens}

    def delta(self, commands: metal.Commands, layer: int) -> None:
        commands.delta(
            self.qkv, self.alpha_beta, self.decay, self.decay, self.state, self.recurrent, self.y,
            n_key_heads=N_KEY_HEADS, n_value_heads=N_VALUE_HEADS, key_dim=HEAD_DIM,
            value_dim=HEAD_DIM, **self.place(layer, CONV_STATE),
        )  # fmt: skip

    def conv(self, commands: metal.Commands, layer: int) -> None:
        commands.conv(
            self.qkv, self.weight, self.state, self.recurrent, self.convolved,
            n_channels=CHANNELS, width=WIDTH, **self.place(layer, 0),
        )  # fmt: skip

    def gate(self, commands: metal.Commands, layer: int) -> None:
        commands.gate(
            self.y, self.z, self.y, n_heads=N_VALUE_HEADS, head_dim=HEAD_DIM, norm=self.norm,
            activation="silu", n_vectors=self.n_tokens,
        )  # fmt: skip


NBYTES = {
    "delta": lambda t: 4 * (2 * STATE + t * (CHANNELS + VALUES)),
    "conv": lambda t: 4 * (2 * CONV_STATE + 2 * t * CHANNELS),
    "gate": lambda t: 4 * 3 * t * VALUES,
}  # read and written by a layer


@pytest.mark.parametrize("n_tokens", TOKENS)
@pytest.mark.parametrize("op", OPS)
def test_recurrent(graph: metal.MetalGraph, meter: Meter, op: str, n_tokens: int) -> None:
    n_layers = LAYERS if n_tokens == 1 else 2
    layers = Layers(graph.device, n_layers, n_tokens)
    record: Callable[[metal.Commands, int], None] = getattr(layers, op)
    with graph.commands() as commands:
        for layer in range(n_layers):
            record(commands, layer)
        meter(commands.replay, nbytes=n_layers * NBYTES[op](n_tokens))
    meter.add(op=op, n_tokens=n_tokens, layers=n_layers)
    for buffer in layers.buffers:
        buffer.close()


@pytest.mark.parametrize("n_vectors", TOKENS)
@pytest.mark.parametrize("k", [5120, 6144, 17408])
@pytest.mark.parametrize("normed", [False, True], ids=["alone", "norm"])
def test_hadamard(
    graph: metal.MetalGraph, meter: Meter, normed: bool, k: int, n_vectors: int
) -> None:
    device = graph.device
    rng = np.random.default_rng(k)
    x = device.upload(rng.standard_normal((n_vectors, k), np.float32))
    y = device.buffer(4 * n_vectors * k)
    signs, norm = (
        device.upload(rng.choice(np.array([-1, 1], np.float32), k)),
        device.upload(np.ones(k, "f4")),
    )
    repeats = 16 if n_vectors == 1 else 1
    with graph.commands() as commands:
        for _ in range(repeats):
            commands.hadamard(
                x, signs, y, k, block=1024, n_vectors=n_vectors, norm=norm if normed else None
            )
        meter(commands.replay, nbytes=repeats * 8 * n_vectors * k)
    meter.add(k=k, n_vectors=n_vectors, normed=normed, repeats=repeats)
    for buffer in (x, y, signs, norm):
        buffer.close()
