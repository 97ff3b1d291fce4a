"""The demo model on the simulated device, against the CPU; and sessions on a device that fails."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tiny_models import Tiny, chain, random_tensors, write, write_chain

from metal_sim.scenarios_devices import refused
from metal_sim.session import WITH_ERROR, Simulation
from oxibonsai import gguf, metal
from oxibonsai.model import Model
from oxibonsai.model.runtime.cache import KVDtype
from oxibonsai.model.workingset import warn_of_working_set

MODEL = Path(metal.__file__).resolve().parent.parent / "data" / "alice-q1_0.gguf"
BOUND = 1e-6  # relative L2


def first_layer(graph: metal.MetalGraph) -> dict[str, metal.WeightHandle]:
    """Upload the matrices of layer 0, Q with K and V and gate with up as one each."""
    parts = {
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "attn_output": ("attn_output",),
        "gate_up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
    }
    handles = {}
    with gguf.open(MODEL) as file:
        for name, tensors in parts.items():
            names = [f"blk.0.{tensor}.weight" for tensor in tensors]
            shapes = [file.tensors[n].shape for n in names]
            handles[name] = graph.upload_q1_weight_soa(
                np.concatenate([file.tensor_data(n) for n in names]),
                shape=(sum(rows for rows, _ in shapes), shapes[0][1]),
            )
        norm = np.frombuffer(file.tensor_data("blk.0.ffn_norm.weight"), np.float32)
        handles["ffn_norm"] = graph.get_or_upload_f32_weight(0, norm)
    return handles


def layer_results(device_name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    results = {}
    with metal.Device(device_name) as device, metal.MetalGraph(device) as graph:
        weights = first_layer(graph)
        for name in ("qkv", "attn_output", "gate_up", "down"):
            shape = weights[name].shape
            assert shape is not None
            n_rows, k = shape
            x = rng.standard_normal(k).astype(np.float32) + np.float32(0.5)
            results[name] = np.empty(n_rows, np.float32)
            graph.encode_gemv(weights[name], x, results[name])
        hidden = rng.standard_normal(512).astype(np.float32)
        attention = rng.standard_normal(512).astype(np.float32)
        graph.encode_ffn_phase(
            hidden,
            attention,
            weights["ffn_norm"],
            weights["attn_output"],
            weights["gate_up"],
            weights["down"],
        )
        results["FFN phase"] = hidden
    return results


def the_first_layer_of_the_demo_model_equals_the_cpus(sim: Simulation) -> None:
    expected, got = layer_results("cpu"), layer_results("metal")
    for name, value in expected.items():
        error = np.linalg.norm(got[name] - value) / np.linalg.norm(value)
        assert error <= BOUND, f"{name}: {error:.2e}"


def a_step_that_fails_in_flight_leaves_what_was_yielded(sim: Simulation) -> None:
    with tempfile.TemporaryDirectory() as folder, metal.Device("metal") as device:
        path = write_chain(Path(folder) / "abc.gguf", chain("abcdefghijklmnopqrstuvwxyz"))
        with Model.load(path, device) as model, model.session() as session:
            for skip in (0, 3, 9):
                session.forward([ord("a")], logits=None)
                got: list[int] = []
                sim.fail("execute", WITH_ERROR, skip=skip)
                with refused(metal.ExecutionError):
                    got.extend(session.generate(25, lookahead=16))
                # One failure is one error, and the steps behind it are no part of the text.
                assert len(got) <= skip
                assert bytes(session.tokens) == b"abcdefghijklmnop"[: 1 + len(got)]
                assert device.stats.in_flight == 0
                assert bytes(session.generate(2))[0] == ord("a") + len(got) + 1
                session.rewind(0)


def a_prompt_whose_batch_fails_is_taken_back(sim: Simulation) -> None:
    tiny = Tiny(context=128)
    with tempfile.TemporaryDirectory() as folder, metal.Device("metal") as device:
        path = write(Path(folder) / "tiny.gguf", tiny, random_tensors(tiny))
        with Model.load(path, device) as model, model.session(chunk=8) as session:
            session.forward([1, 2, 3], logits=None)
            expected = list(session.generate(4))
            session.rewind(3)
            for skip in (0, 1, 3):
                sim.fail("execute", WITH_ERROR, skip=skip)
                with refused(metal.ExecutionError):
                    session.forward(list(range(30)))
                assert session.tokens == [1, 2, 3]
            assert list(session.generate(4)) == expected


class Told(logging.Handler):
    """The warnings of the package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def take(self) -> list[str]:
        texts, self.texts = self.texts, []
        return texts


@contextmanager
def told() -> Iterator[Told]:
    handler, logger = Told(), logging.getLogger("oxibonsai.model")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def what_is_over_the_working_set_is_warned_of(sim: Simulation) -> None:
    tiny = Tiny(hidden=256, inter=512, context=4096)
    with (
        tempfile.TemporaryDirectory() as folder,
        told() as warnings,
        metal.Device("metal") as device,
    ):
        path = write(Path(folder) / "tiny.gguf", tiny, random_tensors(tiny))
        with Model.load(path, device) as model:
            weights = device.stats.allocated_bytes
            with model.engine(max_sequences=1, max_seq=64):
                pass
        assert warnings.take() == [], "there are 16 GiB"
        sim.set_working_set(weights // 2)
        with metal.Device("metal") as small, Model.load(path, small) as model:
            (text,) = warnings.take()
            for part in (
                f"{path}: ",
                "Simulated Metal 0",
                f"recommends no more than {weights / 2e6:.1f} MB",
                "a smaller model, or one in a format of fewer bits",
            ):
                assert part in text, text
        sim.set_working_set(16 << 20)
        with metal.Device("metal") as small, Model.load(path, small) as model:
            assert warnings.take() == []
            with model.engine(max_sequences=1, max_seq=64):
                assert warnings.take() == []
            kv_dtypes: tuple[KVDtype, ...] = ("f16", "q8")
            for kv_dtype in kv_dtypes:
                with model.engine(max_sequences=16, max_seq=2048, kv_dtype=kv_dtype):
                    (text,) = warnings.take()
                    assert "K/V cache" in text, text
                    assert "max_sequences" in text, text
                    assert ("kv_dtype='q8'" in text) == (kv_dtype == "f16"), text
        sim.set_working_set(weights + 600_000)
        with metal.Device("metal") as small, Model.load(path, small) as model:
            assert warnings.take() == []
            with model.session(4096) as session:
                session.forward([1])
                assert warnings.take() == []
                session.forward([1] * 260)  # the cache grows from 256 positions to 512
                (text,) = warnings.take()
                assert "a smaller max_seq" in text, text
                session.forward([1])
                assert warnings.take() == []
        # What the cpu says is all of its memory, no recommendation.
        with metal.Device("cpu") as cpu:
            warn_of_working_set(cpu, 1 << 62, "a test", "fewer tests")
        assert warnings.take() == []
