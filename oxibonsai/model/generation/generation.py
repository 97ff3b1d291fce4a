"""Generation: which token comes next, and what of it is given out."""

from __future__ import annotations

import codecs
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from oxibonsai.model.arguments import (
    check_stops,
    flag,
    function,
    integer,
    integer_in,
    max_tokens_of,
)
from oxibonsai.model.choices import MAX_BEST, ScoredToken
from oxibonsai.model.generation.settings import (
    Allowed,
    AllowedCallback,
    SamplingOptions,
    SamplingSettings,
    UnheatedOptions,
    mask_words,
)
from oxibonsai.model.generation.speculation import Speculation
from oxibonsai.model.generation.speculative import SpeculativeSteps, row_cost
from oxibonsai.model.generation.stopping import (
    FinishReason,
    Piece,
    Stop,
    StopScanner,
    readable_tokenizer,
    stop_scanner,
    stop_sequences,
)
from oxibonsai.model.protocols import MAX_IN_FLIGHT, MAX_STATES_IN_FLIGHT, LoadedModel
from oxibonsai.model.timeline import Timeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Generation", "GenerationOptions", "LogitsCallback"]

_log = logging.getLogger("oxibonsai.model")

LogitsCallback = Callable[[npt.NDArray[np.float32]], object]


class GenerationOptions(UnheatedOptions, total=False):
    """Arguments of Session.generate but the first two."""

    allowed: Allowed | AllowedCallback | None
    ignore_eos: bool
    stop: Stop
    logits_callback: LogitsCallback | None
    lookahead: int | None
    draft_tokens: int


class _Given(NamedTuple):
    """What is given out: a piece of text, and the token's score where there is one."""

    piece: Piece
    scored: ScoredToken | None


class Generation:
    """One run of generation over a text; arguments as of Session.generate.

    A token enters the text just before it is given out. What has run ahead of it (steps in flight,
    and tokens held back because they may become a stop sequence) is dropped by the next call of any
    kind on the session. So a generation may be left at any time.

    `speculations` is the session's own, by the most tokens of a draft: what earlier generations
    found out about the costs of steps. `finished` is called with why the text ended, and with None
    when the generation is made and when it starts.
    """

    def __init__(
        self,
        timeline: Timeline,
        model: LoadedModel,
        max_tokens: int,
        temperature: float | None,
        *,
        fed: bool = True,
        text: bool = False,
        scores: bool = False,
        n_best: int = 0,
        ignore_eos: bool = False,
        stop: Stop = None,
        allowed: Allowed | AllowedCallback | None = None,
        logits_callback: LogitsCallback | None = None,
        lookahead: int | None = None,
        draft_tokens: int = 0,
        speculations: dict[int, Speculation] | None = None,
        finished: Callable[[FinishReason | None], object] = lambda reason: None,
        **sampling: Unpack[UnheatedOptions],
    ) -> None:
        given: SamplingOptions = {"temperature": temperature, **sampling}
        settings = SamplingSettings.resolve(given, model.config.vocab_size)
        self._max_tokens = max_tokens_of(max_tokens)
        if lookahead is None:
            # A device of host threads has run a step when submit() returns.
            lookahead = 1 if model.device.info.threads else MAX_IN_FLIGHT
        self._lookahead = integer_in("lookahead", lookahead, 1, MAX_IN_FLIGHT)
        if model.config.recurrent is not None:
            self._lookahead = min(self._lookahead, MAX_STATES_IN_FLIGHT)
        self._timeline = timeline
        self._speculative: SpeculativeSteps | None = None
        draft_tokens = integer("draft_tokens", draft_tokens)
        if draft_tokens and model.config.recurrent is not None:
            _log.warning(
                "%s: draft_tokens = %d does nothing: what a draft leaves in the recurrent state "
                "cannot be taken back token by token, and running it again costs more than it "
                "saves; use draft_tokens=0",
                model.path,
                draft_tokens,
            )
        elif draft_tokens:
            known = {} if speculations is None else speculations
            if draft_tokens not in known:
                cost = row_cost(model.device.info.threads)
                known[draft_tokens] = Speculation(draft_tokens, row_cost=cost)
            self._speculative = SpeculativeSteps(timeline, known[draft_tokens])
        n_best = integer_in("n_best", n_best, 0, MAX_BEST)
        self._callback = function("logits_callback", logits_callback)
        self._n_vocab = model.config.vocab_size
        self._allowed: AllowedCallback | None = None
        mask = None
        if callable(allowed):
            self._allowed = allowed
            mask = mask_words(None, self._n_vocab)
        elif allowed is not None:
            mask = mask_words(allowed, self._n_vocab)
        self._stepwise = logits_callback is not None or callable(allowed)
        self._rule = settings.rule(
            mask=mask, log_probabilities=scores, n_best=n_best, stepwise=self._stepwise
        )
        self._scored: deque[ScoredToken] = deque()  # chosen, and not yet given out
        instead = "stop with lists of tokens"
        texts, lists = stop_sequences(
            stop, lambda name: readable_tokenizer(model, instead).textless_ids(name)
        )
        check_stops(lists, self._n_vocab)
        self._scanner: StopScanner | None = None
        if text or texts:
            if not texts:
                instead = "generate() gives tokens"
            tokenizer = readable_tokenizer(model, instead)
            text_of = partial(tokenizer.token_bytes, skip_special=True)
            self._scanner = stop_scanner(texts, lists, text_of, tokenizer)
        elif lists:
            self._scanner = StopScanner([], lists, lambda token: b"")
        ignore_eos = flag("ignore_eos", ignore_eos)
        self._ends: frozenset[int] = frozenset() if ignore_eos else model.end_ids
        self._epoch = -1
        self._window = 1
        self._fits = True  # whether the last choice has a place in the context
        self._finished = finished
        if fed:
            self._check_continuable(started=False)
            finished(None)

    def tokens(self) -> Iterator[int]:
        """Yield the tokens."""
        for _, scored in self._given():
            if scored is not None:
                yield scored.token

    def scored(self) -> Iterator[ScoredToken]:
        """Yield the tokens with their log probabilities."""
        for _, scored in self._given():
            if scored is not None:
                yield scored

    def text(self, take: Callable[[ScoredToken], object] | None = None) -> Iterator[str]:
        """Yield the text, never half a character; `take` is called with each token of it."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for piece, scored in self._given():
            if scored is not None and take is not None:
                take(scored)
            if text := utf8.decode(piece.text):
                yield text
        if text := utf8.decode(b"", final=True):
            yield text

    def _given(self) -> Iterator[_Given]:
        """Yield what is given out; each token is in the text by then."""
        scanner = self._scanner
        reason: FinishReason = "length"
        n = 0
        while n < self._max_tokens:
            if self._is_left():
                self._begin(self._max_tokens - n, started=n > 0)
            scored = self._run_next(self._max_tokens - n)
            token = scored.token
            if token in self._ends:
                if scanner is not None:
                    yield from self._commit(scanner.end(token))
                reason = "stop"
                break
            if not self._fits:
                reason = yield from self._end_full(token)
                break
            n += 1
            self._scored.append(scored)
            yield from self._commit([Piece(token, b"")] if scanner is None else scanner.push(token))
            if scanner is not None and scanner.stopped:
                reason = "stop"
                break
        if scanner is not None:
            yield from self._commit(scanner.flush())
        if not self._is_left() and not self._timeline.closed:
            self._timeline.settle()
        self._finished(reason)

    def _end_full(self, token: int) -> Generator[_Given, None, FinishReason]:
        """Yield what a full context still holds back, and return why the text ends.

        The token that was chosen behind it has no place, but it may complete a stop sequence.
        """
        scanner = self._scanner
        if scanner is None:
            return "context"
        pieces = scanner.push(token)
        if scanner.stopped:
            yield from self._commit(pieces)
            return "stop"
        yield from self._commit([*pieces, *scanner.flush()][:-1])
        return "context"

    def _commit(self, pieces: list[Piece]) -> Iterator[_Given]:
        """Yield pieces, each token committed first, until somebody else moves the text."""
        for piece in pieces:
            if self._is_left():
                return  # what was held back is no part of the text that is there now
            if piece.token is None:
                yield _Given(piece, None)
            else:
                self._timeline.commit()
                yield _Given(piece, self._scored.popleft())

    def _is_left(self) -> bool:
        """Whether somebody else has moved the text since this generation did."""
        return self._timeline.epoch != self._epoch

    def _begin(self, budget: int, *, started: bool) -> None:
        """Start at the end of the text, at first and after somebody else moved it."""
        self._check_continuable(started=started)
        if not started:
            self._finished(None)
        self._epoch = self._timeline.choose_by(self._rule)
        self._window = 1
        self._scored.clear()
        if self._scanner is not None:
            self._scanner.reset()
        if self._speculative is not None:
            self._speculative.begin(budget)

    def _check_continuable(self, *, started: bool) -> None:
        """Raise where no token can come; a generation that has started may find the text full."""
        self._timeline.check_open()
        if self._timeline.position == 0:
            raise ValueError("nothing to continue: feed a prompt with forward() first")
        if self._max_tokens and not started:
            self._timeline.check_room(1)

    def _run_next(self, budget: int) -> ScoredToken:
        """Choose the next token and run its step.

        The step of a token that ends the text does not run, nor that of one that has no place in
        the context: `_fits` is False then. The steps that follow are in flight before their choices
        are read, where the host has no say in them.
        """
        timeline = self._timeline
        timeline.check_open()
        scored = self._choose_stepwise() if self._stepwise else timeline.choice()
        token = scored.token
        if token in self._ends:
            return scored
        self._fits = timeline.room > 0
        if not self._fits:
            return scored
        if self._stepwise:
            timeline.take_choice(token, 1)
            return scored
        steps = min(self._window, budget)
        if self._speculative is None:
            timeline.take_choice(token, steps)
        elif not self._speculative.take(token, steps, budget):
            self._window = 1
            return scored
        self._window = min(2 * self._window, self._lookahead)
        return scored

    def _choose_stepwise(self) -> ScoredToken:
        """Let the device choose from what the callbacks leave."""
        timeline = self._timeline
        mask = logits = None
        if self._allowed is not None:
            mask = mask_words(self._allowed([*timeline.history()]), self._n_vocab)
        if self._callback is not None:
            before = timeline.logits()
            logits = before.copy()
            self._callback(logits)
            if (logits.view(np.uint32) == before.view(np.uint32)).all():
                logits = None
        if self._is_left():
            raise RuntimeError(
                "a callable moved the text whose next token it has a say in: use another session "
                "in it"
            )
        return timeline.choice(logits=logits, mask=mask)
