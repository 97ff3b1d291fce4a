"""Prompts and steps of generation as command buffers of bounded time."""

from __future__ import annotations

import dataclasses
import io
import runpy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from metal_sim.scenarios_devices import refused
from metal_sim.session import Record, Simulation
from oxibonsai import metal
from oxibonsai.model import Model, Session

ROOT = Path(metal.__file__).resolve().parents[2]
MODEL = Path(metal.__file__).resolve().parent.parent / "data" / "alice-q1_0.gguf"
PROMPT = "Alice was beginning to get very tired of sitting by her sister on the bank"


def records_of(sim: Simulation, session: Session, tokens: list[int]) -> list[Record]:
    sim.forget_records()
    session.forward(tokens, logits=None)
    return sim.records()


def teach(sim: Simulation, session: Session, prompt: list[int], seconds: float) -> None:
    """Let a thread take so long, and the driver know it from dry runs."""
    sim.set_dry(1)
    for shift in range(9, -1, -3):
        sim.set_cost(None, seconds / 2**shift)
        for _ in range(2):
            session.forward(prompt, logits=None)
            session.forward(prompt[:1], logits=None)
            session.rewind(0)
    sim.set_dry(0)


def the_text_after_a_prompt_in_parts_is_that_after_a_whole_one(sim: Simulation) -> None:
    """A step of generation takes 0.12 s here, and a chunk of 16 tokens 0.28 s."""
    sim.set_cost(None, 1e-12)
    with (
        metal.Device("metal") as device,
        Model.load(MODEL, device) as model,
        model.session(chunk=16) as session,
    ):
        prompt = list(model.tokenizer.encode(PROMPT))[:16]
        assert len(prompt) == 16
        assert len(records_of(sim, session, prompt)) == 1
        expected = list(session.generate(6))
        session.rewind(0)
        teach(sim, session, prompt, 5.6e-7)
        sim.set_budget(0.25)
        parts = records_of(sim, session, prompt)
        assert sum(r.seconds for r in parts) > 0.25, "as one it would be ended"
        assert len(parts) >= 3
        sim.forget_records()
        assert list(session.generate(6)) == expected
        # The first choice is made from the logits that the prompt left.
        choice, *steps = sim.records()
        assert choice.seconds < 0.01 * steps[0].seconds
        assert len(steps) == 6
        assert len({r.dispatches for r in steps}) == 1
        assert all(0.1 < r.seconds < 0.15 for r in steps)


# Multiply-adds of a thread in batches of 512 of the 8B shape, and of fewer than 64. A cost has no
# length of rows or of a text in it: this is the mean of both matrices of a name, and attention to
# the whole text.
BATCHES = {
    "gemm_q1_g128_half": 131072,
    "gemm_q1_g128_residual_half": 262144,
    "fused_gate_up_swiglu_gemm_q1_g128_half": 131072,
    "attention_f16": 32768,
}
SMALL_BATCHES = {
    "gemm_q1_g128_halves": 65536,
    "gemm_q1_g128_residual_halves": 131072,
    "fused_gate_up_swiglu_gemm_q1_g128_halves": 65536,
}
VECTORS = {
    "gemv_q1_g128_norm_shuffle": 2048,
    "gemv_q1_g128_residual_shuffle": 2048,
    "fused_gate_up_swiglu_q1_g128_norm_shuffle": 2048,
}
GUESSED_RATE, M1 = 0.35e12, 0.65e12  # multiply-adds a second; shim/metal/pace.m has the first
BUDGET = 0.6  # seconds


@contextmanager
def of_8b_shape(device: metal.Device, layers: int = 6, **fields: int) -> Iterator[Model]:
    """Load a few layers of the true widths, but for these fields of the shape."""
    tool = runpy.run_path(str(ROOT / "tools" / "synthetic_model.py"))
    tool["SHAPES"]["8b"] = dataclasses.replace(tool["SHAPES"]["bonsai-8b"], **fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "8b.gguf"
        options = ["--shape", "8b", "--layers", str(layers), "--vocab", "1024"]
        with redirect_stdout(io.StringIO()):
            tool["main"]([*options, "--out", str(path)])
        with Model.load(path, device) as model:
            yield model


def set_rate(sim: Simulation, rate: float) -> None:
    """Let kernels take the time of a device of so many multiply-adds a second."""
    sim.set_cost(None, 2e-10 * M1 / rate)
    for kernel, work in (BATCHES | SMALL_BATCHES | VECTORS).items():
        sim.set_cost(kernel, work / rate)


def a_long_prompt_of_true_widths_stays_in_the_budget(sim: Simulation) -> None:
    """Whether the device is as fast as an M1 or five times slower than the driver guesses."""
    for rate in (M1, GUESSED_RATE / 5):
        with metal.Device("metal") as device, of_8b_shape(device) as model:
            set_rate(sim, rate)
            with model.session(chunk=512, max_seq=4200) as session:
                sim.set_dry(1)
                sim.set_budget(BUDGET)
                prompt = [i % 1000 for i in range(4096)]
                parts = records_of(sim, session, prompt)
                whole = sum(r.seconds for r in parts) / 8
                assert whole > BUDGET, "a chunk as one command buffer would be ended"
                assert max(r.seconds for r in parts) < BUDGET
                assert 0.5 < device.stats.work_per_second / rate < 2
                for token in range(3):
                    assert len(records_of(sim, session, [token])) == 1
        sim.reset()


CONTEXT = 32768
ATTENTION_THREADS = 128  # of a threadgroup


def attention_that_is_ten_times_slower_stays_in_the_budget(sim: Simulation) -> None:
    """At a long context, whether 64 queries share the loads or each has its own."""
    for head_dim, queries, kernel in ((128, 64, "attention_f16_prompt"), (256, 1, "attention_f16")):
        for rate in (M1, GUESSED_RATE):
            with (
                metal.Device("metal") as device,
                of_8b_shape(device, 2, kv_heads=2, head_dim=head_dim) as model,
                model.session(chunk=128, max_seq=CONTEXT) as session,
            ):
                set_rate(sim, rate)
                sim.set_dry(1)
                sim.set_budget(BUDGET)
                longest = 0.0
                for end in range(128, CONTEXT, 128):
                    work = queries * end * 2 * head_dim / ATTENTION_THREADS
                    sim.set_cost(kernel, 10 * work / rate)
                    sim.forget_records()
                    # All logits, so that the last layer has as many queries as the others.
                    session.forward([i % 1000 for i in range(128)], logits="all")
                    parts = sim.records()
                    longest = max(longest, sum(r.seconds for r in parts))
                    assert max(r.seconds for r in parts) < BUDGET
                assert longest > BUDGET, "a chunk as one command buffer would be ended"
            sim.reset()


def on_a_very_slow_device_a_lower_chunk_helps_as_the_error_says(sim: Simulation) -> None:
    """There one dispatch of 512 tokens exceeds the budget, and kernels of 128 are still unknown."""
    with metal.Device("metal") as device, of_8b_shape(device) as model:
        set_rate(sim, GUESSED_RATE / 13)
        sim.set_dry(1)
        sim.set_budget(BUDGET)
        prompt = [i % 1000 for i in range(512)]
        with (
            model.session(chunk=512, max_seq=600) as session,
            refused(metal.ExecutionError, "lower the chunk"),
        ):
            session.forward(prompt, logits=None)
        with model.session(chunk=128, max_seq=600) as session:
            parts = records_of(sim, session, prompt)
            assert max(r.seconds for r in parts) < BUDGET
