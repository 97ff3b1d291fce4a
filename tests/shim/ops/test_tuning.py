"""The tuner on the toy driver, whose tiles of 3 and of 5 rows take the time that a test sets."""

from __future__ import annotations

import ctypes
import json
import os
import stat

import pytest

from oxibonsai import metal
from oxibonsai.metal import ChosenVariant, Device, MetalGraph

PRODUCT = ChosenVariant("gemv", "q1_g128", 9, 128, "", 1)
OTHER = ChosenVariant("gemv", "q1_g128", 16, 256, "", 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OXIBONSAI_TUNING")
    return tmp_path / "oxibonsai" / "tuning"


@pytest.fixture
def clock(toy):
    """Set the time of a dispatch by the rows of its tile; what it leaves is one speed for all."""
    seconds = (ctypes.c_double * 8).in_dll(toy.library, "toy_seconds")

    def set_seconds(fives, threes):
        seconds[5], seconds[3] = fives, threes

    set_seconds(1e-3, 1e-3)
    yield set_seconds
    ctypes.memset(seconds, 0, 64)


def names(choices):
    return [choice.name for choice in choices]


def tuned(toy, clock, fives=2e-3, threes=1e-3, products=(PRODUCT,), **options):
    clock(fives, threes)
    return metal.tune(toy.device, products, **options)


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


def test_a_device_tells_the_products_that_were_recorded_on_it(toy, clock, cache):
    assert toy.device.recorded_variants() == []
    tuned(toy, clock, products=[PRODUCT, OTHER], keep=False)
    assert [v[:4] for v in toy.device.recorded_variants()] == [PRODUCT[:4], OTHER[:4]]


def test_a_budget_that_is_used_up_leaves_products_with_what_they_have(toy, clock, cache):
    toy.device.choose_variant(*OTHER[:4], "threes")
    found = tuned(toy, clock, products=[PRODUCT, OTHER], budget=0)
    assert found.measured == []
    assert names(found.left) == ["fives", "threes"]


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_that_is_no_time_is_refused(toy, budget):
    with pytest.raises(ValueError, match="budget"):
        metal.tune(toy.device, [PRODUCT], budget=budget)


# What is kept


def loaded():
    """Return the choices of a new device that a graph uses."""
    with Device("toy") as device, MetalGraph(device):
        return device.chosen_variants()


def test_choices_are_taken_from_the_cache_by_the_next_graph_on_such_a_device(toy, clock, cache):
    found = tuned(toy, clock)
    assert found.path == str(cache / "toy-Toy.json")
    assert loaded() == [PRODUCT._replace(name="threes")]
    with Device("toy") as device:
        assert device.chosen_variants() == []  # no graph has been made


def test_choices_are_loaded_once_and_over_no_choice_of_the_caller(toy, clock, cache):
    tuned(toy, clock, products=[PRODUCT, OTHER])
    with Device("toy") as device:
        device.choose_variant(*PRODUCT[:4], "fives")
        with MetalGraph(device):
            assert names(device.chosen_variants()) == ["fives", "threes"]
        device.choose_variant(*OTHER[:4], None)
        with MetalGraph(device):
            assert names(device.chosen_variants()) == ["fives"]


def test_the_variable_switches_the_cache_off(toy, clock, cache, monkeypatch):
    tuned(toy, clock)
    monkeypatch.setenv("OXIBONSAI_TUNING", "0")
    assert loaded() == []


def test_what_is_not_kept_leaves_no_file(toy, clock, cache):
    assert tuned(toy, clock, keep=False).path is None
    assert not cache.exists()


def test_a_second_model_adds_to_what_is_kept_and_measures_the_rest_anew(toy, clock, cache):
    tuned(toy, clock, products=[PRODUCT, OTHER])
    tuned(toy, clock, 1e-3, 2e-3, products=[PRODUCT])
    assert loaded() == [OTHER._replace(name="threes")]


def test_the_file_and_its_folders_are_the_users_alone(toy, clock, cache):
    path = tuned(toy, clock).path
    for place in (path, cache, cache.parent):
        assert stat.S_IMODE(os.stat(place).st_mode) & 0o077 == 0
    assert os.listdir(cache) == ["toy-Toy.json"]


def changed(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    return json.dumps(content)


def pipe_in_place(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"\xff{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(path.read_text()[:-9]),
        lambda path: path.write_text("[" * 100000),
        lambda path: path.write_text(changed(path, format="oxibonsai tuning 2")),
        lambda path: path.write_text(changed(path, variants=[{"op": "gemv"}])),
        lambda path: path.write_text(changed(path, variants=[PRODUCT._replace(k="8")._asdict()])),
        lambda path: path.write_text(changed(path, variants=[PRODUCT._replace(op=8)._asdict()])),
        lambda path: path.write_text(changed(path, variants=[PRODUCT._replace(k=True)._asdict()])),
        lambda path: path.chmod(0o622),
        lambda path: path.parent.chmod(0o722),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        lambda path: (path.unlink(), path.mkdir()),
        pipe_in_place,
    ],
)
def test_a_file_that_is_damaged_or_not_safe_is_ignored_with_a_warning(
    toy, clock, cache, caplog, damage
):
    tuned(toy, clock)
    damage(cache / "toy-Toy.json")
    assert loaded() == []
    assert "toy-Toy.json is ignored" in caplog.text
    cache.chmod(0o700)


@pytest.mark.parametrize(
    "row",
    [
        PRODUCT._replace(name="sevens"),
        PRODUCT._replace(op="rmsnorm"),
        PRODUCT._replace(device_format="q9"),
        PRODUCT._replace(k=2**70, name="threes"),
    ],
)
def test_a_choice_that_the_device_does_not_know_is_left_out_alone(toy, clock, cache, caplog, row):
    path = cache / "toy-Toy.json"
    tuned(toy, clock, products=[OTHER])
    good = OTHER._replace(name="threes")
    path.write_text(changed(path, variants=[row._asdict(), good._asdict()]))
    assert loaded() == [good]
    assert "a choice of the tuner is left out" in caplog.text


@pytest.mark.parametrize("part", ["driver", "name", "kernels", "system", "package"])
def test_choices_of_another_device_driver_or_package_are_not_taken(toy, clock, cache, caplog, part):
    tuned(toy, clock)
    path = cache / "toy-Toy.json"
    key = {**json.loads(path.read_text())["key"], part: "another"}
    path.write_text(changed(path, key=key))
    assert loaded() == []
    assert caplog.text == ""
    tuned(toy, clock, products=[OTHER])
    assert loaded() == [OTHER._replace(name="threes")]


def test_a_place_that_cannot_be_written_keeps_nothing_and_says_so(
    toy, clock, cache, caplog, monkeypatch
):
    cache.parent.mkdir()
    cache.write_text("")
    assert tuned(toy, clock).path is None
    assert "the tuner's choices are not kept" in caplog.text
    assert names(toy.device.chosen_variants()) == ["threes"]
    caplog.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME")
    assert tuned(toy, clock).path is None
    assert "neither XDG_CACHE_HOME nor HOME is a path" in caplog.text
    assert loaded() == []


def test_a_device_with_one_form_of_each_kernel_has_nothing_to_tune(cache):
    with Device("cpu") as device:
        found = metal.tune(device)
    assert found == metal.Tuning([], [], None)
