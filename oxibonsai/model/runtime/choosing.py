"""Where a text's rule lies on the device, and its choices come back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Device
from oxibonsai.model.choices import (
    CHOICE_DTYPE,
    MAX_BEST,
    NO_TOKEN,
    SCORED_DTYPE,
    Rule,
    ScoredToken,
)
from oxibonsai.model.protocols import MAX_IN_FLIGHT

__all__ = ["N_SLOTS", "ChoiceBuffers", "ChoiceRows"]

# Choices that are kept: those of the steps in flight and of a draft are read before their slots are
# written again.
N_SLOTS = 64
assert N_SLOTS > MAX_IN_FLIGHT

_FEWEST_BIASES = 64
_CHOICE = struct.Struct("<IIf4x")  # CHOICE_DTYPE


def _pairs(best: npt.NDArray[Any]) -> tuple[tuple[int, float], ...]:
    """Return the best tokens; a vocabulary may hold fewer numbers than were asked for."""
    return tuple((token, p) for token, p in best.tolist() if token != NO_TOKEN)


class ChoiceRows:
    """The choices of several rows at once, which a head leaves; their size is that of the rows.

    Attributes
    ----------
    choices, best : Buffer
        struct oxb_choice [n_rows], struct oxb_scored [n_rows, n_best].
    """

    def __init__(self, device: Device, n_rows: int) -> None:
        self.choices = device.buffer(CHOICE_DTYPE.itemsize * n_rows)
        self.best = device.buffer(SCORED_DTYPE.itemsize * n_rows * MAX_BEST)

    def read(self, n_rows: int, n_best: int) -> list[ScoredToken]:
        """Return the first choices."""
        choices = self.choices.read(np.empty(n_rows, CHOICE_DTYPE))
        best = np.empty((n_rows, n_best), SCORED_DTYPE)
        if n_best:
            self.best.read(best)
        rows = zip(choices.tolist(), best, strict=True)
        return [ScoredToken(token, p, _pairs(row)) for (token, _, p, _), row in rows]

    def close(self) -> None:
        """Release the buffers."""
        self.choices.close()
        self.best.close()


class ChoiceBuffers:
    """What choices are made by, and a ring of those that were made.

    The rule is written while nothing is in flight, so that a recording serves every rule. A choice
    is read while later steps run: its slot is its place modulo N_SLOTS, and says which place it is
    of.

    Attributes
    ----------
    settings, biases, mask, choices, best : Buffer
        As Commands.sample takes them; one row of a mask.
    """

    def __init__(self, device: Device, n_vocab: int) -> None:
        self._device = device
        self._choice = bytearray(_CHOICE.size)
        self.settings = device.buffer(64, storage=device.working_storage)
        self.biases = device.buffer(8 * _FEWEST_BIASES, storage=device.working_storage)
        self.mask = device.buffer((n_vocab + 31) // 32 * 4, storage=device.working_storage)
        self.choices = device.buffer(CHOICE_DTYPE.itemsize * N_SLOTS)
        self.best = device.buffer(SCORED_DTYPE.itemsize * N_SLOTS * MAX_BEST)

    @property
    def operands(self) -> dict[str, Any]:
        """What Commands.sample takes of it by name."""
        return {
            "biases": self.biases,
            "n_biases": self.biases.nbytes // 8,
            "masks": self.mask,
            "n_masks": 1,
        }

    def write(self, rule: Rule) -> bool:
        """Set the rule, and return whether a buffer was replaced: recordings of it are old then."""
        replaced = len(rule.biases) > self.biases.nbytes
        if replaced:
            n_bytes = 1 << (len(rule.biases) - 1).bit_length()
            larger = self._device.buffer(n_bytes, storage=self._device.working_storage)
            self.biases.close()
            self.biases = larger
        if rule.biases:
            self.biases.write(rule.biases)
        if rule.mask is not None:
            self.mask.write(rule.mask)
        self.settings.write(rule.settings)
        return replaced

    def read(self, place: int, n_best: int) -> ScoredToken | None:
        """Return the choice for a place, or None where its slot holds another."""
        slot = place % N_SLOTS
        # By struct: NumPy would take longer than all else that the host does for a token.
        self.choices.read(self._choice, _CHOICE.size * slot)
        token, position, log_probability = _CHOICE.unpack(self._choice)
        if position != place:
            return None
        if not n_best:
            return ScoredToken(token, log_probability)
        best = np.empty(n_best, SCORED_DTYPE)
        self.best.read(best, best.nbytes * slot)
        return ScoredToken(token, log_probability, _pairs(best))

    def put(self, choices: Sequence[ScoredToken], place: int, n_best: int) -> None:
        """Set the choices from a place on, as if steps had made them."""
        for at, choice in enumerate(choices, place):
            slot = at % N_SLOTS
            one = np.array([(choice.token, at, choice.log_probability, 0)], CHOICE_DTYPE)
            self.choices.write(one, one.nbytes * slot)
            if n_best:
                missing = [(NO_TOKEN, -np.inf)] * (n_best - len(choice.best))
                best = np.array([*choice.best, *missing], SCORED_DTYPE)
                self.best.write(best, best.nbytes * slot)

    def close(self) -> None:
        """Release the buffers."""
        for buffer in (self.settings, self.biases, self.mask, self.choices, self.best):
            buffer.close()
