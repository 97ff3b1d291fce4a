"""What the tuner keeps in the user's cache, and what is taken from there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tuning_runs import OTHER, PRODUCT, loaded, names, tuned

from oxibonsai import metal
from oxibonsai.metal import Device, MetalGraph


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


class Handler(logging.Handler):
    """Calls a function with each warning of the package."""

    def __init__(self, call):
        super().__init__()
        self.emit = lambda record: call()

    def __enter__(self):
        logging.getLogger("oxibonsai.metal").addHandler(self)

    def __exit__(self, *exc):
        logging.getLogger("oxibonsai.metal").removeHandler(self)


def with_a_warning(toy, clock, cache):
    """Keep a choice that the device takes after one of which it warns."""
    path = cache / "toy-Toy.json"
    tuned(toy, clock)
    rows = [named("sevens"), OTHER._replace(name="threes")._asdict()]
    path.write_text(changed(path, variants=rows))


def test_a_graph_of_another_thread_waits_until_the_choices_are_loaded(toy, clock, cache):
    with_a_warning(toy, clock, cache)
    loading, go_on = threading.Event(), threading.Event()

    def stop():
        loading.set()
        go_on.wait(60)

    def chosen(device):
        with MetalGraph(device):
            return names(device.chosen_variants())

    with Device("toy") as device, ThreadPoolExecutor(2) as threads, Handler(stop):
        first = threads.submit(chosen, device)
        assert loading.wait(60)
        second = threads.submit(chosen, device)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go_on.set()
        assert (first.result(60), second.result(60)) == (["threes"], ["threes"])


def test_a_graph_that_a_warning_makes_does_not_load_again(toy, clock, cache):
    with_a_warning(toy, clock, cache)
    with Device("toy") as device:
        made = []
        with Handler(lambda: made.append(MetalGraph(device))):
            MetalGraph(device).close()
        (graph,) = made
        graph.close()
        assert names(device.chosen_variants()) == ["threes"]


def test_what_ends_the_loading_has_the_next_graph_load_again(toy, clock, cache):
    with_a_warning(toy, clock, cache)

    def end():
        raise KeyboardInterrupt

    with Device("toy") as device:
        with Handler(end), pytest.raises(KeyboardInterrupt):
            MetalGraph(device)
        with MetalGraph(device):
            assert names(device.chosen_variants()) == ["threes"]


def test_the_variable_switches_the_cache_off(toy, clock, cache, monkeypatch):
    tuned(toy, clock)
    monkeypatch.setenv("OXIBONSAI_TUNING", "0")
    assert loaded() == []


def test_the_variable_has_the_tuner_warn_that_what_it_keeps_is_not_taken(
    toy, clock, cache, caplog, monkeypatch
):
    monkeypatch.setenv("OXIBONSAI_TUNING", "0")
    path = tuned(toy, clock).path
    assert caplog.messages == [f"OXIBONSAI_TUNING=0: what is kept in {path} is not taken"]
    monkeypatch.delenv("OXIBONSAI_TUNING")
    assert loaded() == [PRODUCT._replace(name="threes")]


def test_of_what_is_kept_the_choices_are_told_that_the_device_takes(toy, clock, cache):
    path = cache / "toy-Toy.json"
    assert metal.kept_variants(toy.device.info) == []
    tuned(toy, clock)
    good = PRODUCT._replace(name="threes")
    path.write_text(changed(path, variants=[named("sevens"), good._asdict()]))
    assert metal.kept_variants(toy.device.info) == [good]
    info = toy.device.info._replace(index=7)  # it has gone meanwhile
    assert metal.kept_variants(info) == []


def test_what_is_not_kept_leaves_no_file(toy, clock, cache):
    assert tuned(toy, clock, keep=False).path is None
    assert not cache.exists()


def test_a_second_model_adds_to_what_is_kept_and_measures_the_rest_anew(toy, clock, cache):
    tuned(toy, clock, products=[PRODUCT, OTHER])
    tuned(toy, clock, 1e-3, 2e-3, products=[PRODUCT])
    assert loaded() == [OTHER._replace(name="threes")]


def test_the_file_and_its_folders_are_the_users_alone(toy, clock, cache):
    path = tuned(toy, clock).path
    for place in (path, cache / "lock", cache, cache.parent):
        assert stat.S_IMODE(os.stat(place).st_mode) & 0o077 == 0
    assert sorted(os.listdir(cache)) == ["lock", "toy-Toy.json"]


def changed(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    return json.dumps(content)


def named(name):
    return PRODUCT._replace(name=name)._asdict()


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
        lambda path: path.write_text(changed(path, variants=[named("\ud800")])),
        lambda path: path.write_text(changed(path, variants=[named("threes\0")])),
        lambda path: path.write_text(changed(path, variants=[named("\x1b[2J")])),
        lambda path: path.write_text(changed(path, variants=[named("")])),
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


def a_link(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def a_file(path):
    path.rename(path.with_name("other"))
    path.write_text("")


def a_folder(path):
    path.rename(path.with_name("other"))
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (a_link, "it is a symbolic link"),
        (a_folder, "it is no file"),
        (pipe_in_place, "it is no file"),
        (lambda path: path.chmod(0o666), "others may write it"),
    ],
)
def test_why_a_file_is_not_taken_is_told(toy, clock, cache, caplog, damage, text):
    tuned(toy, clock)
    damage(cache / "toy-Toy.json")
    assert loaded() == []
    assert caplog.messages == [f"the tuner's file {cache / 'toy-Toy.json'} is ignored: {text}"]


@pytest.mark.parametrize("which", ["tuning", "oxibonsai"])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (a_link, "the folder {} is a symbolic link"),
        (a_file, "the folder {} is no folder"),
        (lambda path: path.chmod(0o777), "others may write the folder {}"),
    ],
)
def test_why_a_folder_is_not_taken_is_told_alike_in_reading_and_in_writing(
    toy, clock, cache, caplog, damage, text, which
):
    tuned(toy, clock)
    place = cache if which == "tuning" else cache.parent
    damage(place)
    assert loaded() == []
    assert tuned(toy, clock).path is None
    assert [message.rpartition(": ")[2] for message in caplog.messages] == 2 * [text.format(place)]


def test_the_users_cache_may_be_a_link(toy, clock, cache, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    tuned(toy, clock)
    assert loaded() == [PRODUCT._replace(name="threes")]


def test_what_is_kept_waits_for_who_keeps_something_at_the_same_time(toy, clock, cache):
    path = cache / "toy-Toy.json"
    tuned(toy, clock)
    with ThreadPoolExecutor(1) as other, open(cache / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = other.submit(tuned, toy, clock, products=[OTHER])
        with pytest.raises(TimeoutError):
            done.result(0.5)
        row = PRODUCT._replace(n_rows=30, name="threes")
        path.write_text(changed(path, variants=[row._asdict()]))
        fcntl.flock(lock, fcntl.LOCK_UN)
        done.result(60)
    assert loaded() == [row, OTHER._replace(name="threes")]


def test_a_number_of_vectors_stands_for_its_power_of_two(toy, clock, cache):
    three, four = (PRODUCT._replace(n_vectors=n) for n in (3, 4))
    found = tuned(toy, clock, products=[three, four, PRODUCT._replace(n_vectors=5)], budget=0)
    assert [product.n_vectors for product in found.left] == [4, 8]
    toy.device.choose_variant(*PRODUCT[:4], "threes", n_vectors=3)
    (left,) = tuned(toy, clock, products=[three], budget=0).left
    assert left == four._replace(name="threes")


def test_a_file_with_a_number_of_vectors_is_no_other_choice_than_the_callers(toy, clock, cache):
    path = cache / "toy-Toy.json"
    tuned(toy, clock)
    three = PRODUCT._replace(n_vectors=3, name="threes")
    path.write_text(changed(path, variants=[three._asdict()]))
    assert loaded() == [three._replace(n_vectors=4)]
    with Device("toy") as device:
        device.choose_variant(*PRODUCT[:4], "fives", n_vectors=4)
        with MetalGraph(device):
            assert names(device.chosen_variants()) == ["fives"]


@pytest.mark.parametrize(
    "row",
    [
        PRODUCT._replace(name="sevens"),
        PRODUCT._replace(op="rmsnorm", name="threes"),
        PRODUCT._replace(device_format="q9", name="threes"),
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


@pytest.mark.parametrize("part", ["driver", "name", "kernels", "system", "compiler", "package"])
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
