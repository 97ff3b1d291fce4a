"""Generation: which token comes next, and what of it is given out."""

from __future__ import annotations

import codecs
import operator
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from oxibonsai.model.decoder import MAX_IN_FLIGHT
from oxibonsai.model.sampling import Sampler
from oxibonsai.model.stopping import Piece, Stop, StopScanner, stop_sequences

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from oxibonsai.model.session import Session

__all__ = ["Generation", "GenerationOptions", "LogitsCallback", "SessionFullError"]

LogitsCallback = Callable[[npt.NDArray[np.float32]], object]


class SessionFullError(ValueError):
    """The session has no room for the tokens; it is as it was before the call."""


class SamplingOptions(TypedDict, total=False):
    """Arguments of Sampler but the temperature."""

    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None


class GenerationOptions(SamplingOptions, total=False):
    """Arguments of Session.generate but the first two."""

    ignore_eos: bool
    stop: Stop
    logits_callback: LogitsCallback | None
    lookahead: int | None


class Generation:
    """One run of generation over a session; arguments as of Session.generate.

    Steps run ahead of the context: those in flight, and those whose tokens are held back because
    they may become a stop sequence. A token enters the context just before it is given out, and
    what ran ahead is dropped by the session's next call of any kind. So a generation may be left at
    any time.
    """

    def __init__(
        self,
        session: Session,
        max_tokens: int,
        temperature: float,
        *,
        text: bool = False,
        ignore_eos: bool = False,
        stop: Stop = (),
        logits_callback: LogitsCallback | None = None,
        lookahead: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> None:
        self._sampler = Sampler(temperature, **sampling)
        self._max_tokens = operator.index(max_tokens)
        if self._max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens} must be 0 or more")
        if lookahead is None:
            # A device of host threads has run a step when submit() returns.
            lookahead = 1 if session.model.device.info.threads else MAX_IN_FLIGHT
        self._lookahead = operator.index(lookahead)
        if not 1 <= self._lookahead <= MAX_IN_FLIGHT:
            raise ValueError(f"lookahead = {lookahead} must lie in 1..{MAX_IN_FLIGHT}")
        self._session = session
        self._decoder = session._decoder
        self._callback = logits_callback
        self._check_continuable()
        texts, lists = stop_sequences(stop)
        self._scanner: StopScanner | None = None
        if text or texts:
            tokenizer = session.model.tokenizer
            self._scanner = StopScanner(
                texts, lists, partial(tokenizer.token_bytes, skip_special=True)
            )
        elif lists:
            self._scanner = StopScanner([], lists, lambda token: b"")
        self._ends: frozenset[int] = frozenset() if ignore_eos else session.model.end_ids
        self._epoch = -1
        self._window = 1

    def tokens(self) -> Iterator[int]:
        """Yield the tokens."""
        for piece in self._pieces():
            if piece.token is not None:
                yield piece.token

    def text(self) -> Iterator[str]:
        """Yield the text, a character never in parts."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for piece in self._pieces():
            if text := utf8.decode(piece.text):
                yield text
        if text := utf8.decode(b"", final=True):
            yield text

    def _pieces(self) -> Iterator[Piece]:
        """Yield what is given out; each token is in the context by then."""
        scanner = self._scanner
        n = 0
        while n < self._max_tokens:
            if self._session._epoch != self._epoch:
                self._begin()
            token = self._run_next(self._max_tokens - n)
            if token is None:
                break
            n += 1
            if scanner is None:
                yield self._commit(Piece(token, b""))
                continue
            for piece in scanner.push(token):
                yield self._commit(piece)
            if scanner.stopped:
                break
        if scanner is not None:
            for piece in scanner.flush():
                if self._session._epoch != self._epoch:
                    return  # somebody moved the text: what was held back is no part of it
                yield self._commit(piece)
        if self._session._epoch == self._epoch:
            self._session._settle()

    def _begin(self) -> None:
        """Start at the end of the context, at first and after somebody else moved it."""
        self._check_continuable()
        self._epoch = self._session._settle()
        self._window = 1
        if self._scanner is not None:
            self._scanner.reset()

    def _check_continuable(self) -> None:
        self._session._check_open()
        if self._session.position == 0:
            raise ValueError("nothing to continue: feed a prompt with forward() first")

    def _commit(self, piece: Piece) -> Piece:
        if piece.token is not None:
            self._session._commit(piece.token)
        return piece

    def _run_next(self, budget: int) -> int | None:
        """Choose the next token and run its step; None at the end of the text."""
        self._session._check_open()
        if self._sampler.greedy and self._callback is None:
            return self._run_greedy(budget)
        return self._run_sampled()

    @property
    def _at(self) -> int:
        """Where the next token goes, behind those held back."""
        return self._session.position + (len(self._scanner.held) if self._scanner else 0)

    def _run_greedy(self, budget: int) -> int | None:
        """Let the device choose: the steps that follow are in flight before the choice is read."""
        session, decoder, at = self._session, self._decoder, self._at
        if not session._chosen:
            decoder.rerun(at)
            session._chosen = True
        token = decoder.token(at)
        if token == 0 and decoder.logits_end != at:
            # What the device takes where nothing can be taken, too: the logits tell, and they are a
            # later step's by now.
            decoder.rerun(at)
        if decoder.logits_end == at and not decoder.logit(token) > -np.inf:
            raise ValueError("no token can be drawn: every logit is NaN or -inf")
        if token in self._ends:
            return None
        room = self._room(at)
        try:
            ahead = min(self._window, budget, room)
            while decoder.position - at < ahead:
                decoder.reserve(decoder.position + 1)
                decoder.submit()
            decoder.finish(keep=decoder.position - at - 1)
        except BaseException:
            session._chosen = False  # how far the device came is not known
            raise
        self._window = min(2 * self._window, self._lookahead)
        return token

    def _run_sampled(self) -> int | None:
        """Choose on the host."""
        session, decoder, at = self._session, self._decoder, self._at
        if decoder.logits_end != at:
            decoder.rerun(at)
        logits = decoder.logits()
        if self._callback is not None:
            self._callback(logits)
        held = self._scanner.held if self._scanner else []
        token = self._sampler.sample(logits, chain(session._tokens, held))
        if token in self._ends:
            return None
        self._room(at)
        decoder.reserve(at + 1)
        session._chosen = False
        decoder.write_tokens([token], at)
        decoder.submit()
        decoder.finish()
        return token

    def _room(self, at: int) -> int:
        """Return how many tokens fit; SessionFullError for none."""
        if at == self._session.max_seq:
            raise full_error(self._session, 1)
        return self._session.max_seq - at


def full_error(session: Session, n: int) -> SessionFullError:
    """Return the error for n tokens that do not fit."""
    return SessionFullError(
        f"{n} tokens do not fit: the session holds {session.position} of {session.max_seq}; "
        "rewind() it, or make one with a larger max_seq"
    )
