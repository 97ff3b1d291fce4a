"""Decode and prefill of one file by oxibonsai and by llama.cpp, in turn, beside a bandwidth probe.

    pip install ".[bench,peers]" && python benchmarks/compare_llama_cpp.py [--format Q1_0 TQ2_0]

Writes a random model of Bonsai-1.7B's shape, and measures round by round: the memory, a prompt of
128 tokens and 64 tokens of decode with each program, and the prompt with int8 activations. What
counts is the ratio inside a round; its median over the rounds is printed with the least and the
most. llama.cpp runs its own defaults, with activations in int8; ours are float32 but where the
table says otherwise. Both decode the same given tokens, so that neither chooses.

The last line says how much of the CPUs went to other programs and to other guests of the host.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import probes

from oxibonsai import formats
from oxibonsai.metal import Device
from oxibonsai.model import Model, Session

PROMPT, TOKENS, CONTEXT = 128, 64, 512


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def feed(session: Session, prompt: list[int]) -> float:
    """Return the seconds of a prompt."""
    session.rewind(0)
    return seconds(lambda: session.forward(prompt, logits=None))


def ours(session: Session, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    """Return the seconds of the prompt and of the tokens after it."""
    prefill = feed(session, prompt)
    decode = seconds(lambda: [session.forward([token], logits=None) for token in tokens])
    return prefill, decode


def theirs(llama: Any, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    llama.reset()
    prefill = seconds(lambda: llama.eval(prompt))
    decode = seconds(lambda: [llama.eval([token]) for token in tokens])
    return prefill, decode


def cpu_seconds() -> tuple[float, float, float] | None:
    """Return the seconds of all CPUs, those of them in use or stolen, and those of this process.

    None where the system does not say, which only Linux does.
    """
    if not Path("/proc/stat").exists():
        return None
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    own = os.times()
    return sum(fields) / tick, (sum(fields) - fields[3] - fields[4]) / tick, own.user + own.system


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
        Model.load(path, device, activations="int8") as rounded,
        model.session(max_seq=CONTEXT) as session,
        rounded.session(max_seq=CONTEXT) as int8,
    ):
        nbytes = model.weights.nbytes
        ours(session, prompt, tokens[:4])
        feed(int8, prompt)
        theirs(llama, prompt, tokens[:4])
        for _ in range(rounds):
            memory.append(probes.read_bandwidth(device) / 1e9)
            prefill, decode = ours(session, prompt, tokens)
            their_prefill, their_decode = theirs(llama, prompt, tokens)
            rates.append(
                {
                    "decode": (TOKENS / decode, TOKENS / their_decode),
                    "prefill": (PROMPT / prefill, PROMPT / their_prefill),
                    "prefill, int8": (PROMPT / feed(int8, prompt), PROMPT / their_prefill),
                }
            )
    llama.close()
    rows = []
    for what in rates[0]:
        mine, other = ([r[what][side] for r in rates] for side in (0, 1))
        ratio = [a / b for a, b in zip(mine, other, strict=True)]
        share = ""
        if what == "decode":
            used = [a * nbytes / 1e9 / m for a, m in zip(mine, memory, strict=True)]
            share = f"{statistics.median(used):.0%}"
        rows.append(
            f"| {name} | {threads} | {what} | {spread(mine)} | {spread(other)} "
            f"| {spread(ratio, 2)} | {spread(memory)} | {share} |"
        )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--format", type=formats.argument, nargs="+", default=["Q1_0", "TQ2_0"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    probes.use_defaults()
    print(
        "| format | threads | what | oxibonsai tok/s | llama.cpp tok/s | ratio | memory GB/s "
        "| share of it |\n|---|---|---|---|---|---|---|---|"
    )
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.format:
            path = Path(folder, f"{name}.gguf")
            probes.make_synthetic_model(path, name)
            for threads in options.threads:
                for row in compare(path, name, threads, options.rounds):
                    print(row, flush=True)
            path.unlink()
    after = cpu_seconds()
    if before is not None and after is not None:
        total, used, own = (b - a for a, b in zip(before, after, strict=True))
        print(f"Other programs and guests took {max(0.0, used - own) / total:.0%} of the CPUs.")


if __name__ == "__main__":
    main()
