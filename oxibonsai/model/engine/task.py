"""A request as the engine's thread sees it: from choices to what is handed out."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oxibonsai.model.choices import ScoredToken
from oxibonsai.model.engine.request import FinishReason, Outbox
from oxibonsai.model.engine.scheduler import Sequence as TokenSequence
from oxibonsai.model.generation.generation import LogitsCallback
from oxibonsai.model.generation.stopping import Piece, StopScanner
from oxibonsai.model.runtime.batchshape import BatchSettings, Saved

__all__ = ["NO_TOKEN", "Task"]

NO_TOKEN = 0xFFFFFFFF
"""The choice where none can be drawn."""


@dataclass(eq=False)
class Task:
    """A request on its way.

    Attributes
    ----------
    sequence : scheduler.Sequence
        Its tokens and pages.
    max_tokens : int
        The most to generate.
    settings : BatchSettings
        By which tokens are chosen.
    ends : frozenset of int
        Tokens that end it.
    scanner : StopScanner
        What holds tokens back.
    outbox : Outbox
        Where text goes.
    make_mask : callable, optional
        Returns the mask of the next token, uint32 words, for the tokens so far.
    mask : uint32 array or None
        The mask of the next token.
    logits_callback : callable, optional
        Changes the logits of each choice.
    scores : bool
        Whether log probabilities are handed out.
    n_best : int
        How many beside each choice's own.
    """

    sequence: TokenSequence
    max_tokens: int
    settings: BatchSettings
    ends: frozenset[int]
    scanner: StopScanner
    outbox: Outbox
    make_mask: Callable[[Sequence[int]], npt.NDArray[np.uint32]] | None = None
    mask: npt.NDArray[np.uint32] | None = None
    logits_callback: LogitsCallback | None = None
    scores: bool = False
    n_best: int = 0
    slot: int = -1
    saved: Saved | None = None  # while it is aside
    queued: bool = True  # counts as waiting
    _held: deque[ScoredToken] = field(default_factory=deque)
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    @property
    def stepwise(self) -> bool:
        """Whether the host has a say before each choice, so that one step is in flight."""
        return self.make_mask is not None or self.logits_callback is not None

    @property
    def n_generated(self) -> int:
        """Tokens chosen so far."""
        return len(self.sequence.tokens) - self.sequence.n_prompt

    def next_mask(self) -> None:
        """Ask for the mask of the next token; what the callable raises goes on."""
        if self.make_mask is not None:
            self.mask = self.make_mask(list(self.sequence.tokens))

    def take(
        self, token: int, log_probability: float, best: Sequence[tuple[int, float]]
    ) -> FinishReason | None:
        """Take a choice, hand out what is free, and return why the text ends, if it does.

        Raises
        ------
        ValueError
            Where no token could be drawn.
        """
        if token == NO_TOKEN:
            raise ValueError("no token can be drawn: every logit is NaN, -inf or masked")
        self.outbox.first_token()
        self.sequence.tokens.append(token)
        if token in self.ends:
            self._hand_out(self.scanner.end(token), final=True)
            return "stop"
        if self.scores:
            self._held.append(ScoredToken(token, log_probability, tuple(best[: self.n_best])))
        pieces = self.scanner.push(token)
        if self.scanner.stopped:
            self._hand_out(pieces, final=True)
            return "stop"
        if self.n_generated == self.max_tokens:
            self._hand_out([*pieces, *self.scanner.flush()], final=True)
            return "length"
        if pieces:
            self._hand_out(pieces, final=False)
        return None

    def flush(self) -> None:
        """Hand out what is held back, where the text ends without being told to."""
        self._hand_out(self.scanner.flush(), final=True)

    def _hand_out(self, pieces: list[Piece], *, final: bool) -> None:
        text = self._utf8.decode(b"".join(piece.text for piece in pieces), final)
        tokens = [piece.token for piece in pieces if piece.token is not None]
        scored = [self._held.popleft() for _ in tokens] if self.scores else []
        self.outbox.put(text, tokens, scored)
