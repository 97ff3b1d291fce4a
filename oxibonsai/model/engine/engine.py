"""An engine: many texts at a time on one model."""

from __future__ import annotations

import asyncio
import itertools
import os
import reprlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from oxibonsai.gguf import GGUFError
from oxibonsai.model.arguments import (
    check_names,
    check_stops,
    flag,
    function,
    integer,
    integer_in,
    max_tokens_of,
    token_ids,
)
from oxibonsai.model.choices import MAX_BEST
from oxibonsai.model.chunks import ChunkSize
from oxibonsai.model.engine.options import OPTIONS, RequestOptions
from oxibonsai.model.engine.request import Outbox, Request, check_timeout
from oxibonsai.model.engine.room import checkpoints_for, n_pages_for
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
from oxibonsai.model.generation.stopping import (
    Stop,
    readable_tokenizer,
    stop_scanner,
    stop_sequences,
)
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.batch import BatchRunner
from oxibonsai.model.runtime.batchshape import BatchSettings
from oxibonsai.model.runtime.cache import KVDtype, check_kv_dtype
from oxibonsai.model.runtime.pages import PAGE_SIZE, PagePool
from oxibonsai.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

__all__ = ["MAX_SEQUENCES", "Engine"]

Prompt: TypeAlias = str | Sequence[int]
MAX_SEQUENCES = 256
"""The most texts that an engine runs at a time."""

_LOOKAHEAD = 2
_LEAVE_SECONDS = 5.0  # the longest that an interpreter that exits waits for the running step


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
    chunk : int, optional
        Tokens of a prompt in a step; chosen for each step where left out.
    deterministic : bool
        Whether a text does not depend on what else runs.
    max_waiting : int
        Requests that may wait.
    checkpoint_every, max_checkpoints : int, optional
        How far apart, in tokens, and how many recurrent states are kept for texts that begin
        alike, where the model has any; chosen where left out.

    Attributes
    ----------
    model, max_sequences, max_seq, n_pages, kv_dtype, deterministic, max_waiting
        As given or chosen.
    checkpoint_every, max_checkpoints : int
        As given or chosen; 0 where the model has no recurrent states.
    """

    def __init__(
        self,
        model: LoadedModel,
        max_sequences: int,
        max_seq: int,
        n_pages: int | None,
        kv_dtype: KVDtype,
        chunk: int | None,
        *,
        deterministic: bool = False,
        max_waiting: int = 1024,
        checkpoint_every: int | None = None,
        max_checkpoints: int | None = None,
    ) -> None:
        self.model = model
        self.max_sequences = integer_in("max_sequences", max_sequences, 1, MAX_SEQUENCES)
        context = model.config.context_length
        self.max_seq = integer_in("max_seq", max_seq, 1, context, "the model's context_length")
        self.max_waiting = integer_in("max_waiting", max_waiting, 1, 2**31)
        self.deterministic = flag("deterministic", deterministic)
        self._chunks = ChunkSize(model, chunk, deterministic=self.deterministic)
        most = self._chunks.most
        check_kv_dtype(kv_dtype, model.config)
        self.kv_dtype = kv_dtype
        if self.deterministic and most != 1 and most % PAGE_SIZE:
            raise ValueError(
                f"chunk = {chunk}: with deterministic=True it must be 1 or a multiple of "
                f"{PAGE_SIZE}, the size of a page"
            )
        self.n_pages = n_pages_for(model, kv_dtype, self.max_sequences, self.max_seq, n_pages)
        checkpoints = checkpoints_for(
            model,
            self.max_sequences,
            self.max_seq,
            most,
            checkpoint_every,
            max_checkpoints,
            deterministic=self.deterministic,
        )
        self.checkpoint_every = checkpoints.spacing if checkpoints else 0
        self.max_checkpoints = checkpoints.n_places if checkpoints else 0
        self._text_of = _text_of(model)  # before there is anything to release
        pool = PagePool(self.n_pages, checkpoints.drop if checkpoints else None)
        self._scheduler = Scheduler(
            pool,
            self.max_sequences,
            most,
            next_chunk=self._chunks.next,
            deterministic=self.deterministic,
            checkpoints=checkpoints,
        )
        runner = BatchRunner(
            model,
            self.max_sequences,
            self.max_seq,
            self.n_pages,
            kv_dtype,
            most,
            deterministic=self.deterministic,
            n_checkpoints=self.max_checkpoints,
        )
        # A device that runs on the host's threads has finished a step when submit() returns.
        lookahead = 0 if model.device.info.threads else _LOOKAHEAD
        self._worker = Worker(
            runner, pool, self._scheduler, self.max_waiting, lookahead, checkpoints
        )
        self._arrivals = itertools.count()
        self._pid = os.getpid()
        # Without a reference to the engine: it stops when the last one goes, and at exit.
        self._finalizer = weakref.finalize(self, _stop, self._worker, self._pid)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in the next step: as given, or what would be chosen now."""
        return self._chunks.next()

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
            A text, which begins as the file asks (``Tokenizer.prompt_ids``), or its tokens, as they
            are; at least one.
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
        TypeError
            For an argument of another type.
        ValueError
            For an argument out of its range, or a text that can never fit: with max_tokens it would
            pass max_seq, or need more pages than there are.
        EngineFullError
            Where too many requests wait.
        EngineClosedError
            Where the engine was closed.
        """
        check_timeout(timeout)
        block = flag("block", block)
        make_task = self._checked(prompt, max_tokens, options)
        task = make_task(self._ids(prompt))
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
        if isinstance(prompts, (bytes, bytearray, Mapping)) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts is a {type(prompts).__name__}, not a list of prompts")
        allowed, stop = options.get("allowed"), options.get("stop")
        if isinstance(allowed, Iterator):
            options = {**options, "allowed": list(allowed)}  # an iterator serves all of them
        if isinstance(stop, Iterator):
            options = {**options, "stop": list(stop)}
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

    def stream(
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

        Returns
        -------
        asynchronous iterator of str
            The pieces, which joined are the text.

        Raises
        ------
        TypeError, ValueError, EngineClosedError
            As of submit(). Wrong options are refused at the call, a wrong prompt by the iterator.
        Exception
            What ended the request.
        """
        return self._stream(prompt, self._checked(prompt, max_tokens, options))

    async def _stream(
        self, prompt: Prompt, make_task: Callable[[list[int]], Task]
    ) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        # A long text takes milliseconds to encode.
        ids = await loop.run_in_executor(None, self._ids, prompt)
        task = make_task(ids)
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
        n_vocab = self.model.config.vocab_size
        if isinstance(prompt, str):
            prompt = readable_tokenizer(self.model, "give tokens").prompt_ids(prompt)
        ids = token_ids("prompt", prompt, n_vocab)
        if not ids:
            raise ValueError("the prompt has no tokens: at least one is needed")
        return ids

    def _checked(
        self, prompt: Prompt, max_tokens: int, options: RequestOptions
    ) -> Callable[[list[int]], Task]:
        """Check all arguments but the tokens of the prompt, and return what makes a task of them.

        What it returns raises ValueError where so many tokens do not fit.
        """
        self._check_open()
        check_names(options, OPTIONS, "Engine.submit")
        given: Any = prompt
        if isinstance(given, bytes) or not isinstance(given, Iterable):
            raise TypeError(
                f"prompt = {reprlib.repr(given)} is a {type(given).__name__}: give a text, or a "
                "list of ids"
            )
        n_generated = max_tokens_of(max_tokens, 1)
        rest: dict[str, Any] = dict(options)
        stop: Stop = rest.pop("stop", None)
        ignore_eos = flag("ignore_eos", rest.pop("ignore_eos", False))
        priority = integer("priority", rest.pop("priority", 0))
        allowed: Allowed | AllowedCallback | None = rest.pop("allowed", None)
        callback: LogitsCallback | None = function(
            "logits_callback", rest.pop("logits_callback", None)
        )
        n_best = integer_in("n_best", rest.pop("n_best", 0), 0, MAX_BEST)
        log_probabilities = flag("log_probabilities", rest.pop("log_probabilities", False))
        n_vocab = self.model.config.vocab_size  # and no reference to the engine
        to_text = self._text_of
        tokenizer: Tokenizer | None = None

        def textless_ids(name: str) -> list[int]:
            nonlocal tokenizer
            tokenizer = readable_tokenizer(self.model, "stop with lists of tokens")
            return tokenizer.textless_ids(name)

        texts, lists = stop_sequences(stop, textless_ids)
        check_stops(lists, n_vocab)
        settings = self._settings(rest)
        mask: npt.NDArray[np.uint32] | None = None
        make_mask: Callable[[Sequence[int]], npt.NDArray[np.uint32]] | None = None
        if callable(allowed):
            choose = allowed
            make_mask = lambda tokens: mask_words(choose(list(tokens)), n_vocab)  # noqa: E731
        elif allowed is not None:
            mask = mask_words(allowed, n_vocab)

        def make(ids: list[int]) -> Task:
            self._scheduler.check(len(ids), n_generated, self.max_seq)
            return Task(
                TokenSequence(
                    ids, len(ids), len(ids) + n_generated - 1, (-priority, next(self._arrivals))
                ),
                n_generated,
                settings,
                frozenset() if ignore_eos else self.model.end_ids,
                stop_scanner(texts, lists, to_text or _no_text, tokenizer),
                Outbox(len(ids)),
                make_mask=make_mask,
                mask=mask,
                logits_callback=callback,
                scores=log_probabilities or n_best > 0,
                n_best=n_best,
            )

        return make

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


def _no_text(token: int) -> bytes:
    return b""


def _text_of(model: LoadedModel) -> Callable[[int], bytes] | None:
    """Return what gives the bytes of a token; None for a file without a tokenizer."""
    try:
        return partial(model.tokenizer.token_bytes, skip_special=True)
    except GGUFError:
        return None
