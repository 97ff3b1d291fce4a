"""The registry of architectures, and one added from here: Python alone, equal to float64."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import toy_architecture
from cases import relative_error
from numpy.typing import NDArray
from rotated_models import Folding
from tiny_models import Tiny, random_tensors, weights64, write
from toy_architecture import Toy

from oxibonsai import gguf
from oxibonsai.gguf import GGUFError
from oxibonsai.model import Model
from oxibonsai.model.architectures import ARCHITECTURES, Registry
from oxibonsai.model.architectures.qwen3 import Qwen3
from oxibonsai.model.config import MetadataReader, ModelConfig

TINY = Tiny(n_layers=2, hidden=128, inter=256, n_heads=4, n_kv_heads=2, head_dim=64)
IDS = np.random.default_rng(7).integers(0, TINY.vocab, 23).tolist()


@pytest.fixture
def toy() -> Iterator[None]:
    ARCHITECTURES.register(Toy())
    yield
    ARCHITECTURES.unregister("toy")


def toy_tensors(format_name: str) -> dict[str, Any]:
    tensors = {
        name: t
        for name, t in random_tensors(TINY, format_name).items()
        if "_norm.w" not in name
        or name.endswith((".attn_norm.weight", "ffn_norm.weight", "output_norm.weight"))
    }
    rng = np.random.default_rng(1)
    for i in range(TINY.n_layers):
        for part, heads in (("q", TINY.n_heads), ("k", TINY.n_kv_heads), ("v", TINY.n_kv_heads)):
            bias = rng.standard_normal(heads * TINY.head_dim).astype(np.float32)
            tensors[f"blk.{i}.attn_{part}.bias"] = bias
    return tensors


def write_toy(path: Path, tensors: dict[str, Any]) -> Path:
    theirs = {k: None for k in TINY.metadata if k.startswith("qwen3.")}
    ours = {k.replace("qwen3.", "toy."): v for k, v in TINY.metadata.items()}
    return write(path, TINY, tensors, {**theirs, **ours, "general.architecture": "toy"})


def toy_logits(tensors: dict[str, Any], ids: list[int]) -> NDArray[np.float64]:
    """Return the float64 logits [t, vocab] of the toy, from its definition."""
    weights = weights64(tensors)
    eps, t, dim = float(np.float32(TINY.eps)), len(ids), TINY.head_dim
    x = weights["token_embd.weight"][ids]
    for i in range(TINY.n_layers):
        w = {
            name.removeprefix(f"blk.{i}."): a
            for name, a in weights.items()
            if name.startswith(f"blk.{i}.")
        }
        h = reference.rmsnorm(x, w["attn_norm.weight"], eps)
        q, k, v = (
            (h @ w[f"attn_{part}.weight"].T + w[f"attn_{part}.bias"]).reshape(t, -1, dim)
            for part in "qkv"
        )
        q, k = (
            reference.rope(heads, np.arange(t), TINY.rope_theta, style="interleaved")
            for heads in (q, k)
        )
        mixed = reference.attention(q, k, v)
        x = x + mixed.reshape(t, -1) @ w["attn_output.weight"].T
        h = reference.rmsnorm(x, w["ffn_norm.weight"], eps)
        x = x + (
            reference.swiglu(h @ w["ffn_gate.weight"].T, h @ w["ffn_up.weight"].T)
            @ w["ffn_down.weight"].T
        )
    x = reference.rmsnorm(x, weights["output_norm.weight"], eps)
    result: NDArray[np.float64] = x @ weights["token_embd.weight"].T
    return result


@pytest.mark.parametrize("format_name", ["Q1_0", "TQ2_0_g128", "F16"])
def test_toy_of_python_alone_equals_float64_in_prefill_and_decode(
    device, toy, tmp_path, format_name
):
    tensors = toy_tensors(format_name)
    expected = toy_logits(tensors, IDS)
    path = write_toy(tmp_path / "toy.gguf", tensors)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        prefill = session.forward(IDS)
        assert prefill is not None
        assert relative_error(prefill, expected) <= 1e-5
        for chunk in (1, 5):
            session.rewind(0)
            found = session.forward(IDS, chunk=chunk)
            assert found is not None
            assert relative_error(found, expected) <= 1e-5
        # And what generation computes, a step at a time, behind a prompt.
        session.rewind(9)
        seen: list[NDArray[np.float32]] = []
        tokens = list(session.generate(8, logits_callback=lambda row: seen.append(row.copy())))
        whole = toy_logits(tensors, IDS[:9] + tokens)
        assert relative_error(np.stack(seen), whole[8:-1]) <= 1e-5
        session.rewind(9)
        assert list(session.generate(8)) == tokens


def test_toy_takes_less_than_100_lines_of_python():
    assert len(inspect.getsource(toy_architecture).splitlines()) < 100


def test_bias_is_required_and_of_its_shape(device, toy, tmp_path):
    tensors = toy_tensors("Q1_0")
    missing = {name: t for name, t in tensors.items() if name != "blk.1.attn_k.bias"}
    with pytest.raises(GGUFError, match=r"1 tensors are missing.*'blk\.1\.attn_k\.bias'"):
        Model.load(write_toy(tmp_path / "toy.gguf", missing), device)
    tensors["blk.0.attn_v.bias"] = np.ones(3, np.float32)
    with pytest.raises(GGUFError, match=r"'blk\.0\.attn_v\.bias' has shape \(3,\), \(128,\)"):
        Model.load(write_toy(tmp_path / "toy.gguf", tensors), device)
    tensors["blk.0.attn_v.bias"] = np.ones(128, np.float32)
    tensors["blk.0.attn_q_norm.weight"] = np.ones(64, np.float32)
    with pytest.raises(GGUFError, match=r"'blk\.0\.attn_q_norm\.weight' has no place in a toy"):
        Model.load(write_toy(tmp_path / "toy.gguf", tensors), device)


# The registry


def test_unknown_architecture_names_the_known_ones(tmp_path):
    path = write_toy(tmp_path / "toy.gguf", toy_tensors("Q1_0"))
    with gguf.open(path) as file:
        assert Registry(Toy(), Qwen3()).of(file).name == "toy"
    with pytest.raises(GGUFError, match="architecture is 'toy'; supported are 'qwen3'"):
        Model.load(path, "cpu")


def test_name_is_registered_once():
    registry = Registry(Qwen3())
    with pytest.raises(ValueError, match="'qwen3' is known already"):
        registry.register(Qwen3())
    registry.register(Toy())
    assert registry.names == ["qwen3", "toy"]
    registry.unregister("toy")
    assert registry.names == ["qwen3"]
    with pytest.raises(ValueError, match="no architecture 'toy'; known are qwen3"):
        registry.unregister("toy")


def test_loaded_models_go_on_without_the_registration(device, tmp_path):
    ARCHITECTURES.register(Toy())
    try:
        model = Model.load(write_toy(tmp_path / "toy.gguf", toy_tensors("Q1_0")), device)
    finally:
        ARCHITECTURES.unregister("toy")
    with model, model.session() as session:
        assert session.forward(IDS, logits="last") is not None


class OwnShape(Qwen3):
    """An architecture that builds its config by itself and knows of no rotations."""

    name = "own"

    def config(self, file: gguf.GGUFFile) -> ModelConfig:
        read = MetadataReader(file, self.name)
        return ModelConfig(
            n_layers=read.integer("block_count"),
            hidden_size=read.integer("embedding_length"),
            intermediate_size=read.integer("feed_forward_length"),
            n_heads=read.integer("attention.head_count"),
            n_kv_heads=read.integer("attention.head_count_kv"),
            head_dim=read.integer("attention.key_length"),
            vocab_size=TINY.vocab,
            context_length=read.integer("context_length"),
            rope_theta=read.number("rope.freq_base"),
            rms_eps=read.number("attention.layer_norm_rms_epsilon"),
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (Folding(), r"prism\.hadamard\.weight_names .* the config of own models has no rotations"),
        ({"prism.other": 1}, r"prism\.other is not known here"),
    ],
)
def test_a_config_without_the_rotations_of_the_file_is_refused(device, tmp_path, keys, message):
    tensors = random_tensors(TINY, tied=False)
    if isinstance(keys, Folding):
        shapes = {name: t.shape if hasattr(t, "shape") else t[1] for name, t in tensors.items()}
        keys = keys.metadata(shapes)
    metadata = {key.replace("qwen3.", "own."): value for key, value in TINY.metadata.items()}
    metadata |= {**keys, "general.architecture": "own"}
    path = write(tmp_path / "m.gguf", TINY, tensors, metadata)
    ARCHITECTURES.register(OwnShape())
    try:
        with pytest.raises(GGUFError, match=message):
            Model.load(path, device)
    finally:
        ARCHITECTURES.unregister("own")
