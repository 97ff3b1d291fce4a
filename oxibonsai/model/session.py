"""A running text on a model."""

from __future__ import annotations

import operator
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from oxibonsai.model import statefile
from oxibonsai.model.asynchronous import in_thread
from oxibonsai.model.cache import KVDtype
from oxibonsai.model.decoder import Decoder
from oxibonsai.model.generation import (
    Generation,
    GenerationOptions,
    LogitsCallback,
    SessionFullError,
    full_error,
)
from oxibonsai.model.scoring import log_probabilities
from oxibonsai.model.stopping import Stop

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from oxibonsai.model.model import Model
    from oxibonsai.model.profile import Profile

__all__ = ["DEFAULT_CHUNK", "Session", "SessionFullError"]

DEFAULT_CHUNK = 128
Progress = Callable[[int, int], object]


class Session:
    """One text on a model, made by ``Model.session``.

    Tokens of a prompt are fed in batches; each step of generation is a sequence that was recorded
    once and is replayed. Position and tokens lie in small device buffers, so that a replay needs
    nothing from the host. One thread uses a session at a time; sessions of one model are
    independent.

    Attributes
    ----------
    model : Model
        Whose weights are used.
    max_seq : int
        Positions the KV cache can grow to.
    kv_dtype : str
        ``"f16"`` or ``"f32"``.
    chunk : int
        Tokens of a prompt that run as one batch.
    """

    def __init__(
        self,
        model: Model,
        max_seq: int,
        kv_dtype: KVDtype,
        chunk: int = DEFAULT_CHUNK,
        profile: bool = False,
    ) -> None:
        self.model = model
        self.max_seq = max_seq
        self.kv_dtype = kv_dtype
        self.chunk = chunk
        self._profiled = profile
        self._decoder = Decoder(model, max_seq, kv_dtype, profile)
        self._closed = False
        self._tokens: list[int] = []
        # Whether the device's choice of the next token lies at the position: it survives steps that
        # run ahead, unlike the logits.
        self._chosen = False
        # Counts what moved the text: a generation that was left sees that it did.
        self._epoch = 0

    @property
    def position(self) -> int:
        """Tokens in the context."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The tokens in the context."""
        return list(self._tokens)

    @property
    def profile(self) -> Profile | None:
        """What has run so far, of a session made with ``profile=True``."""
        return self._decoder.profile

    @property
    def device_time(self) -> float | None:
        """Seconds the device took for the last step that was waited for; None before the first."""
        return self._decoder.device_time

    # Feeding

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
            Tokens that run as one batch; the session's own where left out. Another size gives
            logits that differ by rounding, and 1 gives the bits of generation.
        progress : callable, optional
            Called with the tokens fed so far and their number, after each batch. What it raises
            ends the call.

        Raises
        ------
        SessionFullError
            Where the tokens do not fit; nothing is fed then.
        ValueError
            For a token outside the vocabulary.

        Notes
        -----
        Any exception in between, Ctrl-C included, takes the whole call back.
        """
        if logits not in ("all", "last", None):
            raise ValueError(f"logits = {logits!r}: 'all', 'last' or None")
        fed = self._check(ids)
        if logits == "all":
            rows = np.empty((len(fed), self.model.config.vocab_size), np.float32)
            self._feed_all(fed, chunk, progress, _into(rows))
            return rows
        with self._feeding(fed, chunk) as chunks:
            for start, stop in chunks:
                self._decoder.feed(fed[start:stop], 1 if stop == len(fed) else 0)
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
        """Feed tokens and return the most probable token after each, int64 [len(ids)].

        Where ids are a guess of what the model would generate, the guess holds up to the first
        place in which ``verify(ids)[i] != ids[i + 1]``; rewind() to it. Only the choices leave the
        device. The arguments are those of forward().
        """
        fed = self._check(ids)
        found = np.empty(len(fed), np.int64)
        self._feed_all(fed, chunk, progress, _into(found), argmax=True)
        return found

    def log_probabilities(
        self,
        ids: Sequence[int],
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float64]:
        """Feed tokens and return the natural logarithm of the probability of each.

        float64 [len(ids)], given all tokens before; of the first token of an empty session, which
        nothing comes before, NaN. Logits of 32 tokens at most exist at one time. The arguments are
        those of forward().
        """
        fed = self._check(ids)
        found = np.full(len(fed), np.nan)
        if self._tokens:
            self._settle()
            if self._decoder.logits_end != self.position:
                self._decoder.rerun(self.position)
            found[0] = log_probabilities(self._decoder.logits()[None], fed[:1])[0]

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
        take: Callable[[int, npt.NDArray[Any]], None],
        *,
        argmax: bool = False,
    ) -> None:
        """Feed tokens and give `take` all their logits, or choices, a piece at a time."""
        with self._feeding(fed, chunk) as chunks:
            for start, stop in chunks:
                self._decoder.feed(fed[start:stop], stop - start)
                for row, piece in self._decoder.head(stop - start, argmax=argmax):
                    take(start + row, piece)
                if progress is not None:
                    progress(stop, len(fed))

    @contextmanager
    def _feeding(self, fed: list[int], chunk: int | None) -> Iterator[list[tuple[int, int]]]:
        """Give the bounds of the batches, and take all of them back on any exception."""
        size = self.chunk if chunk is None else check_chunk(chunk)
        self._settle()
        before = self.position
        self._decoder.reserve(before + len(fed))
        self._chosen = False
        try:
            yield [(i, min(i + size, len(fed))) for i in range(0, len(fed), size)]
        except BaseException:
            self._decoder.seek(before)
            raise
        self._tokens += fed
        self._chosen = True

    def _check(self, ids: Sequence[int]) -> list[int]:
        self._check_open()
        fed = [operator.index(i) for i in ids]
        vocab = self.model.config.vocab_size
        if not fed:
            raise ValueError("no tokens to feed: at least one is needed")
        for i, token in enumerate(fed):
            if not 0 <= token < vocab:
                raise ValueError(
                    f"token {token} at {i} is outside the vocabulary: ids are 0 to {vocab - 1}"
                )
        if self.position + len(fed) > self.max_seq:
            raise full_error(self, len(fed))
        return fed

    # Generating

    def generate(
        self,
        max_tokens: int = 64,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
        stop: Stop = (),
        logits_callback: LogitsCallback | None = None,
        lookahead: int | None = None,
    ) -> Iterator[int]:
        """Yield tokens that continue what was fed; each is in the context when it is yielded.

        The iterator may be left at any time: the context then ends with the last token that it
        yielded.

        Parameters
        ----------
        max_tokens : int
            The most to yield.
        temperature, top_k, top_p, min_p, repetition_penalty, seed
            See Sampler; temperature 0 takes the most probable token.
        ignore_eos : bool
            Go on past the end of the text. By default generation stops before a token that ends it
            (EOS, EOT).
        stop : str or sequence of str and lists of int
            Texts and runs of tokens that end the generation. Tokens that may become one are held
            back, and what belongs to one is neither yielded nor in the context. A token in whose
            middle a text begins belongs to it; ``stream`` gives its beginning.
        logits_callback : callable, optional
            Called with the float32 [vocab] logits of each token before it is chosen. It may change
            them in place: the choice is made from what it leaves.
        lookahead : int, optional
            Steps of greedy generation that run before their tokens are read, 1 to 16, so that the
            device never waits for the host. Left out, 16, and 1 on a device that runs on the
            host's own threads and gains nothing.

        Raises
        ------
        SessionFullError
            Where the next token does not fit; what was generated stays.
        ValueError
            Where nothing was fed, or an argument is out of its range.
        """
        return Generation(
            self,
            max_tokens,
            temperature,
            ignore_eos=ignore_eos,
            stop=stop,
            logits_callback=logits_callback,
            lookahead=lookahead,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ).tokens()

    def stream(
        self,
        max_tokens: int = 64,
        temperature: float = 0.0,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """Yield the text of generate() in pieces of whole characters.

        No piece holds a stop text or a part of one. The arguments are those of generate().
        """
        return Generation(self, max_tokens, temperature, text=True, **options).text()

    def agenerate(
        self,
        max_tokens: int = 64,
        temperature: float = 0.0,
        **options: Unpack[GenerationOptions],
    ) -> AsyncIterator[int]:
        """Yield the tokens of generate() to ``async for``.

        A thread of its own waits for the device. A task that is cancelled ends once the step that
        runs has finished, and the session stays usable. The arguments are those of generate().
        """
        return in_thread(self.generate(max_tokens, temperature, **options))

    # What a Generation calls

    def _settle(self) -> int:
        """Drop what ran ahead of the context; return the new epoch."""
        self._check_open()
        self._decoder.seek(self.position)
        self._epoch += 1
        return self._epoch

    def _commit(self, token: int) -> None:
        """Take a token whose step has run into the context."""
        self._tokens.append(token)
        if self._decoder.logits_end == self.position:
            self._chosen = True

    # Moving

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on; ValueError unless it lies in 0..self.position."""
        self._check_open()
        position = operator.index(position)
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: the session is at {self.position}")
        if position < self.position:
            self._decoder.finish()
            del self._tokens[position:]
            self._chosen = False
            self._settle()

    def copy(self) -> Session:
        """Return a session of its own that holds the same text and goes on in the same way."""
        self._settle()
        twin = Session(self.model, self.max_seq, self.kv_dtype, self.chunk, self._profiled)
        try:
            twin._decoder.copy_from(self._decoder, self.position)
        except BaseException:
            twin.close()
            raise
        twin._tokens = self.tokens
        twin._chosen = self._chosen
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text with its keys and values to a file, for ``Model.restore_session``.

        The file is in the format safetensors. It takes the place of an older one when it is
        complete, and never before.
        """
        self._settle()
        statefile.save(self, path)

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the model."""
        return self._closed or self.model.closed

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the session is closed: make a new one with model.session()")

    def close(self) -> None:
        """Release the KV cache and the buffers; idempotent."""
        if not self._closed:
            self._closed = True
            self._decoder.close()

    def __enter__(self) -> Session:
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
            return "<Session closed>"
        return f"<Session at {self.position} of {self.max_seq}, K/V in {self.kv_dtype}>"


def _into(rows: npt.NDArray[Any]) -> Callable[[int, npt.NDArray[Any]], None]:
    def take(at: int, piece: npt.NDArray[Any]) -> None:
        rows[at : at + len(piece)] = piece

    return take


def check_chunk(chunk: int) -> int:
    """Return a number of tokens for a batch; ValueError unless it lies in 1..4096."""
    chunk = operator.index(chunk)
    if not 1 <= chunk <= 4096:
        raise ValueError(f"chunk = {chunk} must lie in 1..4096")
    return chunk
