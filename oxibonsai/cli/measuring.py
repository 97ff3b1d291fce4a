"""The measurements of ``oxibonsai bench``: what the speeds are that people meet."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oxibonsai import __version__
from oxibonsai.model import Model
from oxibonsai.model.engine import MAX_SEQUENCES
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.cache import KVDtype
from oxibonsai.model.runtime.precision import activations_of
from oxibonsai.model.session import Session

if TYPE_CHECKING:
    from oxibonsai.model.engine import Engine

__all__ = ["GREEDY", "SAMPLED", "measure"]

GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}
SAMPLED: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "seed": 0,
}
_FILLING_CHUNK = 512  # tokens of a context that run at once: only what comes after it is measured
_POLL_SECONDS = 1e-3


def measure(
    model: Model,
    *,
    prompt_tokens: int = 128,
    tokens: int = 64,
    repeat: int = 5,
    kv_dtype: KVDtype = "f16",
    chunk: int | None = None,
    contexts: Sequence[int] = (),
    batches: Sequence[int] = (),
) -> dict[str, Any]:
    """Return a model's speeds with the settings and the device: what ``--json`` prints.

    A run feeds a prompt of random tokens into an empty session and generates greedily, and does the
    same with sampling; every second run the other way round. One run before them warms up.
    Generation goes on past any end of text.

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
    contexts : sequence of int
        Tokens in the context at which greedy decoding is measured besides. One that does not fit
        the model is skipped, with the reason in its place.
    batches : sequence of int
        Numbers of sequences that an engine decodes at a time, each behind a prompt of its own. The
        speed is that of all together while every one is past its prompt.

    Returns
    -------
    dict
        ``prefill``, ``decode`` and ``sampled``, and by number ``contexts`` and ``batch``, each
        with ``tokens_per_second`` and the seconds of the runs; ``time_to_first_token_seconds``.

    Raises
    ------
    ValueError
        For a number below 1, or more tokens than the model's context_length.
    """
    for name, value in (
        ("prompt_tokens", prompt_tokens),
        ("tokens", tokens),
        ("repeat", repeat),
        *(("contexts", n) for n in contexts),
        *(("batches", n) for n in batches),
    ):
        if operator.index(value) < 1:
            raise ValueError(f"{name} = {value} must be 1 or more")
    if max(batches, default=1) > MAX_SEQUENCES:
        raise ValueError(
            f"batches = {max(batches)}: an engine runs at most {MAX_SEQUENCES} sequences at a time"
        )
    limit = model.config.context_length
    if prompt_tokens >= limit:
        raise ValueError(f"prompt_tokens = {prompt_tokens}: the model's context_length is {limit}")
    if prompt_tokens + tokens > limit:
        raise ValueError(
            f"tokens = {tokens} behind a prompt of {prompt_tokens}: the model's context_length is "
            f"{limit}"
        )
    device = model.device
    found: dict[str, Any] = {
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
            "activations": activations_of(model, kv_dtype, exact=False),
            "sampled": SAMPLED,
            "contexts": list(contexts),
            "batches": list(batches),
        },
    }
    with model.session(prompt_tokens + tokens, kv_dtype, chunk=chunk) as session:
        found |= _prompt_and_generation(session, prompt_tokens, tokens, repeat)
        # Without one that is given: what the last runs had, now that the device's rate is known.
        chunk = found["settings"]["chunk"] = session.chunk
    if contexts:
        found["contexts"] = _contexts(model, contexts, tokens, repeat, kv_dtype)
    if batches:
        found["batch"] = {
            str(n): _batch(model, n, prompt_tokens, tokens, repeat, kv_dtype, chunk)
            for n in batches
        }
    found["variants"] = [variant._asdict() for variant in device.recorded_variants()]
    return found


def _prompt_and_generation(
    session: Session, prompt_tokens: int, tokens: int, repeat: int
) -> dict[str, Any]:
    ids = _random_tokens(session.model, prompt_tokens, 0)
    prefill: list[float] = []
    first: list[float] = []
    generated: dict[str, list[float]] = {"decode": [], "sampled": []}
    kinds = [("decode", GREEDY), ("sampled", SAMPLED)]
    for run in range(repeat + 1):
        for kind, options in kinds if run % 2 else kinds[::-1]:
            session.rewind(0)
            fed = _seconds(lambda: session.forward(ids, logits=None))
            chosen, whole = _generation(session.generate(tokens, ignore_eos=True, **options))
            prefill.append(fed)
            generated[kind].append(whole)
            if kind == "decode":
                first.append(fed + chosen)
    return {
        "prefill": _speed(prompt_tokens, prefill[2:]),
        "decode": _speed(tokens, generated["decode"][1:]),
        "sampled": _speed(tokens, generated["sampled"][1:]),
        "time_to_first_token_seconds": statistics.median(first[1:]),
        "time_to_first_token_runs_seconds": first[1:],
    }


def _contexts(
    model: Model, contexts: Sequence[int], tokens: int, repeat: int, kv_dtype: KVDtype
) -> dict[str, Any]:
    """Return the speed behind each number of tokens, of which the shorter begin the longer."""
    limit = model.config.context_length
    fitting = sorted(n for n in set(contexts) if n + tokens <= limit)
    speeds: dict[int, dict[str, Any]] = {}
    if fitting:
        chunk = min(_FILLING_CHUNK, fitting[-1])
        with model.session(fitting[-1] + tokens, kv_dtype, chunk=chunk) as session:
            ids = _random_tokens(model, fitting[-1], 1)
            for n in fitting:
                if session.position < n - 1:
                    session.forward(ids[session.position : n - 1], logits=None)
                seconds = []
                for _ in range(repeat + 1):
                    session.rewind(n - 1)
                    # Outside the time: a generation behind a rewind would run this token again.
                    session.forward(ids[n - 1 : n], logits=None)
                    generation = session.generate(tokens, ignore_eos=True, **GREEDY)
                    seconds.append(_generation(generation)[1])
                session.rewind(n)
                speeds[n] = _speed(tokens, seconds[1:])
    reason = f"with {tokens} tokens to generate it exceeds the model's context_length of {limit}"
    return {str(n): speeds.get(n, {"skipped": reason}) for n in contexts}


def _batch(
    model: Model,
    n: int,
    prompt_tokens: int,
    tokens: int,
    repeat: int,
    kv_dtype: KVDtype,
    chunk: int,
) -> dict[str, Any]:
    # While prompts are fed one after another, those that began go on: the first one must not have
    # ended when the last one begins.
    steps = n * -(-prompt_tokens // chunk)
    length = tokens + steps + 2
    limit = model.config.context_length
    if prompt_tokens + length > limit:
        return {
            "skipped": f"{n} prompts of {prompt_tokens} and {tokens} tokens of each at the same "
            f"time need {prompt_tokens + length} positions, the model's context_length is {limit}"
        }
    counts: list[int] = []
    seconds: list[float] = []
    with model.engine(n, max_seq=prompt_tokens + length, kv_dtype=kv_dtype, chunk=chunk) as engine:
        for _ in range(repeat + 1):
            prompts = [_random_tokens(model, prompt_tokens, 2 + i) for i in range(n)]
            count, taken = _together(engine, prompts, length)
            counts.append(count)
            seconds.append(taken)
    rates = [count / taken for count, taken in zip(counts[1:], seconds[1:], strict=True)]
    return {
        "sequences": n,
        "tokens": counts[1:],
        "runs_seconds": seconds[1:],
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [min(rates), max(rates)],
    }


def _together(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[int, float]:
    """Return how many tokens came, in how many seconds, while all sequences decoded."""
    begun = time.perf_counter()
    requests = [engine.submit(ids, tokens, ignore_eos=True, **GREEDY) for ids in prompts]

    def count() -> int:
        return sum(len(request.tokens) for request in requests)

    def ended() -> bool:
        return any(request.done for request in requests)

    _wait(lambda: ended() or all(request.tokens for request in requests))
    start, first = time.perf_counter(), count()
    _wait(ended)
    taken, last = time.perf_counter() - start, count()
    for request in requests:
        request.text()
    if last > first:
        return last - first, taken
    # A model so small that all was over between two looks: the prompts count too.
    return count(), time.perf_counter() - begun


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(_POLL_SECONDS)


def _random_tokens(model: LoadedModel, n: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, model.config.vocab_size, n).tolist()
    return found


def _generation(tokens: Iterator[int]) -> tuple[float, float]:
    """Return the seconds until the first token and until the last one."""
    start = time.perf_counter()
    next(tokens)
    first = time.perf_counter() - start
    for _ in tokens:
        pass
    return first, time.perf_counter() - start


def _speed(tokens: int, seconds: list[float]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "runs_seconds": seconds,
        "tokens_per_second": tokens / statistics.median(seconds),
        "tokens_per_second_range": [tokens / max(seconds), tokens / min(seconds)],
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
