"""How much of the device's memory the texts of an engine share."""

from __future__ import annotations

from oxibonsai.model.arguments import integer_in
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.batch import page_bytes
from oxibonsai.model.runtime.batchstates import BatchStates
from oxibonsai.model.runtime.cache import KVDtype
from oxibonsai.model.runtime.checkpointpool import CheckpointPool
from oxibonsai.model.runtime.pages import PAGE_SIZE, pages_of
from oxibonsai.model.runtime.textstates import CHECKPOINT_EVERY, MAX_CHECKPOINTS

__all__ = ["checkpoints_for", "n_pages_for"]


def n_pages_for(
    model: LoadedModel, kv_dtype: KVDtype, max_sequences: int, max_seq: int, given: int | None
) -> int:
    """Return how many pages there are: as given, or what all texts take, or what fits.

    Raises
    ------
    ValueError
        For more than a buffer of the device holds.
    """
    fits = max(1, model.device.info.max_buffer_length // page_bytes(model, kv_dtype))
    if given is None:
        given = min(max_sequences * pages_of(max_seq), fits)
    return integer_in("n_pages", given, 1, fits, "which fill a buffer of the device")


def checkpoints_for(
    model: LoadedModel,
    max_sequences: int,
    max_seq: int,
    most_of_chunk: int,
    every: int | None,
    most: int | None,
    *,
    deterministic: bool,
) -> CheckpointPool | None:
    """Return the places of states that an engine keeps; None of a model without such states.

    Parameters
    ----------
    model : LoadedModel
        Whose states they are.
    max_sequences, max_seq : int
        Texts at a time, and the most tokens of one.
    most_of_chunk : int
        The most tokens of a prompt in one step.
    every, most : int or None
        The distance in tokens, and the number, as given.
    deterministic : bool
        Whether chunks have to end where those of a session do, whatever is shared.

    Raises
    ------
    ValueError
        For a value out of its range.
    """
    unit = most_of_chunk if deterministic and most_of_chunk > 1 else PAGE_SIZE
    if every is None:
        wanted = max(CHECKPOINT_EVERY, most_of_chunk)  # chunks end there: none is cut for it
        every = max(unit, min(max_seq // 4, wanted) // unit * unit)
    every = integer_in("checkpoint_every", every, unit, 2**31)
    if every % unit:
        why = "the size of a page" if unit == PAGE_SIZE else "the chunk of a deterministic engine"
        raise ValueError(f"checkpoint_every = {every} must be a multiple of {unit}, {why}")
    each = BatchStates.nbytes_of(model.config, 1)
    fits = max(0, model.device.info.max_buffer_length // max(each, 1) - max_sequences)
    if most is None:
        most = min(max(MAX_CHECKPOINTS, max_sequences), max_sequences * (max_seq // every), fits)
    limit = f"which fill a buffer of the device beside the states of {max_sequences} texts"
    most = integer_in("max_checkpoints", most, 0, fits, limit)
    return CheckpointPool(most, every) if each else None
