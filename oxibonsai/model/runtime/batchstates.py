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
        super().__init__(model.device, model.config, n_texts + n_kept)
        self._graph = model.graph
        self._n_texts = n_texts

    def copy(self, restored: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]) -> None:
        """Copy places to slots, then slots to places, on the device, and wait for it."""
        pairs = [(self._n_texts + place, slot) for place, slot in restored]
        pairs += [(slot, self._n_texts + place) for slot, place in kept]
        if not pairs:
            return
        size = self.slot_size
        with self._graph.commands() as commands:
            for source, target in pairs:
                commands.copy(
                    (self.buffer, 4 * size * source), (self.buffer, 4 * size * target), size
                )
            commands.replay()
