"""What a caller holds of a text that an engine generates."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from oxibonsai.model.arguments import number
from oxibonsai.model.choices import ScoredToken
from oxibonsai.model.generation.stopping import FinishReason

__all__ = ["FinishReason", "Outbox", "Request", "RequestResult", "check_timeout"]


@dataclass(frozen=True)
class RequestResult:
    """A request that has ended.

    Attributes
    ----------
    text : str
        What was generated, the prompt and stop texts left out.
    tokens : list of int
        Its tokens.
    finish_reason : {"stop", "length", "cancelled", "error"}
        "stop" for an end of text or a stop sequence, "length" for max_tokens. Never the "context"
        of sessions: submit() refuses a prompt whose max_tokens pass max_seq.
    error : BaseException or None
        What ended it, for "error".
    log_probabilities : list of ScoredToken
        One for each token, where the request asked for them.
    n_prompt : int
        Tokens of the prompt.
    n_cached : int
        Those of them whose keys and values were there already.
    time_to_first_token : float or None
        Seconds from submit() to the first token.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    error: BaseException | None = None
    log_probabilities: list[ScoredToken] = field(default_factory=list)
    n_prompt: int = 0
    n_cached: int = 0
    time_to_first_token: float | None = None


class Outbox:
    """What the engine's thread hands over and any other thread takes.

    Parameters
    ----------
    n_prompt : int
        Tokens of the prompt.
    """

    def __init__(self, n_prompt: int) -> None:
        self._change = threading.Condition()
        self._n_prompt = n_prompt
        self._started = time.perf_counter()
        self._first: float | None = None
        self._pieces: deque[str] = deque()
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._scored: list[ScoredToken] = []
        self._result: RequestResult | None = None
        self._listeners: list[Callable[[], None]] = []

    def first_token(self) -> float:
        """Note that a token was chosen, and return the seconds until the first one was."""
        if self._first is None:
            self._first = time.perf_counter() - self._started
        return self._first

    def put(self, text: str, tokens: Sequence[int], scored: Sequence[ScoredToken] = ()) -> None:
        """Hand over text and tokens."""
        with self._change:
            if self._result is not None:
                return
            self._tokens += tokens
            self._scored += scored
            if text:
                self._texts.append(text)
                self._pieces.append(text)
            self._notify()

    def finish(
        self, reason: FinishReason, error: BaseException | None = None, n_cached: int = 0
    ) -> None:
        """End the request; a second end changes nothing."""
        with self._change:
            if self._result is not None:
                return
            self._result = RequestResult(
                "".join(self._texts),
                list(self._tokens),
                reason,
                error,
                list(self._scored),
                self._n_prompt,
                n_cached,
                self._first,
            )
            self._notify()
            self._listeners.clear()

    def _notify(self) -> None:
        self._change.notify_all()
        for listener in self._listeners:
            listener()

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        with self._change:
            return list(self._tokens)

    @property
    def result(self) -> RequestResult | None:
        """How the request ended, or None."""
        return self._result

    def take(self) -> str | None:
        """Return the next piece of text that nobody took, or None where there is none now."""
        with self._change:
            return self._pieces.popleft() if self._pieces else None

    def wait(self, timeout: float | None, *, piece: bool = False) -> bool:
        """Wait for the end, or for a piece of text; False where the time is over before."""
        with self._change:
            return self._change.wait_for(
                lambda: self._result is not None or (piece and bool(self._pieces)), timeout
            )

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` at each change, under a lock, and return what stops that."""
        with self._change:
            self._listeners.append(listener)

        def stop() -> None:
            with self._change:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop


def check_timeout(timeout: float | None) -> None:
    """Raise TypeError or ValueError for a timeout that is no number of seconds."""
    if timeout is None:
        return
    if not number("timeout", timeout) <= threading.TIMEOUT_MAX:  # NaN as well
        raise ValueError(
            f"timeout = {timeout} must be at most {threading.TIMEOUT_MAX:.0f} seconds, or None to "
            "wait without end"
        )


class Request:
    """A text that an engine generates, made by ``Engine.submit``.

    Iterate over it, with ``for`` or ``async for``, for its text in pieces of whole characters, each
    given once; or wait for `text()` or `result()`. Any thread may use it.

    Parameters
    ----------
    outbox : Outbox
        Where the engine puts what it generates.
    cancel : callable
        Tells the engine that nobody wants it any more.
    owner : object
        Kept alive as long as the request is.
    check_wait : callable
        Raises RuntimeError where waiting would never end.
    """

    def __init__(
        self,
        outbox: Outbox,
        cancel: Callable[[], object],
        owner: object,
        check_wait: Callable[[], object],
    ) -> None:
        self._outbox = outbox
        self._cancel = cancel
        self._owner = owner
        self._check_wait = check_wait

    @property
    def tokens(self) -> list[int]:
        """The tokens that were generated so far."""
        return self._outbox.tokens

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._outbox.result is not None

    def cancel(self) -> None:
        """End it with what there is: its `finish_reason` is then "cancelled"; idempotent."""
        self._cancel()

    def result(self, timeout: float | None = None) -> RequestResult:
        """Wait for the end, whatever it is.

        Parameters
        ----------
        timeout : float, optional
            Seconds; without end where left out.

        Returns
        -------
        RequestResult
            Text, tokens and how it ended.

        Raises
        ------
        TimeoutError
            Where it has not ended by then; it goes on.
        TypeError, ValueError
            For a timeout that is no number of seconds.
        """
        check_timeout(timeout)
        if not self._wait(timeout):
            raise TimeoutError(f"the request has not ended after {timeout} s; it goes on")
        result = self._outbox.result
        assert result is not None
        return result

    def _wait(self, timeout: float | None, *, piece: bool = False) -> bool:
        if self._outbox.wait(0, piece=piece):
            return True
        try:
            self._check_wait()
        except RuntimeError:
            if self._outbox.wait(0, piece=piece):
                return True  # it ended, and the engine after it, in between
            raise
        return self._outbox.wait(timeout, piece=piece)

    def text(self, timeout: float | None = None) -> str:
        """Wait for the end and return the whole text.

        Parameters
        ----------
        timeout : float, optional
            As of result().

        Returns
        -------
        str
            The text; of a cancelled request, what there was.

        Raises
        ------
        TimeoutError
            As of result().
        Exception
            What ended the request, for the `finish_reason` "error".
        """
        result = self.result(timeout)
        if result.error is not None:
            raise result.error
        return result.text

    def __iter__(self) -> Iterator[str]:
        while self._wait(None, piece=True):
            piece = self._outbox.take()
            if piece is not None:
                yield piece
            elif self._ended():
                return

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(event.set)

        stop = self._outbox.listen(wake)
        try:
            while True:
                event.clear()
                # Before the pieces: what comes between the two is seen in the next round.
                done = self.done
                while (piece := self._outbox.take()) is not None:
                    yield piece
                if done and self._ended():
                    return
                if not self.done:
                    await event.wait()
        finally:
            stop()

    def _ended(self) -> bool:
        """Whether all is over, by an error that is raised, or not."""
        result = self._outbox.result
        if result is not None and result.error is not None:
            raise result.error
        return result is not None

    def __repr__(self) -> str:
        result = self._outbox.result
        state = "running" if result is None else result.finish_reason
        return f"<Request {state}: {len(self.tokens)} tokens>"
