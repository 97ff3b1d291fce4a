"""What an op takes beside qwen3's form: biases, heads without norms, and other rotations."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import activations, relative_error, same_non_finite
from hypothesis import given
from hypothesis import strategies as st
from op_runs import SENTINEL, Heads, rope_table, run, state

from oxibonsai import metal
from oxibonsai.metal import EncodingError

STYLES = ["neox", "interleaved"]
every_style = pytest.mark.parametrize("style", STYLES)
with_and_without_norm = pytest.mark.parametrize("has_norm", [False, True])


# Rotations


def norms(heads, has_norm):
    """Return the weights of the norms of q and k, or nothing."""
    if not has_norm:
        return ()
    return 1 + activations(heads.head_dim, 4) / 4, 1 + activations(heads.head_dim, 5) / 4


def rotate(device, heads, qkv, weights, rotary_dim, style, position=0, eps=1e-5):
    """Run qk_norm_rope on qkv [n_tokens, n_qkv, head_dim], with `weights` where there are any."""

    def record(c, b_qkv, b_rope, b_state, *b_norms):
        c.qk_norm_rope(
            b_qkv,
            *(b_norms or (None, None)),
            b_rope,
            b_state,
            n_tokens=len(qkv),
            eps=eps,
            rotary_dim=rotary_dim,
            rope_style=style,
            **heads.shape,
        )

    table = rope_table(heads.max_seq, rotary_dim or heads.head_dim)
    return run(device, record, qkv, table, state(position), *weights)[0]


def expected_heads(heads, qkv, weights, rotary_dim, style, position=0, eps=1e-5):
    """Return what qk_norm_rope leaves, by the definition; tokens past max_seq as they are."""
    result = qkv.astype(np.float64)
    n_q, n_qk = heads.n_heads, heads.n_heads + heads.n_kv_heads
    for t in range(min(len(qkv), heads.max_seq - position)):
        for i, part in enumerate((slice(n_q), slice(n_q, n_qk))):
            rows = reference.rmsnorm(qkv[t, part], weights[i], eps) if weights else qkv[t, part]
            result[t, part] = reference.rope(
                rows, position + t, 1e6, rotary_dim=rotary_dim, style=style
            )
    return result


def random_qkv(heads, n_tokens=1, seed=0):
    n = n_tokens * heads.n_qkv * heads.head_dim
    return activations(n, seed).reshape(n_tokens, heads.n_qkv, heads.head_dim)


def check_heads(heads, y, qkv, expected, rotary_dim, has_norm):
    """Compare with the definition, and exactly where a float has to stay as it is."""
    n_qk = heads.n_heads + heads.n_kv_heads
    assert relative_error(y[:, :n_qk], expected[:, :n_qk]) < 1e-6
    np.testing.assert_array_equal(y[:, n_qk:], qkv[:, n_qk:])
    if rotary_dim and not has_norm:
        np.testing.assert_array_equal(y[:, :, rotary_dim:], qkv[:, :, rotary_dim:])


@pytest.mark.parametrize(
    ("counts", "rotary_dim"),
    [
        ((1, 1, 2), 2),
        ((1, 1, 2), 0),
        ((1, 1, 4), 2),
        ((4, 2, 64), 2),
        ((4, 2, 64), 64),
        ((4, 2, 64), 0),
        ((5, 5, 30), 16),
        ((16, 8, 128), 64),
        ((2, 1, 130), 66),
        ((1, 1, 512), 510),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_tokens", [1, 5])
@every_style
@with_and_without_norm
def test_heads_match_the_definition(device, counts, rotary_dim, n_tokens, style, has_norm):
    heads = Heads(*counts, 41)
    qkv, weights = random_qkv(heads, n_tokens), norms(heads, has_norm)
    for position in (0, 38):  # of five tokens two have no place at the last one
        y = rotate(device, heads, qkv, weights, rotary_dim, style, position)
        expected = expected_heads(heads, qkv, weights, rotary_dim, style, position)
        check_heads(heads, y, qkv, expected, rotary_dim, has_norm)
        np.testing.assert_array_equal(y[41 - position :], qkv[41 - position :])


def test_the_styles_agree_on_the_elements_put_in_their_order(device):
    heads = Heads(2, 1, 64, 9)
    qkv = random_qkv(heads)
    neox = rotate(device, heads, qkv, (), 48, "neox", 7)
    order = np.arange(64)
    order[:48] = np.arange(48).reshape(2, 24).T.ravel()  # 0, 24, 1, 25, ...
    neighbours = rotate(device, heads, qkv[..., order], (), 48, "interleaved", 7)
    np.testing.assert_array_equal(neighbours[:, :3], neox[:, :3, order])


@every_style
@pytest.mark.parametrize("rotary_dim", [2, 8])
def test_without_a_norm_odd_floats_follow_ieee_in_their_own_head(device, style, rotary_dim):
    heads = Heads(8, 1, 8, 4)
    odd = np.array([0.0, -0.0, 1e-45, -1e-40, np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    qkv = random_qkv(heads)
    for shift in range(8):
        qkv[0, shift] = np.roll(odd, shift)
    y = rotate(device, heads, qkv, (), rotary_dim, style, 2)
    with np.errstate(over="ignore"):
        expected = expected_heads(heads, qkv, (), rotary_dim, style, 2).astype(np.float32)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=3e-45)
    assert np.isfinite(y[0, 8:]).all()


@every_style
@with_and_without_norm
def test_heads_of_zeros_stay_zero(device, style, has_norm):
    heads = Heads(2, 2, 16, 4)
    qkv = np.zeros((3, heads.n_qkv, 16), np.float32)
    assert (rotate(device, heads, qkv, norms(heads, has_norm), 6, style, 1) == 0).all()


@every_style
@pytest.mark.parametrize("place", [0, 3, 5, 6, 15])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_norm_takes_in_the_elements_that_are_not_rotated(device, style, place, value):
    # An infinite mean square makes the others 0, and NaN everything NaN.
    heads = Heads(1, 1, 16, 4)
    qkv, weights = random_qkv(heads), norms(heads, True)
    qkv[0, 0, place] = value
    y = rotate(device, heads, qkv, weights, 6, style, 1)
    expected = expected_heads(heads, qkv, weights, 6, style, 1)
    finite = same_non_finite(y[0, 0], expected[0, 0])
    np.testing.assert_array_equal(y[0, 0][finite], expected[0, 0][finite])
    assert relative_error(y[0, 1], expected[0, 1]) < 1e-6


@every_style
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_of_numbers_whose_squares_leave_the_range(device, style, size):
    heads = Heads(1, 1, 68, 4)
    for place in (0, 1, 15, 29, 66, 67):
        qkv, weights = random_qkv(heads) * np.float32(size), norms(heads, True)
        qkv[:, :2, place] *= 100
        y = rotate(device, heads, qkv, weights, 30, style, 3, eps=0.0)
        expected = expected_heads(heads, qkv, weights, 30, style, 3, eps=0.0)
        for head in range(2):
            assert relative_error(y[0, head], expected[0, head]) < 1e-6


@given(
    kv=st.integers(1, 3),
    per=st.integers(1, 4),
    pairs=st.integers(1, 40),
    rest=st.integers(0, 40),
    n_tokens=st.integers(1, 4),
    position=st.integers(0, 6),
    style=st.sampled_from(STYLES),
    has_norm=st.booleans(),
)
def test_heads_of_any_shape_and_options(
    device, kv, per, pairs, rest, n_tokens, position, style, has_norm
):
    heads = Heads(kv * per, kv, 2 * (pairs + rest), 6)
    qkv, weights = random_qkv(heads, n_tokens, position), norms(heads, has_norm)
    y = rotate(device, heads, qkv, weights, 2 * pairs, style, position)
    expected = expected_heads(heads, qkv, weights, 2 * pairs, style, position)
    check_heads(heads, y, qkv, expected, 2 * pairs, has_norm)


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("rotary_dim", [2, 20, 30])
@pytest.mark.parametrize("n_tokens", [1, 4])
@every_style
@with_and_without_norm
def test_qkv_to_cache_is_rope_and_store(device, kv_dtype, rotary_dim, n_tokens, style, has_norm):
    heads = Heads(6, 3, 30, 7, 1, kv_dtype)
    qkv, weights = random_qkv(heads, n_tokens), norms(heads, has_norm)
    turned = rotate(device, heads, qkv, weights, rotary_dim, style, 5)
    before = [heads.cache(2), heads.cache(2, fill=-SENTINEL)]

    def record(c, b_qkv, b_rope, b_k, b_v, b_state, *b_norms):
        c.qkv_to_cache(
            b_qkv,
            *(b_norms or (None, None)),
            b_rope,
            b_k,
            b_v,
            b_state,
            n_tokens=n_tokens,
            eps=1e-5,
            rotary_dim=rotary_dim,
            rope_style=style,
            **heads.shape,
        )

    after = run(device, record, qkv, rope_table(7, rotary_dim), *before, state(5), *weights)
    np.testing.assert_array_equal(after[0][:, :6], turned[:, :6])
    for t in range(min(n_tokens, 2)):  # the others have no place
        for cache, part in zip(before, (slice(6, 9), slice(9, 12)), strict=True):
            cache[1, :, 5 + t] = turned[t, part].astype(cache.dtype)
    np.testing.assert_array_equal(after[2], before[0])
    np.testing.assert_array_equal(after[3], before[1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rotary_dim": 3}, r"rotary_dim = 3 must be even and lie in 2\.\.64, the head_dim; 0"),
        ({"rotary_dim": 66}, r"rotary_dim = 66 must be even and lie in 2\.\.64"),
        ({"rotary_dim": 2**32 - 2}, r"rotary_dim = 4294967294 must be even and lie in 2\.\.64"),
        ({"rotary_dim": -2}, "rotary_dim = -2 must fit 32 bits"),
        ({"rotary_dim": 2**32}, "rotary_dim = 4294967296 must fit 32 bits"),
        ({"rope_style": "gptj"}, "rope_style = 'gptj' must be 'neox' or 'interleaved'"),
        ({"rope_style": None}, "rope_style = None must be 'neox' or 'interleaved'"),
        ({"rope_style": []}, r"rope_style = \[\] must be 'neox' or 'interleaved'"),
        ({"q_norm": None}, "k_norm without q_norm: give both norms, or None for both"),
        ({"k_norm": None}, "q_norm without k_norm: give both norms, or None for both"),
        ({"eps": -1.0}, "eps = -1 must be finite and not negative"),
        ({"max_seq": 11}, "rope too short: need 2816 bytes, got 2560"),
        ({"max_seq": 21, "rotary_dim": 32}, "rope too short: need 2688 bytes, got 2560"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(device, options, text):
    heads = Heads(4, 2, 64, 10)
    with (
        device.buffer(8 * 64 * 4) as qkv,
        device.buffer(10 * 64 * 4) as rope,
        device.buffer(30 * 2 * 64 * 4) as cache,
        device.buffer(64 * 4) as small,
        device.commands() as c,
    ):
        calls = {
            c.qk_norm_rope: {"qkv": qkv, "rope": rope, "state": small},
            c.qkv_to_cache: {"qkv": qkv, "rope": rope, "state": small}
            | {"k_cache": cache, "v_cache": cache},
            c.qkv_attention: {"qkv": qkv, "rope": rope, "state": small, "out": device.buffer(1024)}
            | {"k_cache": cache, "v_cache": cache},
        }
        for call, operands in calls.items():
            given_norms = {"q_norm": small, "k_norm": small}
            with pytest.raises(EncodingError, match=text):
                call(**(operands | given_norms | heads.shape | options))
            assert len(c) == 0


def test_a_table_of_fewer_columns_serves_a_smaller_rotation(device):
    shape = Heads(4, 2, 64, 10).shape
    with device.buffer(8 * 64 * 4) as qkv, device.buffer(16) as s, device.commands() as c:
        with device.buffer(10 * 16 * 4) as rope:
            c.qk_norm_rope(qkv, None, None, rope, s, rotary_dim=16, **shape)
            assert len(c) == 1
            with pytest.raises(EncodingError, match="rope too short: need 720 bytes, got 640"):
                c.qk_norm_rope(qkv, None, None, rope, s, rotary_dim=18, **shape)
        assert len(c) == 1


def test_only_norms_may_be_left_out(device):
    shape = Heads(4, 2, 64, 10).shape
    with device.buffer(4096) as b, device.commands() as c:
        with pytest.raises(TypeError, match="rope must be a Buffer"):
            c.qk_norm_rope(b, None, None, None, b, **shape)
        with pytest.raises(TypeError, match="k_cache must be a Buffer"):
            c.qkv_to_cache(b, None, None, b, None, b, b, **shape)
        assert len(c) == 0


# Biases


def add_bias(device, bias, y, n, **options):
    return run(device, lambda c, *b: c.add_bias(*b, n, **options), bias, y)[1]


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 4096, 4097, 10000])
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_add_bias_rounds_the_exact_sum(device, n, n_vectors):
    bias, y = activations(n), activations(n * n_vectors + 5, 1)
    after = add_bias(device, bias, y, n, n_vectors=n_vectors)
    rows = y[: n * n_vectors].reshape(n_vectors, n)
    expected = reference.add_bias(rows, bias).astype(np.float32)
    np.testing.assert_array_equal(after[: n * n_vectors], expected.ravel())
    np.testing.assert_array_equal(after[n * n_vectors :], y[n * n_vectors :])


def test_add_bias_of_odd_floats_follows_ieee(device):
    odd = np.array(
        [0.0, -0.0, 1e-45, -1e-45, -1e-40, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1.0],
        np.float32,
    )
    bias, y = (a.ravel() for a in np.meshgrid(odd, odd))
    with np.errstate(over="ignore"):
        expected = reference.add_bias(y, bias).astype(np.float32)
    after = add_bias(device, bias, y, len(y))
    np.testing.assert_array_equal(after, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(after[number]), np.signbit(expected[number]))


@given(
    n=st.integers(1, 3000),
    n_vectors=st.integers(1, 5),
    gap=st.integers(0, 9),
    offset=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_add_bias_to_rows_that_lie_apart(device, n, n_vectors, gap, offset, seed):
    stride = n + gap
    bias, y = activations(n, seed), activations(offset + n_vectors * stride, seed + 1)
    after = run(
        device,
        lambda c, bb, by: c.add_bias(bb, (by, 4 * offset), n, n_vectors, y_stride=stride),
        bias,
        y,
    )[1]
    expected = y.copy()
    rows = expected[offset:].reshape(n_vectors, stride)[:, :n]
    rows[:] = reference.add_bias(rows, bias)
    np.testing.assert_array_equal(after, expected)


def test_add_bias_takes_a_weight_handle_and_an_end_without_a_gap(device, graph):
    bias, y = activations(6), activations(16, 1)  # rows of 6, 10 apart: 16 floats are enough
    with graph.upload_f32_weight(bias) as handle:
        after = run(device, lambda c, b: c.add_bias(handle, b, 6, 2, y_stride=10), y)[0]
    expected = y.copy()
    expected[:6] += bias
    expected[10:] += bias
    np.testing.assert_array_equal(after, expected)


def test_biases_that_do_not_fit_are_refused(device):
    frozen = np.zeros(64, np.float32)
    frozen.flags.writeable = False
    with (
        device.buffer(24) as bias,
        device.buffer(64) as y,
        metal.Buffer.from_data(device, frozen) as copied,
        device.commands() as c,
    ):
        for call, text in (
            (lambda: c.add_bias(bias, y, 0), r"n = 0 must lie in 1\.\."),
            (lambda: c.add_bias(bias, y, 2**31), r"n = 2147483648 must lie in 1\.\."),
            (lambda: c.add_bias(bias, y, 6, 0), r"n_vectors = 0 must lie in 1\.\."),
            (lambda: c.add_bias(bias, y, 6, 2**31), r"n_vectors = 2147483648 must lie in 1\.\."),
            (lambda: c.add_bias(bias, y, 7), "bias too short: need 28 bytes, got 24"),
            (lambda: c.add_bias(bias, y, 6, 3), "output too short: need 72 bytes, got 64"),
            (lambda: c.add_bias(bias, (y, 44), 6), "output too short: need 24 bytes, got 20"),
            (lambda: c.add_bias(bias, y, 6, 2, y_stride=5), r"y_stride = 5 must lie in 6\.\."),
            (lambda: c.add_bias(bias, y, 6, 2, y_stride=11), "output too short: need 68 bytes"),
            (lambda: c.add_bias(bias, (y, 2), 6), "offsets must be multiples of 4"),
            (lambda: c.add_bias(y, (y, 20), 6), "bias and output overlap"),
            (lambda: c.add_bias(copied, copied, 6), "bias and output overlap"),
        ):
            with pytest.raises(EncodingError, match=text):
                call()
            assert len(c) == 0
        with (
            metal.Buffer.from_data(device, frozen, copy=False) as wrapped,
            pytest.raises(EncodingError, match=r"output.*, a buffer over read-only memory"),
        ):
            c.add_bias(bias, wrapped, 6)
        assert len(c) == 0
        c.add_bias((y, 24), y, 6)
        assert len(c) == 1
