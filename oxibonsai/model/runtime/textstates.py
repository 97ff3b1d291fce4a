"""The recurrent states of one text: those of its end, and a few earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, BufferCreationError
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.runtime.recurrent import RING, RecurrentStates
from oxibonsai.model.runtime.steplog import StepLog
from oxibonsai.model.workingset import warn_of_working_set

__all__ = ["CHECKPOINT_EVERY", "MAX_CHECKPOINTS", "Checkpoint", "TextStates"]

CHECKPOINT_EVERY = 256
"""Tokens between checkpoints, where nobody says."""
MAX_CHECKPOINTS = 8
"""Checkpoints of a text, where nobody says."""

_NOTHING = -1


class Checkpoint(NamedTuple):
    """A recurrent state that is kept.

    Attributes
    ----------
    position : int
        Tokens before it.
    nbytes : int
        What it takes on the device.
    """

    position: int
    nbytes: int


@dataclass
class _Kept:
    position: int
    state: Buffer
    logits: Buffer
    has_logits: bool

    @property
    def nbytes(self) -> int:
        return self.state.nbytes + self.logits.nbytes

    def close(self) -> None:
        self.state.close()
        self.logits.close()


class TextStates:
    """Knows for which positions of a text there are states, and how to come by the others.

    The ring holds the states of the last steps of generation; of a prompt, the state behind the
    last chunk, and of earlier chunks those that happen to lie in other slots. A state that it does
    not hold any more is made again from the last checkpoint before it, or from nothing, by steps of
    the same sizes.

    Parameters
    ----------
    model : LoadedModel
        With recurrent layers.
    every : int
        Tokens between checkpoints.
    most : int
        Checkpoints that are kept. Where one more is needed, the one goes without which the rest are
        spread best: densely near the end of the text, thinly far from it.

    Attributes
    ----------
    ring : RecurrentStates
        On the device.
    log : StepLog
        The steps that made the text, those in flight included; behind a seek() also those that it
        went back over, until truncate() of the log cuts them.
    """

    def __init__(self, model: LoadedModel, every: int, most: int) -> None:
        self._model = model
        self._every = every
        self._most = most
        self._held = [_NOTHING] * RING  # the position of which a slot has the state
        self._kept: list[_Kept] = []  # by position
        self._spare: list[_Kept] = []
        self.log = StepLog()
        remedy = "take another device, or a smaller model"  # the ring is of no other size
        self.ring = RecurrentStates(model.device, model.config, RING, RING, remedy=remedy)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """What is kept, by position."""
        return [Checkpoint(kept.position, kept.nbytes) for kept in self._kept]

    # Where the text is

    def has(self, position: int) -> bool:
        """Whether a step can begin at a position."""
        return position == 0 or self._held[position % RING] == position

    def writes(self, *positions: int) -> None:
        """Note that steps are about to leave the states of positions in the place of others.

        Ahead of the submission: an interrupt between it and wrote() must not leave an old name.
        """
        for position in positions:
            self._held[position % RING] = _NOTHING

    def wrote(self, position: int) -> None:
        """Note that a step leaves the state of a position."""
        self._held[position % RING] = position

    def seek(self, position: int) -> None:
        """Forget the states behind a position of the text; nothing may be in flight.

        The log stays whole: until a step begins at the position, the text may turn out to be the
        one it was.
        """
        self._held = [held if held <= position else _NOTHING for held in self._held]
        while self._kept and self._kept[-1].position > position:
            self._spare.append(self._kept.pop())

    def forget(self) -> None:
        """Take no slot of the ring for what it was: a step has failed."""
        self._held = [_NOTHING] * RING

    def nearest(self, position: int) -> int:
        """Return the last place up to a position of which there is a state, in whatever form."""
        found = [held for held in self._held if held <= position]
        found += [kept.position for kept in self._kept if kept.position <= position]
        return max([0, *found])

    def last_start(self) -> int:
        """Return where the last step of the text begins."""
        return self.log.length - self.log.last

    # Checkpoints

    def until_due(self, position: int, *, generates: bool) -> int:
        """Return after how many tokens a checkpoint is due; 0: at once.

        Where a text `generates` behind a prompt, one is due: it may be rewound to there.
        """
        if not self._most:
            return 1 << 62
        last = self._kept[-1].position if self._kept else 0
        if generates and position > last and self.log.last > 1:
            return 0
        return max(self._every - (position - last), 0)

    def keep(self, position: int, logits: Buffer | None) -> None:
        """Copy the state of a position, and the logits where they are its own, to a checkpoint."""
        kept = self._room(position)
        if kept is None:
            return
        kept.position = position
        kept.has_logits = logits is not None
        size = self.ring.slot_size
        source = (self.ring.buffer, 4 * size * (position % RING))
        try:
            self._copy((source, kept.state, size), (logits, kept.logits, self._n_logits))
        except BaseException:
            kept.close()
            raise
        self._kept.append(kept)

    def restore(self, position: int) -> None:
        """Bring the checkpoint of a position into the ring."""
        kept = next(kept for kept in self._kept if kept.position == position)
        size = self.ring.slot_size
        self.writes(position)
        self._copy((kept.state, (self.ring.buffer, 4 * size * (position % RING)), size))
        self.wrote(position)

    def restore_logits(self, position: int, logits: Buffer) -> bool:
        """Copy what a checkpoint has of a position's logits; whether there is such a one."""
        for kept in self._kept:
            if kept.position == position and kept.has_logits:
                self._copy((kept.logits, logits, self._n_logits))
                return True
        return False

    @property
    def _n_logits(self) -> int:
        return self._model.config.vocab_size

    def _room(self, position: int) -> _Kept | None:
        """Return buffers for a checkpoint; None where the device has no memory for any."""
        if self._spare:
            return self._spare.pop()
        if len(self._kept) < self._most:
            try:
                return self._allocate()
            except BufferCreationError:
                # A checkpoint saves time alone: from here on an earlier one makes room.
                self._most = len(self._kept)
                if not self._kept:
                    return None
        ends = [*(kept.position for kept in self._kept), position]
        starts = [0, *ends[:-2]]
        # The gap that going would leave, against the way from there to the end.
        costs = [
            (after - before) / (position - at)
            for before, at, after in zip(starts, ends, ends[1:], strict=False)
        ]
        return self._kept.pop(costs.index(min(costs)))

    def _allocate(self) -> _Kept:
        device, config = self._model.device, self._model.config
        nbytes = RecurrentStates.nbytes_of(config, 1)
        warn_of_working_set(
            device,
            nbytes,
            f"{self._model.path}: a checkpoint of the recurrent state takes",
            "fewer max_checkpoints",
            crossing=True,
        )
        state = device.buffer(nbytes, storage=device.working_storage)
        try:
            logits = device.buffer(4 * config.vocab_size, storage=device.working_storage)
        except BaseException:
            state.close()
            raise
        return _Kept(_NOTHING, state, logits, False)

    def _copy(self, *copies: tuple[_Place | None, _Place, int]) -> None:
        with self._model.graph.commands() as commands:
            for source, target, n in copies:
                if source is not None:
                    commands.copy(source, target, n)
            commands.replay()

    # Other texts, and files

    def read(self, position: int) -> npt.NDArray[np.float32]:
        """Return the state of a position that the ring has; zeros before the text."""
        if position == 0:
            return np.zeros(self.ring.slot_size, np.float32)
        return self.ring.read(position % RING)

    def load(self, log: StepLog, state: npt.NDArray[np.float32]) -> None:
        """Become the states of a text that `log` made and that left `state`."""
        self.log = log
        self.forget()
        if log.length:
            self.ring.write(log.length % RING, state)
            self.wrote(log.length)

    def copy_from(self, other: TextStates, position: int) -> None:
        """Take over another text's first tokens: its state, which it has, and its checkpoints."""
        log = StepLog(other.log.runs)
        log.truncate(position)
        self.log = log
        self.forget()
        size = self.ring.slot_size
        if position:
            at = 4 * size * (position % RING)
            self._copy(((other.ring.buffer, at), (self.ring.buffer, at), size))
            self.wrote(position)
        for theirs in other._kept[: self._most]:
            if theirs.position > position:
                break
            try:
                kept = self._allocate()
            except BufferCreationError:
                self._most = len(self._kept)
                break
            kept.position, kept.has_logits = theirs.position, theirs.has_logits
            self._kept.append(kept)
            self._copy(
                (theirs.state, kept.state, size), (theirs.logits, kept.logits, self._n_logits)
            )

    def close(self) -> None:
        """Release the buffers."""
        for kept in (*self._kept, *self._spare):
            kept.close()
        self._kept.clear()
        self._spare.clear()
        self.ring.close()


_Place = Buffer | tuple[Buffer, int]
