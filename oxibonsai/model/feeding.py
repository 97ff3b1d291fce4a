"""The forms in which a text takes tokens: for their logits, choices or probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from oxibonsai.model.arguments import function, one_of, token_ids
from oxibonsai.model.choices import NO_TOKEN
from oxibonsai.model.chunks import ChunkSize, check_chunk
from oxibonsai.model.generation.forms import GenerationForms
from oxibonsai.model.generation.scoring import log_probabilities
from oxibonsai.model.generation.settings import GREEDY
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.decoder import Decoder
from oxibonsai.model.timeline import Timeline

__all__ = ["FeedingForms", "Progress"]

Progress: TypeAlias = Callable[[int, int], object]
"""Is called with the number of tokens that are done and of all."""


class FeedingForms(GenerationForms):
    """What feeds a text, and generates on it; `Session` is one.

    Parameters
    ----------
    timeline : Timeline
        The text.
    decoder : Decoder
        The device's side of it.
    chunks : ChunkSize
        Tokens of a prompt that run in one submission.
    model : LoadedModel
        Whose tokens it has.
    """

    def __init__(
        self, timeline: Timeline, decoder: Decoder, chunks: ChunkSize, model: LoadedModel
    ) -> None:
        super().__init__(timeline, model)
        self._decoder = decoder
        self._chunks = chunks

    def forward(
        self,
        ids: Sequence[int],
        logits: Literal["all", "last"] | None = "all",
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32] | None:
        """Feed tokens and return their logits.

        Parameters
        ----------
        ids : sequence of int
            At least one token.
        logits : {"all", "last"} or None
            Which to return: float32 [len(ids), vocab], float32 [vocab], or None.
        chunk : int, optional
            Tokens that run in one submission; the session's `chunk` where left out. Another size
            gives logits that differ by rounding, and 1 gives the bits of generation.
        progress : callable, optional
            Called after each chunk with the number of tokens fed so far and the number of all. An
            exception from it ends the call.

        Returns
        -------
        float32 array or None
            The logits asked for.

        Raises
        ------
        SessionFullError
            If the tokens do not fit; nothing is fed then.
        ValueError
            For no tokens, a token outside the vocabulary, or a closed session.
        TypeError
            For an argument of another type.

        Notes
        -----
        Any exception during the call, Ctrl-C included, leaves the session as it was before it.
        """
        one_of("logits", logits, ("all", "last"), none=True)
        fed = self._check(ids, progress)
        if logits == "all":
            rows = np.empty((len(fed), self._loaded.config.vocab_size), np.float32)
            self._feed_all(fed, chunk, progress, _into(rows))
            return rows
        with self._feeding(fed, chunk, all_rows=False) as chunks:
            for _, stop in chunks:
                if progress is not None:
                    progress(stop, len(fed))
        return self._decoder.logits() if logits == "last" else None

    def verify(
        self,
        ids: Sequence[int],
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.int64]:
        """Feed tokens and return the most probable token after each.

        If `ids` are a guess of what the model would generate, the guess holds up to the first i
        with ``verify(ids)[i] != ids[i + 1]``; rewind() to there. Only the choices leave the device.

        Parameters
        ----------
        ids : sequence of int
            As of forward().
        chunk : int, optional
            As of forward().
        progress : callable, optional
            As of forward().

        Returns
        -------
        int64 [len(ids)]
            The tokens.

        Raises
        ------
        SessionFullError, ValueError
            As of forward().
        """
        fed = self._check(ids, progress)
        found = np.empty(len(fed), np.int64)
        self._timeline.choose_by(GREEDY)
        with self._feeding(fed, chunk, all_rows=True) as chunks:
            for start, stop in chunks:
                for row, choices in self._decoder.choices(stop - start):
                    tokens = [
                        choice.token % NO_TOKEN for choice in choices
                    ]  # 0 where there is none
                    found[start + row : start + row + len(tokens)] = tokens
                if progress is not None:
                    progress(stop, len(fed))
        return found

    def log_probabilities(
        self,
        ids: Sequence[int],
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """Feed tokens and return the natural logarithm of the probability of each.

        Parameters
        ----------
        ids : sequence of int
            As of forward().
        chunk : int, optional
            As of forward().
        progress : callable, optional
            As of forward().

        Returns
        -------
        float64 [len(ids)]
            Of each token given all before it; NaN for the first token of an empty session. The
            logits of at most 32 tokens exist at one time.

        Raises
        ------
        SessionFullError, ValueError
            As of forward().
        """
        fed = self._check(ids, progress)
        found = np.full(len(fed), np.nan)
        if self._timeline.position:
            self._timeline.settle()
            found[0] = log_probabilities(self._timeline.logits()[None], fed[:1])[0]

        def score(at: int, logits: npt.NDArray[np.float32]) -> None:
            following = fed[at + 1 : at + 1 + len(logits)]
            end = at + 1 + len(following)
            found[at + 1 : end] = log_probabilities(logits[: len(following)], following)

        self._feed_all(fed, chunk, progress, score)
        return found

    def _feed_all(
        self,
        fed: list[int],
        chunk: int | None,
        progress: Progress | None,
        take: Callable[[int, npt.NDArray[np.float32]], None],
    ) -> None:
        """Feed tokens and pass their logits to `take` in pieces."""
        with self._feeding(fed, chunk, all_rows=True) as chunks:
            for start, stop in chunks:
                for row, piece in self._decoder.head(stop - start):
                    take(start + row, piece)
                if progress is not None:
                    progress(stop, len(fed))

    def _feeding(
        self, fed: list[int], chunk: int | None, *, all_rows: bool
    ) -> AbstractContextManager[Iterator[tuple[int, int]]]:
        size = self._chunks.next if chunk is None else check_chunk(chunk)
        return self._timeline.feeding(fed, size, all_rows=all_rows)

    def _check(self, ids: Sequence[int], progress: Progress | None) -> list[int]:
        self._timeline.check_open()
        function("progress", progress)
        fed = token_ids("ids", ids, self._loaded.config.vocab_size)
        if not fed:
            raise ValueError("no tokens to feed: at least one is needed")
        self._timeline.check_room(len(fed))
        return fed


def _into(rows: npt.NDArray[Any]) -> Callable[[int, npt.NDArray[Any]], None]:
    def take(at: int, piece: npt.NDArray[Any]) -> None:
        rows[at : at + len(piece)] = piece

    return take
