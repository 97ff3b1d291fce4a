"""The command tune, and where other commands name what it chose."""

from __future__ import annotations

import json

import pytest
from tiny_models import Tiny, byte_vocabulary, random_tensors, write

from oxibonsai import metal
from oxibonsai.cli import main
from oxibonsai.metal import ChosenVariant, Measured, Tuning

GEMV = ChosenVariant("gemv", "q1_g128", 4096, 12288, "lookup-4", 1)
SWIGLU = ChosenVariant("swiglu", "q2_g64", 96, 64, "lookup-1", 8)
MEASURED = [
    Measured(GEMV, "lookup-1", {"lookup-1": 30e-6, "lookup-4": 12.5e-6}),
    Measured(SWIGLU, "lookup-1", {"lookup-1": 1e-6, "lookup-2": 2e-6}),
]


@pytest.fixture
def found(monkeypatch):
    """Have the tuner find what a test appends to the list, and tell how it was asked."""
    calls = []

    def tune(device, products, *, budget):
        calls.append((device.driver, products, budget))
        return found

    monkeypatch.setattr(metal, "tune", tune)
    found = Tuning(MEASURED, [SWIGLU, GEMV, GEMV], "/c/x.json")
    return calls


def test_the_table_has_a_line_for_each_product(found, capsys):
    assert main(["tune", "--device", "cpu", "--budget", "3.5"]) == 0
    head, columns, *rows, left, kept = capsys.readouterr().out.splitlines()
    assert head.endswith(" (cpu)")
    assert columns.split() == ["product", "default", "chosen", "gain", "us"]
    assert [" ".join(row.split()) for row in rows] == [
        "gemv q1_g128 4096 x 12288 by 1 lookup-1 lookup-4 2.40 lookup-1 30.0, lookup-4 12.5",
        "swiglu q2_g64 96 x 64 by 8 lookup-1 lookup-1 1.00 lookup-1 1.0, lookup-2 2.0",
    ]
    assert {row.index(" lookup-1 ") for row in rows} == {columns.index(" default")}
    assert left == "3 more were left: give a longer --budget"
    assert kept == "kept in /c/x.json"
    assert found == [("cpu", None, 3.5)]


def test_json_has_the_times_and_the_choices(found, capsys):
    assert main(["tune", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"]["driver"] == "cpu"
    assert told["measured"][0] == {
        **GEMV._asdict(),
        "default": "lookup-1",
        "seconds": {"lookup-1": 30e-6, "lookup-4": 12.5e-6},
    }
    assert told["left"][0] == SWIGLU._asdict()
    assert told["path"] == "/c/x.json"


def test_a_model_is_asked_for_what_it_records(found, tmp_path, monkeypatch):
    tiny = Tiny(n_layers=1, vocab=257, context=20)
    path = write(tmp_path / "model.gguf", tiny, random_tensors(tiny), byte_vocabulary())
    assert main(["tune", "--device", "cpu", "--model", str(path)]) == 0
    assert found == [("cpu", [], 20.0)]  # products with one form are not recorded


def test_the_cpu_has_nothing_to_choose_and_says_so(capsys):
    assert main(["tune", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "it has one form of each kernel: there is nothing to choose"
    ]


def test_a_wrong_budget_is_an_error(capsys):
    assert main(["tune", "--device", "cpu", "--budget", "-1"]) == 1
    assert "budget = -1.0: a number of seconds is needed" in capsys.readouterr().err


def test_devices_and_bench_name_the_kernels(monkeypatch, capsys):
    monkeypatch.setattr(metal, "kept_variants", lambda device: [SWIGLU, GEMV, SWIGLU])
    assert main(["devices"]) == 0
    assert "kernels (tuned: gemv lookup-4; swiglu lookup-1)" in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["variants"][1] == GEMV._asdict()
