"""Matrix-vector products of every format against float64, for ordinary and for odd numbers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import reference
from cases import (
    ALL_FORMATS,
    BLOCK_FORMATS,
    DENSE_FORMATS,
    activations,
    block,
    close_to,
    contents,
    dense,
    encode,
    gemv,
    random_weight,
    same_non_finite,
    set_scales,
    upload,
)
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai import formats, metal
from oxibonsai.quant import QTensor

# One row, and numbers that no tile divides.
ROWS = [1, 2, 15, 16, 17, 31, 33, 100, 511]
TWO_BITS = [name for name in BLOCK_FORMATS if name != "Q1_0"]

every_format = pytest.mark.parametrize("name", ALL_FORMATS)
every_block_format = pytest.mark.parametrize("name", BLOCK_FORMATS)
every_layout = pytest.mark.parametrize("plain", [False, True], ids=["shaped", "plain"])


def check(graph, q, x, w64=None, plain=False):
    """Fail unless the device's W x is within the bound of the definition."""
    w64 = dense(q) if w64 is None else w64
    r = reference.gemv(w64, x)
    close_to(gemv(graph, q, x, plain), r, reference.gemv_bound(w64, x, r))


def check_ieee(graph, q, x):
    """As check(), with NaN and infinities exactly where the definition has them."""
    w64 = dense(q)
    r = reference.gemv(w64, x)
    y = gemv(graph, q, x)
    finite = same_non_finite(y, r)
    if finite.any():
        bound = reference.gemv_bound(w64[finite], x, r[finite])
        close_to(y[finite], r[finite], bound)


def rows_of(q, n_rows):
    return QTensor(q.data[:n_rows], (n_rows, q.shape[1]), q.format)


def ragged_ks(name):
    """Return the smallest k, and dense ones that fill no vector register."""
    return [block(name), *([1, 3, 33, 515] if formats.get(name).block_weights == 1 else [])]


@every_format
def test_smallest_rows_of_weights_match_the_definition(graph, name):
    for k in ragged_ks(name):
        q = random_weight(name, 511, k)
        w64, x = dense(q), activations(k)
        for n_rows in ROWS:
            check(graph, rows_of(q, n_rows), x, w64[:n_rows])


@every_format
@pytest.mark.parametrize("k", [128, 256, 2048])
def test_any_number_of_rows_matches_the_definition(graph, name, k):
    if k % block(name):
        k = block(name) * 3
    q = random_weight(name, 511, k)
    w64, x = dense(q), activations(k)
    for n_rows in ROWS:
        check(graph, rows_of(q, n_rows), x, w64[:n_rows])


@pytest.mark.large
@every_format
def test_the_longest_rows_of_a_model_match_the_definition(graph, name):
    q = random_weight(name, 130, 12288)
    w64 = dense(q)
    for n_rows in (1, 16, 17, 130):
        check(graph, rows_of(q, n_rows), activations(12288), w64[:n_rows])


@pytest.mark.large
@pytest.mark.parametrize("name", ["Q1_0", "PQ2_0", "Q8_0"])
def test_more_rows_than_a_tile_of_the_cpu_match_the_definition(graph, name):
    check(graph, random_weight(name, 4111, 256), activations(256))


@every_format
@every_layout
def test_shaped_and_plain_handles_give_the_same_product(graph, name, plain):
    k = 2 * block(name)
    check(graph, random_weight(name, 33, k), activations(k), plain=plain)


@every_block_format
def test_neighbouring_groups_keep_their_own_scales(graph, name):
    q = random_weight(name, 17, 1024)
    n_blocks = 17 * 1024 // formats.get(name).block_weights
    set_scales(q, np.ldexp(1.0, np.arange(n_blocks) % 24 - 12))
    check(graph, q, activations(1024))


def test_each_group_of_64_in_a_pair_has_its_own_scale(graph):
    q = random_weight("Q2_0", 17, 128)
    q.data.reshape(-1, 18)[:, 2:] = 0xAA  # every weight is +d
    set_scales(q, np.tile([1.0, 256.0], 17))
    y = gemv(graph, q, np.ones(128, np.float32))
    np.testing.assert_array_equal(y, np.full(17, 64 + 64 * 256, np.float32))


@pytest.mark.parametrize("name", TWO_BITS)
def test_code_three_has_the_value_of_its_format(graph, name):
    # In PTQ1_0 the byte 0xFF is five digits 2.
    value = {"TQ2_0_g128": 0, "PTQ1_0": 1}.get(name, 2)
    k = block(name)
    q = random_weight(name, 3, k)
    q.data[:] = 0xFF
    set_scales(q, 0.5)
    y = gemv(graph, q, np.ones(k, np.float32))
    np.testing.assert_array_equal(y, np.full(3, 0.5 * value * k, np.float32))


@every_block_format
def test_all_codes_zero_is_all_negative(graph, name):
    k = 2 * block(name)
    q = random_weight(name, 5, k)
    q.data[:] = 0
    set_scales(q, 1.5)
    y = gemv(graph, q, np.ones(k, np.float32))
    np.testing.assert_array_equal(y, np.full(5, -1.5 * k, np.float32))


@every_block_format
def test_a_single_code_reaches_its_own_activation_only(graph, name):
    # Impulses, one for each weight of a row: every position of the layout is looked at.
    k = block(name)
    q = random_weight(name, 16, k, seed=5)
    w64 = dense(q)
    with upload(graph, q) as handle:
        for j in range(k):
            x, y = np.zeros(k, np.float32), np.zeros(16, np.float32)
            x[j] = 3.0
            encode(graph, handle, x, y)
            np.testing.assert_array_equal(y, (3.0 * w64[:, j]).astype(np.float32))


SCALES = {
    "zero": 0.0,
    "minus zero": -0.0,
    "least subnormal": 2.0**-24,
    "subnormal": 777 * 2.0**-24,
    "largest subnormal": 1023 * 2.0**-24,
    "maximum": 65504.0,
    "minus maximum": -65504.0,
    "negative": -0.75,
}
ODD_SCALES = {"inf": np.inf, "-inf": -np.inf, "nan": np.nan}


@every_block_format
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_finite_scales_of_every_kind(graph, name, scale):
    for k in (block(name), 1024):
        q = set_scales(random_weight(name, 50, k), scale)
        check(graph, q, activations(k))


@pytest.mark.parametrize("name", [*BLOCK_FORMATS, "Q8_0"])
@pytest.mark.parametrize("scale", ODD_SCALES.values(), ids=ODD_SCALES)
@pytest.mark.parametrize("n_rows", [3, 70])
def test_infinite_and_nan_scales_follow_ieee(graph, name, scale, n_rows):
    k = 4 * block(name)
    q = random_weight(name, n_rows, k)
    n_blocks = n_rows * k // formats.get(name).block_weights
    scales = np.linspace(0.5, 1.5, n_blocks)
    scales[:: max(n_blocks // n_rows * 2, 1)] = scale  # in every other row
    check_ieee(graph, set_scales(q, scales), activations(k))
    # All weights negative or all positive: the infinities keep their sign.
    for byte in (0x00, 0xAA):
        q.data[:] = byte
        check_ieee(graph, set_scales(q, scales), np.abs(activations(k)) + 1)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_infinite_and_nan_weights_follow_ieee(graph, name):
    q = random_weight(name, 12, 64)
    cells = q.data.view({"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[name])
    odd = [0x7F80, 0xFF80, 0x7FC0] if name == "BF16" else [np.inf, -np.inf, np.nan]
    for row, value in enumerate(odd):
        cells[row, 7 * row] = value
    cells[3, [1, 40]] = odd[:2]
    check_ieee(graph, q, activations(64))


@every_format
@pytest.mark.parametrize("n_rows", [5, 60])
def test_infinite_and_nan_activations_follow_ieee(graph, name, n_rows):
    k = 2 * block(name)
    q = random_weight(name, n_rows, k)
    for odd in ({0: np.inf}, {k - 1: -np.inf}, {k // 2: np.nan}, {1: np.inf, k - 2: np.inf}):
        x = activations(k)
        x[list(odd)] = list(odd.values())
        check_ieee(graph, q, x)


@every_block_format
def test_a_zero_scale_times_an_infinite_activation_is_nan(graph, name):
    k = 2 * block(name)
    q = set_scales(random_weight(name, 4, k), 0.0)
    x = np.ones(k, np.float32)
    x[3] = np.inf
    assert np.isnan(gemv(graph, q, x)).all()


@every_format
def test_activations_with_a_mean(graph, name):
    k = 2048
    check(graph, random_weight(name, 40, k), activations(k) + np.float32(100))


@every_format
def test_activations_with_outliers(graph, name):
    k = 2048
    x = activations(k)
    x[[3, 700, 2047]] = [1e6, -3e6, 7e5]
    check(graph, random_weight(name, 40, k), x)


@every_format
def test_activations_of_great_size(graph, name):
    k = 256
    x = activations(k)
    x[10] = 1e36
    check(graph, random_weight(name, 40, k), x)


@every_format
def test_denormal_activations_are_not_flushed(graph, name):
    k = 256
    q = random_weight(name, 40, k)
    w64 = dense(q)
    x = np.full(k, 2.0**-140, np.float32) * (1 + np.arange(k, dtype=np.float32))
    r = reference.gemv(w64, x)
    y = gemv(graph, q, x)
    assert y.any()
    # Each partial product of a group rounds to a multiple of 2^-149.
    close_to(y, r, reference.gemv_bound(w64, x, r) + 2.0**-149 * k)


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q2_0", "F32", "Q8_0"])
@given(data=st.data())
def test_the_product_is_linear(graph, name, data):
    k = data.draw(st.integers(1, 4), label="blocks") * block(name)
    q = random_weight(name, data.draw(st.integers(1, 40), label="rows"), k, seed=9)
    seeds = st.integers(0, 2**32 - 1)
    a = activations(k, data.draw(seeds)) + np.float32(data.draw(st.sampled_from([0, 5])))
    b = activations(k, data.draw(seeds)) * np.float32(data.draw(st.sampled_from([1, 1e-3, 1e4])))
    both = a + b
    together = gemv(graph, q, both).astype(np.float64)
    apart = gemv(graph, q, a).astype(np.float64) + gemv(graph, q, b)
    w64 = dense(q)
    # a + b is rounded once more than a and b are.
    bound = sum(reference.gemv_bound(w64, x, reference.gemv(w64, x)) for x in (both, a, b))
    assert np.linalg.norm(together - apart) <= 2 * bound


@every_format
@given(exponent=st.integers(-60, 60), seed=st.integers(0, 1000))
def test_scaling_by_a_power_of_two_is_exact(graph, name, exponent, seed):
    k = block(name)
    q = random_weight(name, 20, k)
    x = activations(k, seed)
    np.testing.assert_array_equal(
        gemv(graph, q, np.ldexp(x, exponent)), np.ldexp(gemv(graph, q, x), exponent)
    )


@every_format
def test_two_runs_give_the_same_bits(graph, name):
    k = 1024
    q, x = random_weight(name, 200, k), activations(k)
    first = gemv(graph, q, x)
    for _ in range(3):
        np.testing.assert_array_equal(gemv(graph, q, x).view(np.uint32), first.view(np.uint32))


@pytest.mark.device("cpu")
@every_format
def test_any_number_of_threads_gives_the_same_bits(device_name, name):
    results = []
    for n_rows, k in ((47, 256), (300, 1024)):
        q, x = random_weight(name, n_rows, k), activations(k)
        for threads in (1, 2, 3, 5):
            with metal.Device(device_name, threads=threads) as device:
                results.append(gemv(metal.MetalGraph(device), q, x).view(np.uint32))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])
        results.clear()


@every_format
def test_a_row_does_not_depend_on_how_many_there_are(graph, name):
    # Few rows and many may run different code: the bits are the same.
    k = 512
    q, x = random_weight(name, 100, k), activations(k)
    many = gemv(graph, q, x)
    for n_rows in (1, 7, 47, 49):
        few = gemv(graph, rows_of(q, n_rows), x)
        np.testing.assert_array_equal(few.view(np.uint32), many[:n_rows].view(np.uint32))


@every_format
@every_layout
def test_the_residual_form_adds_to_what_is_there(device, graph, name, plain):
    n_rows, k = 35, 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(k)
    start = activations(n_rows, 3)
    w64 = dense(q)
    shape = q.shape if plain else ()
    with (
        upload(graph, q, plain) as handle,
        device.upload(x) as bx,
        device.upload(start) as by,
        device.commands() as commands,
    ):
        commands.gemv(handle, bx, by, *shape, residual=True)
        commands.replay()
        once = reference.gemv(w64, x)
        bound = reference.gemv_bound(w64, x, once) + 1e-7 * float(np.linalg.norm(start))
        close_to(contents(by), start + once, bound)
        commands.replay(2)
        close_to(contents(by), start + 3 * once, 4 * bound)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "PTQ1_0", "F16"])
def test_offsets_into_buffers_place_input_and_output(device, graph, name):
    n_rows, k = 20, 256
    q, x = random_weight(name, n_rows, k), activations(k)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    padded = np.concatenate([np.full(3, np.nan, np.float32), x])
    with (
        upload(graph, q) as handle,
        device.upload(padded) as bx,
        device.upload(np.full(n_rows + 9, 5, np.float32)) as by,
        device.commands() as commands,
    ):
        commands.gemv(handle, (bx, 12), (by, 20))
        commands.replay()
        y = contents(by)
    close_to(y[5 : 5 + n_rows], r, reference.gemv_bound(w64, x, r))
    np.testing.assert_array_equal(np.delete(y, np.s_[5 : 5 + n_rows]), np.full(9, 5, np.float32))


@pytest.mark.device("cpu")
@every_format
@pytest.mark.parametrize("residual", [False, True])
def test_a_kernel_runs_from_its_name_and_a_packed_struct(device, name, residual):
    n_rows, k = 37, 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(k)
    start = activations(n_rows, 8)
    soa, codes_offset = metal.reformat(q.data, name)
    suffix = "_residual" if residual else ""
    pipeline = device.pipeline(f"gemv_{formats.get(name).device_format}{suffix}")
    # struct oxb_gemv_args: codes_offset, n_rows, k.
    args = struct.pack("<QII16x", codes_offset, n_rows, k)
    with (
        device.upload(soa) as weight,
        device.upload(x) as bx,
        device.upload(start) as by,
        device.commands() as commands,
    ):
        # Groups past the last row are empty.
        commands.dispatch(pipeline, [weight, bx, by], args, threadgroups=10)
        commands.replay()
        y = contents(by)
    w64 = dense(q)
    r = reference.gemv(w64, x)
    bound = reference.gemv_bound(w64, x, r) + 1e-7 * float(np.linalg.norm(start))
    close_to(y, r + start * residual, bound)


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "F32"])
def test_longer_arrays_than_needed_are_left_alone_past_the_result(graph, name):
    q, x = random_weight(name, 10, 256), activations(300)
    y = np.full(25, 9, np.float32)
    with upload(graph, q) as handle:
        encode(graph, handle, x, y)
    r = reference.gemv(dense(q), x[:256])
    close_to(y[:10], r, reference.gemv_bound(dense(q), x[:256], r))
    np.testing.assert_array_equal(y[10:], np.full(15, 9, np.float32))


def test_output_may_overlap_input(graph):
    q = random_weight("Q1_0", 128, 128)
    memory = activations(160)
    x = memory[:128].copy()
    with upload(graph, q) as handle:
        graph.encode_gemv(handle, memory[:128], memory[32:])
    r = reference.gemv(dense(q), x)
    close_to(memory[32:], r, reference.gemv_bound(dense(q), x, r))


@every_layout
def test_digits_take_no_more_memory_than_in_the_file(graph, plain):
    q = random_weight("PTQ1_0", 256, 640)
    with upload(graph, q, plain) as handle:
        assert handle.nbytes <= q.data.size + 15  # scales are padded to 16 bytes


def test_the_formats_tested_are_all_there_are():
    assert sorted(BLOCK_FORMATS + DENSE_FORMATS) == sorted(formats.FORMATS)
    kernels = {formats.get(name).device_format for name in ALL_FORMATS}
    assert kernels == {"q1_g128", "q2_g128", "q2_g64", "t1_g128", "f32", "f16", "bf16", "q8_0"}


def test_a_norm_that_the_recording_writes_is_read_after_it(graph):
    """Kernels may read a norm's weight before the dispatch ahead of them has ended."""
    n_rows, k = 64, 1024
    q = random_weight("Q1_0", n_rows, k, seed=1)
    x, scale, ones = activations(k, 2), activations(k, 3), np.ones(k, np.float32)
    device = graph.device
    storage = device.working_storage
    with (
        graph.upload_weight_soa(q) as handle,
        device.upload(x, storage=storage) as a,
        device.upload(scale, storage=storage) as s,
        device.upload(ones, storage=storage) as unit,
        device.buffer(4 * k, storage=storage) as norm,
        device.buffer(4 * n_rows, storage=storage) as y,
        device.commands() as commands,
    ):
        commands.rmsnorm(s, unit, norm, k)
        commands.gemv(handle, a, y, norm=norm)
        text = commands.describe()
        for _ in range(3):
            norm.fill(0)
            commands.replay()
            found = y.read(np.empty(n_rows, np.float32))
            made = reference.rmsnorm(scale, ones, 1e-6)
            normed = reference.rmsnorm(x, made, 1e-6)
            r = reference.gemv(dense(q), normed)
            close_to(found, r, 2 * reference.gemv_bound(dense(q), normed, r))
    assert "gemv_q1_g128_norm" not in text
