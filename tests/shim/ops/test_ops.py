"""The single operations that Commands records, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import (
    ALL_FORMATS,
    activations,
    block,
    close_to,
    contents,
    dense,
    random_weight,
    relative_error,
    set_scales,
    swiglu_with_bound,
    upload,
)
from hypothesis import given
from hypothesis import strategies as st
from op_runs import SENTINEL, Heads, qk_norm_rope, random_heads, run, state

from oxibonsai import formats, metal, quant
from oxibonsai.metal import EncodingError

# RMSNorm


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 2560, 4097])
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_rmsnorm_matches_the_definition(device, n, n_vectors):
    x = activations(n * n_vectors).reshape(n_vectors, n) * np.float32(3)
    weight = activations(n, 1)
    out = np.full((n_vectors + 1, n), SENTINEL)
    y = run(device, lambda c, *b: c.rmsnorm(*b, n, n_vectors=n_vectors), x, weight, out)[2]
    expected = reference.rmsnorm(x, weight, 1e-6)
    np.testing.assert_allclose(y[:-1], expected, rtol=1e-6)
    assert (y[-1] == SENTINEL).all()


@pytest.mark.parametrize("n_vectors", [1, 4])
def test_rmsnorm_in_place(device, n_vectors):
    x, weight = activations(100 * n_vectors).reshape(n_vectors, 100), activations(100, 1)
    y = run(device, lambda c, bx, bw: c.rmsnorm(bx, bw, bx, 100, n_vectors=n_vectors), x, weight)
    np.testing.assert_allclose(y[0], reference.rmsnorm(x, weight, 1e-6), rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.25])
def test_rmsnorm_adds_eps_to_the_mean_square(device, eps):
    x, weight = activations(64) * np.float32(1e-3), np.ones(64, np.float32)
    y = run(device, lambda c, *b: c.rmsnorm(*b, 64, eps=eps), x, weight, np.zeros_like(x))[2]
    np.testing.assert_allclose(y, reference.rmsnorm(x, weight, eps), rtol=1e-6)


def test_rmsnorm_of_large_values_does_not_overflow(device):
    x, weight = activations(64) * np.float32(1e18), np.ones(64, np.float32)
    y = run(device, lambda c, *b: c.rmsnorm(*b, 64), x, weight, np.zeros_like(x))[2]
    np.testing.assert_allclose(y, reference.rmsnorm(x, weight, 1e-6), rtol=1e-6)


def test_rmsnorm_of_zeros_is_zero_and_of_nan_is_nan(device):
    x = np.zeros((2, 32), np.float32)
    x[1, 3] = np.nan
    ones = np.ones(32, np.float32)
    y = run(device, lambda c, *b: c.rmsnorm(*b, 32, n_vectors=2), x, ones, np.ones_like(x))[2]
    assert (y[0] == 0).all()
    assert np.isnan(y[1]).all()


def test_rmsnorm_takes_a_weight_handle(device, graph):
    x, weight = activations(96), activations(96, 1)
    with graph.upload_f32_weight(weight) as handle:
        y = run(device, lambda c, bx, by: c.rmsnorm(bx, handle, by, 96), x, np.zeros_like(x))[1]
    np.testing.assert_allclose(y, reference.rmsnorm(x, weight, 1e-6), rtol=1e-6)


@pytest.mark.parametrize("eps", [-1e-6, np.nan, np.inf])
def test_a_wrong_eps_is_refused(device, eps):
    with device.buffer(512) as b, device.commands() as commands:
        with pytest.raises(EncodingError, match="eps"):
            commands.rmsnorm(b, b, b, 8, eps=eps)
        with pytest.raises(EncodingError, match="eps"):
            commands.qk_norm_rope(
                *[(b, 64 * i) for i in range(5)], eps=eps,
                n_heads=1, n_kv_heads=1, head_dim=2, max_seq=1, layer=0, kv_dtype="f32",
            )  # fmt: skip
        assert len(commands) == 0


# Addition and SwiGLU


@pytest.mark.parametrize("n", [1, 3, 4095, 4096, 4097, 10000])
def test_add_is_exact(device, n):
    x, y = activations(n), activations(n + 5, 1)
    result = run(device, lambda c, bx, by: c.add(bx, by, n), x, y)[1]
    np.testing.assert_array_equal(result[:n], x + y[:n])
    np.testing.assert_array_equal(result[n:], y[n:])


def test_add_of_a_buffer_to_itself_doubles_it(device):
    x = activations(50)
    (y,) = run(device, lambda c, b: c.add(b, b, 50), x)
    np.testing.assert_array_equal(y, x + x)


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize("half", [1, 17, 100])
def test_gate_up_swiglu_matches_the_definition(device, graph, name, half):
    k = 2 * block(name)
    q, x = random_weight(name, 2 * half, k), activations(k) / np.float32(8)
    with upload(graph, q) as handle:
        out = np.full(half + 3, SENTINEL)
        y = run(device, lambda c, bx, by: c.gate_up_swiglu(handle, bx, by), x, out)[1]
    close_to(y[:half], *swiglu_with_bound(dense(q), x))
    assert (y[half:] == SENTINEL).all()


@pytest.mark.parametrize("size", [30, 90, 200, 1e4])
def test_swiglu_of_large_gates_is_their_limit(device, graph, size):
    # Gates of -size and +size, ups of 1: zero from above the range of exp, and the gate itself.
    w = np.array([[-1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    x = np.array([size, 1], np.float32)
    with graph.upload_weight_soa(quant.quantize(w, "F32")) as handle:
        y = run(
            device, lambda c, bx, by: c.gate_up_swiglu(handle, bx, by), x, np.zeros(2, np.float32)
        )[1]
    expected = reference.swiglu_gate_up(w.astype(np.float64), x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-37)


def test_swiglu_needs_an_even_number_of_rows(device, graph):
    with (
        upload(graph, random_weight("Q1_0", 3, 128)) as handle,
        device.buffer(512) as x,
        device.buffer(512) as y,
        device.commands() as commands,
        pytest.raises(EncodingError, match="3 rows: gate and up need an even number"),
    ):
        commands.gate_up_swiglu(handle, x, y)


# Embedding rows


def embed(device, handle, tokens, position, k):
    tokens = np.asarray(tokens, np.uint32)
    out = np.full(k + 4, SENTINEL)
    after = run(device, lambda c, *b: c.embed(handle, *b), tokens, state(position), out)
    np.testing.assert_array_equal(after[0], tokens)
    np.testing.assert_array_equal(after[1], state(position))
    assert (after[2][k:] == SENTINEL).all()
    return after[2][:k]


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_embed_gives_exactly_the_dequantised_row(device, graph, name):
    k = 2 * block(name)
    q = random_weight(name, 9, k)
    rows = quant.dequantize(q)
    np.testing.assert_array_equal(rows, dense(q))
    with upload(graph, q) as handle:
        for position, token in enumerate([0, 8, 3]):
            y = embed(device, handle, [0, 8, 3], position, k)
            np.testing.assert_array_equal(y.view(np.uint32), rows[token].view(np.uint32))


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q2_0", "Q8_0"])
@pytest.mark.parametrize("scale", [np.inf, np.nan, 2.0**-24, -0.0])
def test_embed_follows_ieee_for_odd_scales(device, graph, name, scale):
    k = block(name)
    q = set_scales(random_weight(name, 2, k), scale)
    with upload(graph, q) as handle:
        np.testing.assert_array_equal(embed(device, handle, [1], 0, k), dense(q)[1])


@pytest.mark.parametrize(
    ("tokens", "position"),
    [([0, 9], 1), ([0, 2**32 - 1], 1), ([0, 1], 2), ([0, 1], 2**31), ([0, 1], 2**32 - 1)],
)
def test_embed_of_what_is_not_there_is_nan(device, graph, tokens, position):
    with upload(graph, random_weight("Q1_0", 9, 128)) as handle:
        assert np.isnan(embed(device, handle, tokens, position, 128)).all()


# Heads


HEADS = [(4, 2, 64), (16, 8, 128), (32, 8, 128), (24, 4, 256), (3, 1, 2), (5, 5, 30), (1, 1, 512)]


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("position", [0, 1, 39])
def test_qk_norm_rope_matches_the_definition(device, n_heads, n_kv_heads, head_dim, position):
    heads = Heads(n_heads, n_kv_heads, head_dim, 40)
    qkv = activations(heads.n_qkv * head_dim).reshape(-1, head_dim) * np.float32(2)
    y, q_norm, k_norm = qk_norm_rope(device, heads, position, qkv)
    q, k = np.split(y[: n_heads + n_kv_heads], [n_heads])
    for got, rows, norm in (
        (q, qkv[:n_heads], q_norm),
        (k, qkv[n_heads : n_heads + n_kv_heads], k_norm),
    ):
        expected = reference.rope_neox(reference.rmsnorm(rows, norm, 1e-5), position, 1e6)
        assert relative_error(got, expected) < 1e-6
    np.testing.assert_array_equal(y[n_heads + n_kv_heads :], qkv[n_heads + n_kv_heads :])


@pytest.mark.parametrize("position", [10, 11, 2**31, 2**32 - 1])
@pytest.mark.parametrize("rope_rows", [10, 16])
def test_qk_norm_rope_past_the_last_position_does_nothing(device, position, rope_rows):
    # oxb_args.h: past max_seq the kernel does nothing, however long the table is.
    heads = Heads(4, 2, 64, 10)
    qkv = activations(8 * 64).reshape(8, 64)
    y = qk_norm_rope(device, heads, position, qkv, rope_rows)[0]
    np.testing.assert_array_equal(y, qkv)


def kv_store(device, heads, position, qkv, layers=2):
    caches = [heads.cache(layers), heads.cache(layers, fill=-SENTINEL)]
    after = run(
        device,
        lambda c, bq, bk, bv, bs: c.kv_store(bq, bk, bv, bs, **heads.shape),
        qkv,
        *caches,
        state(position),
    )
    return caches, after[1:3]


def half_cases():
    """Return float32 numbers around every rounding case of a half."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    near = np.nextafter(middles.astype(np.float32), np.float32(np.inf))
    below = np.nextafter(middles.astype(np.float32), np.float32(0))
    odd = [65504, 65519.99, 65520, 65536, 1e10, 3.4e38, np.inf, np.nan, 1e-8, 2.0**-25, 1e-45, 0]
    x = np.concatenate([halves, middles, near, below, odd]).astype(np.float32)
    return np.concatenate([x, -x])


def test_half_caches_round_like_ieee(device):
    x = half_cases()
    rows = -(-len(x) // 4096)
    x = np.resize(x, (rows, 8, 512))
    heads = Heads(8, 8, 512, 1, kv_dtype="f16")
    for values in x:
        qkv = np.concatenate([np.zeros((8, 512), np.float32), values, -values])
        _, (k, v) = kv_store(device, heads, 0, qkv, layers=1)
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16)
        for got, want in ((k[0, :, 0], expected), (v[0, :, 0], -expected)):
            number = ~np.isnan(want)
            np.testing.assert_array_equal(got.view(np.uint16)[number], want.view(np.uint16)[number])
            assert np.isnan(got[~number]).all()


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize(("position", "layer"), [(0, 0), (6, 1), (3, 2)])
def test_kv_store_writes_its_layer_and_position_only(device, kv_dtype, position, layer):
    heads = Heads(4, 2, 64, 7, layer, kv_dtype)
    qkv = activations(heads.n_qkv * 64).reshape(-1, 64)
    before, after = kv_store(device, heads, position, qkv, layers=3)
    for cache, rows in zip(before, (qkv[4:6], qkv[6:8]), strict=True):
        cache[layer, :, position] = rows.astype(cache.dtype)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("position", [7, 8, 2**31, 2**32 - 1])
def test_kv_store_past_max_seq_writes_nothing(device, kv_dtype, position):
    # The position is inside the next layer's cache, or far outside.
    heads = Heads(4, 2, 64, 7, 0, kv_dtype)
    before, after = kv_store(device, heads, position, activations(8 * 64).reshape(8, 64))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def attend(device, heads, length, q, k, v, scale=None, max_length=None):
    """Run attention over k and v [length, n_kv_heads, head_dim] put into a cache."""
    k_cache, v_cache = heads.cache(heads.layer + 2, np.nan), heads.cache(heads.layer + 2, np.nan)
    k_cache[heads.layer, :, :length] = k.transpose(1, 0, 2)
    v_cache[heads.layer, :, :length] = v.transpose(1, 0, 2)
    rest = np.full((2 * heads.n_kv_heads, heads.head_dim), np.nan, np.float32)
    out = np.full((heads.n_heads + 1, heads.head_dim), SENTINEL)
    y = run(
        device,
        lambda c, *b: c.attention(*b, scale=scale, max_length=max_length, **heads.shape),
        np.concatenate([q, rest]),
        k_cache,
        v_cache,
        state(length - 1),
        out,
    )[4]
    assert (y[-1] == SENTINEL).all()
    return y[:-1]


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    "counts", [(4, 2, 64), (16, 8, 128), (32, 8, 128), (6, 1, 64), (24, 4, 256)], ids=str
)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 127, 128, 129])
def test_attention_matches_the_definition(device, kv_dtype, counts, length):
    heads = Heads(*counts, 130, 1, kv_dtype)
    q, k, v = random_heads(heads, length)
    y = attend(device, heads, length, q, k, v)
    assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("length", [1, 511, 512, 513, 1024, 1025])
def test_bits_of_attention_on_the_cpu_do_not_depend_on_the_recorded_length(kv_dtype, length):
    heads = Heads(6, 2, 30, 2100, 1, kv_dtype)
    q, k, v = random_heads(heads, length)
    k[:, 0] *= 40  # some weights are 0
    with metal.Device("cpu") as device:
        lengths = (length, 1100, 1600, 2100)
        found = [attend(device, heads, length, q, k, v, max_length=n) for n in lengths]
    assert relative_error(found[0], reference.attention(q[None], k, v)[0]) < 1e-5
    for y in found[1:]:
        np.testing.assert_array_equal(y.view(np.uint32), found[0].view(np.uint32))


@pytest.mark.parametrize("head_dim", [2, 30, 80, 256, 512])
def test_attention_of_other_head_sizes(device, head_dim):
    heads = Heads(4, 2, head_dim, 70)
    q, k, v = random_heads(heads, 70)
    y = attend(device, heads, 70, q, k, v)
    assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("size", [6, 30, 200])
def test_attention_of_large_scores_neither_overflows_nor_loses_the_maximum(device, kv_dtype, size):
    heads = Heads(4, 2, 128, 140, 0, kv_dtype)
    q, k, v = random_heads(heads, 140, size=size)
    scores = np.abs(np.einsum("hd,nhd->hn", q.astype(float), k.repeat(2, axis=1))) / 128**0.5
    y = attend(device, heads, 140, q, k, v)
    # A score's own rounding in float32 shows in its weight.
    assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6 + 2.0**-22 * scores.max()


def test_attention_of_equal_scores_is_the_mean(device):
    heads = Heads(2, 1, 64, 129)
    _, k, v = random_heads(heads, 129)
    y = attend(device, heads, 129, np.zeros((2, 64), np.float32), k, v)
    np.testing.assert_allclose(y, np.repeat(v.mean(0, dtype=float), 2, axis=0), atol=1e-6)


def test_attention_uses_the_scale_it_is_given(device):
    heads = Heads(2, 1, 64, 40)
    q, k, v = random_heads(heads, 40)
    y = attend(device, heads, 40, q, k, v, scale=0.02)
    expected = reference.attention(q[None] * 0.02 * 8, k, v)[0]
    assert relative_error(y, expected) < 1e-6


def test_nan_in_a_key_reaches_the_heads_that_read_it_and_no_others(device):
    heads = Heads(4, 2, 64, 40)
    q, k, v = random_heads(heads, 40)
    k[20, 1, 3] = np.nan
    y = attend(device, heads, 40, q, k, v)
    assert np.isfinite(y[:2]).all()
    assert np.isnan(y[2:]).all()


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("position", [40, 41, 2**31, 2**32 - 1])
def test_attention_past_max_seq_is_nan(device, kv_dtype, position):
    heads = Heads(4, 2, 64, 40, 0, kv_dtype)
    out = np.full((5, 64), SENTINEL)
    arrays = activations(8 * 64), heads.cache(2, 1), heads.cache(2, 1), state(position), out
    y = run(device, lambda c, *b: c.attention(*b, **heads.shape), *arrays)[4]
    assert np.isnan(y[:4]).all()
    assert (y[4] == SENTINEL).all()


@given(
    length=st.integers(1, 90), kv=st.integers(1, 3), per=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_attention_of_any_shape(device, length, kv, per, seed):
    heads = Heads(kv * per, kv, 32, 90, kv_dtype=("f16", "f32")[seed % 2])
    q, k, v = random_heads(heads, length, seed)
    y = attend(device, heads, length, q, k, v)
    assert relative_error(y, reference.attention(q[None], k, v)[0]) < 1e-6


# Advance


def advance(device, logits, tokens, position, max_tokens=None, greedy=True):
    tokens = np.asarray(tokens, np.uint32)
    logits = np.asarray(logits, np.float32)
    n = len(tokens) if max_tokens is None else max_tokens
    after = run(
        device,
        lambda c, bl, bt, bs: c.advance(bl, bt, bs, len(logits), n, greedy=greedy),
        logits,
        tokens,
        state(position),
    )
    np.testing.assert_array_equal(after[2][1:], state(0)[1:])
    return after[1].tolist(), int(after[2][0])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000, 151936])
def test_advance_takes_the_largest_logit(device, n):
    logits = activations(n)
    for index in {0, n // 2, n - 1}:
        logits[index] = 100
        assert advance(device, logits, [7, 7, 7], 0) == ([7, index, 7], 1)
        logits[index] = -100


@pytest.mark.parametrize("at", [(3, 4), (0, 999), (15, 16, 17), (31, 500), (998, 999)])
def test_of_equal_logits_the_lowest_index_wins(device, at):
    logits = -np.abs(activations(1000))
    logits[list(at)] = 2.5
    assert advance(device, logits, [0, 0], 0)[0][1] == at[0]


def test_zeros_of_both_signs_are_equal(device):
    assert advance(device, [-1, -0.0, 0.0], [9, 9], 0)[0][1] == 1


def test_negative_and_infinite_logits(device):
    assert advance(device, [-5, -3, -4], [9, 9], 0)[0][1] == 1
    assert advance(device, [-np.inf, -3e38, -np.inf], [9, 9], 0)[0][1] == 1
    assert advance(device, [1, np.inf, 2, np.inf], [9, 9], 0)[0][1] == 1
    assert advance(device, [-np.inf] * 40, [9, 9], 0)[0][1] == 0


@pytest.mark.parametrize("n", [20, 300])
def test_nan_logits_are_passed_over(device, n):
    logits = activations(n)
    logits[[0, 5, n - 1]] = np.nan
    logits[11] = 50
    assert advance(device, logits, [9, 9], 0)[0][1] == 11
    assert advance(device, [np.nan] * n, [9, 9], 0)[0][1] == 0


def test_without_greedy_the_tokens_stay(device):
    assert advance(device, [1, 5, 2], [7, 8, 9], 1, greedy=False) == ([7, 8, 9], 2)


@pytest.mark.parametrize("max_tokens", [3, 2])
def test_past_the_last_token_nothing_is_written(device, max_tokens):
    # The buffer is longer than max_tokens: what lies behind belongs to somebody else.
    tokens, position = advance(device, [1, 5, 2], [7, 8, 9, 10], max_tokens - 1, max_tokens)
    assert tokens == [7, 8, 9, 10]
    assert position == max_tokens


@pytest.mark.parametrize("position", [2**31, 2**32 - 2])
def test_a_position_far_outside_writes_nothing(device, position):
    assert advance(device, [1, 5], [7, 8, 9], position) == ([7, 8, 9], position + 1)


# A step of several operations, and what is refused


def test_each_operation_sees_what_the_ones_before_it_wrote(device, graph):
    # Embed, normalise, project, choose: a model without layers, three tokens in one recording.
    vocab, k = 64, 128
    table, head = random_weight("TQ2_0_g128", vocab, k), random_weight("Q1_0", vocab, k, seed=1)
    norm = 1 + activations(k, 2) / 4
    expected = [5]
    for _ in range(3):
        h = reference.rmsnorm(dense(table)[expected[-1]], norm, 1e-6)
        expected.append(int(np.argmax(dense(head) @ h)))
    tokens = np.array([5, 0, 0, 0], np.uint32)
    with (
        device.upload(tokens) as bt,
        device.upload(state(0)) as bs,
        device.buffer(4 * k) as h,
        device.buffer(4 * vocab) as logits,
        device.commands() as c,
    ):
        c.embed(upload(graph, table), bt, bs, h)
        c.rmsnorm(h, graph.upload_f32_weight(norm), h, k)
        c.gemv(upload(graph, head), h, logits)
        c.advance(logits, bt, bs, vocab, 4)
        c.replay(3)
        assert contents(bt, np.uint32).tolist() == expected


def attention_calls(c, b, shape):
    return {
        "qk_norm_rope": lambda: c.qk_norm_rope(*b[:5], **shape),
        "kv_store": lambda: c.kv_store(*b[:4], **shape),
        "attention": lambda: c.attention(*b[:5], **shape),
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_heads": 0}, "n_heads = 0 must lie in"),
        ({"n_kv_heads": 0}, "n_kv_heads = 0 must lie in"),
        ({"n_heads": 5}, "5 query heads do not divide among 2 key-value heads"),
        ({"head_dim": 0}, "head_dim = 0 must lie in"),
        ({"head_dim": 63}, "head_dim = 63 must be even"),
        ({"head_dim": 514}, r"head_dim = 514 must lie in 1\.\.512"),
        ({"max_seq": 0}, "max_seq = 0 must lie in"),
        ({"max_seq": 2**32}, "must fit 32 bits"),
        ({"layer": 2**32 - 1}, "layer"),
        ({"layer": -1}, "must fit 32 bits"),
        ({"max_seq": 4096}, "too short: need"),
    ],
)
def test_shapes_of_heads_that_cannot_be_are_refused(device, change, text):
    shape = Heads(4, 2, 64, 10).shape | change
    with device.commands() as c:
        buffers = [device.buffer(8 * 64 * 4 * 10) for _ in range(5)]
        for name, call in attention_calls(c, buffers, shape).items():
            with pytest.raises(EncodingError, match=text):
                call()
            assert len(c) == 0, name


@pytest.mark.parametrize("layer", [0, 1])
def test_a_cache_shorter_than_its_layers_is_refused(device, layer):
    heads = Heads(4, 2, 64, 10, layer, "f16")
    need = (layer + 1) * 2 * 10 * 64 * 2
    with device.commands() as c, device.buffer(8 * 64 * 4) as qkv, device.buffer(16) as s:
        short, right, out = device.buffer(need - 1), device.buffer(need), device.buffer(4 * 64 * 4)
        for caches in ((short, right), (right, short)):
            with pytest.raises(EncodingError, match=f"cache too short: need {need} bytes, got"):
                c.kv_store(qkv, *caches, s, **heads.shape)
            with pytest.raises(EncodingError, match=f"cache too short: need {need} bytes, got"):
                c.attention(qkv, *caches, s, out, **heads.shape)
        c.attention(qkv, right, right, s, out, **heads.shape)
        assert len(c) == 1


def test_buffers_shorter_than_an_operation_needs_are_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 6, 128))
    with device.commands() as c:
        b = {n: device.buffer(n) for n in (12, 15, 16, 20, 23, 24, 508, 511, 512)}
        wrong = [
            lambda: c.gemv(handle, b[511], b[24]),
            lambda: c.gemv(handle, b[512], b[23]),
            lambda: c.gemv(handle, (b[512], 4), b[24]),
            lambda: c.gemv(handle, b[512], (b[24], 24)),
            lambda: c.gemv(handle, b[512], (b[24], 2**63 - 1)),
            lambda: c.gate_up_swiglu(handle, b[508], b[12]),
            lambda: c.gate_up_swiglu(handle, b[512], (b[12], 4)),
            lambda: c.rmsnorm(b[20], b[24], b[24], 6),
            lambda: c.rmsnorm(b[24], b[20], b[512], 6),
            lambda: c.rmsnorm(b[24], b[512], b[20], 6),
            lambda: c.rmsnorm(b[512], b[24], b[511], 6, n_vectors=22),
            lambda: c.add(b[20], b[24], 6),
            lambda: c.add(b[24], b[20], 6),
            lambda: c.embed(handle, b[16], b[15], b[512]),
            lambda: c.embed(handle, (b[16], 16), b[24], b[512]),
            lambda: c.embed(handle, b[16], b[20], b[508]),
            lambda: c.advance(b[20], b[16], b[24], 6, 4),
            lambda: c.advance(b[24], b[15], b[16], 6, 4),
            lambda: c.advance(b[24], b[16], b[15], 6, 4),
        ]
        for i, call in enumerate(wrong):
            with pytest.raises(EncodingError, match="too short: need"):
                call()
            assert len(c) == 0, i


def test_overlapping_input_and_output_are_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 128, 128))
    with device.commands() as c, device.buffer(2048) as b:
        wrong = [
            lambda: c.gemv(handle, b, b),
            lambda: c.gemv(handle, b, (b, 508)),
            lambda: c.gemv(handle, (b, 508), b, residual=True),
            lambda: c.gate_up_swiglu(handle, b, (b, 256)),
            lambda: c.rmsnorm(b, (b, 1024), (b, 4), 128),
            lambda: c.rmsnorm(b, (b, 1024), (b, 1020), 128),
            lambda: c.add(b, (b, 4), 128),
        ]
        for i, call in enumerate(wrong):
            with pytest.raises(EncodingError, match="overlap"):
                call()
            assert len(c) == 0, i
        c.gemv(handle, b, (b, 512))
        c.rmsnorm(b, (b, 1024), b, 128)
        assert len(c) == 2


def test_odd_offsets_are_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 2, 128))
    with device.commands() as c, device.buffer(1024) as x, device.buffer(64) as y:
        for bad in ((x, 2), (x, 1)):
            with pytest.raises(EncodingError, match="offsets must be multiples of 4"):
                c.gemv(handle, bad, y)


@pytest.mark.parametrize("n", [0, 2**31, 2**62])
def test_counts_outside_their_range_are_refused(device, n):
    with device.commands() as c, device.buffer(64) as b, device.buffer(64) as s:
        for call in (
            lambda: c.rmsnorm(b, b, b, n),
            lambda: c.rmsnorm(b, b, b, 1, n_vectors=n),
            lambda: c.add(b, s, n),
            lambda: c.advance(b, b, s, n, 1),
            lambda: c.advance(b, b, s, 1, n),
        ):
            with pytest.raises(EncodingError, match=r"must lie in|too short"):
                call()
        assert len(c) == 0


def test_an_output_over_read_only_memory_is_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 32, 128))
    frozen = np.zeros(1024, np.float32)
    frozen.flags.writeable = False
    with (
        metal.Buffer.from_data(device, frozen, copy=False) as out,
        device.buffer(4096) as b,
        device.commands() as c,
    ):
        heads = Heads(4, 2, 64, 1).shape
        for call in (
            lambda: c.gemv(handle, b, out),
            lambda: c.add(b, out, 10),
            lambda: c.rmsnorm(b, b, out, 10),
            lambda: c.embed(handle, b, b, out),
            lambda: c.kv_store(b, out, b, b, **heads),
            lambda: c.attention(b, b, b, b, out, **heads),
            lambda: c.advance(b, out, b, 4, 4),
            lambda: c.advance(b, b, out, 4, 4),
        ):
            with pytest.raises(EncodingError, match=r"read-only|overlap"):
                call()
        assert len(c) == 0


def test_every_format_of_the_table_was_tried():
    assert list(formats.FORMATS) == ALL_FORMATS
