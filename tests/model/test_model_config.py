"""What files of the Bonsai models may hold in their metadata, as converters write it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from tiny_models import Tiny, byte_vocabulary, random_tensors, reference_logits, write

from oxibonsai import gguf
from oxibonsai.gguf import ValueType
from oxibonsai.model import Model, ModelConfig
from oxibonsai.model.rope import RopeScaling

TINY = Tiny(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=128, vocab=257, rope_theta=1e6)
IDS = [72, 101, 108, 108, 111, 256, 0]

# What llama.cpp's converter and llama-quantize add to the shape.
CONVERTED: dict[str, Any] = {
    "general.type": "model",
    "general.basename": "Bonsai",
    "general.size_label": "1.7B",
    "general.license": "apache-2.0",
    "general.languages": ["en", "de"],
    "general.tags": ["text-generation", "1-bit"],
    "general.base_model.count": 1,
    "general.base_model.0.name": "Qwen3 1.7B Base",
    "general.file_type": 40,
    "general.quantization_version": 2,
    "qwen3.vocab_size": 257,
    "qwen3.attention.causal": True,
    "qwen3.pooling_type": 3,
    "qwen3.expert_count": 0,
    "quantize.imatrix.entries_count": ValueType.I32(196),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.padding_token_id": 256,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bonsai.gguf"


def config_of(path: Path) -> ModelConfig:
    with gguf.open(path) as file:
        return ModelConfig.from_gguf(file)


@pytest.mark.parametrize("theta", [1e6, 5e6])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("norm", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("format_name", ["Q1_0", "TQ2_0_g128"])
def test_converted_file_runs(device, path, format_name, norm, tied, theta):
    tiny = Tiny(**{**vars(TINY), "rope_theta": theta})
    formats = {"norm": norm} if tied else {"norm": norm, "output": "Q8_0"}
    tensors = random_tensors(tiny, format_name, formats=formats, tied=tied)
    write(path, tiny, tensors, {**byte_vocabulary(), **CONVERTED})
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        assert model.weights.tied == tied
        assert model.config.rope_theta == theta
        assert model.config.head_dim == 128
        assert model.config.q_size == 512 != model.config.hidden_size
        assert model.tokenizer.decode(model.tokenizer.encode("Hello")) == "Hello"
        found = session.forward(IDS)
    assert found is not None
    assert relative_error(found, reference_logits(tiny, tensors, IDS)) <= 1e-5


@pytest.mark.parametrize("file_type", [0, 1, 7, 36, 40, 41, 1024, 2**32 - 1])
def test_file_type_does_not_matter(path, file_type):
    # It names the type of most tensors; each tensor has its own.
    write(path, TINY, random_tensors(TINY), {"general.file_type": ValueType.U32(file_type)})
    assert config_of(path).n_layers == 1


def test_shapes_of_the_metadata_may_be_64_bits_wide(path):
    wide = {
        f"qwen3.{key}": ValueType.U64(value)
        for key, value in {
            "block_count": 1,
            "context_length": 40960,
            "embedding_length": 128,
            "feed_forward_length": 256,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": 128,
        }.items()
    }
    write(path, TINY, random_tensors(TINY), wide)
    found = config_of(path)
    assert (found.n_heads, found.n_kv_heads, found.head_dim) == (4, 2, 128)
    assert found.context_length == 40960


@pytest.mark.parametrize(
    ("theta", "original", "context"), [(1e6, 16384, 65536), (5e6, 32768, 131072)]
)
def test_long_context_by_yarn_is_the_scaled_one(path, theta, original, context):
    yarn = {
        "qwen3.context_length": context,
        "qwen3.rope.freq_base": theta,
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.rope.scaling.original_context_length": original,
    }
    write(path, TINY, random_tensors(TINY), yarn)
    found = config_of(path)
    assert found.context_length == context
    assert found.rope_scaling == RopeScaling("yarn", 4.0, 0.1 * math.log(4) + 1, original)


def test_head_of_another_format_than_the_embedding_is_read_on_its_own(device, path):
    tensors = random_tensors(TINY, formats={"token_embd": "Q8_0", "output": "F16"}, tied=False)
    write(path, TINY, tensors)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        assert model.weights.embedding.format == "Q8_0"
        assert model.weights.head.format == "F16"
        found = session.forward(IDS, logits="last")
    assert found is not None
    expected = reference_logits(TINY, tensors, IDS)[-1]
    assert relative_error(found, expected) <= 1e-5
    assert int(np.argmax(found)) == int(np.argmax(expected))
