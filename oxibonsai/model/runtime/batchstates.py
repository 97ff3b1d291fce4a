"""The recurrent states of many sequences on the device, and those that are kept for others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, BufferCreationError
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.recurrent import RecurrentStates

__all__ = ["BatchStates"]


class BatchStates:
    """A state for each slot, and behind them the places of those that are kept.

    Parameters
    ----------
    model : LoadedModel
        Whose states they are.
    n_slots : int
        Sequences at a time.
    n_checkpoints : int
        States that are kept.
    """

    def __init__(self, model: LoadedModel, n_slots: int, n_checkpoints: int) -> None:
        self._model = model
        self._n_slots = n_slots
        nbytes = self.nbytes_of(model, n_slots, n_checkpoints)
        limit = model.device.info.max_buffer_length
        if nbytes > limit:
            raise BufferCreationError(
                f"the recurrent states of {n_slots} texts and {n_checkpoints} that are kept take "
                f"{nbytes} bytes, the device's buffers hold {limit}: make the engine with fewer "
                "max_sequences or max_checkpoints"
            )
        self._states = RecurrentStates(model.device, model.config, n_slots + n_checkpoints)

    @staticmethod
    def nbytes_of(model: LoadedModel, n_slots: int, n_checkpoints: int) -> int:
        """Return the bytes of these states; 0 where the model has none."""
        if model.config.recurrent is None:
            return 0
        return RecurrentStates.nbytes_of(model.config, n_slots + n_checkpoints)

    @property
    def buffer(self) -> Buffer:
        """All of them, that of slot 0 first."""
        return self._states.buffer

    def read(self, slot: int) -> npt.NDArray[np.float32]:
        """Return the state of a slot."""
        return self._states.read(slot)

    def write(self, slot: int, state: npt.NDArray[np.float32]) -> None:
        """Set the state of a slot."""
        self._states.write(slot, state)

    def copy(self, restored: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]) -> None:
        """Copy places to slots, then slots to places, on the device, and wait for it."""
        pairs = [(self._n_slots + place, slot) for place, slot in restored]
        pairs += [(slot, self._n_slots + place) for slot, place in kept]
        if not pairs:
            return
        buffer, size = self._states.buffer, self._states.slot_size
        with self._model.graph.commands() as commands:
            for source, target in pairs:
                commands.copy((buffer, 4 * size * source), (buffer, 4 * size * target), size)
            commands.replay()

    def close(self) -> None:
        """Release the memory."""
        self._states.close()
