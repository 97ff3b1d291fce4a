"""A running text on a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from oxibonsai.model.arguments import (
    flag,
    integer,
    integer_in,
)
from oxibonsai.model.chunks import ChunkSize, check_chunk
from oxibonsai.model.feeding import FeedingForms, Progress
from oxibonsai.model.generation.filedefaults import FileSampling
from oxibonsai.model.generation.scoring import Perplexity
from oxibonsai.model.generation.settings import SamplingOptions
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime import statefile
from oxibonsai.model.runtime.cache import KVCache, KVDtype, check_kv_dtype
from oxibonsai.model.runtime.decoder import Decoder
from oxibonsai.model.runtime.profile import Profile
from oxibonsai.model.runtime.textstates import CHECKPOINT_EVERY, MAX_CHECKPOINTS, Checkpoint
from oxibonsai.model.timeline import Timeline

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Session"]


class SessionModel(LoadedModel, Protocol):
    """A loaded model with what its users call; sessions know theirs by it."""

    @property
    def sampling_defaults(self) -> SamplingOptions:
        """The settings that the file recommends."""

    @property
    def file_sampling(self) -> FileSampling:
        """What they are read from."""

    def session(
        self,
        max_seq: int | None = None,
        kv_dtype: KVDtype = "f16",
        *,
        chunk: int | None = None,
        profile: bool = False,
    ) -> Session:
        """Return a new text on this model."""

    def restore_session(
        self,
        path: str | os.PathLike[str],
        *,
        max_seq: int | None = None,
        chunk: int | None = None,
        profile: bool = False,
    ) -> Session:
        """Return a session from a file that ``Session.save`` wrote."""

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        window: int | None = None,
        kv_dtype: KVDtype = "f16",
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> Perplexity:
        """Return how well the model predicts a text."""

    def close(self) -> None:
        """Release the weights and the file."""


class Session(FeedingForms):
    """One text on a model, made by ``Model.session``.

    A prompt is fed in chunks. Each step of generation replays a sequence that was recorded once:
    position and tokens lie in small device buffers, so that a replay needs nothing from the host.
    One thread uses a session at a time; sessions of one model are independent.

    Parameters
    ----------
    model : Model
        Whose weights are used.
    max_seq : int
        Positions the KV cache can grow to.
    kv_dtype : {"f16", "f32", "q8"}
        Elements of the KV cache.
    chunk : int, optional
        Tokens of a prompt that run in one submission; chosen before each where left out.
    profile : bool
        Whether `profile` keeps what runs.
    deterministic : bool
        Whether each token has the bits that it has alone, however many run at once.
    checkpoint_every, max_checkpoints : int
        As of ``Model.session``.

    Attributes
    ----------
    model : Model
        As given, as are max_seq, kv_dtype, deterministic, checkpoint_every and max_checkpoints.
    """

    def __init__(
        self,
        model: SessionModel,
        max_seq: int,
        kv_dtype: KVDtype,
        chunk: int | None = None,
        profile: bool = False,
        *,
        deterministic: bool = False,
        checkpoint_every: int = CHECKPOINT_EVERY,
        max_checkpoints: int = MAX_CHECKPOINTS,
    ) -> None:
        max_seq = integer("max_seq", max_seq)
        limit = model.config.context_length
        if not 1 <= max_seq <= limit:
            raise ValueError(
                f"max_seq = {max_seq} must lie in 1..{limit}, the model's context_length"
            )
        check_kv_dtype(kv_dtype, model.config)
        profile = flag("profile", profile)
        self.deterministic = flag("deterministic", deterministic)
        chunks = ChunkSize(model, chunk, deterministic=self.deterministic)
        self.checkpoint_every = integer_in("checkpoint_every", checkpoint_every, 1, 1 << 24)
        self.max_checkpoints = integer_in("max_checkpoints", max_checkpoints, 0, 4096)
        decoder = Decoder(
            model,
            max_seq,
            kv_dtype,
            profile,
            deterministic=self.deterministic,
            checkpoint_every=self.checkpoint_every,
            max_checkpoints=self.max_checkpoints,
        )
        super().__init__(Timeline(decoder, max_seq), decoder, chunks, model)
        self.model: SessionModel = model
        self.max_seq = max_seq
        self.kv_dtype = kv_dtype

    @property
    def chunk(self) -> int:
        """Tokens of the next chunk of a prompt: as given, or what would be chosen now."""
        return self._chunks.next()

    @property
    def position(self) -> int:
        """Tokens in the context."""
        return self._timeline.position

    @property
    def tokens(self) -> list[int]:
        """The tokens in the context."""
        return self._timeline.tokens

    @property
    def epoch(self) -> int:
        """A number that changes with the text, but for the tokens that a running generation adds.

        A generation changes it where it starts and where it ends.
        """
        return self._timeline.epoch

    @property
    def profile(self) -> Profile | None:
        """What has run so far, of a session made with ``profile=True``."""
        return self._decoder.profile

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The recurrent states that are kept of earlier positions, which rewind() starts from.

        None of a model without recurrent layers, which needs none.
        """
        states = self._decoder.states
        return [] if states is None else states.checkpoints

    @property
    def device_time(self) -> float | None:
        """Seconds the device took for the last step that was waited for; None before the first."""
        return self._decoder.device_time

    # Moving

    def rewind(self, position: int) -> None:
        """Drop all tokens from `position` on.

        With recurrent layers, the next step may have to run tokens again, from the last of
        `checkpoints` on and cut as they were. The bits are those of a text that was fed and
        generated in the same steps up to `position`.

        Parameters
        ----------
        position : int
            Tokens to keep.

        Raises
        ------
        ValueError
            If it is not in 0..self.position.
        """
        self._timeline.rewind(integer("position", position))

    def copy(self) -> Session:
        """Return an independent session with the same text, settings, keys, values and states.

        Returns
        -------
        Session
            The copy.

        Raises
        ------
        BufferCreationError
            If the device has no memory for a second cache.
        """
        self._timeline.settle()
        twin = Session(
            self.model,
            self.max_seq,
            self.kv_dtype,
            self._chunks.given,
            self.profile is not None,
            deterministic=self.deterministic,
            checkpoint_every=self.checkpoint_every,
            max_checkpoints=self.max_checkpoints,
        )
        try:
            twin._timeline.copy_from(self._timeline)
        except BaseException:
            twin.close()
            raise
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text with its keys, values and state to a file, for ``Model.restore_session``.

        The file is in the format safetensors and replaces an existing one only once it is complete.
        Through a symbolic link the file that it points to is written. What is no regular file, such
        as a pipe or a device, is written into.

        Parameters
        ----------
        path : str or path-like
            Where it goes.

        Raises
        ------
        OSError
            If it cannot be written; an existing file is unchanged then.
        """
        self._timeline.settle()
        statefile.save(
            path,
            self._timeline,
            self._decoder,
            chunk=self._chunks.most,
            chunk_given=self._chunks.given is not None,
        )

    @classmethod
    def restore(
        cls,
        model: SessionModel,
        path: str | os.PathLike[str],
        *,
        max_seq: int | None = None,
        chunk: int | None = None,
        profile: bool = False,
        checkpoint_every: int = CHECKPOINT_EVERY,
        max_checkpoints: int = MAX_CHECKPOINTS,
    ) -> Session:
        """Return a session from a file that save() wrote.

        Parameters
        ----------
        model : Model
            The model whose session was saved.
        path : str or path-like
            The file.
        max_seq, chunk : int, optional
            As of ``Model.session``; those of the saved session where left out. A chunk that it was
            not given is chosen.
        profile : bool
            As of ``Model.session``.
        checkpoint_every, max_checkpoints : int
            As of ``Model.session``; the file has no checkpoints.

        Returns
        -------
        Session
            It continues where the saved one was.

        Raises
        ------
        SessionFileError
            If the file is damaged, of another format, no regular file, or of another model.
        ValueError
            If the text does not fit max_seq.
        """
        name = os.fspath(path)
        profile = flag("profile", profile)
        if max_seq is not None:
            max_seq = integer("max_seq", max_seq)
        if chunk is not None:
            chunk = check_chunk(chunk)
        with statefile.open_file(path) as file:
            state = statefile.read_header(file, name, model)
            if max_seq is None:
                # Another device may hold less than the limit that the session had.
                fits = KVCache.most_positions(model.config, state.kv_dtype, model.device.info)
                max_seq = max(state.n_tokens, min(state.max_seq, fits))
            if state.n_tokens > max_seq:
                raise ValueError(f"max_seq = {max_seq}: the saved text has {state.n_tokens} tokens")
            chunk = state.chunk if chunk is None else chunk
            session = cls(
                model,
                max_seq,
                state.kv_dtype,
                chunk,
                profile,
                deterministic=state.deterministic,
                checkpoint_every=checkpoint_every,
                max_checkpoints=max_checkpoints,
            )
            try:
                statefile.load(file, name, state, session._timeline, session._decoder)
            except BaseException:
                session.close()
                raise
            return session

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the model."""
        return self._decoder.closed

    def close(self) -> None:
        """Release the KV cache and the buffers; idempotent."""
        self._decoder.close()

    def __enter__(self) -> Session:
        self._timeline.check_open()
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
