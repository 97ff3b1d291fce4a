"""RoPE scaling: the metadata, the table of angles, and whole models against float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from cases import relative_error
from tiny_models import Tiny, random_tensors, reference_logits, write

from oxibonsai import gguf
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.model import Model, ModelConfig
from oxibonsai.model.rope import RopeScaling, rope_table

NONE = {"type": "none", "attention_factor": 1.0}
# Mixed pairs in the middle, and all slow ones within the context.
YARN = RopeScaling("yarn", 4.0, 0.1 * math.log(4) + 1, 32, 8.0, 1.0)


def by_definition(scaling: RopeScaling) -> dict[str, Any]:
    """Return the scaling as tests/helpers/reference.py takes it."""
    return {
        "type": scaling.kind,
        "factor": scaling.factor,
        "attention_factor": scaling.attention_factor,
        "original": scaling.original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def config(path: Path, **metadata: Any) -> ModelConfig:
    """Read the shape of a file with this metadata, dots in the keys written as two underscores."""
    pairs = {f"qwen3.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tiny = Tiny(n_layers=1, context=256)
    with gguf.open(write(path, tiny, random_tensors(tiny), pairs)) as file:
        return ModelConfig.from_gguf(file)


def scaling_of(path: Path, **metadata: Any) -> RopeScaling:
    """Read the scaling of a file with this metadata under rope.scaling."""
    pairs = {f"rope.scaling.{key}": value for key, value in metadata.items()}
    return config(path, **pairs).rope_scaling


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e6])
@pytest.mark.parametrize("head_dim", [2, 64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling(attention_factor=1.5),
        RopeScaling("linear", 8.0),
        RopeScaling("linear", 0.5, 0.75),
        YARN,
        RopeScaling("yarn", 4.0, 1.0, 32768),
        RopeScaling("yarn", 40.0, 1.25, 4096, 32.0, 1.0),
        RopeScaling("yarn", 2.0, 1.0, 4096, 1.0, 1.0),  # an edge in the place of the ramp
        RopeScaling("yarn", 2.0, 1.0, 1),  # every pair but the first is slow
        RopeScaling("yarn", 2.0, 1.0, 1 << 24, 1e-3, 1e-4),  # every pair is fast
        RopeScaling("yarn", 1.0, 1.0, 4096),
    ],
    ids=str,
)
def test_table_is_that_of_the_definition(scaling, head_dim, theta):
    positions = np.array([0, 1, 31, 4095, 4096, 9000])
    table = rope_table(head_dim, 9001, theta, scaling)
    assert table.shape == (9001, 2, head_dim // 2)
    assert table.dtype == np.float32
    # Turning (1, 0) in every pair gives the cosines, then the sines.
    unit = np.repeat([1.0, 0.0], head_dim // 2)
    turned = reference.rope_neox(
        np.tile(unit, (len(positions), 1, 1)), positions, theta, by_definition(scaling)
    )
    found = table[positions].reshape(len(positions), 1, head_dim)
    # Half a unit in the last place, and what an angle of 9,000 radians loses in float64.
    np.testing.assert_allclose(found, turned, rtol=0, atol=6e-8 * scaling.attention_factor + 1e-11)


def test_yarn_leaves_fast_pairs_and_divides_slow_ones():
    plain = RopeScaling().frequencies(128, 1e6)
    yarn = RopeScaling("yarn", 4.0, 1.0, 32768).frequencies(128, 1e6)
    turns = 32768 * plain / (2 * math.pi)
    assert (turns > 40).any()
    assert (turns < 0.5).any()
    assert (yarn[turns > 40] == plain[turns > 40]).all()
    np.testing.assert_array_equal(yarn[turns < 0.5], plain[turns < 0.5] / 4)
    between = yarn[(turns < 20) & (turns > 2)] / plain[(turns < 20) & (turns > 2)]
    assert (np.diff(between) < 0).all()


def test_no_metadata_is_no_scaling(path):
    assert config(path).rope_scaling == RopeScaling()


@pytest.mark.parametrize(
    "metadata",
    [
        {"type": "none"},
        {"type": "none", "factor": 4.0, "original_context_length": 64},  # llama.cpp: never scaled
        {"factor": 1.0},
        {"factor": 0.0},
        {"type": "linear", "factor": 0.0},
        {"finetuned": True},
        {"yarn_ext_factor": -1.0, "alpha": 0.0, "yarn_log_multiplier": 0.0},
        {"original_context_length": 64},
    ],
    ids=str,
)
def test_metadata_that_does_not_scale(path, metadata):
    assert scaling_of(path, **metadata) == RopeScaling()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"factor": 4.0}, RopeScaling("linear", 4.0)),  # as llama.cpp, where the type is missing
        ({"type": "linear", "factor": 2}, RopeScaling("linear", 2.0)),
        ({"type": "linear", "factor": 2.0, "attn_factor": 1.5}, RopeScaling("linear", 2.0, 1.5)),
        ({"type": "none", "attn_factor": 1.5}, RopeScaling("none", 1.0, 1.5)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
            RopeScaling("yarn", 4.0, 0.1 * math.log(4) + 1, 64),
        ),
        # The context_length is all there is to take.
        (
            {"type": "yarn", "factor": 4.0},
            RopeScaling("yarn", 4.0, 0.1 * math.log(4) + 1, 256),
        ),
        (
            {"type": "yarn", "factor": 4.0, "attn_factor": 0.5, "finetuned": True},
            RopeScaling("yarn", 4.0, 0.5 * (0.1 * math.log(4) + 1), 256),
        ),
        (
            {"type": "yarn", "factor": 4.0, "yarn_attn_factor": 1.5, "attn_factor": 0.5},
            RopeScaling("yarn", 4.0, 0.75, 256),
        ),
        (
            {"type": "yarn", "factor": 4.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}
            | {"yarn_ext_factor": 1.0},
            RopeScaling("yarn", 4.0, 0.1 * math.log(4) + 1, 256, 16.0, 2.0),
        ),
        ({"type": "yarn", "factor": 0.5}, RopeScaling("yarn", 0.5, 1.0, 256)),
    ],
    ids=str,
)
def test_scaling_is_read_from_the_metadata(path, metadata, expected):
    assert scaling_of(path, **metadata) == expected


def test_older_name_of_the_linear_factor_is_read(path):
    assert config(path, rope__scale_linear=8.0).rope_scaling == RopeScaling("linear", 8.0)
    both = {"rope.scale_linear": 8.0, "rope.scaling.factor": 2.0}
    assert config(path, **both).rope_scaling == RopeScaling("linear", 2.0)


def test_context_length_of_a_scaled_model_is_the_scaled_one(device, path):
    tiny = Tiny(n_layers=1, context=128)
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    pairs = {f"qwen3.rope.scaling.{key}": value for key, value in yarn.items()}
    write(path, tiny, random_tensors(tiny), pairs)
    with Model.load(path, device) as model, model.session() as session:
        assert model.config.context_length == 128
        assert session.max_seq == 128


@pytest.mark.parametrize(
    ("metadata", "texts"),
    [
        ({"type": "longrope", "factor": 4.0}, ("scaling.type is 'longrope'", "'yarn'")),
        ({"type": "dynamic"}, ("scaling.type is 'dynamic'",)),
        ({"type": "YARN"}, ("scaling.type is 'YARN'",)),
        ({"type": ""}, ("scaling.type is ''",)),
        ({"type": 2}, ("scaling.type is 2",)),
        ({"type": ["yarn", "yarn"]}, ("scaling.type is",)),
        ({"type": "yarn", "yarn_ext_factor": 0.5}, ("scaling.yarn_ext_factor = 0.5",)),
        ({"type": "yarn", "yarn_ext_factor": 0.0}, ("scaling.yarn_ext_factor = 0.0",)),
        ({"type": "yarn", "yarn_log_multiplier": 0.1}, ("scaling.yarn_log_multiplier = 0.1",)),
        ({"alpha": 1000.0}, ("scaling.alpha = 1000.0",)),
        ({"alpha": [0.0, 0.0]}, ("scaling.alpha = ",)),
        ({"type": "linear", "yarn_beta_fast": 32.0}, ("'linear'", "yarn_beta_fast = 32.0")),
        ({"type": "none", "yarn_attn_factor": 2.0}, ("'none'", "yarn_attn_factor = 2.0")),
        ({"short_factor": 1.0}, ("scaling.short_factor = 1.0",)),
        ({"factor": -4.0}, ("scaling.factor = -4.0 must be finite and above 0",)),
        ({"factor": float("inf")}, ("scaling.factor = inf must be finite",)),
        ({"type": "yarn", "factor": float("nan")}, ("scaling.factor = nan must be finite",)),
        ({"factor": "4"}, ("scaling.factor is '4'; a number",)),
        ({"factor": [4.0, 4.0]}, ("scaling.factor is", "a number")),
        ({"attn_factor": 0.0}, ("scaling.attn_factor = 0.0 must be",)),
        ({"type": "yarn", "yarn_attn_factor": -1.0}, ("yarn_attn_factor = -1.0 must be",)),
        ({"type": "yarn", "yarn_beta_slow": 0.0}, ("yarn_beta_slow = 0.0 must be",)),
        (
            {"type": "yarn", "yarn_beta_fast": 1.0, "yarn_beta_slow": 2.0},
            ("yarn_beta_fast = 1.0 is below", "yarn_beta_slow = 2.0"),
        ),
        (
            {"type": "yarn", "original_context_length": 0},
            ("original_context_length = 0 must lie in 1..",),
        ),
        (
            {"type": "yarn", "original_context_length": ValueType.U32(2**32 - 1)},
            ("original_context_length = 4294967295 must lie in 1..",),
        ),
        ({"type": "yarn", "original_context_length": 64.0}, ("an integer is needed",)),
    ],
    ids=str,
)
def test_scaling_that_is_not_understood_is_refused_by_name(path, metadata, texts):
    with pytest.raises(GGUFError) as caught:
        scaling_of(path, **metadata)
    for text in (path.name, *texts):
        assert text in str(caught.value)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_yarn_without_a_slow_pair_to_find_is_refused(path, theta):
    with pytest.raises(GGUFError, match=r"rope.freq_base = .* must be above 1 for YaRN"):
        config(path, **{"rope.freq_base": theta, "rope.scaling.type": "yarn"})


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32}
            | {"yarn_beta_fast": 8.0},
            YARN,
        ),
        ({"attn_factor": 1.5}, RopeScaling(attention_factor=1.5)),
    ],
    ids=["linear", "yarn", "attention factor"],
)
def test_logits_of_a_scaled_model(device, path, metadata, scaling, head_dim):
    tiny = Tiny(n_layers=1, head_dim=head_dim, context=128, rope_theta=1e6)
    tensors = random_tensors(tiny)
    pairs = {f"qwen3.rope.scaling.{key}": value for key, value in metadata.items()}
    write(path, tiny, tensors, pairs)
    ids = np.random.default_rng(3).integers(0, tiny.vocab, 40).tolist()
    expected = reference_logits(tiny, tensors, ids, by_definition(scaling))
    # The scaling shows: without it the logits are others.
    assert relative_error(reference_logits(tiny, tensors, ids), expected) > 1e-3
    with Model.load(path, device) as model, model.session(kv_dtype="f32") as session:
        found = session.forward(ids)
    assert found is not None
    assert relative_error(found, expected) <= 1e-5
