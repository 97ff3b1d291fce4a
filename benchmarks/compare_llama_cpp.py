"""Decode and prefill of one file by oxibonsai and by llama.cpp, in turn, beside a bandwidth probe.

    pip install ".[bench,peers]" && python benchmarks/compare_llama_cpp.py [--format Q1_0 TQ2_0]

Writes a random model of Bonsai-1.7B's shape, and measures round by round: the memory, a prompt of
128 tokens and 64 tokens of decode with each program. What counts is the ratio inside a round; its
median over the rounds is printed with the least and the most. llama.cpp runs its own defaults, with
activations in int8; ours are float32. Both decode the same given tokens, so that neither chooses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import probes

from oxibonsai.metal import Device
from oxibonsai.model import Model, Session

PROMPT, TOKENS, CONTEXT = 128, 64, 512


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ours(session: Session, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    """Return the seconds of the prompt and of the tokens after it."""
    session.rewind(0)
    prefill = seconds(lambda: session.forward(prompt, logits=None))
    decode = seconds(lambda: [session.forward([token], logits=None) for token in tokens])
    return prefill, decode


def theirs(llama: Any, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    llama.reset()
    prefill = seconds(lambda: llama.eval(prompt))
    decode = seconds(lambda: [llama.eval([token]) for token in tokens])
    return prefill, decode


def spread(values: list[float], digits: int = 1) -> str:
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def compare(path: Path, name: str, threads: int, rounds: int) -> list[str]:
    """Return the rows of a table for one file and number of threads."""
    rng = np.random.default_rng(1)
    prompt, tokens = (rng.integers(1000, 100_000, n).tolist() for n in (PROMPT, TOKENS))
    llama = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    memory, rates = [], []
    with (
        Device("cpu", threads=threads) as device,
        Model.load(path, device) as model,
        model.session(max_seq=CONTEXT) as session,
    ):
        nbytes = model.weights.nbytes
        ours(session, prompt, tokens[:4])
        theirs(llama, prompt, tokens[:4])
        for _ in range(rounds):
            memory.append(probes.read_bandwidth(device) / 1e9)
            mine, other = ours(session, prompt, tokens), theirs(llama, prompt, tokens)
            rates.append(
                [
                    n / s
                    for pair in (mine, other)
                    for n, s in zip((PROMPT, TOKENS), pair, strict=True)
                ]
            )
    llama.close()
    rows = []
    for what, i in (("decode", 1), ("prefill", 0)):
        ratio = [round[i] / round[i + 2] for round in rates]
        share = ""
        if what == "decode":
            used = [r[i] * nbytes / 1e9 / m for r, m in zip(rates, memory, strict=True)]
            share = f"{statistics.median(used):.0%}"
        rows.append(
            f"| {name} | {threads} | {what} | {spread([r[i] for r in rates])} "
            f"| {spread([r[i + 2] for r in rates])} | {spread(ratio, 2)} "
            f"| {spread(memory)} | {share} |"
        )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--format", nargs="+", default=["Q1_0", "TQ2_0"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(
        "| format | threads | what | oxibonsai tok/s | llama.cpp tok/s | ratio | memory GB/s "
        "| share of it |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.format:
            path = Path(folder, f"{name}.gguf")
            probes.make_synthetic_model(path, name)
            for threads in options.threads:
                for row in compare(path, name, threads, options.rounds):
                    print(row, flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
