"""The time of a dispatch from its work: instructions, bytes, and the latencies it waits for.

A SIMD-group goes round a loop, and loads in each round what it needs in the next. So a round takes
the instructions of all SIMD-groups of its core, or one latency of memory, whichever is longer; and
all rounds together not less than the bytes need. Added to that are the start of the dispatch and
the latencies that nothing hides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cost.chips import Chip

SPACING = 2.0
"""Clocks between two instructions of a SIMD-group that nothing else hides."""


FEW = 8
"""SIMD-groups of a core that do not hide their other instructions behind products of matrices.

Apple's chips have no units of their own for these products.
"""


@dataclass(frozen=True)
class Loop:
    """One round of a SIMD-group's main loop."""

    pipes: dict[str, float]
    """Instructions for each pipe; "total", "shared_cycles" and "multiplications" besides."""
    registers: int
    group_memory: int
    """Bytes of a threadgroup."""
    source: str
    """Where the counts come from."""


@dataclass(frozen=True)
class Work:
    """A dispatch."""

    loop: Loop
    threadgroups: int
    simdgroups: int
    """Of a threadgroup."""
    rounds: float
    """Of each SIMD-group."""
    nbytes: float
    """That it must move."""
    waits: float = 0.0
    """Latencies of memory that nothing hides, beside one for each round."""
    near_waits: float = 0.0
    """The same, of the last level of cache."""
    early: bool = False
    """Whether the first round's weights are asked for while the dispatch before still runs."""


@dataclass(frozen=True)
class Estimate:
    """The time of a dispatch, and what limits it."""

    seconds: float
    bound: str
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of each resource, if it were the only one."""

    @property
    def limit(self) -> float:
        """Seconds that the instructions and bytes need at full rate."""
        return max(self.parts["bytes"], self.parts["instructions"])


def estimate(chip: Chip, work: Work) -> Estimate:
    """Return the time of a dispatch on a chip."""
    loop = work.loop
    need = chip.cycles(loop.pipes)
    on_core = math.ceil(work.threadgroups / chip.cores)
    together = min(on_core, chip.resident(work.simdgroups, loop.registers, loop.group_memory))
    if need["matrix units"] and (chip.family == "apple" or together * work.simdgroups <= FEW):
        need["matrix units"] += need["issue"]
    busiest = max(need, key=lambda name: need[name])
    one_round = need[busiest] / chip.efficiency / chip.clock
    busy = together * work.simdgroups * one_round
    alone = loop.pipes["total"] * SPACING / chip.clock
    turns = on_core / together * work.rounds
    seconds = {
        busiest: turns * busy,
        "latency": max((turns - work.early) * chip.latency, turns * alone),
        "memory": work.nbytes / chip.read,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    waits = work.waits * chip.latency + work.near_waits * chip.near_latency
    fixed = chip.start + waits
    total = work.threadgroups * work.simdgroups * work.rounds * need[busiest]
    parts = {
        "bytes": work.nbytes / chip.bandwidth,
        "instructions": total / chip.cores / chip.clock,
    }
    if fixed > seconds[bound]:
        return Estimate(fixed + seconds[bound], "start", parts)
    return Estimate(fixed + seconds[bound], bound, parts)
