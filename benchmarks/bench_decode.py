"""Tokens of whole models: decode, prompt, and each kind of op of the decode step by itself.

The demo model always runs; ``--synthetic`` adds random ones of Bonsai-1.7B's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure import Meter

from oxibonsai import metal
from oxibonsai.metal import Commands
from oxibonsai.model import Model

PROMPT = 64
MAX_SEQ = 256


@pytest.fixture(scope="session")
def model(model_path: Path, device: metal.Device) -> Iterator[Model]:
    with Model.load(model_path, device) as model:
        yield model


def kv_bytes(model: Model, position: int) -> int:
    """Return the bytes of K and V in half precision that attention reads at `position`."""
    c = model.config
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * 2 * (position + 1)


def test_decode_token(model: Model, meter: Meter) -> None:
    """One token at position 64, logits and the next token included."""
    with model.session(MAX_SEQ) as session:
        session.forward([i % 512 for i in range(PROMPT)], logits=None)
        meter(
            lambda: session.forward([7], logits=None),
            nbytes=model.weights.nbytes + kv_bytes(model, PROMPT),
            before=lambda: session.rewind(PROMPT),
        )
        meter.per_second("tokens", 1)
        assert session.position == PROMPT + 1


def test_prompt(model: Model, meter: Meter) -> None:
    """A prompt of 64 tokens from an empty session on, with the logits of its last token."""
    ids = [i % 512 for i in range(PROMPT)]
    with model.session(MAX_SEQ) as session:
        meter(
            lambda: session.forward(ids, logits="last"),
            before=lambda: session.rewind(0),
            warmup=1,
        )
        meter.per_second("tokens", PROMPT)
        assert session.position == PROMPT


class StepOps:
    """Records one kind of op of the decode step for all layers, at position 64."""

    def __init__(self, model: Model) -> None:
        c = model.config
        device = model.device
        self.model = model
        self.shape: dict[str, Any] = {
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "max_seq": MAX_SEQ,
            "kv_dtype": "f16",
        }
        cache = c.n_layers * c.n_kv_heads * MAX_SEQ * c.head_dim * 2
        storage = device.working_storage
        self.k_cache = device.buffer(cache, storage=storage)
        self.v_cache = device.buffer(cache, storage=storage)
        self.rope = device.upload(np.ones((MAX_SEQ, c.head_dim), np.float32), storage=storage)
        self.state = device.buffer(16, storage=storage)
        self.tokens = device.buffer(4 * (MAX_SEQ + 1), storage=storage)
        widest = max(c.hidden_size, c.qkv_size, c.intermediate_size, c.vocab_size)
        self.x = device.upload(np.ones(widest, np.float32), storage=storage)
        self.y = device.buffer(4 * widest, storage=storage)

    def rewind(self) -> None:
        self.state.write(np.array([PROMPT], np.uint32))

    def record(self, op: str) -> tuple[Commands, int]:
        """Return the commands and the bytes they read of weights and cache."""
        w, c = self.model.weights, self.model.config
        cmd = self.model.graph.commands()
        if op == "head":
            cmd.gemv(w.head, self.x, self.y)
            return cmd, w.head.nbytes
        if op == "embed and argmax":
            cmd.embed(w.embedding, self.tokens, self.state, self.y)
            cmd.advance(self.x, self.tokens, self.state, c.vocab_size, MAX_SEQ + 1)
            return cmd, 4 * c.vocab_size
        nbytes = 0
        for i in range(c.n_layers):
            nbytes += getattr(self, op)(cmd, w.layers[i], i)
        return cmd, nbytes

    def qkv(self, cmd: Commands, layer: Any, i: int) -> int:
        layer.qkv.record(cmd, self.x, self.y)
        return sum(handle.nbytes for handle in layer.qkv.handles)

    def attn_output(self, cmd: Commands, layer: Any, i: int) -> int:
        return self._multiply(cmd, layer.attn_output)

    def down(self, cmd: Commands, layer: Any, i: int) -> int:
        return self._multiply(cmd, layer.down)

    def _multiply(self, cmd: Commands, weight: Any) -> int:
        cmd.gemv(weight, self.x, self.y)
        return int(weight.nbytes)

    def gate_up(self, cmd: Commands, layer: Any, i: int) -> int:
        cmd.gate_up_swiglu(layer.gate_up, self.x, self.y)
        return int(layer.gate_up.nbytes)

    def norms(self, cmd: Commands, layer: Any, i: int) -> int:
        for weight in (layer.attn_norm, layer.ffn_norm):
            cmd.rmsnorm(self.x, weight, self.y, self.model.config.hidden_size)
        return 0

    def rope_and_store(self, cmd: Commands, layer: Any, i: int) -> int:
        cmd.qk_norm_rope(
            self.y, layer.q_norm, layer.k_norm, self.rope, self.state, layer=i, **self.shape
        )
        cmd.kv_store(self.y, self.k_cache, self.v_cache, self.state, layer=i, **self.shape)
        return 0

    def attention(self, cmd: Commands, layer: Any, i: int) -> int:
        cmd.attention(self.x, self.k_cache, self.v_cache, self.state, self.y, layer=i, **self.shape)
        return kv_bytes(self.model, PROMPT) // self.model.config.n_layers

    def qkv_attention(self, cmd: Commands, layer: Any, i: int) -> int:
        cmd.qkv_attention(
            self.x,
            layer.q_norm,
            layer.k_norm,
            self.rope,
            self.k_cache,
            self.v_cache,
            self.state,
            self.y,
            layer=i,
            **self.shape,
        )
        return kv_bytes(self.model, PROMPT) // self.model.config.n_layers


OPS = (
    "qkv",
    "rope_and_store",
    "attention",
    "qkv_attention",
    "attn_output",
    "gate_up",
    "down",
    "norms",
    "head",
    "embed and argmax",
)


@pytest.fixture(scope="session")
def step_ops(model: Model) -> StepOps:
    return StepOps(model)


@pytest.mark.parametrize("op", OPS)
def test_part_of_decode_step(step_ops: StepOps, meter: Meter, op: str) -> None:
    """All ops of one kind in a step, of every layer: their times add up to about a token's."""
    commands, nbytes = step_ops.record(op)
    meter(commands.replay, nbytes=nbytes, before=step_ops.rewind)
    meter.add(dispatches=len(commands))
    commands.close()
