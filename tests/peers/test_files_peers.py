"""What llama.cpp's own tools write runs here, and what runs here loads there."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from ggml_blocks import values
from model_files import PROMPTS, Q1_MODEL
from peers import import_peer
from tiny_models import Tiny, byte_vocabulary, random_tensors, write

from oxibonsai import gguf, quant
from oxibonsai.formats import CONVERTED
from oxibonsai.gguf import ValueType
from oxibonsai.model import Model

pytestmark = pytest.mark.large

# llama_ftype and ggml_type of llama.h and ggml.h.
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
}
TYPES = {"Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "TQ1_0": 34}


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model in float32."""
    path = tmp_path_factory.mktemp("float32") / "alice-f32.gguf"
    with gguf.open(Q1_MODEL) as file:
        pairs = {key: file.metadata.typed(key) for key in file.metadata}
        tensors = {}
        for name, t in file.tensors.items():
            data = file.tensor_data(name)
            if t.format == "F32":
                tensors[name] = data.view("<f4")
            else:
                tensors[name] = quant.dequantize(quant.QTensor(data, t.shape, "Q1_0"))
        gguf.write(path, pairs, tensors.items())
    return path


def quantize(path: Path, to: Path, file_type: int, **types: int) -> Path:
    llama_cpp = import_peer("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 2, file_type, True
    for name, number in types.items():
        setattr(params, name, number)
    status = llama_cpp.llama_model_quantize(
        str(path).encode(), str(to).encode(), ctypes.byref(params)
    )
    assert status == 0
    return to


def logits_there(path: Path, ids: list[int]) -> np.ndarray:
    llama_cpp = import_peer("llama_cpp")
    theirs = llama_cpp.Llama(
        str(path), n_ctx=256, n_threads=2, n_gpu_layers=0, logits_all=True, verbose=False
    )
    try:
        theirs.eval(ids)
        return np.array(theirs.scores[: len(ids)], np.float64)
    finally:
        theirs.close()


def logits_here(path: Path, device: Any, ids: list[int]) -> np.ndarray:
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        found = session.forward(ids)
        assert found is not None
        return found.astype(np.float64)


def as_floats(path: Path, to: Path) -> Path:
    """Write a file again with what the package gguf decodes."""
    with gguf.open(path) as file:
        pairs = {key: file.metadata.typed(key) for key in file.metadata}
        tensors: dict[str, Any] = {}
        for name, t in file.tensors.items():
            data = file.tensor_data(name)
            if t.type_name in CONVERTED:
                rows = data.reshape(t.shape[0], -1)
                tensors[name] = values(rows, t.type_name)
            else:
                tensors[name] = (data, t.shape, t.format)
        gguf.write(to, pairs, tensors.items())
    return to


def ids_of(path: Path) -> list[int]:
    with Model.load(path, "cpu") as model:
        return model.tokenizer.encode(" ".join(PROMPTS))


@pytest.mark.parametrize("name", FILE_TYPES)
def test_what_llama_quantize_writes_runs_as_it_decodes(device, floats, tmp_path, name):
    path = quantize(floats, tmp_path / "m.gguf", FILE_TYPES[name])
    ids = ids_of(path)
    ours = logits_here(path, device, ids)
    plain = logits_here(as_floats(path, tmp_path / "plain.gguf"), device, ids)
    assert relative_error(ours, plain) <= 1e-5
    # llama.cpp rounds activations to 8 bits.
    assert relative_error(logits_there(path, ids), ours) < 0.05


@pytest.mark.parametrize("name", TYPES)
def test_1_bit_files_with_another_embedding_run(device, floats, tmp_path, name):
    types = {"token_embedding_type": TYPES[name], "output_tensor_type": TYPES[name]}
    path = quantize(floats, tmp_path / "m.gguf", FILE_TYPES["TQ2_0"], **types)
    with gguf.open(path) as file:
        assert file.tensors["token_embd.weight"].type_name == name
    ids = ids_of(path)
    ours = logits_here(path, device, ids)
    plain = logits_here(as_floats(path, tmp_path / "plain.gguf"), device, ids)
    assert relative_error(ours, plain) <= 1e-5
    assert relative_error(logits_there(path, ids), ours) < 0.05


TINY = Tiny(hidden=256, inter=512, vocab=257)
IDS = np.random.default_rng(3).integers(0, 256, 19).tolist()


def compare(path: Path, device: Any) -> None:
    ours, theirs = logits_here(path, device, IDS), logits_there(path, IDS)
    assert relative_error(theirs, ours) < 2e-3  # its K/V cache and F32 products are halves


def write_tiny(path: Path, tensors: dict[str, Any], **metadata: Any) -> Path:
    pairs = {f"qwen3.{key}": value for key, value in metadata.items()}
    return write(path, TINY, tensors, {**byte_vocabulary(), **pairs})


@pytest.mark.parametrize("name", CONVERTED)
def test_every_type_means_the_same_there(device, tmp_path, name):
    parts = ("token_embd", "attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = random_tensors(TINY, "F32", formats=dict.fromkeys(parts, name))
    path = write_tiny(tmp_path / "m.gguf", tensors)
    # Activations are rounded to 8 bits there.
    assert relative_error(logits_there(path, IDS), logits_here(path, device, IDS)) < 0.05


def test_factors_mean_the_same_there(device, tmp_path):
    tensors = random_tensors(TINY, "F32")
    for i, part in enumerate(("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")):
        tensors[f"blk.1.{part}.scale"] = np.array([0.5 + 0.2 * i], np.float32)
    compare(write_tiny(tmp_path / "m.gguf", tensors), device)


def test_arrays_and_dimensions_of_1_mean_the_same_there(device, tmp_path):
    tensors = random_tensors(TINY, "F32")
    norm = tensors["output_norm.weight"]
    tensors["output_norm.weight"] = norm.reshape(1, -1)
    arrays = {
        "attention.head_count": ValueType.U32([4, 4]),
        "attention.head_count_kv": ValueType.U32([2, 2]),
        "feed_forward_length": ValueType.U32([512, 512]),
    }
    compare(write_tiny(tmp_path / "m.gguf", tensors, **arrays), device)


@pytest.mark.parametrize(("gate", "up"), [("F32", "Q8_0"), ("Q4_0", "F16")])
def test_mixed_formats_mean_the_same_there(device, tmp_path, gate, up):
    tensors = random_tensors(TINY, "F32", formats={"ffn_gate": gate, "ffn_up": up})
    path = write_tiny(tmp_path / "m.gguf", tensors)
    assert relative_error(logits_there(path, IDS), logits_here(path, device, IDS)) < 0.02


@pytest.mark.parametrize("length", [62, 63])
def test_the_longest_name_that_is_written_is_read_there(tmp_path, length):
    # As a tensor too many: it gets past the names, and is counted then.
    tensors = random_tensors(TINY, "F32") | {"x" * length: np.ones(3, np.float32)}
    path = write_tiny(tmp_path / "m.gguf", tensors)
    llama_cpp = import_peer("llama_cpp")
    assert len(llama_cpp.Llama(str(path), vocab_only=True, verbose=False).tokenize(b"ab")) == 2
