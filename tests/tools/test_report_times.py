"""The times that tools/mac_check.sh reports: every operation runs, and one that fails is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from places import HELPERS, ROOT, TOOLS

sys.path.insert(0, str(TOOLS))
sys.path.insert(0, str(ROOT / "benchmarks"))
import mac_report
import report_times
from mac_report_schema import REPORT, problems

from oxibonsai import formats, metal

SCRIPT = ROOT / "benchmarks" / "report_times.py"


def on_device(name: str) -> str:
    return formats.get(name).device_format


def test_every_operation_is_timed_and_its_kernels_are_kernels(tmp_path):
    out = tmp_path / "kernels.json"
    command = [sys.executable, SCRIPT, "kernels", "--device", "cpu", "--small", "--out", out]
    path = os.pathsep.join(map(str, (ROOT, HELPERS)))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["failed"] == []
    names = {row["name"] for row in found["kernels"]}
    for kv_dtype in ("f16", "f32", "q8"):
        assert {f"kv_store {kv_dtype}", f"attention of 32 at 512 {kv_dtype}"} <= names
    assert problems(found["kernels"], REPORT["kernels"]) == []
    with metal.Device("cpu") as device:
        for kernel in {kernel for row in found["kernels"] for kernel in row["kernels"]}:
            device.pipeline(kernel)  # which raises for a name that is none
    assert all(row["kernels"] and row["seconds"] > 0 for row in found["kernels"])


def test_the_bytes_of_a_cache_are_those_that_its_kind_takes():
    with metal.Device("cpu") as device:
        rows = report_times.kernels(device, report_times.SMALL, lambda _: None)["kernels"]
    nbytes = {row["name"]: row["bytes"] for row in rows}
    assert nbytes["kv_store f16"] == 2 * 2 * 64 * 2  # keys and values, 2 heads of 64
    for name in ("kv_store", "attention of 1 at 100", "attention of 32 at 512"):
        assert nbytes[f"{name} q8"] * 16 == nbytes[f"{name} f16"] * 9
        assert nbytes[f"{name} f32"] == nbytes[f"{name} f16"] * 2


class Choosing:
    """A device with other variants than its own."""

    def __init__(self, device: metal.Device, names: tuple[str, ...] | None = None) -> None:
        self._device, self._names = device, names
        self.chosen: list[object] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def kernel_variants(self, *product: object) -> tuple[str, ...]:
        """Return the given names, or two of the device's own: each is a pipeline to be made."""
        return self._device.kernel_variants(*product)[:2] if self._names is None else self._names

    def choose_variant(self, *product: object) -> None:
        self.chosen.append(product[-1])
        if self._names is None:
            self._device.choose_variant(*product)
        elif product[-1] == "two":
            raise ValueError("no two")


def test_every_variant_is_timed_by_its_name(device, monkeypatch):
    monkeypatch.setattr(report_times, "median_seconds", lambda _: 2e-3)
    monkeypatch.setattr(report_times, "CODED", ("Q1_0",))
    with metal.MetalGraph(device) as graph:
        table = report_times.Kernels(graph, report_times.SMALL)
        table.device = few = Choosing(device)
        rows = list(table.every_variant())
    assert table.failed == []
    shapes = [("gemv", 256, 256), ("gemv", 256, 256), ("swiglu", 512, 256)]
    names = [few.kernel_variants(op, on_device("Q1_0"), n, k) for op, n, k in shapes]
    expected = [(*shape, of) for shape, of in zip(shapes, names, strict=True) if of]
    assert [(r["op"], r["n_rows"], r["k"], tuple(r["seconds"])) for r in rows] == expected
    assert problems(rows, REPORT["variants"]) == []
    assert device.chosen_variants() == []


def test_a_variant_that_fails_is_named_and_the_others_are_timed():
    with metal.Device("cpu") as device, metal.MetalGraph(device) as graph:
        table = report_times.Kernels(graph, report_times.SMALL)
        table.device = two = Choosing(device, ("one", "two"))
        rows = list(table.every_variant())
    assert [list(row["seconds"]) for row in rows] == [["one"]] * 9
    assert two.chosen == ["one", None, "two", None] * 9
    assert table.failed[0] == {"name": "gemv Q1_0 two", "error": "ValueError: no two"}


def test_the_variants_can_be_timed_alone(monkeypatch, tmp_path):
    out = tmp_path / "v.json"
    arguments = ["variants", "--device", "cpu", "--small", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.setenv("OXIBONSAI_TUNING", "1")
    report_times.main()
    assert os.environ["OXIBONSAI_TUNING"] == "0"  # what this machine was tuned to is not measured
    found = json.loads(out.read_text())
    assert found["kernels"] == found["variants"] == found["failed"] == found["untimed"] == []
    assert found["bandwidth_bytes_per_second"] > 0


def test_what_fails_is_named_and_the_rest_is_timed(monkeypatch, tmp_path):
    calls = []

    def sometimes(commands: metal.Commands) -> float:
        calls.append(commands)
        if len(calls) in (1, 3):  # the bandwidth, and the second row
            raise RuntimeError(f"call {len(calls)}")
        return 1e-3

    def heads(self: report_times.Kernels, kv_dtype: str):
        raise MemoryError(f"no room for {kv_dtype}")
        yield

    monkeypatch.setattr(report_times, "median_seconds", sometimes)
    monkeypatch.setattr(report_times.Kernels, "heads", heads)
    kept = []
    with metal.Device("cpu") as device:
        info = device.info._asdict()
        found = report_times.kernels(
            device, report_times.SMALL, lambda now: kept.append(json.dumps(now))
        )
    assert {one["name"]: one["error"] for one in found["failed"]} == {
        "the bandwidth of memory": "RuntimeError: call 1",
        "gemv Q1_0 residual": "RuntimeError: call 3",
        **{f"the heads in {d}": f"MemoryError: no room for {d}" for d in ("f16", "f32", "q8")},
    }
    names = [row["name"] for row in found["kernels"]]
    assert {"gemv Q1_0", "gemv Q1_0 norm", "sample"} <= set(names)
    assert {row["share"] for row in found["kernels"]} == {None}
    # What is known before the first row, after each, and at the end.
    states = [json.loads(text) for text in kept]
    assert [len(state["kernels"]) for state in states] == [*range(len(names) + 1), len(names)]
    assert all(state["device"] == info for state in states)
    # The report names what failed, and is one that can be read.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kernels.json").write_text(kept[-1])
    report = mac_report.collect(tmp_path)
    assert problems(report, REPORT) == []
    failed = [(one["stage"], one["test"], one["message"]) for one in report["failures"]]
    assert ("kernels", "gemv Q1_0 residual", "RuntimeError: call 3") in failed
    assert mac_report.read(mac_report.markdown(report)) == report


def test_a_run_whose_operations_fail_ends_with_a_status(monkeypatch, tmp_path, capsys):
    def fails(commands: metal.Commands) -> float:
        raise RuntimeError("no clock")

    monkeypatch.setattr(report_times, "median_seconds", fails)
    out = tmp_path / "k.json"
    arguments = ["kernels", "--device", "cpu", "--small", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as caught:
        report_times.main()
    assert caught.value.code == 1
    assert "operations failed" in capsys.readouterr().err
    assert json.loads(out.read_text())["device"]["driver"] == "cpu"
