"""The architectures that can run, one file each, by ``general.architecture``.

A new one whose layers the ops can express is a file like ``qwen3.py`` and an entry here, and no C:
its configuration, the tensors it expects, and the recording of a layer.
"""

from __future__ import annotations

from oxibonsai.model.architectures.base import (
    Architecture,
    Layer,
    LayerStep,
    ModelWeights,
    RecurrentPlace,
    Scratch,
    TokenGroup,
    Variants,
)
from oxibonsai.model.architectures.qwen3 import Qwen3
from oxibonsai.model.architectures.qwen35 import Qwen35
from oxibonsai.model.architectures.registry import Registry, load_weights

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Layer",
    "LayerStep",
    "ModelWeights",
    "RecurrentPlace",
    "Registry",
    "Scratch",
    "TokenGroup",
    "Variants",
    "load_weights",
]

ARCHITECTURES = Registry(Qwen3(), Qwen35())
"""What ``Model.load`` takes."""
