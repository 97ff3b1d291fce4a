"""An engine: many texts at a time on one model."""

from __future__ import annotations

import asyncio
import itertools
import operator
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from oxibonsai.gguf import GGUFError
from oxibonsai.model.choices import MAX_BEST
from oxibonsai.model.engine.request import Outbox, Request
from oxibonsai.model.engine.scheduler import Scheduler
from oxibonsai.model.engine.scheduler import Sequence as TokenSequence
from oxibonsai.model.engine.statistics import EngineStatistics
from oxibonsai.model.engine.task import Task
from oxibonsai.model.engine.worker import Worker, closed_error
from oxibonsai.model.errors import EngineFullError
from oxibonsai.model.generation.generation import LogitsCallback
from oxibonsai.model.generation.settings import (
    Allowed,
    AllowedCallback,
    SamplingOptions,
    SamplingSettings,
    mask_words,
)
from oxibonsai.model.generation.stopping import Stop, StopScanner, stop_sequences
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.batch import BatchRunner, page_bytes
from oxibonsai.model.runtime.batchshape import BatchSettings
from oxibonsai.model.runtime.cache import KVDtype, check_kv_dtype
from oxibonsai.model.runtime.pages import PAGE_SIZE, PagePool, pages_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

__all__ = ["MAX_SEQUENCES", "Engine", "RequestOptions"]

Prompt: TypeAlias = str | Sequence[int]
MAX_SEQUENCES = 256
"""The most texts that an engine runs at a time."""

_LOOKAHEAD = 2
_LEAVE_SECONDS = 5.0  # the longest that an interpreter that exits waits for the running step


class RequestOptions(SamplingOptions, total=False):
    """Arguments of Engine.submit but the first three."""

    stop: Stop
    ignore_eos: bool
    priority: int
    allowed: Allowed | AllowedCallback | None
    logits_callback: LogitsCallback | None
    log_probabilities: bool
    n_best: int


class Engine:
    """Many texts at a time on one model, made by ``Model.engine``.

    Requests join and leave between any two steps. A step takes one token of each running text and
    a chunk of one prompt that waits. Any thread may use an engine; one thread of its own runs the
    steps, also while nobody waits for them.

    Parameters
    ----------
    model : Model
        Whose weights are used.
    max_sequences : int
        Texts that run at a time, 1 to 256.
    max_seq : int
        The most tokens of a text, prompt included.
    n_pages : int, optional
        Pages of 64 positions that all texts share. Left out, as many as max_sequences texts of
        max_seq tokens take, or as the device's buffers hold.
    kv_dtype : {"f16", "f32", "q8"}
        Elements of the K/V cache.
    chunk : int
        Tokens of a prompt in a step.
    deterministic : bool
        Whether a text does not depend on what else runs.
    max_waiting : int
        Requests that may wait.

    Attributes
    ----------
    model, max_sequences, max_seq, n_pages, kv_dtype, chunk, deterministic, max_waiting
        As given.
    """

    def __init__(
        self,
        model: LoadedModel,
        max_sequences: int,
        max_seq: int,
        n_pages: int | None,
        kv_dtype: KVDtype,
        chunk: int,
        *,
        deterministic: bool = False,
        max_waiting: int = 1024,
    ) -> None:
        self.model = model
        self.max_sequences = _within("max_sequences", max_sequences, 1, MAX_SEQUENCES)
        context = model.config.context_length
        self.max_seq = _within("max_seq", max_seq, 1, context, "the model's context_length")
        self.chunk = _within("chunk", chunk, 1, 4096)
        self.max_waiting = _within("max_waiting", max_waiting, 1, 2**31)
        self.deterministic = bool(deterministic)
        check_kv_dtype(kv_dtype, model.config)
        self.kv_dtype = kv_dtype
        if self.deterministic and self.chunk != 1 and self.chunk % PAGE_SIZE:
            raise ValueError(
                f"chunk = {chunk}: with deterministic=True it must be 1 or a multiple of "
                f"{PAGE_SIZE}, the size of a page"
            )
        fits = max(1, model.device.info.max_buffer_length // page_bytes(model, kv_dtype))
        if n_pages is None:
            n_pages = min(self.max_sequences * pages_of(self.max_seq), fits)
        self.n_pages = _within("n_pages", n_pages, 1, fits, "which fill a buffer of the device")
        self._text_of = _text_of(model)  # before there is anything to release
        pool = PagePool(self.n_pages)
        self._scheduler = Scheduler(
            pool, self.max_sequences, self.chunk, deterministic=self.deterministic
        )
        runner = BatchRunner(
            model,
            self.max_sequences,
            self.max_seq,
            self.n_pages,
            kv_dtype,
            self.chunk,
            deterministic=self.deterministic,
        )
        # A device that runs on the host's threads has finished a step when submit() returns.
        lookahead = 0 if model.device.info.threads else _LOOKAHEAD
        self._worker = Worker(runner, pool, self._scheduler, self.max_waiting, lookahead)
        self._arrivals = itertools.count()
        self._pid = os.getpid()
        # Without a reference to the engine: it stops when the last one goes, and at exit.
        self._finalizer = weakref.finalize(self, _stop, self._worker, self._pid)

    def submit(
        self,
        prompt: Prompt,
        max_tokens: int = 64,
        *,
        block: bool = True,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Request:
        """Let the engine continue a prompt, and do not wait for it.

        Parameters
        ----------
        prompt : str or sequence of int
            A text, or its tokens; at least one.
        max_tokens : int
            The most to generate, at least 1.
        block : bool
            Whether to wait while max_waiting requests wait.
        timeout : float, optional
            Seconds of that wait; without end where left out.
        **options
            stop, ignore_eos, logits_callback and those of sampling: as of Session.generate.
            priority: requests with a higher one begin earlier; of equal ones the first comes first.
            allowed: which tokens may be chosen, their ids or bool [vocab], or a function of the
            tokens so far, prompt included, that returns them before each choice.
            log_probabilities: whether the result has a ScoredToken for each token.
            n_best: the most probable tokens that come with each, 0 to 32.
            Where a function has a say in choices, allowed or logits_callback, one step is in
            flight for all texts meanwhile. What it raises ends its own request.

        Returns
        -------
        Request
            An iterator over the text; see there.

        Raises
        ------
        ValueError
            For an argument out of its range, or a text that can never fit.
        EngineFullError
            Where too many requests wait.
        EngineClosedError
            Where the engine was closed.
        """
        task = self._task(self._ids(prompt), max_tokens, options)
        self._worker.submit(task, block=block, timeout=timeout)
        return self._request(task)

    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        max_tokens: int = 64,
        **options: Unpack[RequestOptions],
    ) -> list[str]:
        """Continue several prompts and return the texts in their order.

        Parameters
        ----------
        prompts : iterable of str or sequence of int
            Any number of them.
        max_tokens : int
            As of submit(), as are the options; for each of them.
        **options
            As of submit().

        Returns
        -------
        list of str
            What was generated, the prompts left out.

        Raises
        ------
        Exception
            What ended one of the requests; all others are cancelled then.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts is one text: give a list of them")
        allowed = options.get("allowed")
        if allowed is not None and not callable(allowed) and not isinstance(allowed, np.ndarray):
            options = {**options, "allowed": list(allowed)}  # an iterator serves all of them
        requests: list[Request] = []
        try:
            # One by one: those before a wrong one are known, and cancelled.
            for prompt in prompts:
                requests.append(self.submit(prompt, max_tokens, **options))  # noqa: PERF401
            return [request.text() for request in requests]
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    async def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 64,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[str]:
        """Yield the text that continues a prompt in pieces of whole characters.

        The event loop is never blocked. The request is cancelled where the task is, and where the
        iterator is closed early.

        Parameters
        ----------
        prompt : str or sequence of int
            As of submit().
        max_tokens : int
            As of submit().
        **options
            As of submit().

        Yields
        ------
        str
            The pieces, which joined are the text.

        Raises
        ------
        ValueError, EngineClosedError
            As of submit().
        Exception
            What ended the request.
        """
        loop = asyncio.get_running_loop()
        # A long text takes milliseconds to encode.
        ids = await loop.run_in_executor(None, self._ids, prompt)
        task = self._task(ids, max_tokens, options)
        await self._submit_in_turn(task)
        request = self._request(task)
        try:
            async for piece in request:
                yield piece
        finally:
            request.cancel()

    async def _submit_in_turn(self, task: Task) -> None:
        """Submit a task as soon as there is room for it to wait."""
        loop = asyncio.get_running_loop()
        room = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(room.set)

        stop = self._worker.listen_for_room(wake)
        try:
            while True:
                room.clear()
                try:
                    self._worker.submit(task, block=False, timeout=None)
                    return
                except EngineFullError:
                    await room.wait()
        finally:
            stop()

    def statistics(self) -> EngineStatistics:
        """Return what the engine does now and has done.

        Returns
        -------
        EngineStatistics
            The numbers, from one moment or from neighbouring ones.
        """
        return self._worker.statistics()

    def _request(self, task: Task) -> Request:
        return Request(
            task.outbox, partial(self._worker.cancel, task), self, self._worker.check_wait
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        self._check_open()
        if isinstance(prompt, str):
            ids = self.model.tokenizer.encode(prompt)
        else:
            ids = [operator.index(i) for i in prompt]
        vocab = self.model.config.vocab_size
        if not ids:
            raise ValueError("the prompt has no tokens: at least one is needed")
        for i, token in enumerate(ids):
            if not 0 <= token < vocab:
                raise ValueError(
                    f"token {token} at {i} is outside the vocabulary: ids are 0 to {vocab - 1}"
                )
        return ids

    def _task(self, ids: list[int], max_tokens: int, options: RequestOptions) -> Task:
        """Return a task, all its arguments checked."""
        max_tokens = operator.index(max_tokens)
        if max_tokens < 1:
            raise ValueError(f"max_tokens = {max_tokens} must be 1 or more")
        self._scheduler.check(len(ids), max_tokens, self.max_seq)
        rest: dict[str, Any] = dict(options)
        stop: Stop = rest.pop("stop", ())
        ignore_eos = bool(rest.pop("ignore_eos", False))
        priority = operator.index(rest.pop("priority", 0))
        allowed: Allowed | AllowedCallback | None = rest.pop("allowed", None)
        callback: LogitsCallback | None = rest.pop("logits_callback", None)
        n_best = _within("n_best", rest.pop("n_best", 0), 0, MAX_BEST)
        scores = bool(rest.pop("log_probabilities", False)) or n_best > 0
        texts, lists = stop_sequences(stop)
        if texts and self._text_of is None:
            raise ValueError("the model's file has no tokenizer: stop with lists of tokens")
        settings = self._settings(rest)
        task = Task(
            TokenSequence(
                ids, len(ids), len(ids) + max_tokens - 1, (-priority, next(self._arrivals))
            ),
            max_tokens,
            settings,
            frozenset() if ignore_eos else self.model.end_ids,
            StopScanner(texts, lists, self._text_of or _no_text),
            Outbox(len(ids)),
            logits_callback=callback,
            scores=scores,
            n_best=n_best,
        )
        n_vocab = self.model.config.vocab_size  # and no reference to the engine
        if callable(allowed):
            task.make_mask = lambda tokens: mask_words(allowed(list(tokens)), n_vocab)
        elif allowed is not None:
            task.mask = mask_words(allowed, n_vocab)
        return task

    def _settings(self, options: dict[str, Any]) -> BatchSettings:
        found = SamplingSettings.resolve(
            cast("SamplingOptions", options), self.model.config.vocab_size
        )
        return BatchSettings(found.packed(), found.biases())

    def close(self) -> None:
        """End the step that runs, fail what has not ended, and release the memory; idempotent."""
        if os.getpid() == self._pid:
            self._worker.stop()
        self._finalizer.detach()

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the model, or the engine has failed."""
        return self._worker.stopping or self.model.closed

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"the engine belongs to process {self._pid}: a forked one has to make its own"
            )
        if self.closed:
            raise closed_error()

    def __enter__(self) -> Engine:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Engine closed>"
        return (
            f"<Engine of {self.max_sequences} sequences up to {self.max_seq} tokens, "
            f"{self.n_pages} pages in {self.kv_dtype}>"
        )


def _stop(worker: Worker, pid: int) -> None:
    """End a worker, but in a forked process, which has none."""
    if os.getpid() == pid:
        worker.stop(_LEAVE_SECONDS)


def _within(name: str, value: int, low: int, high: int, limit: str = "") -> int:
    value = operator.index(value)
    if not low <= value <= high:
        raise ValueError(
            f"{name} = {value} must lie in {low}..{high}{', ' + limit if limit else ''}"
        )
    return value


def _no_text(token: int) -> bytes:
    return b""


def _text_of(model: LoadedModel) -> Callable[[int], bytes] | None:
    """Return what gives the bytes of a token; None for a file without a tokenizer."""
    try:
        return partial(model.tokenizer.token_bytes, skip_special=True)
    except GGUFError:
        return None
