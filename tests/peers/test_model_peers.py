"""The same text as llama.cpp from the same file."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from model_files import PROMPTS, Q1_MODEL
from peers import import_peer
from places import TOOLS

from oxibonsai import gguf
from oxibonsai.model import Model


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


@pytest.mark.device("cpu")
def test_the_tool_that_compares_texts_finds_no_difference_but_near_ties(device_name, capsys):
    import_peer("llama_cpp")
    compare = runpy.run_path(str(TOOLS / "compare_llama_cpp.py"))["main"]
    with pytest.raises(SystemExit) as ended:
        compare(["--device", device_name, "--prompts", "2", "--tokens", "8"])
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    assert "### alice-q1_0.gguf" in out
    assert out.count("| 8 | the end | 8 of 8 | 0.000 |") == 4  # two prompts, two models


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


@pytest.mark.large
@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"factor": 2.0},
        {"type": "none", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "attn_factor": 1.25},
        {"type": "linear", "factor": 2.0, "attn_factor": 1.25},
    ],
    ids=str,
)
def test_llama_cpp_scales_rope_alike(device, tmp_path, model, scaling):
    llama_cpp = import_peer("llama_cpp")
    path = tmp_path / "scaled.gguf"
    with gguf.open(Q1_MODEL) as file:
        pairs: dict[str, Any] = {key: file.metadata.typed(key) for key in file.metadata}
        pairs |= {f"qwen3.rope.scaling.{key}": value for key, value in scaling.items()}
        tensors = [
            (name, (file.tensor_data(name), t.shape, t.format)) for name, t in file.tensors.items()
        ]
        gguf.write(path, pairs, tensors)
    ids = model.tokenizer.encode(" ".join(PROMPTS) * 3)[:120]
    theirs = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=2, n_gpu_layers=0, logits_all=True, verbose=False
    )
    theirs.eval(ids)
    expected = np.array(theirs.scores[: len(ids)], np.float64)
    theirs.close()
    with Model.load(path, device) as scaled, scaled.session() as session:
        found = session.forward(ids)
    with model.session() as session:
        plain = session.forward(ids)
    assert found is not None
    assert plain is not None
    assert relative_error(found, expected) < 0.03
    # A wrong scaling would show.
    if scaling.get("type") != "none":
        assert relative_error(plain, expected) > 0.06
