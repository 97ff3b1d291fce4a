"""The tuner on the toy driver, whose tiles of 3 and of 5 rows take the time that a test sets."""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from tuning_runs import OTHER, PRODUCT, loaded, names, tuned

from oxibonsai import metal
from oxibonsai.metal import Device, MetalGraph
from oxibonsai.model.chunks import ChunkSize


def test_the_faster_variant_is_chosen_and_the_times_are_told(toy, clock, cache):
    found = tuned(toy, clock, 3e-3, 1e-3)
    (measured,) = found.measured
    assert measured.variant == PRODUCT._replace(name="threes")
    assert measured.default == "fives"
    assert measured.seconds == {"fives": pytest.approx(3e-3), "threes": pytest.approx(1e-3)}
    assert measured.speedup == pytest.approx(3)
    assert toy.device.chosen_variants() == [measured.variant]
    assert found.left == []


@pytest.mark.parametrize(
    ("threes", "chosen"), [(0.979e-3, ["threes"]), (0.981e-3, []), (1e-3, []), (2e-3, [])]
)
def test_the_default_stays_unless_another_is_two_percent_faster(toy, clock, cache, threes, chosen):
    found = tuned(toy, clock, 1e-3, threes)
    assert names(toy.device.chosen_variants()) == chosen
    assert found.measured[0].variant.name == (chosen or ["fives"])[0]


def test_the_default_is_taken_back_where_it_has_become_the_fastest(toy, clock, cache):
    tuned(toy, clock, 2e-3, 1e-3)
    tuned(toy, clock, 1e-3, 2e-3)
    assert toy.device.chosen_variants() == []
    with Device("toy") as other, MetalGraph(other):
        assert other.chosen_variants() == []


def test_a_variant_with_wrong_results_is_not_chosen_however_fast(toy, clock, cache, caplog):
    wrong = ctypes.c_int.in_dll(toy.library, "toy_wrong_rows")
    wrong.value = 3
    try:
        found = tuned(toy, clock, 2e-3, 1e-3)
    finally:
        wrong.value = 0
    assert list(found.measured[0].seconds) == ["fives"]
    assert toy.device.chosen_variants() == []
    assert "threes of gemv is wrong on this device" in caplog.text


def test_products_of_one_variant_and_repeated_ones_are_not_measured_again(toy, clock, cache):
    small = PRODUCT._replace(n_rows=2)
    found = tuned(toy, clock, products=[small, PRODUCT, PRODUCT._replace(name="fives")])
    assert [measured.variant.n_rows for measured in found.measured] == [9]


def test_the_tuner_records_nothing_on_the_callers_device(toy, clock, cache):
    tuned(toy, clock, products=[PRODUCT, OTHER], keep=False)
    assert toy.device.recorded_variants() == []


def test_a_product_is_measured_with_norm_and_with_residual_as_models_have_it(toy, clock, cache):
    tuned(toy, clock)
    kernels = Counter(kernel for kernel, *_ in toy.ran())
    assert set(kernels) == {"gemv_q1_g128_norm_bottom_up", "gemv_q1_g128_residual_bottom_up"}
    assert len(set(kernels.values())) == 1


@contextmanager
def setting(toy, name, value):
    found = ctypes.c_uint64.in_dll(toy.library, name)
    found.value = value
    try:
        yield
    finally:
        found.value = 0


def test_a_variant_that_is_recorded_as_another_is_not_measured(toy, clock, cache, caplog):
    with setting(toy, "toy_deaf_rows", PRODUCT.n_rows):
        found = tuned(toy, clock)
    assert list(found.measured[0].seconds) == ["fives"]
    assert found.measured[0].variant.name == "fives"
    assert "by threes is left out: the device records another kernel" in caplog.text


@pytest.mark.parametrize(("fives", "threes"), [(0, 1e-3), (1e-3, 0)])
def test_a_product_without_a_time_is_left_out_with_a_warning(
    toy, clock, cache, caplog, fives, threes
):
    found = tuned(toy, clock, fives, threes)
    assert found == ([], [], None)
    assert "gemv q1_g128 9 x 128 by 1 is left out: the device tells no time" in caplog.text


def test_what_does_not_fit_into_memory_is_left_and_the_rest_is_measured(toy, clock, cache, caplog):
    big = PRODUCT._replace(n_rows=90, k=12800)
    with setting(toy, "toy_most_bytes", 100_000):
        found = tuned(toy, clock, products=[big, PRODUCT])
    assert [measured.variant.n_rows for measured in found.measured] == [9]
    assert found.left == [big._replace(name="fives")]
    assert "gemv q1_g128 90 x 12800 by 1 is left: the toy is full" in caplog.text


def test_what_was_measured_before_an_interruption_is_chosen_and_kept(
    toy, clock, cache, monkeypatch
):
    generators = iter([np.random.default_rng(0), np.random.default_rng(1)])

    def generator(seed):
        for found in generators:
            return found
        raise KeyboardInterrupt

    monkeypatch.setattr(np.random, "default_rng", generator)
    with pytest.raises(KeyboardInterrupt):
        tuned(toy, clock, products=[PRODUCT, OTHER])
    assert names(toy.device.chosen_variants()) == ["threes"]
    assert loaded() == [PRODUCT._replace(name="threes")]


def test_prompts_are_measured_by_the_chunks_that_sessions_make(toy, clock, cache, monkeypatch):
    asked = []

    class Asked(Device):
        def kernel_variants(self, op, device_format, n_rows, k, n_vectors=1):
            asked.append((op, n_vectors))
            return ()

    with Asked("toy") as device:
        assert metal.tune(device) == ([], [], None)
        model = SimpleNamespace(device=device)
        most = ChunkSize(model, None).most
    expected = [n for n in (64, 128, 256, 512) if n <= most]
    assert sorted({n for op, n in asked if op == "gemm_half"}) == expected


def test_a_budget_that_is_used_up_leaves_products_with_what_they_have(toy, clock, cache):
    toy.device.choose_variant(*OTHER[:4], "threes")
    found = tuned(toy, clock, products=[PRODUCT, OTHER], budget=0)
    assert found.measured == []
    assert names(found.left) == ["fives", "threes"]


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_that_is_no_time_is_refused(toy, budget):
    with pytest.raises(ValueError, match="budget"):
        metal.tune(toy.device, [PRODUCT], budget=budget)


def test_a_device_with_one_form_of_each_kernel_has_nothing_to_tune(cache):
    with Device("cpu") as device:
        found = metal.tune(device)
    assert found == metal.Tuning([], [], None)
