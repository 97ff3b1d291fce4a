"""The chips that the cost model knows: published figures, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SIMD_WIDTH = 32

_GUIDE = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions"
_HOPPER_MMA = "https://arxiv.org/abs/2402.13499"
_APPLE_RATES = "https://github.com/philipturner/metal-benchmarks"
_CLOCKS = "https://hmc-tech.com/gpu"
_WIKIPEDIA = "https://en.wikipedia.org/wiki/Apple_"

PipeRates = dict[str, float]
"""Instructions of a SIMD-group that a core executes in a clock, for each pipe."""


@dataclass(frozen=True)
class Chip:
    """A GPU. A core is Apple's GPU core or NVIDIA's streaming multiprocessor."""

    name: str
    family: str
    """ "nvidia" or "apple"."""
    cores: int
    clock: float
    """In Hz."""
    bandwidth: float
    """Published, in bytes a second."""
    read: float
    """What a kernel gets of it, in bytes a second."""
    rates: PipeRates
    matrix: float
    """Multiplications of halves on matrix units, of one core in a clock."""
    group_bytes: float
    """Bytes of threadgroup memory that a core reads in a clock."""
    group_memory: int
    """Bytes of threadgroup memory of a core."""
    registers: int
    """Registers of 32 bits of a core."""
    most_simdgroups: int
    """SIMD-groups that a core holds at once."""
    start: float
    """Seconds from the end of one dispatch to the first instruction of the next."""
    latency: float
    """Seconds from a load to its value, from memory."""
    near_latency: float
    """The same where the last level of cache has it."""
    efficiency: float
    """Share of the instruction rate that a kernel with SIMD-groups enough gets."""
    sources: tuple[str, ...]

    @property
    def peak_matrix(self) -> float:
        """Multiplications of halves a second."""
        return self.matrix * self.cores * self.clock

    def cycles(self, pipes: dict[str, float]) -> dict[str, float]:
        """Return the clocks of a core that the instructions take of each of its resources."""
        need = {name: pipes.get(name, 0.0) / rate for name, rate in self.rates.items()}
        need["issue"] = pipes["total"] / 4.0
        need["threadgroup memory"] = (
            SIMD_WIDTH * 4.0 * pipes.get("shared_cycles", 0.0) / self.group_bytes
        )
        need["matrix units"] = pipes.get("multiplications", 0.0) / self.matrix
        return need

    def resident(self, simdgroups: int, registers: int, group_memory: int) -> int:
        """Return the threadgroups that a core holds at once."""
        by_registers = self.registers // (SIMD_WIDTH * 8 * math.ceil(registers / 8))
        most = min(self.most_simdgroups, by_registers) // simdgroups
        if group_memory:
            most = min(most, self.group_memory // group_memory)
        return max(most, 1)


# Lanes a clock of cc 9.0 in the guide's table, divided by 32. Additions of halves and conversions
# of them are one rate; "imad" is the half of the floating-point lanes that multiplies integers.
_NVIDIA_RATES = {
    "alu": 2.0,
    "fma": 4.0,
    "imad": 2.0,
    "half": 4.0,
    "convert": 0.5,
    "sfu": 0.5,
    "shuffle": 1.0,
    "memory": 1.0,
}
_HOPPER = Chip(
    name="H200",
    family="nvidia",
    cores=132,
    clock=1.83e9,
    bandwidth=4800e9,
    read=3943e9,
    rates=_NVIDIA_RATES,
    # 989 TFLOPS dense are 2048 a clock and core, of which mma.sync gets 62 %.
    matrix=2048 * 0.62,
    group_bytes=128,
    group_memory=228 * 1024,
    registers=65_536,
    most_simdgroups=64,
    # These three are fitted to the 15 GEMVs of docs/gpu/h200.md.
    start=2.0e-6,
    latency=0.628e-6,
    near_latency=0.3e-6,
    efficiency=0.72,
    sources=(
        "https://www.nvidia.com/en-us/data-center/h200/",
        _GUIDE,
        _HOPPER_MMA,
        "docs/gpu/h200.md (copy)",
    ),
)
_H100 = replace(
    _HOPPER,
    name="H100",
    bandwidth=3350e9,
    read=2849e9,
    sources=(
        "https://www.nvidia.com/en-us/data-center/h100/",
        _GUIDE,
        _HOPPER_MMA,
        "docs/gpu/h100.md (copy)",
    ),
)

# M1 and M2 as measured by the source; later ones are taken to be the same until a report says more.
# A whole matrix unit of Apple's is the cores' own arithmetic. Start, latency and the share of the
# bandwidth are guesses.
_APPLE = Chip(
    name="",
    family="apple",
    cores=0,
    clock=0.0,
    bandwidth=0.0,
    read=0.0,
    rates={"alu": 4.0, "slow": 1.0, "shuffle": 2.0, "memory": 1.0},
    matrix=102.5,
    group_bytes=64,
    group_memory=60 * 1024,
    registers=96 * 1024,
    most_simdgroups=32,
    start=3.0e-6,
    latency=0.45e-6,
    near_latency=0.25e-6,
    efficiency=0.8,
    sources=(_APPLE_RATES,),
)
LATER_MATRIX = 128.0
"""From the M3 on: llama.cpp's published 487 tokens a second of the 8B on an M4 Pro need 3.65e12
multiplications a second, which is more than 102.5 a clock and core."""
APPLE_SHARE = 0.87
"""Of the published bandwidth of an Apple chip that a kernel is taken to get."""

_APPLE_CHIPS = [
    # name, cores, GHz, GB/s
    ("M1", 8, 1.278, 68.25),
    ("M1 Pro", 16, 1.296, 200.0),
    ("M1 Max", 32, 1.296, 400.0),
    ("M2", 10, 1.398, 100.0),
    ("M2 Pro", 19, 1.398, 200.0),
    ("M2 Max", 38, 1.398, 400.0),
    ("M3", 10, 1.398, 100.0),
    ("M3 Pro", 18, 1.398, 150.0),
    ("M3 Max", 40, 1.398, 400.0),
    ("M4", 10, 1.578, 120.0),
    ("M4 Pro", 20, 1.578, 273.0),
    ("M4 Max", 40, 1.578, 546.0),
    ("M5", 10, 1.578, 153.6),
    ("M5 Pro", 20, 1.578, 307.0),
    ("M5 Max", 40, 1.578, 614.0),
]


def _apple(name: str, cores: int, gigahertz: float, gigabytes: float) -> Chip:
    bandwidth = gigabytes * 1e9
    generation = name.split()[0]
    early = generation in ("M1", "M2")
    clock = _APPLE_RATES if early else _CLOCKS
    return replace(
        _APPLE,
        name=name,
        cores=cores,
        clock=gigahertz * 1e9,
        bandwidth=bandwidth,
        matrix=_APPLE.matrix if early else LATER_MATRIX,
        read=APPLE_SHARE * bandwidth,
        sources=tuple(dict.fromkeys((_WIKIPEDIA + generation, clock, _APPLE_RATES))),
    )


CHIPS: dict[str, Chip] = {
    chip.name: chip for chip in (_H100, _HOPPER, *(_apple(*one) for one in _APPLE_CHIPS))
}


def apple_with(chip: Chip, cores: int) -> Chip:
    """Return a chip with another number of cores, as its smaller versions have."""
    return replace(chip, cores=cores)
