"""The same text as llama.cpp from the same file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from model_files import PROMPTS, Q1_MODEL
from peers import import_peer

from oxibonsai.model import Model

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    llama_cpp = import_peer("llama_cpp")
    model = llama_cpp.Llama(
        str(Q1_MODEL), n_ctx=256, n_threads=2, n_gpu_layers=0, logits_all=True, verbose=False
    )
    yield model
    model.close()


@pytest.fixture
def model(device) -> Iterator[Model]:
    with Model.load(Q1_MODEL, device) as model:
        yield model


@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_cpp_gives_the_same_tokens(peer, model, prompt):
    special = {"add_bos": False, "special": False}
    assert peer.tokenize(prompt.encode(), **special) == model.tokenizer.encode(prompt)


@pytest.mark.large
@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_cpp_gives_the_same_greedy_text(peer, model, prompt):
    ids = model.tokenizer.encode(prompt)
    with model.session() as session:
        session.forward(ids, logits=None)
        ours = list(session.generate(32))
    peer.reset()
    theirs = []
    for token in peer.generate(ids, temp=0.0, repeat_penalty=1.0):
        theirs.append(int(token))
        if len(theirs) == 32:
            break
    assert ours == theirs
    # Tokens that end the text give nothing there either.
    assert model.tokenizer.decode(ours).encode() == peer.detokenize(theirs, prev_tokens=ids)


@pytest.mark.large
@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_cpp_gives_logits_as_near_as_its_activations_allow(peer, model, prompt):
    ids = model.tokenizer.encode(prompt)
    peer.reset()
    peer.eval(ids)
    theirs = np.array(peer.scores[: len(ids)])
    with model.session(kv_dtype="f32") as session:
        ours = session.forward(ids)
    assert ours is not None
    # It rounds activations to 8-bit integers, which comes to 1.3e-2 here.
    assert relative_error(theirs, ours.astype(np.float64)) < 0.03
