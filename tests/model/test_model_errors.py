"""Files that are no good: the message, and that nothing is left on the device."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import held_by
from gguf_bytes import string
from model_files import Q1_MODEL
from rotated_models import Folding
from tiny_models import Tiny, random_tensors, write

import oxibonsai.model.weights
from oxibonsai import gguf, metal, quant
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.model import Model

TINY = Tiny(hidden=256, context=48)
IDS = [5, 17, 76, 0, 33]


class Bench:
    """Writes variants of one good small model and loads them."""

    def __init__(self, device: metal.Device, folder: Path) -> None:
        self.device = device
        self.path = folder / "model.gguf"

    def write(self, metadata: dict[str, Any] | None = None, **changes: Any) -> Path:
        """Write the model with changed metadata, and tensors replaced, or left out by None."""
        tensors: dict[str, Any] = {**random_tensors(TINY), **changes.pop("tensors", {})}
        tensors = {name: t for name, t in tensors.items() if t is not None}
        return write(self.path, TINY, tensors, metadata)

    def refused(
        self, *texts: str, error: type[Exception] = GGUFError, path: Path | None = None, **kw: Any
    ) -> str:
        """Load what was written; return the message. The device must be as it was, and work."""
        before = held_by(self.device)
        with pytest.raises(error) as caught:
            Model.load(path or self.path, self.device, **kw)
        assert held_by(self.device) == before
        message = str(caught.value)
        for text in (path or self.path).name, *texts:
            assert text in message
        self.works()
        return message

    def works(self) -> None:
        good = write(self.path.with_name("good.gguf"), TINY, random_tensors(TINY))
        with Model.load(good, self.device) as model, model.session() as session:
            logits = session.forward(IDS, logits="last")
            assert logits is not None
            assert np.isfinite(logits).all()


@pytest.fixture
def bench(device: metal.Device, tmp_path: Path) -> Bench:
    return Bench(device, tmp_path)


# Files


@pytest.mark.parametrize(
    "name",
    ["output_norm", "blk.0.attn_q", "blk.1.ffn_down", "blk.1.attn_k_norm", "blk.0.ffn_norm"],
)
def test_missing_tensor_is_named(bench, name):
    bench.write(tensors={f"{name}.weight": None})
    bench.refused(f"'{name}.weight'", "missing")


def test_missing_embedding_is_named(bench):
    bench.write(tensors={"token_embd.weight": None})
    bench.refused("'token_embd.weight'", "missing")


def test_first_of_many_missing_tensors_is_named_with_their_number(bench):
    bench.write({"qwen3.block_count": 4})
    bench.refused("22 tensors are missing", "'blk.2.attn_norm.weight'")


def quantized(n_rows: int, k: int) -> quant.QTensor:
    return quant.quantize(np.ones((n_rows, k), np.float32), "Q1_0")


@pytest.mark.parametrize(
    ("name", "tensor", "shapes"),
    [
        ("blk.0.attn_q.weight", quantized(255, 256), ("(255, 256)", "(256, 256)")),
        ("blk.0.attn_k.weight", quantized(256, 128), ("(256, 128)", "(128, 256)")),
        ("blk.1.ffn_up.weight", quantized(256, 128), ("(256, 128)", "(256, 256)")),
        ("blk.1.attn_output.weight", quantized(256, 384), ("(256, 384)", "(256, 256)")),
        ("output.weight", quantized(78, 256), ("(78, 256)", "(77, 256)")),
        ("token_embd.weight", quantized(77, 128), ("(77, 128)", "(77, 256)")),
        ("output_norm.weight", np.ones(255, np.float32), ("(255,)", "(256,)")),
        ("blk.0.attn_q_norm.weight", np.ones(128, np.float32), ("(128,)", "(64,)")),
        ("blk.0.attn_norm.weight", np.ones((2, 128), np.float32), ("(2, 128)", "(256,)")),
        ("blk.0.attn_q.weight", np.ones((2, 128, 256), np.float32), ("(2, 128, 256)",)),
    ],
)
def test_tensor_of_another_shape_is_refused_with_both_shapes(bench, name, tensor, shapes):
    bench.write(tensors={name: tensor})
    bench.refused(repr(name), *shapes)


def test_embedding_that_is_no_matrix_is_refused(bench):
    bench.write(tensors={"token_embd.weight": np.ones(256, np.float32)})
    bench.refused("'token_embd.weight'", "(256,)", "matrix")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_output.bias", (256,)),
        ("blk.2.attn_norm.weight", (256,)),
        ("rope_freqs.weight", (32,)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
    ],
)
def test_tensor_that_has_no_place_in_the_model_is_refused(bench, name, shape):
    bench.write(tensors={name: np.ones(shape, np.float32)})
    bench.refused(repr(name))


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("blk.0.attn_q.weight.lora_a", "LoRA adapter"),
        ("v.blk.0.attn_q.weight", "encoder of images or sound"),
        ("mm.0.weight", "encoder of images or sound"),
        ("blk.0.ffn_gate_exps.weight", "mixture of experts"),
        ("blk.0.ffn_gate_inp.weight", "mixture of experts"),
        ("blk.0.attn_qkv.scale", "requantise"),
        ("token_embd.scale", "requantise"),
        ("blk.1.ffn_down.input_scale", "requantise"),
        ("rope_freqs.weight", "rotary frequencies"),
        ("rope_factors_long.weight", "rope.scaling"),
        ("cls.output.weight", "reranker"),
        ("blk.0.attn_output.bias", "llama.cpp refuses it too"),
        ("blk.0.ffn_up.bias", "llama.cpp refuses it too"),
        ("blk.2.attn_norm.weight", "a layer beyond block_count"),
        ("output_norm.bias", "bias where these models have none"),
        ("something", "convert or download the model again"),
    ],
)
def test_tensor_that_has_no_place_is_named_with_what_it_is(bench, name, why):
    bench.write(tensors={name: np.ones(256, np.float32)})
    bench.refused(f"tensor {name!r} has no place in a qwen3 model", why)


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("adapter", "llama-export-lora"),
        ("mmproj", "language model"),
        ("imatrix", "llama-quantize"),
        ("vocab", "file of the model"),
    ],
)
def test_file_beside_a_model_is_named_by_its_type(bench, kind, way_out):
    bench.write({"general.type": kind})
    bench.refused(f"general.type is {kind!r}", way_out)


def test_file_of_metadata_alone_is_refused(bench):
    gguf.write(bench.path, TINY.metadata, [])
    bench.refused("no tensors, only metadata")


def retype(path: Path, name: str, ggml_type: int) -> None:
    """Overwrite the type id of a tensor in the file."""
    raw = bytearray(path.read_bytes())
    at = raw.index(string(name)) + len(string(name))
    (n_dims,) = struct.unpack_from("<I", raw, at)
    struct.pack_into("<I", raw, at + 4 + 8 * n_dims, ggml_type)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("ggml_type", "type_name"), [(15, "Q8_K"), (24, "I8"), (999, "unknown type 999")]
)
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight"])
def test_unsupported_type_is_named_with_its_tensor(bench, name, ggml_type, type_name):
    part = name.split(".")[-2]
    write(bench.path, TINY, random_tensors(TINY, formats={part: "F16"}))
    retype(bench.path, name, ggml_type)
    bench.refused(repr(name), type_name, "Q8_0", "--token-embedding-type", "--output-tensor-type")


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_quantised_norm_is_refused(bench, name):
    q = quant.quantize(np.ones((1, 256), np.float32), "Q8_0")
    bench.write(tensors={name: (q.data, (256,), "Q8_0")})
    bench.refused(repr(name), "Q8_0", "F32")


@pytest.mark.parametrize("value", ["llama", "qwen2", "", None, 3, "QWEN3"])
def test_other_architecture_is_refused_by_its_name(bench, value):
    bench.write({"general.architecture": value})
    bench.refused("general.architecture", repr(value), "qwen3")


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_metadata_is_named(bench, key):
    bench.write({f"qwen3.{key}": None})
    bench.refused(f"'qwen3.{key}'", "missing")


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "context_length"])
@pytest.mark.parametrize("value", [2.0, True, "2", [2, 2]], ids=repr)
def test_metadata_of_another_kind_is_refused(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key}", "integer")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 2**31),
        ("block_count", 2**32 - 1),
        ("block_count", 0),
        ("block_count", ValueType.I32(-1)),
        ("block_count", ValueType.U64(2**64 - 1)),
        ("context_length", 0),
        ("context_length", 2**32 - 1),
        ("embedding_length", 2**31),
        ("embedding_length", 0),
        ("feed_forward_length", 2**32 - 1),
        ("attention.head_count", 0),
        ("attention.head_count", 2**31),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 2**20),
        ("attention.key_length", 0),
        ("attention.key_length", 2**16),
    ],
)
def test_absurd_size_is_refused_with_its_value(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    number = value.value if hasattr(value, "value") else value
    bench.refused(f"qwen3.{key} = {number} must lie in 1..")


def test_more_layers_than_tensors_are_refused_at_once(bench):
    bench.write({"qwen3.block_count": 4096})
    bench.refused("4096", "missing")


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_number_that_is_not_positive_and_finite_is_refused(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key} = {value} must be finite and above 0")


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
def test_number_of_another_kind_is_refused(bench, key):
    bench.write({f"qwen3.{key}": "1e-6"})
    bench.refused(f"qwen3.{key} is '1e-6'")


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.layer_norm_rms_epsilon", ValueType.F64(1e300)),
        ("attention.layer_norm_rms_epsilon", ValueType.F64(1e-300)),
        ("rope.freq_base", 1e-30),
        ("rope.freq_base", ValueType.F64(5e-324)),
        ("rope.freq_base", ValueType.F64(1e300)),
        ("rope.scaling.factor", 1e-30),
        ("rope.scaling.factor", 1e30),
        ("rope.scaling.attn_factor", 1e30),
    ],
)
def test_number_that_float32_would_not_survive_is_refused(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key} = ", "must lie in")


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"yarn_beta_fast": 1e30}, "yarn_beta_fast"),
        ({"yarn_beta_fast": ValueType.F64(1e308)}, "yarn_beta_fast"),
        ({"yarn_beta_slow": 1e-30}, "yarn_beta_slow"),
        ({"yarn_beta_slow": float("nan")}, "yarn_beta_slow"),
        ({"yarn_beta_fast": -1.0}, "yarn_beta_fast"),
        ({"yarn_beta_fast": 0.5}, "yarn_beta_fast"),
        ({"yarn_attn_factor": float("inf")}, "yarn_attn_factor"),
        ({"yarn_attn_factor": ValueType.F64(1e300)}, "yarn_attn_factor"),
        ({"original_context_length": 2**32 - 1}, "original_context_length"),
    ],
)
def test_absurd_yarn_is_refused(bench, metadata, key):
    scaling = {"type": "yarn", "factor": 4.0, **metadata}
    bench.write({f"qwen3.rope.scaling.{k}": v for k, v in scaling.items()})
    bench.refused(f"qwen3.rope.scaling.{key}")


@pytest.mark.device("cpu")
@pytest.mark.parametrize("theta", [1.0, np.nextafter(np.float32(1), np.float32(2))])
def test_base_of_yarn_that_is_hardly_above_1_is_refused(bench, theta):
    bench.write({"qwen3.rope.freq_base": float(theta), "qwen3.rope.scaling.type": "yarn",
                 "qwen3.rope.scaling.factor": 4.0})  # fmt: skip
    bench.refused("qwen3.rope.freq_base", "YaRN")


@pytest.mark.device("cpu")
@pytest.mark.parametrize("value", [["qwen3"], [1, 2], ValueType.STRING([]), True, 2.5])
def test_architecture_that_is_no_text_is_refused(bench, value):
    bench.write({"general.architecture": value})
    bench.refused("general.architecture", "'qwen3'")


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    "key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"]
)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([2, 4], "differs between layers (2 to 4)"),
        ([4], "array of 1 integers; one for each of 2 layers"),
        ([4, 4, 4], "array of 3 integers"),
        (ValueType.I32([]), "array of 0 integers"),
        ([4.0, 4.0], "integer"),
        (["4", "4"], "integer"),
        ([True, True], "integer"),
        ([0, 0], "must lie in 1.."),
    ],
)
def test_array_that_is_no_one_number_is_refused(bench, key, value, text):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key}", text)


@pytest.mark.parametrize(
    ("metadata", "texts"),
    [
        ({"attention.head_count_kv": 3}, ("4 query heads", "3 key-value heads")),
        ({"attention.key_length": 63}, ("head_dim = 63", "odd")),
        ({"attention.value_length": 128}, ("value_length is 128", "64")),
        ({"attention.value_length": [64, 64]}, ("value_length",)),
        ({"rope.dimension_count": 32}, ("rope.dimension_count is 32", "64")),
        ({"attention.causal": False}, ("attention.causal is False", "llama.cpp")),
        ({"attention.causal": 1}, ("attention.causal is 1",)),
    ],
)
def test_shape_of_attention_that_is_not_supported_is_refused(bench, metadata, texts):
    bench.write({f"qwen3.{key}": value for key, value in metadata.items()})
    bench.refused(*texts)


@pytest.mark.parametrize("key", ["prism.hadamard.seed", "prism.seed", "prism.hadamard."])
def test_unknown_key_of_a_rotation_is_refused_by_name(bench, key):
    bench.write({key: 128})
    bench.refused(key, "not known here")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": None}, "prism.hadamard.version is missing"),
        ({"block_size": 512}, "512, which does not divide 256"),
        ({"weight_names": ["blk.0.attn_q.weight"]}, "without 'blk.0.attn_k.weight'"),
        ({"weight_names": ["blk.0.attn_norm.weight"]}, "not rotated in qwen3 models"),
        ({"weight_names": ["token_embd.weight"]}, "not rotated in qwen3 models"),
    ],
)
def test_rotation_that_cannot_be_honoured_is_refused(bench, changes, text):
    metadata = Folding(version=2).metadata(TINY.shapes)
    bench.write(metadata | {f"prism.hadamard.{key}": value for key, value in changes.items()})
    bench.refused(text)


def test_ambiguous_type_42_asks_for_its_name_and_takes_it(bench):
    # All zero: code bytes that are finite scales too, in either order.
    zero = quant.quantize(np.zeros((77, 256), np.float32), "TQ2_0_g128")
    path = bench.write(tensors={"token_embd.weight": zero})
    message = bench.refused("ambiguous", "'token_embd.weight'", "--type42", "type42=")
    for name in ("Q2_0_g128", "TQ2_0_g128"):
        assert name in message
        with Model.load(path, bench.device, type42=name) as model:
            assert model.weights.embedding.format == name
    bench.refused("type42='Q2_0'", "contradicts", type42="Q2_0")


def test_file_cut_short_is_refused(bench):
    path = bench.write()
    raw = path.read_bytes()
    for length in (0, 10, len(raw) // 3, len(raw) - 64):
        path.write_bytes(raw[:length])
        bench.refused()


def test_missing_file_and_directory_are_refused(bench, tmp_path):
    bench.refused(error=FileNotFoundError, path=tmp_path / "none.gguf")
    bench.refused("directory", path=tmp_path)


@pytest.mark.parametrize("nth", [1, 4, 9])
def test_error_in_the_middle_of_loading_leaves_nothing(bench, monkeypatch, nth):
    calls = 0
    real = oxibonsai.model.weights._float32

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise MemoryError(f"no memory for {bench.path.name}")
        return real(*args)

    bench.write()
    with monkeypatch.context() as patch:
        patch.setattr(oxibonsai.model.weights, "_float32", fail)
        before = held_by(bench.device)
        with pytest.raises(MemoryError):
            Model.load(bench.path, bench.device)
        assert held_by(bench.device) == before
    bench.works()


def test_missing_device_is_refused_before_the_weights_are_read(bench):
    path = bench.write()
    with pytest.raises(metal.DeviceNotFoundError, match="nowhere"):
        Model.load(path, "nowhere")


def test_file_stays_usable_for_others_while_and_after_a_model_is_loaded(device):
    with Model.load(Q1_MODEL, device) as model, gguf.open(Q1_MODEL) as file:
        assert file.metadata["general.name"] == model.name
    with Model.load(str(Q1_MODEL), device) as again:
        assert again.tokenizer.vocab_size == again.config.vocab_size
