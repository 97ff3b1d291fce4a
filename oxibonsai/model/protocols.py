"""What a loaded model gives to what runs on it: sessions, generations, decoders, session files.

They are made by a model and know it by this alone, so that no import goes back up.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, get_args

from oxibonsai.metal import Device, MetalGraph
from oxibonsai.model.architectures.base import ModelWeights
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.tokenizer import Tokenizer

__all__ = ["ACTIVATIONS", "MAX_IN_FLIGHT", "MAX_STATES_IN_FLIGHT", "Activations", "LoadedModel"]

Activations: TypeAlias = Literal["float32", "half", "int8"]
"""What matrix products make of the vectors of a prompt."""
ACTIVATIONS: tuple[Activations, ...] = get_args(Activations)

MAX_IN_FLIGHT = 16
"""Submissions of a recording that may be in flight, as of ``Commands.submit``."""

MAX_STATES_IN_FLIGHT = 2
"""Of a session with recurrent states, each of which takes the memory of one."""


class LoadedModel(Protocol):
    """A model on a device; ``Model`` is the one in the package, which documents each name."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def path(self) -> str:
        """Its file."""

    @property
    def config(self) -> ModelConfig:
        """The shape."""

    @property
    def graph(self) -> MetalGraph:
        """The device's graph that holds the weights."""

    @property
    def device(self) -> Device:
        """Where it runs."""

    @property
    def weights(self) -> ModelWeights:
        """The weights on the device."""

    @property
    def activations(self) -> Activations:
        """What prompts are multiplied in."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""

    @property
    def fingerprint(self) -> str:
        """What tells its file from others."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
