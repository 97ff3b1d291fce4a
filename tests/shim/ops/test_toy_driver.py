"""A driver with tiles, a layout and an ability of its own; drivers with a gap in their table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from cases import activations, close_to, contents, dense, random_weight, run_python
from toys import ADD_ELEMENTS, GEMV_ROWS, THREADS, build

from oxibonsai import metal
from oxibonsai.metal import (
    ChosenVariant,
    CompilationError,
    Device,
    DeviceNotFoundError,
    EncodingError,
)


@pytest.mark.parametrize("n", [1, 13, 14, 40])
def test_an_element_wise_op_is_cut_into_the_tiles_of_the_driver(toy, n):
    x, y = activations(n), activations(n, 1)
    with toy.device.upload(x) as a, toy.device.upload(y) as b, toy.device.commands() as commands:
        commands.add(a, b, n)
        commands.replay()
        np.testing.assert_array_equal(contents(b), x + y)
    assert toy.ran() == [("residual_add", (-(-n // ADD_ELEMENTS), 1, 1), THREADS, 0)]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("n_rows", [1, 5, 6, 33])
def test_a_gemv_runs_in_the_layout_and_by_the_ability_of_the_driver(toy, n_rows, norm):
    k = 256
    q, x, weight = random_weight("Q1_0", n_rows, k), activations(k), activations(k, 2)
    expected_x = reference.rmsnorm(x[None], weight, 1e-6)[0] if norm else x
    expected = reference.gemv(dense(q), expected_x)
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_q1_weight_soa(q) as handle,
        toy.device.upload(x) as a,
        toy.device.upload(weight) as b,
        toy.device.buffer(4 * n_rows) as y,
        toy.device.commands() as commands,
    ):
        commands.gemv(handle, a, y, norm=b if norm else None)
        commands.replay()
        close_to(contents(y), expected, reference.gemv_bound(dense(q), expected_x, expected))
    kernel = "gemv_q1_g128_norm_bottom_up" if norm else "gemv_q1_g128_bottom_up"
    assert toy.ran() == [(kernel, (-(-n_rows // GEMV_ROWS), 1, 1), THREADS, GEMV_ROWS)]


def gemv_rows(toy, n_rows, *, n_vectors=1, k=128, **options) -> set[int]:
    """Return the rows of a tile of the GEMV that was recorded."""
    q = random_weight("Q1_0", n_rows, k)
    before = len(toy.ran())
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_q1_weight_soa(q) as handle,
        toy.device.upload(activations(n_vectors * k)) as x,
        toy.device.buffer(4 * n_vectors * n_rows) as y,
        toy.device.commands(**options) as commands,
    ):
        commands.gemv(handle, x, y, n_vectors=n_vectors)
        commands.replay()
    return {rows for _, _, _, rows in toy.ran()[before:]}


def test_the_variants_of_a_product_are_those_that_the_driver_has_for_its_shape(toy):
    variants = toy.device.kernel_variants
    assert variants("gemv", "q1_g128", 3, 128) == ("fives", "threes")
    assert variants("gemv", "q1_g128", 2, 128) == ("fives",)
    assert variants("swiglu", "q1_g128", 4, 128) == ()
    assert variants("gemm_halves", "q1_g128", 4, 128, 8) == ()  # it has no halves
    assert variants("gemm_half", "q1_g128", 4, 128, 64) == ()


def test_a_chosen_variant_is_recorded_for_its_product_only_and_until_it_is_taken_back(toy):
    device = toy.device
    assert gemv_rows(toy, 9) == {5}
    device.choose_variant("gemv", "q1_g128", 9, 128, "threes")
    assert gemv_rows(toy, 9) == {3}
    assert gemv_rows(toy, 8) == {5}
    assert gemv_rows(toy, 9, k=256) == {5}
    device.choose_variant("gemv", "q1_g128", 9, 128, "fives")
    assert gemv_rows(toy, 9) == {5}
    device.choose_variant("gemv", "q1_g128", 9, 128, "threes")
    device.choose_variant("gemv", "q1_g128", 9, 128, None)
    assert gemv_rows(toy, 9) == {5}
    assert device.chosen_variants() == []


def test_a_recording_keeps_the_variant_that_was_chosen_when_it_was_made(toy):
    q = random_weight("Q1_0", 9, 128)
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_q1_weight_soa(q) as handle,
        toy.device.upload(activations(128)) as x,
        toy.device.buffer(36) as y,
        toy.device.commands() as commands,
    ):
        commands.gemv(handle, x, y)
        toy.device.choose_variant("gemv", "q1_g128", 9, 128, "threes")
        commands.replay()
    assert [rows for *_, rows in toy.ran()] == [5]


def test_the_choices_of_a_device_are_listed_and_are_its_own(toy):
    choose = toy.device.choose_variant
    choose("gemv", "q1_g128", 9, 128, "threes")
    choose("gemv", "q1_g128", 7, 256, "fives", 5)
    choose("gemv", "q1_g128", 9, 128, "fives")  # another choice for the first one
    choose("gemv", "q2_g64", 6, 64, None)
    assert toy.device.chosen_variants() == [
        ChosenVariant("gemv", "q1_g128", 9, 128, "fives", 1),
        ChosenVariant("gemv", "q1_g128", 7, 256, "fives", 8),
    ]
    choose("gemv", "q1_g128", 9, 128, None)
    assert [choice.k for choice in toy.device.chosen_variants()] == [256]
    with Device("toy") as other:
        assert other.chosen_variants() == []


def test_threads_choose_and_record_at_the_same_time(toy):
    q = random_weight("Q1_0", 9, 128)
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_q1_weight_soa(q) as handle,
        toy.device.buffer(512) as x,
        toy.device.buffer(36) as y,
    ):

        def work(number):
            for turn in range(50):
                toy.device.choose_variant("gemv", "q1_g128", 9 + number, 128, "threes", 1 + turn)
                with toy.device.commands() as commands:
                    commands.gemv(handle, x, y)
                toy.device.chosen_variants()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    chosen = toy.device.chosen_variants()
    assert len(chosen) == len(set(chosen)) == 4 * 7  # 1, 2, 4, ... 64 vectors
    (recorded,) = toy.device.recorded_variants()
    assert recorded == ChosenVariant("gemv", "q1_g128", 9, 128, "threes", 1)


WRONG_PRODUCTS = [
    (("gemv", "q1_g128", 9, 128, "fours"), 'no variant "fours" of gemv for 9 x 128 q1_g128 by 1 '),
    (("gemv", "q1_g128", 9, 128, "fours"), ": there are fives, threes"),
    (("gemv", "q1_g128", 2, 128, "threes"), ": there are fives"),
    (("gemv", "q1_g128", 9, 128, ""), 'no variant "" of gemv'),
    (("swiglu", "q1_g128", 8, 128, "fives"), "by 1 vectors: the device has one form of it"),
    (("rmsnorm", "q1_g128", 9, 128, None), 'no product "rmsnorm": there are gemv, swiglu, gemm, '),
    (("gemv", "q1_0", 9, 128, None), "no device format 'q1_0': there are q1_g128, q2_g128, q2_g64"),
    (("gemv", "q1_g128", 9, 100, None), "gemv: k = 100 must be a multiple of 128: that many w"),
    (
        ("swiglu", "q1_g128", 9, 128, None),
        "swiglu: n_rows = 9 must be a multiple of 2: that ",
    ),
    (("gemv", "q1_g128", 0, 128, None), r"n_rows = 0 must lie in 1..2147483648"),
    (("gemv", "q1_g128", 9, -1, None), "k = -1 must lie in"),
    (("gemv", "q1_g128", 9, 128, None, 2**31 + 1), "n_vectors = 2147483649 must lie in"),
    (("gemv", "q1_g128", 9, 128, None, 2**64), "n_vectors = 18446744073709551616 must lie in"),
    (("gemv\0s", "q1_g128", 9, 128, None), r'no product "gemv\\0s": there are gemv, '),
    (
        ("gemv", "q1_g128", 9, 128, "fives\0"),
        r'no variant "fives\\0" of gemv .*: there are ',
    ),
    (("gemv", "q1_g128", 9, 128, "f\ud800"), r'no variant "f\\ud800" of gemv'),
    (("gemv", "q1_g128", 9, 128, "fünf"), r'no variant "f\\xfcnf" of gemv'),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_PRODUCTS)
def test_a_choice_of_what_there_is_not_says_what_there_is(toy, arguments, message):
    with pytest.raises(EncodingError, match=message):
        toy.device.choose_variant(*arguments)
    assert toy.device.chosen_variants() == []


def test_what_is_listed_as_chosen_can_be_chosen_as_it_is(toy):
    toy.device.choose_variant("gemv", "q1_g128", 9, 128, "threes", 3)
    toy.device.choose_variant("gemv", "q1_g128", 9, 128, "fives", 2**31)
    chosen = toy.device.chosen_variants()
    assert [choice.n_vectors for choice in chosen] == [4, 2**31]
    with Device("toy") as other:
        for choice in chosen:
            assert choice.name in other.kernel_variants(*choice.product)
            other.choose_variant(*choice)
        assert other.chosen_variants() == chosen


def test_a_device_keeps_a_bounded_number_of_choices_and_reuses_those_taken_back(toy):
    def choose(n_rows, name="threes"):
        toy.device.choose_variant("gemv", "q2_g64", n_rows, 64, name)

    for n_rows in range(3, 3 + 8192):
        choose(n_rows)
    with pytest.raises(EncodingError, match=r"no place for .* a device keeps 8192 products"):
        choose(9000)
    choose(9000, None)
    choose(3, "fives")
    choose(4, None)
    choose(9000)
    chosen = {choice.n_rows: choice.name for choice in toy.device.chosen_variants()}
    assert len(chosen) == 8192
    assert 4 not in chosen
    assert (chosen[3], chosen[9000]) == ("fives", "threes")


def test_a_variant_that_is_no_text_is_a_type_error(toy):
    with pytest.raises(TypeError, match="named by a str, not int"):
        toy.device.choose_variant("gemv", "q1_g128", 9, 128, 3)


def test_a_closed_device_has_no_variants(toy):
    toy.device.close()
    for call in (
        lambda: toy.device.kernel_variants("gemv", "q1_g128", 9, 128),
        lambda: toy.device.choose_variant("gemv", "q1_g128", 9, 128, None),
        toy.device.chosen_variants,
    ):
        with pytest.raises(EncodingError, match="the device is closed"):
            call()


def test_a_matrix_without_a_shape_stays_in_the_plain_layout(toy):
    q, x = random_weight("Q1_0", 7, 128), activations(128)
    y = np.zeros(7, np.float32)
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_weight_soa(q.data, "Q1_0") as handle,
    ):
        graph.encode_gemv(handle, x, y, 7, 128)
    expected = reference.gemv(dense(q), x)
    close_to(y, expected, reference.gemv_bound(dense(q), x, expected))
    assert toy.ran() == [("gemv_q1_g128", (2, 1, 1), THREADS, GEMV_ROWS)]


def test_an_ability_that_the_driver_lacks_is_recorded_in_steps(toy):
    # Its norm is fused for 1-bit weights only, and it has no kernel for the norm on its own.
    q = random_weight("Q2_0", 8, 128)
    with (
        metal.MetalGraph(toy.device) as graph,
        graph.upload_weight_soa(q) as handle,
        toy.device.buffer(512) as x,
        toy.device.buffer(512) as y,
        toy.device.commands() as commands,
    ):
        with pytest.raises(CompilationError, match="the toy has no kernel rmsnorm"):
            commands.gemv(handle, x, y, norm=x)
        assert len(commands) == 0


def test_activations_in_int8_are_refused_without_the_ability(toy):
    with pytest.raises(metal.EncodingError, match="do not take int8 activations"):
        toy.device.commands(activations="int8")


def test_deterministic_products_are_refused_without_the_ability(toy):
    with pytest.raises(metal.EncodingError, match="leave deterministic out"):
        toy.device.commands(deterministic=True)


# Gaps in a driver's table

LOAD = """
import sys
from oxibonsai import metal
try:
    metal.load_driver(sys.argv[1])
except metal.DeviceNotFoundError as error:
    print("load:", error)
    sys.exit()
import ctypes
ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "toy_present").value = 1
try:
    metal.Device("toy")
except metal.DeviceNotFoundError as error:
    print("open:", error)
assert "toy" not in [info.driver for info in metal.devices()]
with metal.Device() as device:
    assert device.driver != "toy"
"""

GAPS = {
    "NO_TILE_FUNCTION": 'load: driver "toy": its table has no function tile:',
    "NO_PACK": 'load: driver "toy": its table has no function weight_pack:',
    "NO_INT8_BYTES": 'open: driver "toy" has int8 products, and its table has no function int8_v',
    "NO_ROW": 'open: driver "toy": its tile of embed is 0 x 0 x 0 for 0 threads, and none may be 0',
    "ZERO_SIZE": 'open: driver "toy": its tile of add is 0 x 1 x 4294967295 for 3 threads',
    "ZERO_THREADS": 'open: driver "toy": its tile of gemv is 5 x 1 x 4294967295 for 0 threads',
    "NO_SUFFIX": 'open: driver "toy": its tile of gemv has no suffix',
    "NO_SPLITS": 'open: driver "toy": its tile of attention has 0 splits and is 1 query heads',
    "UNEVEN_HEADS": 'open: driver "toy": its tile of attention has 1 splits and is 3 query heads',
    "PLAIN_LAYOUT": 'open: driver "toy": its layouts of q1_g128 are wrong',
    "NO_VARIANT_NAME": 'open: driver "toy": its variants of gemv are wrong',
    "MANY_VARIANTS": 'open: driver "toy": its variants of gemv are wrong: at most 32,',
    "LOST_VARIANT": 'open: driver "toy": its tile of gemv as "threes" is that of "fives"',
}


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_in_the_table_is_named_when_the_driver_is_loaded_or_opened(tmp_path, gap):
    done = run_python(LOAD, str(build(tmp_path, gap)))
    assert done.stdout.startswith(GAPS[gap])
    assert "the driver must be corrected" in done.stdout


def test_a_driver_without_devices_is_not_asked_for_tiles(toy_library):
    with pytest.raises(DeviceNotFoundError, match='no device "toy:0": 0 devices of driver'):
        Device("toy")
