"""Generation with and without drafts, on text that repeats and on text that does not.

The models are random; the text of one runs in cycles, in the time of any other of its shape. Four
layers of Bonsai-1.7B's shape always run; ``--synthetic`` adds all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import probes
import pytest
from measure import Meter

from oxibonsai import metal
from oxibonsai.model import Model, Session
from oxibonsai.model.generation.speculation import Speculation

CYCLE, PROMPT, TOKENS, DRAFT = 24, 64, 192, 8
SETTINGS = {"greedy": 0.0, "sampled": 0.7}
SHAPES = {"4-layers": ("--layers", "4", "--vocab", "4096"), "1.7b": ()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--synthetic")
        metafunc.parametrize("shape", [*SHAPES][: 2 if whole else 1], scope="module")


@pytest.fixture(scope="module", params=[CYCLE, 0], ids=["repeats", "does-not"])
def model(
    shape: str,
    request: pytest.FixtureRequest,
    device: metal.Device,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Model]:
    path: Path = tmp_path_factory.mktemp("models") / f"{shape}.gguf"
    probes.make_synthetic_model(path, "Q1_0", *SHAPES[shape], "--cycle", str(request.param))
    with Model.load(path, device) as model:
        yield model
    path.unlink()


class Counted:
    """Counts the verifying steps of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = self.rows = self.confirmed = 0
        ran = Speculation.ran

        def counted(own: Speculation, n_rows: int, n_tokens: int, seconds: float) -> None:
            self.steps += 1
            self.rows += n_rows
            self.confirmed += n_tokens - 1
            ran(own, n_rows, n_tokens, seconds)

        monkeypatch.setattr(Speculation, "ran", counted)


def generated(session: Session, temperature: float, draft_tokens: int) -> tuple[list[int], float]:
    """Return the tokens after the prompt, and their seconds."""
    session.rewind(PROMPT)
    start = time.perf_counter()
    found = list(
        session.generate(
            TOKENS, temperature=temperature, seed=1, ignore_eos=True, draft_tokens=draft_tokens
        )
    )
    return found, time.perf_counter() - start


@pytest.mark.parametrize("name", SETTINGS)
def test_drafts(model: Model, meter: Meter, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Tokens behind a prompt of cycles; plain generation takes turns with it outside the time."""
    counted = Counted(monkeypatch)
    plain: list[float] = []
    texts: list[list[int]] = []
    with model.session(PROMPT + TOKENS) as session:
        session.forward([i % CYCLE for i in range(PROMPT)], logits=None)

        def run() -> None:
            texts.append(generated(session, SETTINGS[name], DRAFT)[0])

        def before() -> None:
            text, seconds = generated(session, SETTINGS[name], 0)
            texts.append(text)
            plain.append(seconds)

        meter(run, before=before, warmup=2)
    assert all(text == texts[0] for text in texts)
    assert len(texts[0]) == TOKENS
    ratio = statistics.median(plain[2:]) / meter.median
    meter.per_second("tokens", TOKENS)
    meter.add(
        plain_tokens_per_s=TOKENS / statistics.median(plain[2:]),
        ratio=ratio,
        confirmed_per_run=counted.confirmed / len(plain),
        verifying_steps_per_run=counted.steps / len(plain),
        rows_per_step=counted.rows / counted.steps if counted.steps else 0.0,
    )
    meter.more += f", {ratio:.2f} of plain, {counted.confirmed / len(plain):.0f} from drafts"
