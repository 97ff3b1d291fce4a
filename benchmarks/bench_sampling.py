"""The choice of the next token from 151,936 logits, by what people set, for one text and for 8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from measure import Meter

from oxibonsai import metal
from oxibonsai.model.generation.settings import SamplingSettings

VOCAB, POSITION, MAX_TOKENS = 151_936, 256, 512
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, penalty": {"temperature": 0.0, "repetition_penalty": 1.1},
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 0.7, "top_k": 40},
    "top-p": {"temperature": 0.7, "top_p": 0.95},
    "all": {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    },
}


@pytest.mark.parametrize("n_rows", [1, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_choice(graph: metal.MetalGraph, meter: Meter, name: str, n_rows: int) -> None:
    """One draw for each row, the text's last 256 tokens in the penalty's window."""
    device, storage = graph.device, graph.device.working_storage
    rng = np.random.default_rng(n_rows)
    packed = SamplingSettings(**SETTINGS[name], seed=1).packed()
    states = np.zeros((n_rows, 4), np.uint32)
    states[:, 0] = POSITION
    states[:, 1] = np.arange(n_rows) * MAX_TOKENS
    made = [
        device.upload(data, storage=storage)
        for data in (
            3 * rng.standard_normal((n_rows, VOCAB), np.float32),
            np.frombuffer(n_rows * packed.tobytes(), np.uint8),
            states,
            rng.integers(0, VOCAB, n_rows * MAX_TOKENS, np.uint32),
            np.zeros((n_rows, 4), np.uint32),
        )
    ]
    logits, settings, state, tokens, choices = made
    with graph.commands() as commands:
        commands.sample(
            logits,
            settings,
            state,
            tokens,
            choices,
            VOCAB,
            n_rows * MAX_TOKENS,
            n_vectors=n_rows,
            batch=True,
        )
        meter(
            commands.replay,
            nbytes=4 * n_rows * VOCAB,
            before=lambda: state.write(states),
        )
        meter.per_second("choices", n_rows)
    found = choices.read(np.empty((n_rows, 4), np.uint32))
    assert (found[:, 0] < VOCAB).all()
    assert (found[:, 1] == POSITION + 1).all()
    for buffer in made:
        buffer.close()
