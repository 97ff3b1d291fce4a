"""A device's side of an engine without a device: it knows which token lies in which page.

Steps run when they are waited for, in order, so that what the host writes too early shows. The next
token is a hash of all tokens that the pages hold, found through the table of the text. A recurrent
state is all tokens that it met, and has to hold the same.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from oxibonsai.model.runtime.batchshape import BatchSettings, BatchStep, Choices
from oxibonsai.model.runtime.pages import PAGE_SIZE

SETTINGS = BatchSettings(np.zeros((), "V64"))


def next_token(tokens: Sequence[int], vocab: int) -> int:
    raw = np.array(tokens, "<u4").tobytes()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=4).digest(), "little") % vocab


def continuation(prompt: Sequence[int], n: int, vocab: int) -> list[int]:
    """Return what a text alone would give."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(tokens, vocab))
    return tokens[len(prompt) :]


class OpenModel:
    closed = False


class PagedTexts:
    """What BatchRunner is to a worker."""

    def __init__(
        self, n_slots: int, n_pages: int, vocab: int = 50, n_checkpoints: int | None = None
    ) -> None:
        self.model = OpenModel()
        self.n_slots = n_slots
        self.vocab = vocab
        self.closed = False
        self.fail_at = -1  # the step that fails
        self.n_steps = 0
        self.most_in_flight = 0
        self.n_swapped = 0  # pages that were read
        self.n_run = 0  # tokens of chunks
        # Whatever a slot holds, a text begins with nothing.
        self._states: list[tuple[int, ...]] = [(-1,)] * (n_slots + (n_checkpoints or 0))
        self._recurrent = n_checkpoints is not None
        self._memory: list[list[tuple[int, int] | None]] = [
            [None] * PAGE_SIZE for _ in range(n_pages)
        ]
        self._texts: list[dict[int, int]] = [{} for _ in range(n_slots)]
        self._tables: list[list[int]] = [[] for _ in range(n_slots)]
        self._chunk: list[int] | None = None
        self._last: list[int] | None = None
        self._rows: list[list[int]] = []
        self._flying: deque[tuple[BatchStep, list[int]]] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def _still(self) -> None:
        assert not self._flying, "the host writes what a step in flight may read"

    def write_text(self, slot: int, tokens: Sequence[int]) -> None:
        self._still()
        self._texts[slot] = dict(enumerate(tokens))

    def write_tables(self, tables: Sequence[tuple[int, Sequence[int]]]) -> None:
        self._still()
        for slot, pages in tables:
            self._tables[slot] = list(pages)

    def table_length(self, slot: int) -> int:
        return len(self._tables[slot])

    def write_states(
        self, chunk: tuple[int, int, int] | None, rows: Sequence[tuple[int, int]]
    ) -> None:
        self._still()
        self._chunk = None if chunk is None else [chunk[0], chunk[1]]
        self._last = None if chunk is None else [chunk[0], chunk[1] + chunk[2] - 1]
        self._rows = [list(row) for row in rows]

    def write_settings(self, chunk: Any, rows: Any) -> None:
        self._still()

    def reserve_biases(self, n_biases: int) -> bool:
        return False

    def read_pages(self, pages: Sequence[int]) -> list[list[tuple[int, int] | None]]:
        self._still()
        self.n_swapped += len(pages)
        return [list(self._memory[page]) for page in pages]

    def write_pages(self, pages: Sequence[int], data: Any) -> None:
        self._still()
        for page, content in zip(pages, data, strict=True):
            self._memory[page] = list(content)

    def read_state(self, slot: int) -> tuple[int, ...] | None:
        self._still()
        return self._states[slot] if self._recurrent else None

    def write_state(self, slot: int, state: tuple[int, ...] | None) -> None:
        self._still()
        assert (state is not None) == self._recurrent
        if state is not None:
            self._states[slot] = state

    def keep_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._still()
        assert self._recurrent or not pairs
        for slot, place in pairs:
            self._states[self.n_slots + place] = self._states[slot]

    def restore_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._still()
        assert self._recurrent or not pairs
        for place, slot in pairs:
            self._states[slot] = self._states[self.n_slots + place]

    def step(
        self, chunk: tuple[int, int] | None, positions: Sequence[int], *, ends: bool = False,
        chooses: bool = True, n_best: int = 0, scores: bool = False,
    ) -> BatchStep:  # fmt: skip
        return BatchStep(len(positions), chunk[1] if chunk else 0, ends, 0, chooses, 0, scores)

    def submit(self, step: BatchStep, positions: Sequence[int]) -> None:
        self._flying.append((step, list(positions)))
        self.most_in_flight = max(self.most_in_flight, len(self._flying))

    def finish(self) -> Choices:
        step, positions = self._flying.popleft()
        self.n_steps += 1
        if self.n_steps - 1 == self.fail_at:
            raise RuntimeError("the device has failed")
        if step.chunk:
            assert self._chunk is not None
            self.n_run += step.chunk
            for _ in range(step.chunk):
                self._run_token(self._chunk)
        for row in self._rows:
            self._run_token(row)
        choosing = [row[0] for row in self._rows]
        at = [row[1] for row in self._rows]
        if step.ends:
            assert self._last is not None
            choosing.insert(0, self._last[0])
            at.insert(0, self._last[1] + 1)
        assert at == positions
        return Choices(
            [self._choose(s, n) for s, n in zip(choosing, at, strict=True)], [0.0] * len(at)
        )

    def _run_token(self, state: list[int]) -> None:
        slot, position = state
        table = self._tables[slot]
        if position // PAGE_SIZE < len(table):
            page = self._memory[table[position // PAGE_SIZE]]
            page[position % PAGE_SIZE] = (position, self._texts[slot][position])
        if self._recurrent:
            before = self._states[slot] if position else ()
            self._states[slot] = (*before, self._texts[slot].get(position, -1))
        state[1] += 1

    def _choose(self, slot: int, n: int) -> int:
        tokens = []
        for position in range(n):
            found = self._memory[self._tables[slot][position // PAGE_SIZE]][position % PAGE_SIZE]
            assert found is not None
            assert found[0] == position
            tokens.append(found[1])
        assert not self._recurrent or self._states[slot] == tuple(tokens)
        self._texts[slot][n] = next_token(tokens, self.vocab)
        return self._texts[slot][n]

    def drain(self) -> None:
        self._flying.clear()

    def close(self) -> None:
        self.closed = True
