"""Times that were measured, to stand beside the predicted ones.

Whoever measures adds rows, with the variant that ran and where the figure is written down.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHAPES = ((6144, 4096), (4096, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096))
# What the driver chose for them when these were measured.
_VARIANTS = ("lookup-1", "lookup-1", "lookup-2", "lookup-1", "lookup-4")
_GEMV = {
    "H200": {
        "Q1_0": (5.6, 4.4, 10.9, 9.1, 51.0),
        "TQ2_0_g128": (9.2, 7.2, 19.2, 17.6, 94.3),
        "Q2_0": (9.1, 7.4, 18.9, 18.0, 94.1),
    },
    "H100": {
        "Q1_0": (5.5, 4.4, 11.0, 9.1, 51.6),
        "TQ2_0_g128": (9.1, 7.2, 19.2, 17.4, 94.2),
        "Q2_0": (9.1, 7.4, 18.9, 17.9, 94.1),
    },
}
_GEMV_SOURCE = {"H200": "docs/gpu/h200.md, commit 68624b7", "H100": "docs/gpu/h100.md"}


@dataclass(frozen=True)
class Gemv:
    """A GEMV by one variant."""

    card: str
    format: str
    n_rows: int
    k: int
    variant: str
    seconds: float
    source: str


@dataclass(frozen=True)
class Speed:
    """Tokens a second of a model in Q1_0: decoding at a context, or a prompt."""

    card: str
    model: str
    what: str
    """ "decode" or "prompt"."""
    tokens: int
    """Positions that decoding sees, or tokens of the prompt."""
    speed: float
    source: str
    variant: str | None = "lookup"
    """The kind of GEMV; None is the fastest of each, with attention on matrix units."""
    halves: int = 2
    """Of an activation of the prompt."""
    chunk: int = 128
    """Tokens of the prompt at once."""


GEMVS = [
    Gemv(card, name, n_rows, k, variant, 1e-6 * us, _GEMV_SOURCE[card])
    for card, formats in _GEMV.items()
    for name, times in formats.items()
    for (n_rows, k), variant, us in zip(_SHAPES, _VARIANTS, times, strict=True)
]

_README = "benchmarks/README.md"
SPEEDS = [
    Speed("H200", "8B", "decode", 128, 551.0, _README),
    Speed("H200", "8B", "decode", 8192, 435.0, _README),
    Speed("H200", "8B", "prompt", 512, 7760.0, _README),
    Speed("H200", "1.7B", "decode", 128, 1192.0, _README),
    Speed("H200", "1.7B", "decode", 8192, 838.0, _README),
    Speed("H200", "1.7B", "prompt", 512, 24_454.0, _README),
]

ATTENTION = {100: 13.6e-6, 1000: 14.8e-6, 4000: 19.1e-6}
"""Seconds of attention of one token, 32 heads of 128 over 8, on an H200: docs/gpu/h200.md."""
