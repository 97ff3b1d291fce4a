"""The kernels of shaders/ with a matrix or a token, each executed alone with every access checked.

The threads of a dispatch run in three orders. Threadgroups are of another size than the op layer's,
so that a kernel answers for more than one grid.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import (
    BLOCK_FORMATS,
    activations,
    block,
    close_to,
    dense,
    random_weight,
    same_non_finite,
    set_scales,
    swiglu_with_bound,
)
from shader_products import FORM_ROWS, gemv, kernel_of, normed_gemv, normed_swiglu, swiglu
from shader_runs import FAMILY_OF, SENTINEL, Placed, every_order, run, state, tiles_for
from shader_weights import CODES, FORMATS, columns, every_format, matrix, random_matrix

from oxibonsai import formats, metal, quant

# Matrices


def sizes(name):
    """Return shapes around every edge: of a row's words, of a lane's share, of a threadgroup."""
    least = block(FORMATS[name])
    ks = [least, 3 * least, 1024 + least]
    if formats.get(FORMATS[name]).block_weights == 1:
        ks += [1, 3, 4, 5, 127, 131]
    return [(n_rows, k) for k in ks for n_rows in (1, 3, 8, 19)]


@every_format
@every_order
def test_gemv_matches_the_definition_at_every_edge(name, order):
    for n_rows, k in sizes(name):
        m, x = random_matrix(name, n_rows, k), activations(k)
        r = reference.gemv(m.w64, x)
        close_to(gemv(name, m, x, order=order), r, reference.gemv_bound(m.w64, x, r))


@pytest.mark.parametrize("name", CODES)
@every_order
def test_gemv_of_many_rows_and_units(name, order):
    # More rows than a threadgroup has, more 16-byte loads than splits.
    for n_rows, k in ((33, 128), (150, 128 * 9), (7, 128 * 17)):
        m, x = random_matrix(name, n_rows, k), activations(k)
        r = reference.gemv(m.w64, x)
        for rows, simdgroups in ((1, 8), (2, 3), (4, 8)):
            y = gemv(name, m, x, order=order, rows=rows, simdgroups=simdgroups)
            close_to(y, r, reference.gemv_bound(m.w64, x, r))


@pytest.mark.parametrize("name", CODES)
def test_a_matrix_in_columns_gives_the_same_bits(name):
    for n_rows, k in ((1, 128), (45, 128 * 3), (130, 128 * 9)):
        m, x = random_matrix(name, n_rows, k), activations(k)
        plain, column = (gemv(name, m, x, column=c) for c in (False, True))
        np.testing.assert_array_equal(plain.view(np.uint32), column.view(np.uint32))


@every_format
def test_gemv_has_the_same_bits_for_every_grid_and_order(name):
    m, x = random_matrix(name, 21, 3 * block(FORMATS[name])), activations(3 * block(FORMATS[name]))
    expected = gemv(name, m, x).view(np.uint32)
    for rows in (1, 2, 4):
        for simdgroups, order in ((1, "forward"), (3, "random"), (8, "reverse")):
            y = gemv(name, m, x, order=order, rows=rows, simdgroups=simdgroups)
            np.testing.assert_array_equal(y.view(np.uint32), expected)


@pytest.mark.parametrize("name", CODES)
@every_order
@pytest.mark.parametrize(
    ("size", "eps"), [(1, 1e-6), (3, 0.25), (1e-30, 0.0), (1e-24, 1e-6), (1e30, 1e-6)]
)
def test_gemv_of_a_norm_matches_the_definition(name, order, size, eps):
    for n_rows, k in ((3, 128), (70, 128 * 11)):
        m, weight = random_matrix(name, n_rows, k), 1 + activations(k, 4) / 4
        x = activations(k) * np.float32(size)
        normed = reference.rmsnorm(x, weight, eps)
        r = reference.gemv(m.w64, normed)
        y = normed_gemv(name, m, x, weight, eps, order)
        close_to(y, r, 2 * reference.gemv_bound(m.w64, normed, r))


def test_gemv_of_a_norm_of_zeros_nan_and_infinity():
    m, weight = random_matrix("q1_g128", 5, 256), np.ones(256, np.float32)
    x = np.zeros(256, np.float32)
    assert (normed_gemv("q1_g128", m, x, weight, 1e-6) == 0).all()
    for odd in (np.nan, np.inf):
        x[77] = odd
        assert np.isnan(normed_gemv("q1_g128", m, x, weight, 1e-6)).all()


@pytest.mark.parametrize("name", CODES)
@every_order
@pytest.mark.parametrize(("size", "eps"), [(1, 1e-6), (1e-30, 0.0), (1e30, 1e-6)])
def test_gate_up_swiglu_of_a_norm_matches_the_definition(name, order, size, eps):
    n_rows, k = 40, 128 * 11
    m, weight = random_matrix(name, 2 * n_rows, k), (1 + activations(k, 4) / 4) / np.float32(8)
    x = activations(k) * np.float32(size)
    normed = reference.rmsnorm(x, weight, eps)
    y = normed_swiglu(name, m, x, weight, eps, order)
    expected, bound = swiglu_with_bound(m.w64, normed)
    close_to(y, expected, 2 * bound)


@every_format
@every_order
def test_gemv_residual_adds_to_what_is_there(name, order):
    k = 2 * block(FORMATS[name])
    m, x, start = random_matrix(name, 13, k), activations(k), activations(13, 3)
    r = reference.gemv(m.w64, x)
    y = gemv(name, m, x, start, order)
    close_to(y, r + start, reference.gemv_bound(m.w64, x, r) + 1e-7 * float(np.linalg.norm(start)))


@every_format
def test_long_rows_with_a_mean_and_outliers_stay_within_the_bound(name):
    k = 12288
    m = random_matrix(name, 40, k)
    outliers = activations(k)
    outliers[[3, 700, 9000]] = [1e6, -3e6, 7e5]
    for x in (activations(k), activations(k) + np.float32(100), outliers):
        r = reference.gemv(m.w64, x)
        close_to(gemv(name, m, x, mode="fast"), r, reference.gemv_bound(m.w64, x, r))


@pytest.mark.parametrize("name", [*CODES, "q8_0"])
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, 0.0, -0.0, 2.0**-24, 65504.0])
def test_scales_of_every_kind_follow_ieee(name, scale):
    k = 4 * block(FORMATS[name])
    q = random_weight(FORMATS[name], 6, k)
    n_blocks = q.data.size // formats.get(q.format).block_bytes
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: n_blocks // 3] = scale
    x = activations(k)
    # All codes alike as well: then infinities keep their sign.
    for fill in (None, 0x00, 0xAA):
        if fill is not None:
            q.data[:] = fill
            x = np.abs(x) + 1
        m = matrix(set_scales(q, scales))
        r = reference.gemv(m.w64, x)
        y = gemv(name, m, x)
        finite = same_non_finite(y, r)
        close_to(y[finite], r[finite], reference.gemv_bound(m.w64[finite], x, r[finite]))


@pytest.mark.parametrize("name", CODES)
@every_order
def test_an_odd_scale_in_each_of_many_units_follows_ieee(name, order):
    # All codes alike, so that infinities keep their sign; the next unit's activations come at once.
    k = 128 * 17
    q = random_weight(FORMATS[name], 6, k)
    q.data[:] = 0xFF if name == "t1_g128" else 0xAA
    m, x = matrix(set_scales(q, np.inf)), np.abs(activations(k)) + 1
    r = reference.gemv(m.w64, x)
    same_non_finite(gemv(name, m, x, order=order), r)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("scale", [np.inf, -np.inf])
def test_one_weight_of_another_sign_or_none_makes_an_infinite_sum_nan(name, scale):
    # In a word whose own sum keeps its sign: multiplying that sum by the scale would hide it.
    k = block(FORMATS[name])
    q = set_scales(random_weight(FORMATS[name], 8, k), 1.0)
    q.data[:] = 0xAA if name in ("q2_g128", "q2_g64") else 0xFF
    set_scales(q, np.where(np.arange(8) % 2 == 0, scale, 1.0))
    blocks = q.data.reshape(-1, formats.get(q.format).block_bytes)
    blocks[::4, 5] ^= {"q1_g128": 1, "t1_g128": 0x7F}.get(name, 3)  # five digits of 1
    m, x = matrix(q), np.ones(k, np.float32)
    r = reference.gemv(m.w64, x)
    assert np.isnan(r).any()
    assert np.isinf(r).any()
    same_non_finite(gemv(name, m, x), r)


@every_format
def test_infinite_and_nan_activations_follow_ieee(name):
    k = 2 * block(FORMATS[name])
    m = random_matrix(name, 9, k)
    for odd in ({0: np.inf}, {k - 1: -np.inf}, {k // 2: np.nan}, {1: np.inf, k - 2: np.inf}):
        x = activations(k)
        x[list(odd)] = list(odd.values())
        r = reference.gemv(m.w64, x)
        y = gemv(name, m, x)
        finite = same_non_finite(y, r)
        close_to(y[finite], r[finite], reference.gemv_bound(m.w64[finite], x, r[finite]))


@every_format
@every_order
def test_gate_up_swiglu_matches_the_definition(name, order):
    for n_rows, k in sizes(name):
        m, x = random_matrix(name, 2 * n_rows, k), activations(k) / np.float32(8)
        close_to(swiglu(name, m, x, order), *swiglu_with_bound(m.w64, x))


@every_format
def test_gate_up_swiglu_has_the_same_bits_for_every_grid(name):
    k = 3 * block(FORMATS[name])
    m, x = random_matrix(name, 22, k), activations(k)
    expected = swiglu(name, m, x).view(np.uint32)
    for rows in (1, 2):
        y = swiglu(name, m, x, rows=rows, simdgroups=3)
        np.testing.assert_array_equal(y.view(np.uint32), expected)
    if name in CODES:
        y = swiglu(name, m, x, column=True)
        np.testing.assert_array_equal(y.view(np.uint32), expected)


@pytest.mark.parametrize("name", CODES)
@every_order
def test_gate_up_swiglu_with_odd_scales_follows_ieee(name, order):
    k = 128 * 17
    q = random_weight(FORMATS[name], 6, k)
    q.data[:] = 0xFF if name == "t1_g128" else 0xAA
    m, x = matrix(set_scales(q, np.inf)), np.abs(activations(k)) + 1
    same_non_finite(swiglu(name, m, x, order), reference.swiglu_gate_up(m.w64, x))


@pytest.mark.parametrize("size", [30, 90, 200, 1e4])
def test_swiglu_of_large_gates_is_their_limit(size):
    w = np.array([[-1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    x = np.array([size, 1], np.float32)
    y = swiglu("f32", matrix(quant.quantize(w, "F32")), x)
    expected = reference.swiglu_gate_up(w.astype(np.float64), x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-37)


# Tokens


def embed(
    name,
    m,
    tokens,
    states,
    order="random",
    max_tokens=None,
    grid=(3, 64),
    n_tokens=1,
    column=0,
    batch=0,
):
    """Return the rows for the tokens at a position and after it, or with batch for each state."""
    n_rows, k = m.w64.shape
    max_tokens = len(tokens) if max_tokens is None else max_tokens
    out = np.full((n_tokens, k), SENTINEL)
    y = run(
        f"embed_{name}",
        [
            m.data,
            np.asarray(tokens, np.uint32),
            np.asarray(state(states) if np.ndim(states) == 0 else states, np.uint32),
            out,
        ],
        struct.pack("<QIIIIII", m.codes_offset, n_rows, k, max_tokens, n_tokens, column, batch),
        groups=(grid[0], n_tokens),
        threads=grid[1],
        order=order,
    )[3]
    return y[0] if n_tokens == 1 else y


@every_order
def test_embed_of_a_batch_gives_the_row_of_each_token(order):
    m = random_matrix("q2_g64", 9, 192)
    y = embed("q2_g64", m, [5, 0, 8, 3], 1, order, n_tokens=5)
    np.testing.assert_array_equal(y[:3], m.w64[[0, 8, 3]].astype(np.float32))
    assert np.isnan(y[3:]).all()  # there are no such tokens


@every_order
def test_embed_of_several_sequences_gives_the_row_of_each(order):
    m = random_matrix("q2_g64", 9, 192)
    states = [
        (1, 2, 99, 99),
        (0, 0, 99, 99),
        (2**32 - 1, 1, 99, 99),  # of an idle sequence, not token 0
        (3, 2, 99, 99),
        (0, 2**32 - 1, 99, 99),
        (2**31, 2**31 + 1, 99, 99),  # not token 1
    ]
    y = embed("q2_g64", m, [5, 0, 8, 3, 7], states, order, n_tokens=6, batch=1)
    np.testing.assert_array_equal(y[:2], m.w64[[3, 5]].astype(np.float32))
    assert np.isnan(y[2:]).all()
    start = np.array([[1, 2, 99, 99]])
    y = embed("q2_g64", m, [5, 0, 8, 3, 7], start, order, n_tokens=3, batch=0)
    np.testing.assert_array_equal(y[:2], m.w64[[3, 7]].astype(np.float32))
    assert np.isnan(y[2]).all()


@every_format
@every_order
def test_embed_gives_exactly_the_row(name, order):
    k = 3 * block(FORMATS[name])
    m = random_matrix(name, 9, k)
    for position, token in enumerate([0, 8, 3]):
        y = embed(name, m, [0, 8, 3], position, order)
        np.testing.assert_array_equal(y, m.w64[token].astype(np.float32))


@pytest.mark.parametrize("name", CODES)
def test_embed_finds_a_row_in_columns(name):
    m = random_matrix(name, 9, 384)
    y = embed(name, columns(name, m), [7], 0, column=9)
    np.testing.assert_array_equal(y, m.w64[7].astype(np.float32))


@pytest.mark.parametrize("name", [*CODES, "q8_0"])
@pytest.mark.parametrize("scale", [np.inf, np.nan, 2.0**-24])
def test_embed_follows_ieee_for_odd_scales(name, scale):
    m = matrix(set_scales(random_weight(FORMATS[name], 2, block(FORMATS[name])), scale))
    np.testing.assert_array_equal(embed(name, m, [1], 0), m.w64[1].astype(np.float32))


@pytest.mark.parametrize(
    ("tokens", "position", "max_tokens"),
    [
        ([0, 9], 1, 2),
        ([0, 2**32 - 1], 1, 2),
        ([0, 1], 2, 2),
        ([0, 1], 1, 1),
        ([0, 1], 2**32 - 1, 2),
    ],
)
def test_embed_of_what_is_not_there_is_nan(tokens, position, max_tokens):
    m = random_matrix("q1_g128", 9, 128)
    assert np.isnan(embed("q1_g128", m, tokens, position, max_tokens=max_tokens)).all()


def test_weights_past_32_bits_are_found():
    # One row in memory, bound as the last of 2^33 weights: scales, then codes right behind them.
    k, row = 4096, 2**21 - 1
    q = random_weight("Q1_0", 1, k)
    scales, codes = np.split(metal.reformat(q.data, "Q1_0")[0], [k // 128 * 2])
    before = row * k // 128 * 2
    codes_offset = (before + len(scales) - row * k // 8) % 2**64
    y = run(
        "embed_q1_g128",
        [
            Placed(np.concatenate([scales, codes]), before=before),
            np.array([row], np.uint32),
            state(0),
            np.full(k, SENTINEL),
        ],
        struct.pack("<QIIIIII", codes_offset, row + 1, k, 1, 1, 0, 0),
        groups=2,
        threads=64,
        mode="fast",
    )[3]
    np.testing.assert_array_equal(y, dense(q)[0].astype(np.float32))


def argmax_blocks(logits, order="random", threads=96):
    """Return struct oxb_best of each block of each row of the logits."""
    n_vectors, n = logits.shape
    n_blocks = tiles_for(n, 4096)
    return run(
        "argmax_blocks",
        [logits, np.zeros((n_vectors, n_blocks), [("value", "f4"), ("index", "u4")])],
        struct.pack("<IIII", n, n_vectors, n_blocks, 0),
        groups=(n_blocks, n_vectors),
        threads=threads,
        order=order,
    )[1]


def advance(
    logits, tokens, position, order="random", greedy=1, max_tokens=None, threads=96, n_tokens=1
):
    max_tokens = len(tokens) if max_tokens is None else max_tokens
    best = argmax_blocks(np.asarray([logits], np.float32), order, threads)[0]
    after = run(
        "advance",
        [best, np.asarray(tokens, np.uint32), state(position)],
        struct.pack("<IIII", len(best) * greedy, max_tokens, n_tokens, 0),
        groups=1,
        threads=32,
        order=order,
    )
    np.testing.assert_array_equal(after[2][1:], state(0)[1:])
    return after[1].tolist(), int(after[2][0])


@every_order
@pytest.mark.parametrize("threads", [32, 96, 256])
def test_advance_takes_the_first_of_the_largest_logits(order, threads):
    for n in (1, 31, 33, 300, 1000):
        logits = activations(n)
        # The last pair meets in one thread, whatever their number.
        for at in ([0], [n - 1], [n // 2, n - 1], [n // 3, n // 2], [n % 200, n % 200 + 768]):
            if at[-1] >= n:
                continue
            logits[:] = activations(n)
            logits[at] = 100
            assert advance(logits, [7, 7, 7], 0, order, threads=threads) == ([7, at[0], 7], 1)


def test_advance_passes_over_nan_and_compares_infinities_and_zeros():
    for logits, expected in (
        ([-1, -0.0, 0.0], 1),
        ([-np.inf, -3e38, -np.inf], 1),
        ([1, np.inf, 2, np.inf], 1),
        ([np.nan, -5, np.nan, -2], 3),
        ([np.nan, -np.inf, -np.inf], 1),
        ([np.nan] * 40, 0),
        ([-np.inf] * 40, 0),
    ):
        assert advance(logits, [9, 9], 0)[0][1] == expected


def test_advance_writes_no_token_where_it_must_not():
    assert advance([1, 5, 2], [7, 8, 9], 1, greedy=0) == ([7, 8, 9], 2)
    assert advance([1, 5, 2], [7, 8, 9], 2) == ([7, 8, 9], 3)
    assert advance([1, 5, 2], [7, 8, 9], 1, max_tokens=2) == ([7, 8, 9], 2)


def test_advance_passes_all_tokens_of_a_batch():
    assert advance([1, 5, 2], [7, 8, 9, 6], 0, n_tokens=3) == ([7, 8, 9, 1], 3)


@every_order
@pytest.mark.parametrize("threads", [32, 96])
def test_argmax_of_several_vectors(order, threads):
    for n in (101, 4096, 4097, 4096 * 40 + 3):  # more blocks than lanes, too
        logits = activations(5 * n).reshape(5, n)
        logits[3], logits[4] = np.nan, -np.inf
        logits[1, [7, n - 1]] = 50
        best = argmax_blocks(logits, order, threads)
        out = run(
            "argmax",
            [best, np.full(5, 77, np.uint32)],
            struct.pack("<IIII", best.shape[1], 5, 0, 0),
            groups=5,
            threads=32,
            order=order,
        )[1]
        np.testing.assert_array_equal(out, [np.argmax(logits[0]), 7, np.argmax(logits[2]), 0, 0])


def test_every_kernel_of_the_table_is_there_and_no_other():
    expected = {"rmsnorm", "residual_add", "bias_add", "qk_norm_rope", "attention_combine"}
    expected |= {"argmax_blocks", "argmax", "advance", "sample_blocks", "sample_choose"}
    expected |= {"halve", "halve_norm", "round_half", "round_half_norm"}
    expected |= {"conv_silu", "delta_rule", "gate", "hadamard", "copy"}
    expected |= {"attention_f16_prompt", "attention_f16_step", "qkv_attention_f16_step"}
    for op in ("kv_store", "qkv_to_cache", "attention"):
        expected |= {f"{op}_f16", f"{op}_f32", f"{op}_q8"}
    for name in CODES:
        products = (f"gemv_{name}", f"fused_gate_up_swiglu_{name}")
        forms = {kernel_of(p, n) for p in products for n in ("", "norm")}
        forms.add(f"gemv_{name}_residual")
        expected |= {kernel_of(p, form) for p in forms for form in (*FORM_ROWS, "slices")}
        products = (f"gemm_{name}", f"gemm_{name}_residual", f"fused_gate_up_swiglu_gemm_{name}")
        expected |= {kernel_of(p, form) for p in products for form in ("halves", "half")}
    for name in {formats.get(file_format).device_format for file_format in formats.FORMATS}:
        expected |= {f"gemv_{name}", f"gemv_{name}_residual", f"fused_gate_up_swiglu_{name}"}
        expected |= {f"gemm_{name}", f"gemm_{name}_residual", f"fused_gate_up_swiglu_gemm_{name}"}
        expected.add(f"embed_{name}")
    assert set(FAMILY_OF) == expected
    assert set(BLOCK_FORMATS) <= set(formats.FORMATS)
