"""The recurrent states of many sequences on the device, and those that are kept for others."""

from __future__ import annotations

from collections.abc import Sequence

from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.recurrent import RecurrentStates

__all__ = ["BatchStates"]


class BatchStates(RecurrentStates):
    """A state for each slot, changed in place, and behind them the places of those that are kept.

    Parameters
    ----------
    model : LoadedModel
        A model with recurrent layers.
    n_texts : int
        Slots: sequences at a time.
    n_kept : int
        Places of states that are kept.
    """

    def __init__(self, model: LoadedModel, n_texts: int, n_kept: int) -> None:
        slots = n_texts + n_kept
        super().__init__(model.device, model.config, slots, remedy="run fewer texts at a time")
        self._graph = model.graph
        self._n_texts = n_texts

    def keep(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy slots to places on the device, and wait for it: (slot, place)."""
        self._copy([(slot, self._n_texts + place) for slot, place in pairs])

    def restore(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy places to slots on the device, and wait for it: (place, slot)."""
        self._copy([(self._n_texts + place, slot) for place, slot in pairs])

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        size = self.slot_size
        with self._graph.commands() as commands:
            for pair in pairs:
                source, target = ((self.buffer, 4 * size * at) for at in pair)
                commands.copy(source, target, size)
            commands.replay()
