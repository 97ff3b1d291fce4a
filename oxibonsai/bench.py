"""The speed of a model: prompt and generation, as medians over several runs."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oxibonsai import __version__
from oxibonsai.model.session import DEFAULT_CHUNK

if TYPE_CHECKING:
    from oxibonsai.model import Model

__all__ = ["measure"]


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
