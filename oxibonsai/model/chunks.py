"""How many tokens of a prompt run at once."""

from __future__ import annotations

from oxibonsai.model.arguments import integer_in
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime import statefile

__all__ = ["DEFAULT_CHUNK", "check_chunk", "choose_chunk"]

DEFAULT_CHUNK = 128
_SMALLER = (64, 32)
_SECONDS = 1.0
"""The longest that a chunk should take: what else the device shows or answers waits for it."""


def check_chunk(chunk: int) -> int:
    """Return the size of a chunk; ValueError unless it is in 1..4096."""
    return integer_in("chunk", chunk, 1, statefile.MAX_CHUNK)


def choose_chunk(model: LoadedModel, chunk: int | None, *, multiple_of: int = 1) -> int:
    """Return the size of a chunk that is given, or else one that suits the device.

    Parameters
    ----------
    model : LoadedModel
        Whose prompts are cut.
    chunk : int or None
        As given, 1 to 4096. None: 128; where that would take more than a second, by the rate that
        the device has measured so far, the largest of 64 and 32 that does not, or the smallest.
    multiple_of : int
        What a size that is chosen has to be a multiple of, 1 to 64.

    Returns
    -------
    int
        The size.
    """
    if chunk is not None:
        return check_chunk(chunk)
    rate = model.device.stats.work_per_second
    if rate == 0:
        return DEFAULT_CHUNK
    sizes = [size for size in (DEFAULT_CHUNK, *_SMALLER) if size % multiple_of == 0]
    most = _SECONDS * rate / model.weights.work_per_token
    return next((size for size in sizes if size <= most), sizes[-1])
