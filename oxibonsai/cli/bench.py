"""``oxibonsai bench``: a model's speed in prompts and in generation, medians of several runs."""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

import numpy as np

from oxibonsai import __version__
from oxibonsai.cli.options import add_model, add_session, load
from oxibonsai.model import Model
from oxibonsai.model.session import DEFAULT_CHUNK

__all__ = ["add_options", "measure", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="to feed at once (128)"
    )
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="to generate (64)")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="runs; median counts (5)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    add_session(parser, max_seq=False)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    with load(args) as model:
        device = model.device
        found = measure(
            model,
            prompt_tokens=args.prompt_tokens,
            tokens=args.tokens,
            repeat=args.repeat,
            kv_dtype=args.kv_dtype,
            chunk=args.chunk,
        )
    if args.json:
        json.dump(found, out, indent=2)
        out.write("\n")
        return 0
    rounded = ", int8 activations" if args.activations == "int8" else ""
    print(f"{found['model']['name']} on {device.name} ({device.driver}){rounded}", file=out)
    for name in ("prefill", "decode"):
        speed = found[name]
        print(
            f"{name:<8} {speed['tokens_per_second']:10.1f} tokens/s "
            f"({speed['tokens']} tokens, median of {args.repeat})",
            file=out,
        )
    return 0


def measure(
    model: Model,
    *,
    prompt_tokens: int = 128,
    tokens: int = 64,
    repeat: int = 5,
    kv_dtype: Literal["f16", "f32"] = "f16",
    chunk: int = DEFAULT_CHUNK,
) -> dict[str, Any]:
    """Return prefill and decode speed of a model, with the settings: what ``--json`` prints.

    Each run feeds a prompt of random tokens into an empty session, up to the logits of the last
    one, and then generates greedily past any end of text. One run before them warms up.

    Parameters
    ----------
    model : Model
        The model.
    prompt_tokens, tokens : int
        Tokens of the prompt, and to generate.
    repeat : int
        Runs, whose median counts.
    kv_dtype, chunk
        As of ``Model.session``.

    Raises
    ------
    ValueError
        For a number below 1, or more tokens than the model's context_length.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("tokens", tokens), ("repeat", repeat)):
        if operator.index(value) < 1:
            raise ValueError(f"{name} = {value} must be 1 or more")
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt_tokens).tolist()
    prefill: list[float] = []
    decode: list[float] = []
    with model.session(prompt_tokens + tokens, kv_dtype, chunk=chunk) as session:

        def generate() -> None:
            for _ in session.generate(tokens, ignore_eos=True):
                pass

        for _ in range(repeat + 1):
            session.rewind(0)
            prefill.append(_seconds(lambda: session.forward(ids, logits=None)))
            decode.append(_seconds(generate))
    device = model.device
    return {
        "oxibonsai": __version__,
        "model": {
            "name": model.name,
            "path": model.path,
            "formats": sorted({handle.format for handle in model.weights.handles}),
            "weight_bytes_per_token": model.weights.nbytes,
        },
        "device": {"driver": device.driver, **device.info._asdict()},
        "settings": {
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "repeat": repeat,
            "kv_dtype": kv_dtype,
            "chunk": chunk,
            "activations": model.activations,
        },
        "prefill": _speed(prompt_tokens, prefill[1:]),
        "decode": _speed(tokens, decode[1:]),
    }


def _speed(tokens: int, seconds: list[float]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "runs_seconds": seconds,
        "tokens_per_second": tokens / statistics.median(seconds),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
