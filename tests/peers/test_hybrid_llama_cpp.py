"""llama.cpp on float32 exports of hybrids, and this package on their blocks.

llama.cpp rounds activations to 8-bit integers where weights are blocks, but computes in float32
with weights in float32, which hold the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qwen3_texts
from cases import relative_error
from llama_runs import llama_logits
from model_files import Q1_MODEL
from numpy.typing import NDArray
from peers import import_peer
from qwen35_transformers import logits_there
from tiny_hybrids import Hybrid, random_tensors, write
from tiny_models import Tensors, weights64

from oxibonsai import gguf
from oxibonsai.model import Model
from oxibonsai.model.tokenizer import Tokenizer

F64 = NDArray[np.float64]
VOCAB = 4096
SHAPE = Hybrid(
    n_layers=8,
    interval=4,
    hidden=256,
    inter=512,
    n_heads=6,
    key_heads=2,
    value_heads=6,
    key_dim=128,
    value_dim=128,
    vocab=VOCAB,
    rope_theta=1e7,
)
MODELS: dict[str, tuple[str, bool]] = {
    "Q2_0, untied": ("Q2_0", False),
    "Q1_0, tied": ("Q1_0", True),
    "PTQ1_0, untied": ("PTQ1_0", False),
}
N_TEXTS, N_TOKENS = 20, 120
NEAR_TIE = 1e-3
"""Of the spread of the logits: where the best two are nearer, either may come first."""


def texts() -> list[str]:
    """Return texts of all kinds, of some tens of characters each."""
    kinds = list(qwen3_texts.COUNTS)
    found = []
    for i in range(N_TEXTS):
        of_kind = qwen3_texts.texts(kinds[i % len(kinds)])
        found.append(" ".join(of_kind[i::7])[:90])
    assert len(set(found)) == N_TEXTS
    return found


class Files:
    """A model in blocks and in float32, with the tokens of the demo model."""

    def __init__(self, folder: Path, format_name: str, tied: bool) -> None:
        with gguf.open(Q1_MODEL) as file:
            keys = [key for key in file.metadata if key.startswith("tokenizer.ggml.")]
            vocabulary = {key: file.metadata.typed(key) for key in keys}
        vocabulary["tokenizer.ggml.pre"] = "qwen35"
        self.tensors: Tensors = random_tensors(SHAPE, format_name, tied=tied, seed=3)
        floats = {name: w.astype(np.float32) for name, w in weights64(self.tensors).items()}
        # Which llama.cpp asks for; of a text all axes have the same positions.
        vocabulary["qwen35.rope.dimension_sections"] = [4, 2, 2, 0]
        self.blocks = write(folder / "blocks.gguf", SHAPE, self.tensors, vocabulary)
        self.floats = write(folder / "floats.gguf", SHAPE, floats, vocabulary)


@pytest.fixture(scope="module", params=MODELS)
def hybrid(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    torch = import_peer("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Files(tmp_path_factory.mktemp("hybrid"), *MODELS[request.param])
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def there(hybrid: Files) -> list[tuple[list[int], F64, F64]]:
    """The ids of each text, llama.cpp's logits and those of float64."""
    found = []
    for text in texts():
        with gguf.open(hybrid.floats) as file:
            ids = Tokenizer.from_gguf(file).encode(text)[:N_TOKENS]
        logits = llama_logits(hybrid.floats, ids)
        found.append((ids, logits, logits_there(SHAPE, hybrid.tensors, ids)))
    return found


def test_the_best_token_of_20_texts_is_llama_cpps(
    device: Any, hybrid: Files, there: list[tuple[list[int], F64, F64]]
) -> None:
    n_clear = n_near = 0
    with Model.load(hybrid.blocks, device) as model:
        for ids, theirs, exact in there:
            with model.session(kv_dtype="f32") as session:
                found = session.forward(ids)
            assert found is not None
            ours = found.astype(np.float64)
            assert relative_error(theirs, exact) < 1e-5
            assert relative_error(ours, exact) < 1e-5
            best = np.sort(exact, axis=1)
            clear = best[:, -1] - best[:, -2] > NEAR_TIE * exact.std(axis=1)
            assert (ours.argmax(1) == theirs.argmax(1))[clear].all()
            n_clear += int(clear.sum())
            n_near += int((~clear).sum())
    assert n_clear > 500
    assert n_near < n_clear / 20
