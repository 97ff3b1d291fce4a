"""Steps of many sequences: one token of each, from the embedding to the choice.

The demo model always runs; ``--synthetic`` adds random ones of Bonsai-1.7B's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from measure import Meter

from oxibonsai import metal
from oxibonsai.model import Model
from oxibonsai.model.generation.settings import SamplingSettings
from oxibonsai.model.runtime.batch import BatchRunner, BatchSettings

POSITION, MAX_SEQ, PAGES = 64, 128, 2
SETTINGS = {
    "greedy": SamplingSettings(temperature=0.0),
    "sampled": SamplingSettings(
        temperature=0.7, top_k=40, top_p=0.95, min_p=0.05, repetition_penalty=1.1, seed=1
    ),
}


@pytest.fixture(scope="session")
def model(model_path: Path, device: metal.Device) -> Iterator[Model]:
    with Model.load(model_path, device) as model:
        yield model


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("name", SETTINGS)
def test_step_of_sequences(model: Model, meter: Meter, name: str, n: int) -> None:
    """The token at position 64 of each of n sequences, in pages of float16."""
    c = model.config
    runner = BatchRunner(model, n, MAX_SEQ, PAGES * n, "f16", 64, deterministic=False)
    try:
        settings = BatchSettings(SETTINGS[name].packed())
        runner.write_tables([(s, range(PAGES * s, PAGES * (s + 1))) for s in range(n)])
        runner.write_settings(None, [(s, settings, False) for s in range(n)])
        for s in range(n):
            runner.write_text(s, [(i + s) % 512 for i in range(POSITION + 1)])
        step = runner.step(None, [POSITION] * n)
        chosen: list[int] = []

        def run() -> None:
            runner.submit(step, [POSITION + 1] * n)
            chosen[:] = runner.finish().tokens

        cache = 2 * c.n_layers * c.n_kv_heads * c.head_dim * 2 * (POSITION + 1)
        meter(
            run,
            nbytes=model.weights.nbytes + n * cache,
            before=lambda: runner.write_states(None, [(s, POSITION) for s in range(n)]),
        )
        meter.per_second("tokens", n)
        meter.add(sequences=n)
        assert len(chosen) == n
        assert all(0 <= token < c.vocab_size for token in chosen)
    finally:
        runner.close()
