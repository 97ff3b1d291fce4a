"""The operations that Commands records for several tokens or vectors, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import (
    ALL_FORMATS,
    activations,
    block,
    close_to,
    dense,
    random_weight,
    relative_error,
    same_non_finite,
    swiglu_with_bound,
    upload,
)
from op_runs import (
    SENTINEL,
    Heads,
    qk_norm_rope,
    random_heads,
    rope_table,
    run,
    state,
)

from oxibonsai.metal import EncodingError

# Matrix products


def products(device, handle, x, n_rows, *, start=None, stride=None):
    """Return W x for each row of x, or that plus `start`; rows of the output `stride` apart."""
    stride = n_rows if stride is None else stride
    out = np.full((len(x) + 1, stride), SENTINEL) if start is None else start
    y = run(
        device,
        lambda c, bx, by: c.gemv(
            handle, bx, by, n_vectors=len(x), y_stride=stride, residual=start is not None
        ),
        x,
        out,
    )[1]
    if start is None:
        assert (y[len(x) :] == SENTINEL).all()
        assert (y[: len(x), n_rows:] == SENTINEL).all()
    return y[: len(x), :n_rows]


def check(y, w64, x, start=0.0):
    for got, vector, before in zip(y, x, np.broadcast_to(start, y.shape), strict=True):
        r = reference.gemv(w64, vector)
        slack = 1e-7 * float(np.linalg.norm(before))
        close_to(got, r + before, reference.gemv_bound(w64, vector, r) + slack)


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize(("n_rows", "n_vectors"), [(1, 2), (17, 3), (65, 9), (100, 33)])
def test_products_of_several_vectors_match_the_definition(device, graph, name, n_rows, n_vectors):
    k = 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
    with upload(graph, q) as handle:
        check(products(device, handle, x, n_rows), dense(q), x)
        start = activations(n_vectors * n_rows, 5).reshape(n_vectors, n_rows)
        check(products(device, handle, x, n_rows, start=start), dense(q), x, start)


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q2_0"])
def test_every_batch_size_gives_the_results_of_single_vectors(device, graph, name):
    k, n_rows = 384, 70
    q, x = random_weight(name, n_rows, k), activations(40 * k).reshape(40, k)
    with upload(graph, q) as handle:
        for n_vectors in range(1, 41):
            check(products(device, handle, x[:n_vectors], n_rows), dense(q), x[:n_vectors])


@pytest.mark.parametrize("k", [1, 5, 33, 131])
def test_products_of_rows_of_any_length(device, graph, k):
    q, x = random_weight("F16", 9, k), activations(3 * k).reshape(3, k)
    with upload(graph, q) as handle:
        check(products(device, handle, x, 9), dense(q), x)


def test_rows_of_the_output_may_lie_apart(device, graph):
    q, x = random_weight("Q1_0", 24, 256), activations(5 * 256).reshape(5, 256)
    with upload(graph, q) as handle:
        check(products(device, handle, x, 24, stride=40), dense(q), x)


def test_plain_weights_take_several_vectors_too(device, graph):
    q, x = random_weight("Q2_0", 24, 128), activations(3 * 128).reshape(3, 128)
    with upload(graph, q, plain=True) as handle:
        out = np.zeros((3, 24), np.float32)
        y = run(device, lambda c, bx, by: c.gemv(handle, bx, by, 24, 128, n_vectors=3), x, out)[1]
        check(y, dense(q), x)


def test_infinities_and_nan_stay_in_their_vector(device, graph):
    q, x = random_weight("Q2_0", 20, 256), activations(6 * 256).reshape(6, 256)
    x[1, 0], x[3, 255], x[4, [1, 200]] = np.nan, -np.inf, np.inf
    with upload(graph, q) as handle:
        for got, vector in zip(products(device, handle, x, 20), x, strict=True):
            r = reference.gemv(dense(q), vector)
            finite = same_non_finite(got, r)
            bound = reference.gemv_bound(dense(q)[finite], vector, r[finite])
            close_to(got[finite], r[finite], bound)


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize(("half", "n_vectors"), [(1, 2), (33, 9), (50, 17)])
def test_gate_up_swiglu_of_several_vectors(device, graph, name, half, n_vectors):
    k = 2 * block(name)
    q = random_weight(name, 2 * half, k)
    x = activations(n_vectors * k).reshape(n_vectors, k) / np.float32(8)
    with upload(graph, q) as handle:
        out = np.full((n_vectors + 1, half), SENTINEL)
        y = run(
            device,
            lambda c, bx, by: c.gate_up_swiglu(handle, bx, by, n_vectors=n_vectors),
            x,
            out,
        )[1]
    for got, vector in zip(y[:-1], x, strict=True):
        close_to(got, *swiglu_with_bound(dense(q), vector))
    assert (y[-1] == SENTINEL).all()


@pytest.mark.large
@pytest.mark.parametrize(("n_rows", "k"), [(256, 12288), (12288, 256)])
def test_products_of_long_and_of_many_rows(device, graph, n_rows, k):
    q, x = random_weight("Q1_0", n_rows, k), activations(5 * k).reshape(5, k) + np.float32(1)
    with upload(graph, q) as handle:
        check(products(device, handle, x, n_rows), dense(q), x)


# Norms on the way in


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_a_product_of_a_norm_matches_the_definition(device, graph, name, n_vectors):
    k, n_rows = 2 * block(name), 40
    q, x = random_weight(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k) * 3
    weight, start = (
        1 + activations(k, 4) / 4,
        activations(n_vectors * n_rows).reshape(n_vectors, -1),
    )
    normed = reference.rmsnorm(x, weight, 1e-5)
    with upload(graph, q) as handle:
        for residual in (False, True):
            y = run(
                device,
                lambda c, bx, bw, by, add=residual: c.gemv(
                    handle, bx, by, n_vectors=n_vectors, norm=bw, eps=1e-5, residual=add
                ),
                x.astype(np.float32),
                weight,
                start,
            )[2]
            for got, vector, before in zip(y, normed, start * residual, strict=True):
                r = reference.gemv(dense(q), vector)
                bound = 2 * reference.gemv_bound(dense(q), vector, r)
                close_to(got, r + before, bound + 1e-7 * float(np.linalg.norm(before)))


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_gate_up_swiglu_of_a_norm_matches_the_definition(device, graph, name, n_vectors):
    k, half = 2 * block(name), 20
    q, x = random_weight(name, 2 * half, k), activations(n_vectors * k).reshape(n_vectors, k)
    weight = (1 + activations(k, 4) / 4) / np.float32(8)
    with upload(graph, q) as handle:
        y = run(
            device,
            lambda c, bx, bw, by: c.gate_up_swiglu(
                handle, bx, by, n_vectors=n_vectors, norm=bw, eps=1e-5
            ),
            x,
            weight,
            np.zeros((n_vectors, half), np.float32),
        )[2]
    for got, vector in zip(y, reference.rmsnorm(x, weight, 1e-5), strict=True):
        expected, bound = swiglu_with_bound(dense(q), vector)
        close_to(got, expected, 2 * bound)


def test_a_norm_that_does_not_fit_is_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 6, 256))
    with device.commands() as c, device.buffer(1024) as x, device.buffer(48) as y:
        for call, text in (
            (lambda: c.gemv(handle, x, y, norm=(x, 4)), "norm too short: need 1024"),
            (lambda: c.gemv(handle, x, y, norm=x, eps=-1), "eps"),
            (lambda: c.gate_up_swiglu(handle, x, y, norm=(x, 4)), "norm too short: need 1024"),
        ):
            with pytest.raises(EncodingError, match=text):
                call()
            assert len(c) == 0


# Tokens


def test_embed_of_several_tokens(device, graph):
    q = random_weight("Q2_0", 9, 192)
    with upload(graph, q) as handle:
        tokens, out = np.array([7, 5, 0, 8], np.uint32), np.full((6, 192), SENTINEL)
        y = run(device, lambda c, *b: c.embed(handle, *b, n_tokens=5), tokens, state(1), out)[2]
    np.testing.assert_array_equal(y[:3], dense(q)[[5, 0, 8]].astype(np.float32))
    assert np.isnan(y[3:5]).all()  # there are no such tokens
    assert (y[5] == SENTINEL).all()


def test_argmax_of_several_vectors(device):
    logits = activations(5 * 1001).reshape(5, 1001)
    logits[3], logits[4] = np.nan, -np.inf
    logits[1, [7, 700]] = 50
    out = np.full(6, 77, np.uint32)
    y = run(device, lambda c, *b: c.argmax(*b, 1001, n_vectors=5), logits, out)[1]
    assert y.tolist() == [np.argmax(logits[0]), 7, np.argmax(logits[2]), 0, 0, 77]


def test_advance_passes_all_tokens_of_a_batch(device):
    tokens = np.array([7, 8, 9, 6, 5], np.uint32)
    after = run(
        device,
        lambda c, *b: c.advance(*b, 3, 5, n_tokens=3),
        np.array([1, 5, 2], np.float32),
        tokens,
        state(0),
    )
    assert after[1].tolist() == [7, 8, 9, 1, 5]
    assert after[2].tolist() == state(3).tolist()


# Heads


def test_qk_norm_rope_takes_each_token_to_its_position(device):
    heads = Heads(4, 2, 64, 6)
    qkv = activations(4 * 8 * 64).reshape(4, 8, 64)
    norms = [1 + activations(64, 4) / 4, 1 + activations(64, 5) / 4]
    y = run(
        device,
        lambda c, *b: c.qk_norm_rope(*b, eps=1e-5, n_tokens=4, **heads.shape),
        qkv,
        *norms,
        rope_table(6, 64),
        state(3),
    )[0]
    for t in range(3):
        np.testing.assert_array_equal(y[t], qk_norm_rope(device, heads, 3 + t, qkv[t])[0])
    np.testing.assert_array_equal(y[3], qkv[3])  # past the last position


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
def test_kv_store_fills_neighbouring_positions(device, kv_dtype):
    heads = Heads(4, 2, 64, 7, 1, kv_dtype)
    qkv = activations(3 * 8 * 64).reshape(3, 8, 64)
    caches = [heads.cache(2), heads.cache(2, fill=-SENTINEL)]
    after = run(
        device,
        lambda c, *b: c.kv_store(*b, n_tokens=3, **heads.shape),
        qkv,
        *caches,
        state(5),
    )
    for t in range(2):  # the third has no place
        caches[0][1, :, 5 + t] = qkv[t, 4:6].astype(caches[0].dtype)
        caches[1][1, :, 5 + t] = qkv[t, 6:8].astype(caches[1].dtype)
    np.testing.assert_array_equal(after[1], caches[0])
    np.testing.assert_array_equal(after[2], caches[1])


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    ("counts", "n_tokens"), [((4, 2, 64), 1), ((5, 5, 30), 4), ((8, 1, 128), 3)]
)
def test_qkv_to_cache_is_norm_rope_and_store(device, kv_dtype, counts, n_tokens):
    heads = Heads(*counts, 7, 1, kv_dtype)
    dim = heads.head_dim
    qkv = activations(n_tokens * heads.n_qkv * dim).reshape(n_tokens, heads.n_qkv, dim)
    arrays = [
        qkv,
        1 + activations(dim, 4) / 4,
        1 + activations(dim, 5) / 4,
        rope_table(7, dim),
        heads.cache(2),
        heads.cache(2, fill=-SENTINEL),
        state(5),  # of four tokens two have no place
    ]

    def apart(c, q, a, b, r, k, v, s):
        c.qk_norm_rope(q, a, b, r, s, eps=1e-5, n_tokens=n_tokens, **heads.shape)
        c.kv_store(q, k, v, s, n_tokens=n_tokens, **heads.shape)

    def together(c, q, a, b, r, k, v, s):
        c.qkv_to_cache(q, a, b, r, k, v, s, eps=1e-5, n_tokens=n_tokens, **heads.shape)

    expected, got = (run(device, record, *arrays) for record in (apart, together))
    np.testing.assert_array_equal(
        got[0][:, : heads.n_heads].view(np.uint32), expected[0][:, : heads.n_heads].view(np.uint32)
    )
    for cache in (4, 5):
        np.testing.assert_array_equal(got[cache], expected[cache])


def attend(device, heads, q, k, v, max_length=None):
    """Attention of q [tokens, n_heads, head_dim], the last tokens of k and v."""
    length, n_tokens = len(k), len(q)
    caches = []
    for rows in (k, v):
        cache = heads.cache(heads.layer + 1, np.nan)
        cache[heads.layer, :, :length] = rows.transpose(1, 0, 2)
        caches.append(cache)
    qkv = np.full((n_tokens, heads.n_qkv, heads.head_dim), np.nan, np.float32)
    qkv[:, : heads.n_heads] = q
    out = np.full((n_tokens + 1, heads.n_heads, heads.head_dim), SENTINEL)
    y = run(
        device,
        lambda c, *b: c.attention(*b, n_tokens=n_tokens, max_length=max_length, **heads.shape),
        qkv,
        *caches,
        state(length - n_tokens),
        out,
    )[4]
    assert (y[-1] == SENTINEL).all()
    return y[:-1]


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("counts", [(4, 2, 64), (8, 1, 128), (5, 5, 30), (3, 1, 256)], ids=str)
@pytest.mark.parametrize(("n_tokens", "length"), [(2, 2), (7, 40), (9, 9), (33, 97)])
def test_attention_of_a_batch_matches_the_definition(device, kv_dtype, counts, n_tokens, length):
    heads = Heads(*counts, 100, 1, kv_dtype)
    _, k, v = random_heads(heads, length)
    q = activations(n_tokens * counts[0] * counts[2]).reshape(n_tokens, *counts[::2])
    y = attend(device, heads, q, k, v)
    assert relative_error(y, reference.attention(q, k, v)) < 1e-6


def test_what_comes_later_does_not_reach_a_token(device):
    heads = Heads(4, 2, 64, 40)
    _, k, v = random_heads(heads, 37)
    q = np.abs(activations(3 * 4 * 64)).reshape(3, 4, 64)
    k[36, :, 5] = v[36, :, 7] = np.nan
    y = attend(device, heads, q, k, v)
    assert relative_error(y[:2], reference.attention(q[:2], k[:36], v[:36])) < 1e-6
    assert np.isnan(y[2]).any()


@pytest.mark.parametrize("max_length", [1, 300, 513, 3000, 5000])
def test_attention_in_any_number_of_parts_is_the_same(device, max_length):
    heads = Heads(4, 2, 64, 5000, 0, "f16")
    for length in (1, 200, 700):
        q, k, v = random_heads(heads, length)
        y = attend(device, heads, q[None], k, v, max_length)
        assert relative_error(y, reference.attention(q[None], k, v)) < 1e-6


@pytest.mark.large
@pytest.mark.parametrize("counts", [(16, 8, 128), (32, 8, 128)], ids=str)
@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 127, 128, 129, 2047])
def test_attention_of_the_bonsai_shapes(device, kv_dtype, counts, length):
    heads = Heads(*counts, 2048, 0, kv_dtype)
    q, k, v = random_heads(heads, length)
    y = attend(device, heads, q[None], k, v)
    assert relative_error(y, reference.attention(q[None], k, v)) < 1e-6


# What is refused


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_tokens": 0}, "n_tokens = 0 must lie in"),
        ({"n_tokens": 11}, r"n_tokens = 11 must lie in 1\.\.10"),
        ({"n_tokens": 2}, "too short: need"),
        ({"n_tokens": -1}, "must fit 32 bits"),
    ],
)
def test_batches_that_cannot_be_are_refused(device, change, text):
    shape = Heads(4, 2, 64, 10).shape | change
    size = 4 * max(8 * 64, 2 * 10 * 64)
    with device.commands() as c, device.buffer(8 * 64 * 4) as qkv, device.buffer(4096) as small:
        cache = device.buffer(size)
        calls = [
            lambda: c.qk_norm_rope(qkv, small, small, cache, small, **shape),
            lambda: c.kv_store(qkv, cache, cache, small, **shape),
            lambda: c.qkv_to_cache(qkv, small, small, cache, cache, cache, small, **shape),
            lambda: c.attention(qkv, cache, cache, small, small, **shape),
            lambda: c.qkv_attention(
                qkv, small, small, cache, cache, cache, small, device.buffer(4096), **shape
            ),
        ]
        for call in calls:
            with pytest.raises(EncodingError, match=text):
                call()
        assert len(c) == 0


@pytest.mark.parametrize(("max_length", "text"), [(0, "max_length = 0"), (11, "max_length = 11")])
def test_a_max_length_past_the_cache_is_refused(device, max_length, text):
    shape = Heads(4, 2, 64, 10).shape
    with device.commands() as c, device.buffer(8192) as b, device.buffer(8192) as out:
        with pytest.raises(EncodingError, match=text):
            c.attention(b, b, b, b, out, max_length=max_length, **shape)
        assert len(c) == 0


def test_products_that_do_not_fit_are_refused(device, graph):
    handle = upload(graph, random_weight("Q1_0", 6, 128))
    with device.commands() as c, device.buffer(1024) as x, device.buffer(48) as y:
        for call, text in (
            (lambda: c.gemv(handle, x, y, n_vectors=0), "n_vectors"),
            (lambda: c.gemv(handle, x, y, n_vectors=2**31), "n_vectors"),
            (lambda: c.gemv(handle, x, y, n_vectors=3), "input too short: need 1536 bytes"),
            (lambda: c.gemv(handle, x, y, n_vectors=2, y_stride=5), "y_stride = 5 must lie in 6"),
            (lambda: c.gemv(handle, x, y, n_vectors=2, y_stride=7), "output too short: need 52"),
            (lambda: c.gate_up_swiglu(handle, x, (y, 28), n_vectors=2), "output too short"),
            (lambda: c.embed(handle, x, x, y, n_tokens=0), "n_tokens"),
            (lambda: c.embed(handle, x, x, y, n_tokens=2), "output too short: need 1024"),
            (lambda: c.argmax(x, y, 0), "n = 0"),
            (lambda: c.argmax(x, y, 256, n_vectors=2), "logits too short: need 2048"),
            (lambda: c.argmax(x, (y, 44), 2, n_vectors=2), "output too short: need 8"),
            (lambda: c.advance(x, y, x, 2, 2, n_tokens=0), "n_tokens"),
        ):
            with pytest.raises(EncodingError, match=text):
                call()
            assert len(c) == 0
        c.gemv(handle, x, y, n_vectors=2)
        assert len(c) in (1, 2)  # a product alone, or behind what makes halves of the vectors
