"""How a device is told to choose tokens, and what it answers: structs of `Commands.sample`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "BIAS_DTYPE",
    "CHOICE_DTYPE",
    "MAX_BEST",
    "NO_TOKEN",
    "SAMPLING_DTYPE",
    "SCORED_DTYPE",
    "Rule",
    "ScoredToken",
]

NO_TOKEN = 0xFFFFFFFF
"""The choice where none can be made, and the row of a mask where there is none."""

MAX_BEST = 32
"""The most tokens that come with a choice."""

SAMPLING_DTYPE = np.dtype(
    [
        ("seed", "<u4", 2),
        ("choice", "<u4"),
        ("scale", "<f4"),
        ("top_k", "<u4"),
        ("top_p", "<u4"),
        ("least", "<u4"),
        ("repetition", "<f4"),
        ("inverse_repetition", "<f4"),
        ("presence", "<f4"),
        ("frequency", "<f4"),
        ("window", "<u4"),
        ("first_bias", "<u4"),
        ("n_biases", "<u4"),
        ("mask", "<u4"),
        ("pad", "<u4"),
    ]
)
"""struct oxb_sampling."""

CHOICE_DTYPE = np.dtype(
    [("token", "<u4"), ("position", "<u4"), ("log_probability", "<f4"), ("pad", "<u4")]
)
"""struct oxb_choice."""

SCORED_DTYPE = np.dtype([("token", "<u4"), ("log_probability", "<f4")])
"""struct oxb_scored."""

BIAS_DTYPE = np.dtype([("token", "<u4"), ("value", "<f4")])
"""struct oxb_bias."""


class ScoredToken(NamedTuple):
    """A token that was chosen, with how probable it was.

    Attributes
    ----------
    token : int
        The token.
    log_probability : float
        The natural logarithm of its probability, by the logits as they came: before masks, biases,
        penalties and the temperature.
    best : tuple of (int, float)
        The most probable tokens and theirs, where asked for.
    """

    token: int
    log_probability: float
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Rule:
    """What the choices of a text depend on besides its tokens, as the device reads it.

    Equal rules make equal choices, so that one made by the one stands for the other.

    Attributes
    ----------
    settings : bytes
        struct oxb_sampling, with the biases from 0 on and the mask in row 0.
    biases : bytes
        struct oxb_bias [n].
    mask : bytes or None
        Bits of the tokens that are allowed, in words of 32.
    log_probabilities : bool
        Whether choices come with their log probabilities.
    n_best : int
        How many of the most probable tokens come with each choice.
    stepwise : bool
        Whether the host has a say before each choice, in its logits or its mask: a step then leaves
        the choice to a submission of its own.
    """

    settings: bytes
    biases: bytes = b""
    mask: bytes | None = None
    log_probabilities: bool = False
    n_best: int = 0
    stepwise: bool = False
