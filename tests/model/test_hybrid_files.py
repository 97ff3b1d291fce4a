"""Files of qwen35: random models against float64, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hybrids import Hybrid, random_tensors, reference_logits, write

from oxibonsai import gguf, quant
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.model import Model, ModelConfig
from oxibonsai.model.architectures.qwen35 import Qwen35

SHAPE = Hybrid()
IDS = np.random.default_rng(3).integers(0, SHAPE.vocab, 37).tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hybrid.gguf"


def config_of(path: Path) -> ModelConfig:
    with gguf.open(path) as file:
        return Qwen35().config(file)


def worst(found: Any, expected: Any) -> float:
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(errors.max())


CASES: dict[str, tuple[Hybrid, str, dict[str, Any]]] = {
    "1 bit, tied": (SHAPE, "Q1_0", {}),
    "trits, untied": (replace(SHAPE, n_layers=2), "TQ2_0_g128", {"tied": False}),
    "a recurrent layer is the last": (replace(SHAPE, n_layers=3), "Q2_0", {}),
    "many value heads": (
        replace(SHAPE, key_heads=2, value_heads=6, key_dim=32, value_dim=96, conv=2, interval=3),
        "Q8_0",
        {},
    ),
    "RoPE of whole heads": (replace(SHAPE, n_layers=2, rotary=64, conv=8), "F16", {}),
    "heads of 256": (
        replace(SHAPE, n_layers=2, head_dim=256, rotary=64, key_dim=128, value_dim=128),
        "Q1_0",
        {},
    ),
    "several formats": (
        replace(SHAPE, n_layers=2),
        "Q1_0",
        {
            "formats": {
                "attn_q": "Q2_0",
                "attn_gate": "F16",
                "ssm_alpha": "Q8_0",
                "ssm_beta": "F32",
                "ssm_conv1d": "BF16",
                "norm": "F16",
                "token_embd": "Q8_0",
            }
        },
    ),
    "no embedding of blocks": (replace(SHAPE, n_layers=2), "PTQ1_0", {"tied": False}),
}


@pytest.mark.large
@pytest.mark.parametrize("case", CASES)
def test_random_models_equal_float64_in_any_chunk(device, path, case):
    shape, format_name, options = CASES[case]
    tensors = random_tensors(shape, format_name, **options)
    expected = reference_logits(shape, tensors, IDS)
    write(path, shape, tensors)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        fast = device.driver in ("cpu", "cuda")
        for n, chunk in ((37, 37), (12, 5), (4, 1)) if fast else ((9, 9), (2, 1)):
            session.rewind(0)
            assert worst(session.forward(IDS[:n], chunk=chunk), expected[:n]) <= 1e-5
        # The last row alone, behind a chunk in which the last layer mixes all of them.
        session.rewind(0)
        n, chunk = (37, 20) if fast else (7, 4)
        last = session.forward(IDS[:n], "last", chunk=chunk)
        assert worst(last[None], expected[n - 1 : n]) <= 1e-5


SHAPES = st.builds(
    Hybrid,
    interval=st.integers(2, 3),
    n_layers=st.integers(3, 5),
    n_heads=st.sampled_from([2, 4, 6]),
    n_kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([32, 64, 96]),
    rotary=st.sampled_from([2, 16, 32]),
    key_heads=st.integers(1, 3),
    value_heads=st.sampled_from([6, 12]),
    key_dim=st.sampled_from([32, 64, 160]),
    value_dim=st.sampled_from([32, 96, 256]),
    conv=st.integers(2, 8),
)


@pytest.mark.device("cpu", "cuda")  # many tokens for one that is interpreted
@settings(max_examples=10)
@given(shape=SHAPES, seed=st.integers(0, 99), n=st.integers(1, 20), chunk=st.integers(1, 20))
def test_models_of_any_shape_equal_float64(opened_device, tmp_path, shape, seed, n, chunk):
    tensors = random_tensors(shape, "F16", seed=seed)
    path = write(tmp_path / "any.gguf", shape, tensors)
    expected = reference_logits(shape, tensors, IDS[:n])
    with Model.load(path, opened_device) as model, model.session(kv_dtype="f32") as session:
        assert worst(session.forward(IDS[:n], chunk=chunk), expected) <= 1e-5


def test_layers_of_a_drafter_do_not_run(device, path):
    tensors = random_tensors(SHAPE)
    expected = reference_logits(SHAPE, tensors, IDS[:9])
    rng = np.random.default_rng(5)
    drafter = {
        f"blk.4.{name}": rng.standard_normal(size).astype(np.float32)
        for name, size in SHAPE.layer_shapes(3).items()
    }
    drafter |= {
        "blk.4.nextn.eh_proj.weight": np.ones((128, 256), np.float32),
        "blk.4.nextn.enorm.weight": np.ones(128, np.float32),
    }
    layers = np.array([True, False, True, False, False])
    metadata = {
        "qwen35.block_count": 5,
        "qwen35.nextn_predict_layers": 1,
        "qwen35.attention.recurrent_layers": layers,
        "qwen35.full_attention_interval": None,
    }
    write(path, SHAPE, {**tensors, **drafter}, metadata)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        assert model.config.n_layers == 4
        assert model.config.n_skipped_layers == 1
        assert worst(session.forward(IDS[:9]), expected) <= 1e-5
        nbytes = sum(handle.nbytes for handle in model.weights.handles)
    write(path, SHAPE, tensors)
    with Model.load(path, device) as model:
        assert nbytes == sum(handle.nbytes for handle in model.weights.handles)


def test_a_layer_of_the_model_is_not_left_out_as_a_drafters(device, path):
    write(path, SHAPE, random_tensors(SHAPE), {"qwen35.nextn_predict_layers": 1})
    message = r"nextn_predict_layers = 1 leaves out layer 3, .* none 'blk\.3\.nextn\.\*'.* it to 0"
    with pytest.raises(GGUFError, match=message):
        Model.load(path, device)


def test_a_drafter_may_have_been_taken_out_of_the_file(device, path):
    metadata = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    write(path, SHAPE, random_tensors(SHAPE), metadata)
    with Model.load(path, device) as model:
        assert model.config.n_layers == 4


def test_a_drafter_in_a_type_without_kernels_does_not_matter(device, path):
    tensors = random_tensors(SHAPE)
    odd = (np.zeros(2 * 66, np.uint8), (2, 256), "IQ2_XXS")
    metadata = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    write(path, SHAPE, {**tensors, "blk.4.nextn.eh_proj.weight": odd}, metadata)
    Model.load(path, device).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm.state_size": None}, "metadata 'qwen35.ssm.state_size' is missing"),
        ({"ssm.group_count": None}, "metadata 'qwen35.ssm.group_count' is missing"),
        ({"ssm.time_step_rank": None}, "metadata 'qwen35.ssm.time_step_rank' is missing"),
        ({"ssm.inner_size": None}, "metadata 'qwen35.ssm.inner_size' is missing"),
        ({"ssm.conv_kernel": None}, "metadata 'qwen35.ssm.conv_kernel' is missing"),
        ({"rope.dimension_count": None}, "metadata 'qwen35.rope.dimension_count' is missing"),
        ({"ssm.state_size": 48}, "ssm.state_size = 48 must be a multiple of 32, at most 256"),
        ({"ssm.state_size": 512}, "ssm.state_size = 512 must lie in 1..256"),
        ({"ssm.state_size": "x"}, "ssm.state_size is 'x'; an integer is needed"),
        ({"ssm.inner_size": 129}, "ssm.inner_size = 129 does not divide among 2 value heads"),
        ({"ssm.inner_size": 32}, "of a value head = 16 must be a multiple of 32"),
        ({"ssm.group_count": 3}, "2 value heads .* do not divide among 3 key heads"),
        ({"ssm.conv_kernel": 1}, "ssm.conv_kernel = 1 must lie in 2..8"),
        ({"ssm.conv_kernel": 9}, "ssm.conv_kernel = 9 must lie in 2..8"),
        ({"rope.dimension_count": 15}, "rope.dimension_count = 15 must be even"),
        ({"rope.dimension_count": 66}, "= 66 must be even and no more than the head_dim, 64"),
        ({"rope.dimension_sections": np.array([4, 4, 4, 0])}, "add up to half of .*, 8, are"),
        ({"rope.dimension_sections": np.array([9, -1, 0, 0])}, "integers of 0 or more"),
        ({"rope.dimension_sections": 4}, "rope.dimension_sections is 4; integers"),
        ({"full_attention_interval": 0}, "full_attention_interval = 0 must lie in 1"),
        ({"full_attention_interval": 1}, "all 4 layers are attention ones"),
        ({"full_attention_interval": 5}, "all 4 layers are recurrent ones"),
        (
            {"attention.recurrent_layers": np.array([True, True, False, False])},
            "recurrent_layers and qwen35.full_attention_interval = 2 name different layers",
        ),
        ({"attention.recurrent_layers": np.array([True] * 3)}, "one for each of 4 layers"),
        ({"attention.recurrent_layers": True}, "a list of booleans"),
        ({"nextn_predict_layers": 4}, "nextn_predict_layers = 4 leaves nothing of 4 layers"),
        ({"nextn_predict_layers": ValueType.I32(-1)}, "nextn_predict_layers = -1 must lie in"),
        ({"nextn_predict_layers": np.zeros(4, np.int32)}, "nextn_predict_layers is array.*integer"),
        ({"nextn_predict_layers": 0.0}, "nextn_predict_layers is 0.0; an integer is needed"),
        ({"nextn_predict_layers": "0"}, "nextn_predict_layers is '0'; an integer is needed"),
        ({"attention.value_length": 32}, "attention.value_length is 32; only the head_dim"),
    ],
)
def test_shapes_that_cannot_be_are_refused(path, changes, message):
    write(path, SHAPE, {"token_embd.weight": np.zeros((77, 128), np.float32)}, {
        f"qwen35.{key}": value for key, value in changes.items()
    })  # fmt: skip
    with pytest.raises(GGUFError, match=message):
        config_of(path)


def test_every_third_layer_may_be_named_by_the_list_alone(path):
    metadata = {
        "qwen35.full_attention_interval": None,
        "qwen35.attention.recurrent_layers": np.array([1, 1, 0, 1], np.int32),
        "qwen35.rope.dimension_sections": np.array([4, 2, 2, 0], np.int32),
    }
    write(path, SHAPE, {"token_embd.weight": np.zeros((77, 128), np.float32)}, metadata)
    config = config_of(path)
    assert config.attention_layers == (False, False, True, False)
    assert [config.ordinal(i) for i in range(4)] == [0, 1, 0, 2]
    assert config.slot_size == 3 * (3 * 256 + 2 * 64 * 64)


@pytest.mark.parametrize("part", ["blk.0.ssm_a", "blk.2.ssm_conv1d.weight", "blk.1.attn_q.weight"])
def test_a_missing_tensor_is_named(device, path, part):
    tensors = random_tensors(SHAPE)
    del tensors[part]
    write(path, SHAPE, tensors)
    with pytest.raises(GGUFError, match=f"1 tensors are missing, the first is '{part}'"):
        Model.load(path, device)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blk.1.ssm_a", np.ones(2, np.float32), "'blk.1.ssm_a' has no place in a qwen35 model"),
        ("v.blk.0.ln1.weight", np.ones(8, np.float32), "part of an encoder of images or sound"),
        ("mm.0.weight", np.ones((8, 8), np.float32), "part of an encoder of images or sound"),
        ("blk.4.attn_norm.weight", np.ones(128, np.float32), "of a layer beyond block_count"),
        ("blk.0.ffn_gate_exps.weight", np.ones((8, 8), np.float32), "a mixture of experts"),
        ("blk.0.ssm_a", np.array([0.5, -1], np.float32), "has values from -1.0 to 0.5; -exp"),
        ("blk.0.ssm_a", np.array([-np.inf, -1], np.float32), "has values from -inf"),
        ("blk.0.ssm_a", np.ones(3, np.float32), r"has shape \(3,\), \(2,\) is needed"),
        ("blk.1.attn_q.weight", np.ones((256, 128), np.float32), r"\(512, 128\) is needed"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(device, path, name, tensor, message):
    write(path, SHAPE, {**random_tensors(SHAPE), name: tensor})
    with pytest.raises(GGUFError, match=message):
        Model.load(path, device)


def test_the_file_of_the_encoder_alone_is_refused(device, path):
    write(path, SHAPE, random_tensors(SHAPE), {"general.type": "mmproj"})
    with pytest.raises(GGUFError, match=r"general\.type is 'mmproj', an encoder of images"):
        Model.load(path, device)


def test_rows_of_queries_and_gates_are_told_apart(device, path):
    """Gates of 0 let one half of every element through."""
    shape = replace(SHAPE, n_layers=2)
    tensors = random_tensors(shape)
    whole = quant.dequantize(tensors["blk.1.attn_q.weight"]).reshape(4, 2, 64, 128)
    whole[:, 1] = 0
    tensors["blk.1.attn_q.weight"] = whole.reshape(512, 128)
    expected = reference_logits(shape, tensors, IDS)
    write(path, shape, tensors)
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        assert worst(session.forward(IDS), expected) <= 1e-5
