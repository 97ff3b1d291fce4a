"""Steps of many sequences, as those who plan them see the device's side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from oxibonsai.model.protocols import LoadedModel

__all__ = ["BatchDevice", "BatchSettings", "BatchStep", "Choices", "Saved"]


class BatchStep(NamedTuple):
    """What a recording does.

    Attributes
    ----------
    n_rows : int
        Rows of running sequences, idle ones included.
    chunk : int
        Rows of a prompt.
    ends : bool
        Whether the prompt ends with them.
    max_length : int
        Positions that a replay may meet.
    chooses : bool
        Whether the next tokens are chosen in it, or in a recording of their own.
    n_best : int
        Tokens that are scored beside each choice.
    scores : bool
        Whether choices have log probabilities.
    """

    n_rows: int
    chunk: int
    ends: bool
    max_length: int
    chooses: bool
    n_best: int
    scores: bool

    @property
    def n_choices(self) -> int:
        """Rows that go through the head."""
        return self.n_rows + self.ends

    @property
    def first(self) -> int:
        """The first of them, counted from the chunk's last row."""
        return 0 if self.ends else 1

    @property
    def first_row(self) -> int:
        """The same of the step's rows."""
        return self.chunk - 1 + self.first


@dataclass(frozen=True)
class BatchSettings:
    """What a sequence's choices depend on.

    Attributes
    ----------
    packed : numpy.void
        struct oxb_sampling with bias and mask yet to be placed.
    biases : bytes
        struct oxb_bias [n].
    """

    packed: npt.NDArray[Any] | np.void
    biases: bytes = b""


@dataclass(frozen=True)
class Choices:
    """What a finished step chose, for the chunk's last row and then for each running sequence.

    Attributes
    ----------
    tokens : list of int
        The tokens; 0xffffffff where none can be drawn.
    log_probabilities : list of float
        Of the tokens, where the step made them.
    best : list of list of (int, float)
        The most probable tokens, where the step scored them.
    """

    tokens: list[int]
    log_probabilities: list[float]
    best: list[list[tuple[int, float]]] = field(default_factory=list)


class Saved(NamedTuple):
    """What a sequence has on the device, in the host's memory.

    Attributes
    ----------
    pages : uint8 array
        The keys and values of its pages.
    state : float32 array or None
        Its recurrent state, where the model has any.
    """

    pages: npt.NDArray[np.uint8]
    state: npt.NDArray[np.float32] | None


class BatchDevice(Protocol):
    """The device's side, in *slots*: of each running sequence the tokens, page table, mask, state.

    What is written, but for the logits, is written while nothing is in flight.
    """

    @property
    def model(self) -> LoadedModel:
        """Whose weights are used."""

    @property
    def n_slots(self) -> int:
        """Sequences at a time."""

    def write_text(self, slot: int, tokens: Sequence[int]) -> None:
        """Set the tokens of a slot's text."""

    def write_tables(self, tables: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Set the pages of slots."""

    def table_length(self, slot: int) -> int:
        """Return how many pages a slot's table has."""

    def write_states(
        self, chunk: tuple[int, int, int] | None, rows: Sequence[tuple[int, int]]
    ) -> None:
        """Set where the next step's rows are.

        Parameters
        ----------
        chunk : (int, int, int) or None
            Slot, first position and number of tokens of a prompt's chunk.
        rows : sequence of (int, int)
            Slot and position of each running sequence.
        """

    def write_settings(
        self,
        chunk: tuple[int, BatchSettings, bool] | None,
        rows: Sequence[tuple[int, BatchSettings, bool]],
    ) -> None:
        """Set by what the rows choose.

        Parameters
        ----------
        chunk : (int, BatchSettings, bool) or None
            Slot, settings, and whether the slot's mask holds, of the prompt that ends.
        rows : sequence of (int, BatchSettings, bool)
            The same of each running sequence.
        """

    def reserve_biases(self, n_biases: int) -> bool:
        """Make room for n_biases of each slot; True where all have to be written again."""

    def write_biases(self, slot: int, biases: bytes) -> None:
        """Set a slot's logit biases, for which reserve_biases() made room."""

    def write_mask(self, slot: int, mask: npt.NDArray[np.uint32]) -> None:
        """Set a slot's mask of allowed tokens."""

    def read_pages(self, pages: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return the keys and values of pages, one after the other."""

    def write_pages(self, pages: Sequence[int], data: npt.NDArray[np.uint8]) -> None:
        """Set the keys and values of pages to what read_pages() returned."""

    def read_state(self, slot: int) -> npt.NDArray[np.float32] | None:
        """Return the recurrent state of a slot, or None where the model has none."""

    def write_state(self, slot: int, state: npt.NDArray[np.float32] | None) -> None:
        """Set the recurrent state of a slot to what read_state() returned."""

    def keep_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the recurrent states of slots to places of their own: (slot, place)."""

    def restore_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy recurrent states that are kept to slots: (place, slot)."""

    def step(
        self,
        chunk: tuple[int, int] | None,
        positions: Sequence[int],
        *,
        ends: bool = False,
        chooses: bool = True,
        n_best: int = 0,
        scores: bool = False,
    ) -> BatchStep:
        """Return the recording that a step needs.

        Parameters
        ----------
        chunk : (int, int) or None
            First position and number of tokens of a prompt's chunk.
        positions : sequence of int
            Of the running sequences.
        ends, chooses, n_best, scores
            As of BatchStep.
        """

    def submit(self, step: BatchStep, positions: Sequence[int]) -> None:
        """Start a step, and do not wait for it.

        Parameters
        ----------
        step : BatchStep
            What runs.
        positions : sequence of int
            Places of the tokens that it chooses: the prompt's, where it ends, then the others'.
        """

    def finish(self) -> Choices:
        """Wait for the oldest step in flight, one that chooses, and return its choices."""

    def finish_logits(self) -> None:
        """Wait for the only step in flight, one that does not choose."""

    def choose(self, step: BatchStep, positions: Sequence[int]) -> Choices:
        """Make the choices of a finished step that left them out."""

    def read_logits(self, row: int) -> npt.NDArray[np.float32]:
        """Return the logits of a row of the last step: 0 is a prompt's, 1 the first running one."""

    def write_logits(self, row: int, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of a row before choose()."""

    def drain(self) -> None:
        """Wait for all steps, after one failed: the first error is the one to report."""

    def close(self) -> None:
        """Wait for what is in flight and release everything; idempotent."""
