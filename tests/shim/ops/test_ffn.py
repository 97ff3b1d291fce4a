"""The fused phases of a layer, encode_ffn_phase and encode_qkv_phase, against float64."""

from __future__ import annotations

import itertools
import logging
import re
from typing import NamedTuple

import numpy as np
import pytest
import reference
from cases import (
    ALL_FORMATS,
    F64,
    activations,
    block,
    close_to,
    dense,
    random_weight,
    relative_error,
    upload,
)
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.metal import BufferCreationError, EncodingError, MetalGraph, WeightHandle
from oxibonsai.quant import QTensor

# Four GEMVs, a norm and a SwiGLU in float32.
TOLERANCE = 3e-6


def tamed(q: QTensor) -> QTensor:
    """Scale a random weight down, so that a layer of it does not amplify its input."""
    if q.format in ("F32", "F16"):
        cells = q.data.view({"F32": np.float32, "F16": np.float16}[q.format])
        cells *= cells.dtype.type(0.0625)
    return q


class Layer(NamedTuple):
    """Weights of an output projection and a feed-forward block, on the host and the device."""

    tensors: list[QTensor]
    handles: list[WeightHandle]
    norm: np.ndarray
    hidden: int
    attn: int
    inter: int

    def expected(self, hidden, attn_out, eps) -> F64:
        weights = [dense(q) for q in self.tensors]
        return reference.ffn_phase(
            hidden[: self.hidden], attn_out[: self.attn], self.norm[: self.hidden], *weights, eps
        )


def layer(
    graph: MetalGraph, hidden: int, attn: int, inter: int, names: tuple[str, str, str], plain=False
) -> Layer:
    shapes = [(hidden, attn), (2 * inter, hidden), (hidden, inter)]
    tensors = [
        tamed(random_weight(name, *shape, seed=i))
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
    ]
    handles = [upload(graph, q, plain) for q in tensors]
    return Layer(tensors, handles, 1 + activations(hidden, 6) / 4, hidden, attn, inter)


def run(graph, made: Layer, hidden, attn_out, norm=None, sizes=(), eps=1e-6):
    out = hidden.copy()
    norm = made.norm if norm is None else norm
    graph.encode_ffn_phase(out, attn_out, norm, *made.handles, *sizes, eps=eps)
    return out


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_every_format_matches_the_definition(graph, name):
    # As in the 4B model, the attention output is longer than the hidden vector.
    b = block(name)
    made = layer(graph, 2 * b, 4 * b, 6 * b, (name, name, name))
    hidden, attn_out = activations(made.hidden), activations(made.attn, 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


@pytest.mark.parametrize(
    "names",
    [
        ("Q1_0", "TQ2_0_g128", "Q2_0"),
        ("TQ2_0", "Q8_0", "Q1_0"),
        ("F16", "PTQ1_0", "BF16"),
        ("PQ2_0", "F32", "Q2_0_g128"),
        ("Q8_0", "Q1_0", "F32"),
    ],
    ids="-".join,
)
def test_formats_may_be_mixed(graph, names):
    made = layer(graph, 512, 768, 1280, names)
    hidden, attn_out = activations(512), activations(768, 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


@pytest.mark.parametrize("inter", [1, 15, 17, 333])
def test_intermediate_sizes_that_fill_no_tile(graph, inter):
    made = layer(graph, 384, 128, inter, ("Q1_0", "TQ2_0_g128", "F32"))
    hidden, attn_out = activations(384), activations(128, 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


def test_hidden_sizes_that_fill_no_tile(graph):
    made = layer(graph, 77, 128, 256, ("Q1_0", "F32", "TQ2_0_g128"))
    hidden, attn_out = activations(77), activations(128, 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


@pytest.mark.large
def test_a_layer_of_the_4b_model_at_a_quarter(graph):
    made = layer(graph, 640, 1024, 2432, ("Q1_0", "Q1_0", "Q1_0"))
    hidden, attn_out = activations(640), activations(1024, 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1e-5, 0.5])
def test_eps_is_added_to_the_mean_square(graph, eps):
    made = layer(graph, 128, 128, 128, ("F32", "TQ2_0_g128", "Q1_0"))
    # A small state makes every eps count.
    hidden, attn_out = activations(128) * np.float32(1e-3), activations(128, 1) * np.float32(1e-4)
    y = run(graph, made, hidden, attn_out, eps=eps)
    assert relative_error(y, made.expected(hidden, attn_out, eps)) < TOLERANCE


@pytest.mark.parametrize("eps", [-1e-6, np.nan, np.inf])
def test_an_eps_that_is_no_small_number_is_refused(graph, eps):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden = activations(128)
    with pytest.raises(EncodingError, match="eps"):
        graph.encode_ffn_phase(hidden, hidden, made.norm, *made.handles, eps=eps)


def test_the_norm_weight_may_be_a_handle_or_an_array(graph):
    made = layer(graph, 256, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden, attn_out = activations(256), activations(128, 1)
    by_array = run(graph, made, hidden, attn_out)
    by_handle = run(graph, made, hidden, attn_out, norm=graph.upload_f32_weight(made.norm))
    cached = run(graph, made, hidden, attn_out, norm=graph.get_or_upload_f32_weight(1, made.norm))
    np.testing.assert_array_equal(by_array, by_handle)
    np.testing.assert_array_equal(by_array, cached)


@pytest.mark.parametrize("plain", [False, True], ids=["shaped", "plain"])
def test_only_the_hidden_vector_changes_in_longer_arrays(graph, plain):
    made = layer(graph, 256, 384, 128, ("Q1_0", "TQ2_0_g128", "Q2_0"), plain)
    # Without a shape in the handle, the length of attn_out is what names its k.
    hidden = activations(300)
    attn_out = activations(384 if plain else 500, 1)
    made = made._replace(norm=np.concatenate([made.norm, np.full(9, np.nan, np.float32)]))
    y = run(graph, made, hidden, attn_out, sizes=(256, 128))
    assert relative_error(y[:256], made.expected(hidden, attn_out, 1e-6)) < TOLERANCE
    np.testing.assert_array_equal(y[256:], hidden[256:])


def test_inputs_may_be_read_only_and_overlap_the_state(graph):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden = activations(128)
    frozen = hidden.copy()
    frozen.flags.writeable = False
    norm = made.norm.copy()
    norm.flags.writeable = False
    apart = run(graph, made, hidden, frozen, norm=norm)
    graph.encode_ffn_phase(hidden, hidden, norm, *made.handles)
    np.testing.assert_array_equal(hidden, apart)


def test_nan_in_the_state_reaches_the_result(graph):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden = activations(128)
    hidden[5] = np.nan
    assert np.isnan(run(graph, made, hidden, activations(128, 1))).all()


def test_the_same_input_gives_the_same_bits(graph):
    made = layer(graph, 256, 256, 512, ("Q1_0", "TQ2_0", "PTQ1_0"))
    hidden, attn_out = activations(256), activations(256, 1)
    first = run(graph, made, hidden, attn_out)
    for _ in range(3):
        np.testing.assert_array_equal(run(graph, made, hidden, attn_out), first)


@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    names=st.tuples(*[st.sampled_from(["Q1_0", "TQ2_0_g128", "Q2_0", "F16"])] * 3),
    seed=st.integers(0, 100),
)
def test_any_sizes_and_formats_match_the_definition(graph, sizes, names, seed):
    made = layer(graph, *(128 * n for n in sizes), names)
    hidden, attn_out = activations(made.hidden, seed), activations(made.attn, seed + 1)
    y = run(graph, made, hidden, attn_out)
    assert relative_error(y, made.expected(hidden, attn_out, 1e-6)) < TOLERANCE


# What does not fit is refused before anything has run


def bad_calls(graph):
    made = layer(graph, 256, 384, 128, ("Q1_0", "Q1_0", "Q1_0"))
    proj, gate_up, down = made.handles
    hidden, attn_out = activations(256), activations(384, 1)
    good = (hidden, attn_out, made.norm, proj, gate_up, down)
    other = upload(graph, random_weight("Q1_0", 256, 256))
    narrow = upload(graph, random_weight("Q1_0", 128, 384))
    vector = graph.upload_f32_weight(made.norm)

    def but(**changes):
        names = ("hidden", "attn_out", "norm_weight", "attn_proj", "gate_up", "down")
        return tuple((dict(zip(names, good, strict=True)) | changes).values())

    return {
        "hidden too short: need 256, got 255": (but(hidden=hidden[:255]), ()),
        "attn_out too short: need 384, got 383": (but(attn_out=attn_out[:383]), ()),
        "norm_weight too short: need 256, got 10": (but(norm_weight=made.norm[:10]), ()),
        "norm_weight must be a float32 vector": (but(norm_weight=other), ()),
        "attn_proj: the weight is 128 x 384, the call needs 256 x": (but(attn_proj=narrow), ()),
        "gate_up: the weight is 256 x 256, the call needs 512 x": (good, (256, 256)),
        "down: the weight is 256 x 256, the call needs 256 x 128": (but(down=other), (256, 128)),
        "attn_proj: the weight is 256 x 384, the call needs 128": (good, (128, 128)),
        "float32 vector of 256: upload a matrix": (but(gate_up=vector), ()),
        "hidden_size = 0 must lie in": (good, (0, 128)),
        "hidden_size = -1 must lie in": (good, (-1, 128)),
        "intermediate_size = 4294967424 must lie in": (good, (256, 128 + 2**32)),
    }


def test_what_does_not_fit_is_refused_and_changes_nothing(graph):
    for text, (arguments, sizes) in bad_calls(graph).items():
        hidden = arguments[0].copy()
        with pytest.raises(EncodingError, match=text):
            graph.encode_ffn_phase(hidden, *arguments[1:], *sizes)
        np.testing.assert_array_equal(hidden, arguments[0], err_msg=text)


def test_a_handle_without_shape_needs_the_sizes(graph):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"), plain=True)
    hidden = activations(128)
    with pytest.raises(EncodingError, match="give hidden_size and intermediate_size"):
        graph.encode_ffn_phase(hidden, hidden, made.norm, *made.handles)


def test_an_empty_norm_weight_is_refused(graph):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden = activations(128)
    with pytest.raises(BufferCreationError, match="empty"):
        graph.encode_ffn_phase(hidden, hidden, hidden[:0], *made.handles)


# The log


def test_the_timings_are_logged_every_36th_call(graph, caplog):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    hidden, norm = activations(128), graph.upload_f32_weight(made.norm)
    caplog.set_level(logging.DEBUG, logger="oxibonsai.metal")
    counts = []
    for _ in range(75):
        run(graph, made, hidden, hidden, norm=norm)
        counts.append(len(caplog.records))
    assert [len(list(calls)) for _, calls in itertools.groupby(counts)] == [35, 36, 4]
    stages = "acquire", "upload", "encode", "wait", "download"
    for record in caplog.records:
        assert record.name == "oxibonsai.metal"
        assert record.levelno == logging.DEBUG
        times = dict(re.findall(r"(\w+) (\d+\.\d) us", record.getMessage()))
        assert tuple(times) == stages
        # Recording four dispatches, and running them, take time that shows.
        assert float(times["encode"]) > 0
        assert float(times["wait"]) > 0


def test_nothing_is_logged_above_debug(graph, caplog):
    made = layer(graph, 128, 128, 128, ("Q1_0", "Q1_0", "Q1_0"))
    caplog.set_level(logging.INFO, logger="oxibonsai.metal")
    for _ in range(40):
        run(graph, made, activations(128), activations(128))
    assert not caplog.records


# encode_qkv_phase


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_the_fused_projection_is_one_product_of_the_stacked_rows(graph, name):
    k = 2 * block(name)
    q, k_rows, v = (random_weight(name, rows, k, seed=rows) for rows in (64, 32, 32))
    stacked = QTensor(np.concatenate([t.data for t in (q, k_rows, v)]), (128, k), name)
    x, y = activations(k), np.zeros(128, np.float32)
    with upload(graph, stacked) as handle:
        graph.encode_qkv_phase(x, y, handle)
    for part, rows in ((q, slice(0, 64)), (k_rows, slice(64, 96)), (v, slice(96, 128))):
        r = reference.gemv(dense(part), x)
        close_to(y[rows], r, reference.gemv_bound(dense(part), x, r))


def test_the_fused_projection_checks_lengths_and_shape(graph):
    handle = upload(graph, random_weight("Q1_0", 96, 256))
    x, y = activations(256), np.zeros(96, np.float32)
    with pytest.raises(EncodingError, match="input too short: need 256, got 255"):
        graph.encode_qkv_phase(x[:255], y, handle)
    with pytest.raises(EncodingError, match="output too short: need 96, got 95"):
        graph.encode_qkv_phase(x, y[:95], handle)
    with pytest.raises(EncodingError, match="the weight is 96 x 256, the call needs 96 x 128"):
        graph.encode_qkv_phase(x, y, handle, 96, 128)
    assert not y.any()
