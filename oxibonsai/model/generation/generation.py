"""Generation: which token comes next, and what of it is given out."""

from __future__ import annotations

import codecs
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from oxibonsai.model.generation.sampling import Sampler
from oxibonsai.model.generation.speculation import Speculation
from oxibonsai.model.generation.speculative import SpeculativeSteps, row_cost
from oxibonsai.model.generation.stopping import Piece, Stop, StopScanner, stop_sequences
from oxibonsai.model.protocols import MAX_IN_FLIGHT, LoadedModel
from oxibonsai.model.timeline import Timeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Generation", "GenerationOptions", "LogitsCallback"]

LogitsCallback = Callable[[npt.NDArray[np.float32]], object]


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
    draft_tokens: int


class Generation:
    """One run of generation over a text; arguments as of Session.generate.

    A token enters the text just before it is given out. What has run ahead of it (steps in flight,
    and tokens held back because they may become a stop sequence) is dropped by the next call of any
    kind on the session. So a generation may be left at any time.

    `speculations` is the session's own, by the most tokens of a draft: what earlier generations
    found out about the costs of steps.
    """

    def __init__(
        self,
        timeline: Timeline,
        model: LoadedModel,
        max_tokens: int,
        temperature: float,
        *,
        text: bool = False,
        ignore_eos: bool = False,
        stop: Stop = (),
        logits_callback: LogitsCallback | None = None,
        lookahead: int | None = None,
        draft_tokens: int = 0,
        speculations: dict[int, Speculation] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> None:
        self._sampler = Sampler(temperature, **sampling)
        self._max_tokens = operator.index(max_tokens)
        if self._max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens} must be 0 or more")
        if lookahead is None:
            # A device of host threads has run a step when submit() returns.
            lookahead = 1 if model.device.info.threads else MAX_IN_FLIGHT
        self._lookahead = operator.index(lookahead)
        if not 1 <= self._lookahead <= MAX_IN_FLIGHT:
            raise ValueError(f"lookahead = {lookahead} must lie in 1..{MAX_IN_FLIGHT}")
        self._timeline = timeline
        self._speculative: SpeculativeSteps | None = None
        if operator.index(draft_tokens):
            known = {} if speculations is None else speculations
            if draft_tokens not in known:
                cost = row_cost(model.device.info.threads)
                known[draft_tokens] = Speculation(draft_tokens, row_cost=cost)
            self._speculative = SpeculativeSteps(timeline, known[draft_tokens])
        self._callback = logits_callback
        self._check_continuable()
        texts, lists = stop_sequences(stop)
        self._scanner: StopScanner | None = None
        if text or texts:
            text_of = partial(model.tokenizer.token_bytes, skip_special=True)
            self._scanner = StopScanner(texts, lists, text_of)
        elif lists:
            self._scanner = StopScanner([], lists, lambda token: b"")
        self._ends: frozenset[int] = frozenset() if ignore_eos else model.end_ids
        self._epoch = -1
        self._window = 1

    def tokens(self) -> Iterator[int]:
        """Yield the tokens."""
        for piece in self._pieces():
            if piece.token is not None:
                yield piece.token

    def text(self) -> Iterator[str]:
        """Yield the text, never half a character."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for piece in self._pieces():
            if text := utf8.decode(piece.text):
                yield text
        if text := utf8.decode(b"", final=True):
            yield text

    def _pieces(self) -> Iterator[Piece]:
        """Yield what is given out; each token is in the text by then."""
        scanner = self._scanner
        n = 0
        while n < self._max_tokens:
            if self._is_left():
                self._begin(self._max_tokens - n)
            token = self._run_next(self._max_tokens - n)
            if token is None:
                break
            n += 1
            yield from self._commit([Piece(token, b"")] if scanner is None else scanner.push(token))
            if scanner is not None and scanner.stopped:
                break
        if scanner is not None:
            yield from self._commit(scanner.flush())
        if not self._is_left() and not self._timeline.closed:
            self._timeline.settle()

    def _commit(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Yield pieces, each token committed first, until somebody else moves the text."""
        for piece in pieces:
            if self._is_left():
                return  # what was held back is no part of the text that is there now
            if piece.token is not None:
                self._timeline.commit()
            yield piece

    def _is_left(self) -> bool:
        """Whether somebody else has moved the text since this generation did."""
        return self._timeline.epoch != self._epoch

    def _begin(self, budget: int) -> None:
        """Start at the end of the text, at first and after somebody else moved it."""
        self._check_continuable()
        self._epoch = self._timeline.settle()
        self._window = 1
        if self._scanner is not None:
            self._scanner.reset()
        if self._speculative is not None:
            self._speculative.begin(budget)

    def _check_continuable(self) -> None:
        self._timeline.check_open()
        if self._timeline.position == 0:
            raise ValueError("nothing to continue: feed a prompt with forward() first")

    def _run_next(self, budget: int) -> int | None:
        """Choose the next token and run its step; None at the end of the text."""
        self._timeline.check_open()
        if self._sampler.greedy and self._callback is None:
            return self._run_greedy(budget)
        return self._run_sampled()

    def _run_greedy(self, budget: int) -> int | None:
        """Let the device choose: the steps that follow are in flight before the choice is read."""
        token = self._timeline.choice()
        if token in self._ends:
            return None
        steps = min(self._window, budget)
        if self._speculative is None:
            self._timeline.take_choice(token, steps)
        elif not self._speculative.take(token, steps, budget):
            self._window = 1
            return token
        self._window = min(2 * self._window, self._lookahead)
        return token

    def _run_sampled(self) -> int | None:
        """Choose on the host."""
        logits = self._timeline.logits()
        if self._callback is not None:
            self._callback(logits)
        token = self._sampler.sample(logits, self._timeline.history())
        if token in self._ends:
            return None
        self._timeline.take(token)
        return token
