"""How many tokens of a prompt run at once."""

from __future__ import annotations

from oxibonsai.model.arguments import integer_in
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime import statefile

__all__ = ["DEFAULT_CHUNK", "ChunkSize", "check_chunk"]

DEFAULT_CHUNK = 128
_WIDE_CHUNK = 512
_SMALLER = (DEFAULT_CHUNK, 64, 32)
_SECONDS = 1.0
"""The longest that a chunk should take: what else the device shows or answers waits for it."""


def check_chunk(chunk: int) -> int:
    """Return the size of a chunk; ValueError unless it is in 1..4096."""
    return integer_in("chunk", chunk, 1, statefile.MAX_CHUNK)


class ChunkSize:
    """The size of the chunks of prompts: as given, or one that suits the device, for each chunk.

    A size that is chosen is 128, or 512 on a GPU with memory of its own, which 128 tokens do not
    fill; where that would take more than a second, by the rate that the device has measured so far,
    the largest of 128, 64 and 32 that does not, or the smallest.

    Parameters
    ----------
    model : LoadedModel
        Whose prompts are cut.
    given : int or None
        1 to 4096; None: to be chosen.
    deterministic : bool
        Whether bits must not depend on a measurement: the size that is chosen is always 128.

    Attributes
    ----------
    given : int or None
        As given.
    most : int
        The most tokens that a chunk can have.
    """

    def __init__(
        self, model: LoadedModel, given: int | None, *, deterministic: bool = False
    ) -> None:
        self.given = None if given is None else check_chunk(given)
        self.most = self.given or (
            DEFAULT_CHUNK if deterministic or model.device.info.unified_memory else _WIDE_CHUNK
        )
        self._model = model
        self._deterministic = deterministic

    def next(self) -> int:
        """Return the size of the next chunk."""
        if self.given is not None or self._deterministic:
            return self.most
        rate = self._model.device.stats.work_per_second
        if rate == 0:
            return self.most
        fits = _SECONDS * rate / self._model.weights.work_per_token
        return next((size for size in (self.most, *_SMALLER) if size <= fits), _SMALLER[-1])
