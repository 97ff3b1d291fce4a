"""The recurrent states of texts on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from oxibonsai.metal import Buffer, BufferCreationError, Device
from oxibonsai.model.architectures.base import RecurrentPlace
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.protocols import MAX_STATES_IN_FLIGHT

__all__ = ["RING", "RecurrentStates"]

RING = MAX_STATES_IN_FLIGHT + 2
"""Slots of a session: where steps in flight are dropped, the state before the last token is there
still, which may run again for its logits."""


class RecurrentStates:
    """Slots that hold the state of all recurrent layers each, float32 [n_slots, slot_size].

    Slots of one text are a ring: the state before position p lies in slot p % ring of it, so that
    the states before its last few positions are there at a time, where each of them ended a step.
    Before position 0 no slot is read.

    Parameters
    ----------
    device : Device
        Where they lie.
    config : ModelConfig
        Of a model with recurrent layers.
    n_slots : int
        States, at least 1.
    ring : int
        Slots of a text.
    remedy : str
        What helps where a buffer of the device holds fewer states.

    Attributes
    ----------
    buffer : Buffer
        On the device.
    slot_size : int
        Elements of a slot.
    n_slots, ring : int
        As given.
    """

    def __init__(
        self, device: Device, config: ModelConfig, n_slots: int, ring: int = 1, *, remedy: str
    ) -> None:
        nbytes = self.nbytes_of(config, n_slots)
        limit = device.info.max_buffer_length
        if nbytes > limit:
            raise BufferCreationError(
                f"{n_slots} recurrent states take {nbytes} bytes, the device's buffers hold "
                f"{limit}: {remedy}"
            )
        self.slot_size = config.slot_size
        self.n_slots = n_slots
        self.ring = ring
        self.buffer: Buffer = device.buffer(nbytes, storage=device.working_storage)

    @staticmethod
    def nbytes_of(config: ModelConfig, n_slots: int) -> int:
        """Bytes of n_slots states; 0 of a model without any."""
        return 4 * config.slot_size * n_slots

    @property
    def place(self) -> RecurrentPlace:
        """What layers are told."""
        return RecurrentPlace(self.buffer, self.ring)

    def read(self, slot: int) -> npt.NDArray[np.float32]:
        """Return the state in a slot, float32 [slot_size]."""
        found = np.empty(self.slot_size, np.float32)
        self.buffer.read(found, found.nbytes * slot)
        return found

    def write(self, slot: int, data: npt.NDArray[np.float32]) -> None:
        """Set the state in a slot."""
        if data.shape != (self.slot_size,):
            raise ValueError(f"a state has {self.slot_size} elements, not shape {data.shape}")
        self.buffer.write(np.ascontiguousarray(data, np.float32), data.nbytes * slot)

    def close(self) -> None:
        """Release the buffer."""
        self.buffer.close()
