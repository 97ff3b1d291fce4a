"""Prompts in half: when they are, and how near to those from float32."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import relative_error
from model_files import Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL
from tiny_models import Tiny, random_tensors, write

from oxibonsai import metal
from oxibonsai.model import Model
from oxibonsai.model.runtime.precision import activations_of

TINY = Tiny(context=400)
IDS = np.random.default_rng(5).integers(1, TINY.vocab, 100).tolist()
DEMOS = {"Q1_0": (Q1_MODEL, Q1_GOLDEN), "TQ2_0_g128": (TERNARY_MODEL, TERNARY_GOLDEN)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("half") / "tiny.gguf", TINY, random_tensors(TINY))


@pytest.fixture
def pair(device, path):
    """A model whose prompts are in half, and one with those from float32."""
    with Model.load(path, device) as default, Model.load(path, device, activations="float32") as m:
        if default.activations != "half":
            pytest.skip("no half products on this device")
        yield default, m


def test_half_is_the_default_where_the_device_has_it(device, path):
    with Model.load(path, device) as model:
        assert model.activations == ("half" if device.driver in ("cuda", "metal") else "float32")
    if model.activations == "float32":
        with pytest.raises(metal.EncodingError, match="do not take half activations"):
            Model.load(path, device, activations="half")


@pytest.mark.parametrize("kind", ["float32", "half", "int8"])
@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8"])
def test_half_is_for_prompts_that_nothing_asks_to_be_exact(kind, kv_dtype):
    model: Any = SimpleNamespace(activations=kind)
    for exact, generates in itertools.product((False, True), repeat=2):
        found = activations_of(model, kv_dtype, exact=exact, generates=generates)
        stays = exact or (kind == "half" and (generates or kv_dtype == "f32"))
        assert found == ("float32" if stays else kind)


def fed(model, call, **options):
    with model.session(**options) as session:
        return call(session)


def test_what_asks_for_float32_has_the_bits_of_float32(pair):
    for options in ({"kv_dtype": "f32"}, {"deterministic": True}):
        a, b = (fed(m, lambda s: s.forward(IDS, logits="last"), **options) for m in pair)
        np.testing.assert_array_equal(a, b)
    a, b = (fed(m, lambda s: s.verify(IDS)) for m in pair)
    np.testing.assert_array_equal(a, b)
    a, b = (fed(m, lambda s: s.forward(IDS, logits="last")) for m in pair)
    assert (a != b).any()
    assert relative_error(a, b.astype(np.float64)) < 1e-3


def test_a_prompt_of_fewer_than_64_tokens_has_the_bits_of_float32(pair):
    for n_tokens in (20, 63):
        a, b = (fed(m, lambda s, n=n_tokens: s.forward(IDS[:n])) for m in pair)
        np.testing.assert_array_equal(a, b)


def test_a_model_of_dense_matrices_attends_in_half_from_64_tokens_on(device, tmp_path):
    path = write(tmp_path / "dense.gguf", TINY, random_tensors(TINY, "F16"))
    with Model.load(path, device) as default, Model.load(path, device, activations="float32") as m:
        if default.activations != "half":
            pytest.skip("no half products on this device")
        a, b = (fed(m, lambda s: s.forward(IDS[:63])) for m in (default, m))
        np.testing.assert_array_equal(a, b)
        a, b = (fed(m, lambda s: s.forward(IDS[:64])) for m in (default, m))
        assert (a != b).any()
        assert relative_error(a, b.astype(np.float64)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("demo", DEMOS)
def test_the_perplexity_of_a_demo_text_has_the_same_four_digits(device, demo):
    model_path, golden_path = DEMOS[demo]
    with np.load(golden_path) as golden:
        ids = golden["p0.ids"].tolist() + golden["p0.greedy"].tolist()
    found = {}
    for kind in (None, "float32"):
        with Model.load(model_path, device, activations=kind) as model:
            found[kind] = model.perplexity(ids)
    assert f"{found[None].perplexity:.4g}" == f"{found['float32'].perplexity:.4g}"


@pytest.mark.large
@pytest.mark.parametrize(
    "demo", [pytest.param(d, marks=() if d == "Q1_0" else pytest.mark.slow) for d in DEMOS]
)
def test_a_demo_prompt_in_half_gives_the_golden(device, demo):
    model_path, golden_path = DEMOS[demo]
    with Model.load(model_path, device) as model, np.load(golden_path) as golden:
        ids, greedy = golden["p0.ids"].tolist(), golden["p0.greedy"].tolist()
        with model.session() as session:
            y = session.forward(ids + greedy[:-1])  # more tokens than a product in half needs
        for got, expected in zip(y, golden["p0.logits"], strict=False):
            assert relative_error(got, expected) < 1e-3
        assert np.argmax(y[len(ids) - 1 :], axis=1).tolist() == greedy
