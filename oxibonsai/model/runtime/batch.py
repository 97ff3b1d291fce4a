"""The device's side of many sequences: buffers, slots, and what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, BufferCreationError, Commands
from oxibonsai.model.choices import CHOICE_DTYPE, MAX_BEST, NO_TOKEN, SCORED_DTYPE
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.rope import rope_table
from oxibonsai.model.runtime.batchshape import BatchSettings, BatchStep, Choices
from oxibonsai.model.runtime.batchstates import BatchStates
from oxibonsai.model.runtime.batchsteps import (
    BIAS_BYTES,
    RING,
    SETTINGS_BYTES,
    STATE_BYTES,
    BatchBuffers,
    mask_size,
    record,
    record_choice,
)
from oxibonsai.model.runtime.cache import KVCache, KVDtype, length_bucket, warn_of_kv_cache
from oxibonsai.model.runtime.pages import PAGE_SIZE, pages_of
from oxibonsai.model.runtime.recordings import Recordings
from oxibonsai.model.runtime.steps import Workspace, working_buffer

__all__ = ["BatchRunner", "page_bytes"]

_RECORDINGS = 64


def page_bytes(model: LoadedModel, kv_dtype: KVDtype) -> int:
    """Return the bytes of a page of keys, or of values, over all layers."""
    return KVCache.nbytes_of(model.config, kv_dtype, PAGE_SIZE)


class BatchRunner:
    """Runs steps of many sequences, each in a *slot*: its tokens, page table, mask and state.

    Parameters
    ----------
    model : LoadedModel
        Whose weights are used.
    n_slots : int
        Sequences at a time.
    max_seq : int
        Positions of a sequence.
    n_pages : int
        Pages of the caches.
    kv_dtype : {"f16", "f32", "q8"}
        Elements of the caches.
    chunk : int
        The most tokens of a prompt in a step.
    deterministic : bool
        Whether a row's bits do not depend on the other rows.
    n_checkpoints : int
        Recurrent states that are kept beside those of the slots, where the model has any.
    """

    def __init__(
        self,
        model: LoadedModel,
        n_slots: int,
        max_seq: int,
        n_pages: int,
        kv_dtype: KVDtype,
        chunk: int,
        *,
        deterministic: bool,
        n_checkpoints: int = 0,
    ) -> None:
        c, device = model.config, model.device
        self.model = model
        self.n_slots = n_slots
        self.max_seq = max_seq
        self.n_pages = n_pages
        self.kv_dtype = kv_dtype
        self._deterministic = deterministic
        self._page_bytes = page_bytes(model, kv_dtype)
        limit = device.info.max_buffer_length
        if n_pages * self._page_bytes > limit:
            raise BufferCreationError(
                f"keys of {n_pages} pages take {n_pages * self._page_bytes} bytes, the device's "
                f"buffers hold {limit}: make the engine with fewer n_pages"
            )
        warn_of_kv_cache(
            model,
            2 * n_pages * self._page_bytes,
            "max_seq, max_sequences, n_pages or max_checkpoints"
            if c.recurrent
            else "max_seq, max_sequences or n_pages",
            kv_dtype,
            states=BatchStates.nbytes_of(c, n_slots + n_checkpoints),
        )
        self._table_size = pages_of(max_seq)
        self._text_size = max_seq + 1
        self._n_rows = _rounded(n_slots) + 1  # those that choose: the last of a chunk is one
        self._n_biases = 0  # for each slot
        self._recordings = Recordings(_RECORDINGS)
        self._flying: deque[tuple[Commands, BatchStep, list[int]]] = deque()
        self._heads: dict[str, Any] = {
            "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads,
            "head_dim": c.head_dim,
            "max_seq": max_seq,
            "kv_dtype": kv_dtype,
            "page_size": PAGE_SIZE,
            "n_layers": c.n_attention_layers,
            "n_pages": n_pages,
        }
        self._table = np.full((n_slots, self._table_size), NO_TOKEN, np.uint32)
        self._table_lengths = [0] * n_slots
        self._buffers = self._allocate(chunk, n_checkpoints)
        self._ring_view: npt.NDArray[Any] | None = self._buffers.ring.view(
            CHOICE_DTYPE, (self._n_rows, RING)
        )

    def _allocate(self, chunk: int, n_checkpoints: int) -> BatchBuffers:
        c, device = self.model.config, self.model.device
        made: list[Buffer | Workspace | BatchStates] = []

        def working(nbytes: int) -> Buffer:
            made.append(working_buffer(device, nbytes))
            return made[-1]  # type: ignore[return-value]  # what was appended

        try:
            rope = device.upload(
                rope_table(c.rotary_dim, self.max_seq, c.rope_theta, c.rope_scaling),
                storage=device.working_storage,
            )
            made.append(rope)
            work = Workspace(self.model, chunk + self._n_rows - 1)
            made.append(work)
            states = None
            if c.recurrent is not None:
                states = BatchStates(self.model, self.n_slots, n_checkpoints)
                made.append(states)
            return BatchBuffers(
                k=working(self.n_pages * self._page_bytes),
                v=working(self.n_pages * self._page_bytes),
                state=working(STATE_BYTES * (self._n_rows + 1)),
                tokens=working(4 * self.n_slots * self._text_size),
                pages=working(4 * self.n_slots * self._table_size),
                settings=working(SETTINGS_BYTES * self._n_rows),
                logits=working(4 * c.vocab_size * self._n_rows),
                rope=rope,
                # Shared: the host reads choices while later steps run, and waits for none.
                ring=device.buffer(CHOICE_DTYPE.itemsize * RING * self._n_rows),
                work=work,
                states=states,
            )
        except BaseException:
            for buffer in made:
                buffer.close()
            raise

    # What the host writes while nothing is in flight

    def write_text(self, slot: int, tokens: Sequence[int], first: int = 0) -> None:
        """Set tokens of a slot's text from position `first` on."""
        self._buffers.tokens.write(
            np.array(tokens, np.uint32), 4 * (slot * self._text_size + first)
        )

    def write_tables(self, tables: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Set the pages of slots."""
        for slot, pages in tables:
            self._table[slot] = NO_TOKEN
            self._table[slot, : len(pages)] = pages
            self._table_lengths[slot] = len(pages)
        if tables:
            self._buffers.pages.write(self._table)

    def table_length(self, slot: int) -> int:
        """Return how many pages a slot's table has."""
        return self._table_lengths[slot]

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
        states = np.zeros((2 + _rounded(len(rows)), 4), np.uint32)
        states[:, [0, 3]] = NO_TOKEN  # an idle row: it has no position, and changes no state
        placed = np.array(
            [(chunk[0], chunk[1]), (chunk[0], chunk[1] + chunk[2] - 1), *rows]
            if chunk is not None
            else [(0, NO_TOKEN), (0, NO_TOKEN), *rows],
            np.uint32,
        )
        n = len(placed)
        states[:n, 0] = placed[:, 1]
        states[:n, 1] = placed[:, 0] * self._text_size
        states[:n, 2] = placed[:, 0] * self._table_size
        states[:n, 3] = placed[:, 0]  # a state for each slot, changed in place
        self._buffers.state.write(states)

    def write_settings(
        self,
        chunk: tuple[int, BatchSettings, bool] | None,
        rows: Sequence[tuple[int, BatchSettings, bool]],
    ) -> None:
        """Set by what the rows choose.

        Parameters
        ----------
        chunk : (int, BatchSettings, bool) or None
            Slot, settings, and whether the slot's mask holds, of the prompt.
        rows : sequence of (int, BatchSettings, bool)
            The same of each running sequence.
        """
        first = [] if chunk is None else [chunk]
        packed = [self._placed(*row) for row in [*first, *rows]]
        if packed:
            at = 0 if first else SETTINGS_BYTES
            self._buffers.settings.write(np.frombuffer(b"".join(packed), np.uint8), at)

    def _placed(self, slot: int, settings: BatchSettings, masked: bool) -> bytes:
        found = np.array(settings.packed).reshape(())
        found["n_biases"] = len(settings.biases) // BIAS_BYTES
        found["first_bias"] = slot * self._n_biases if settings.biases else 0
        found["mask"] = slot if masked else NO_TOKEN
        return found.tobytes()

    def write_biases(self, slot: int, biases: bytes) -> None:
        """Set a slot's logit biases, for which reserve_biases() made room."""
        n = len(biases) // BIAS_BYTES
        buffer = self._buffers.biases
        if buffer is None or n > self._n_biases:
            raise ValueError(f"{n} biases where reserve_biases() made room for {self._n_biases}")
        buffer.write(np.frombuffer(biases, np.uint8), slot * self._n_biases * BIAS_BYTES)

    def reserve_biases(self, n_biases: int) -> bool:
        """Make room for n_biases of each slot; True where all have to be written again."""
        if n_biases <= self._n_biases:
            return False
        size = max(64, 1 << (n_biases - 1).bit_length())
        added = working_buffer(self.model.device, BIAS_BYTES * size * self.n_slots)
        self._recordings.clear()  # they do not know it
        old, self._buffers.biases, self._n_biases = self._buffers.biases, added, size
        if old is not None:
            old.close()
        return True

    def write_mask(self, slot: int, mask: npt.NDArray[np.uint32]) -> None:
        """Set a slot's mask of allowed tokens."""
        nbytes = 4 * mask_size(self.model.config.vocab_size)
        if self._buffers.masks is None:
            self._buffers.masks = working_buffer(self.model.device, nbytes * self.n_slots)
            self._recordings.clear()
        self._buffers.masks.write(np.ascontiguousarray(mask, np.uint32), nbytes * slot)

    # Pages and states that leave the device and come back

    def read_pages(self, pages: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return the keys and values of pages, uint8 [pages, 2, bytes of a page]."""
        found = np.empty((len(pages), 2, self._page_bytes), np.uint8)
        for rows, page in zip(found, pages, strict=True):
            self._buffers.k.read(rows[0], page * self._page_bytes)
            self._buffers.v.read(rows[1], page * self._page_bytes)
        return found

    def write_pages(self, pages: Sequence[int], data: npt.NDArray[np.uint8]) -> None:
        """Set the keys and values of pages to what read_pages() returned."""
        for rows, page in zip(data, pages, strict=True):
            self._buffers.k.write(rows[0], page * self._page_bytes)
            self._buffers.v.write(rows[1], page * self._page_bytes)

    def read_state(self, slot: int) -> npt.NDArray[np.float32] | None:
        """Return the recurrent state of a slot, or None where the model has none."""
        states = self._buffers.states
        return None if states is None else states.read(slot)

    def write_state(self, slot: int, state: npt.NDArray[np.float32] | None) -> None:
        """Set the recurrent state of a slot to what read_state() returned."""
        if self._buffers.states is not None and state is not None:
            self._buffers.states.write(slot, state)

    def keep_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the recurrent states of slots to places of their own: (slot, place)."""
        if self._buffers.states is not None:
            self._buffers.states.keep(pairs)

    def restore_states(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy recurrent states that are kept to slots: (place, slot)."""
        if self._buffers.states is not None:
            self._buffers.states.restore(pairs)

    # Steps

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
            As of BatchStep; any n_best from 1 on scores MAX_BEST.
        """
        longest = max([*positions, sum(chunk) - 1 if chunk else 0]) + 1
        return BatchStep(
            n_rows=_rounded(len(positions)),
            chunk=chunk[1] if chunk else 0,
            ends=ends,
            max_length=length_bucket(longest, self.max_seq),
            chooses=chooses,
            n_best=MAX_BEST if n_best else 0,
            scores=scores,
        )

    @property
    def in_flight(self) -> int:
        """Steps that nobody has waited for."""
        return len(self._flying)

    def submit(self, step: BatchStep, positions: Sequence[int]) -> None:
        """Start a step, and do not wait for it.

        Parameters
        ----------
        step : BatchStep
            What runs.
        positions : sequence of int
            Places of the tokens that it chooses: the prompt's, where it ends, then the others'.
        """
        if step.n_best and self._buffers.best is None:
            # Shared, as the ring is.
            self._buffers.best = self.model.device.buffer(
                SCORED_DTYPE.itemsize * MAX_BEST * RING * self._n_rows
            )
        commands = self._recordings.get(step, lambda: self._record(record, step))
        commands.submit()
        self._flying.append((commands, step, list(positions)))

    def finish(self) -> Choices:
        """Wait for the oldest step in flight and return what it chose.

        Where the step leaves the choice to choose(), that is called in between.
        """
        commands, step, positions = self._flying.popleft()
        commands.wait(keep=commands.in_flight - 1)
        return self._read(step, positions)

    def finish_logits(self) -> None:
        """Wait for the only step in flight, one that does not choose."""
        commands, _, _ = self._flying.popleft()
        commands.wait()

    def choose(self, step: BatchStep, positions: Sequence[int]) -> Choices:
        """Make the choices of a finished step that left them out."""
        key = ("choose", step.n_rows, step.ends, step.n_best, step.scores)
        commands = self._recordings.get(key, lambda: self._record(record_choice, step))
        commands.replay()
        return self._read(step, positions)

    def read_logits(self, row: int) -> npt.NDArray[np.float32]:
        """Return the logits of a row of the last step: 0 is a prompt's, 1 the first running one."""
        vocab = self.model.config.vocab_size
        return self._buffers.logits.read(np.empty(vocab, np.float32), 4 * vocab * row)

    def write_logits(self, row: int, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of a row before choose()."""
        self._buffers.logits.write(logits, 4 * self.model.config.vocab_size * row)

    def drain(self) -> None:
        """Wait for all steps, after one failed: the first error is the one to report."""
        while self._flying:
            commands, _, _ = self._flying.popleft()
            while commands.in_flight:
                with suppress(RuntimeError):
                    commands.wait()

    def _read(self, step: BatchStep, positions: list[int] | Sequence[int]) -> Choices:
        assert self._ring_view is not None
        n = len(positions)
        if not n:
            return Choices([], [])
        first = step.first
        rows = np.arange(first, first + n)
        slots = np.array(positions) % RING
        found = self._ring_view[rows, slots]
        if found["position"].tolist() != list(positions):
            raise RuntimeError("a step chose tokens for other places than those it was given")
        best: list[list[tuple[int, float]]] = []
        if step.n_best:
            assert self._buffers.best is not None
            scored = self._buffers.best.view(SCORED_DTYPE, (self._n_rows, RING, MAX_BEST))
            best = [
                [(token, p) for token, p in row.tolist() if token != NO_TOKEN]
                for row in scored[rows, slots]
            ]
        return Choices(found["token"].tolist(), found["log_probability"].tolist(), best)

    def _record(self, how: Callable[..., Commands], step: BatchStep) -> Commands:
        return how(self.model, self._buffers, self._heads, step, deterministic=self._deterministic)

    def close(self) -> None:
        """Wait for what is in flight and release everything; idempotent."""
        self.drain()
        self._recordings.clear()
        self._ring_view = None
        self._buffers.close()


def _rounded(n_rows: int) -> int:
    """Return how many rows a recording has for n_rows: few sizes, so that few are recorded."""
    return n_rows if n_rows <= 8 else -(-n_rows // 4) * 4
