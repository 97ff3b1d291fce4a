"""Instructions of one round of each kernel: counted in compiled code, or by hand for Apple's chips.

Apple publishes no instruction set, so its counts come from the source: what each operation of a
round takes of a SIMD-group, by pipe. "slow" are shifts, extractions of bits, conversions and
integer multiplications, which have a quarter of the rate. A value that several lanes read from
threadgroup memory counts once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from cost.compiled import STORE, Kernel
from cost.estimate import Loop
from cost.formats import CodedFormat

SET_ROWS = {"lookup": 32, "shuffle": 32, "select": 8}
"""Rows of a SIMD-group for each that a variant's name counts: of "lookup-2" 64."""
GROUP_MEMORY = {"lookup": 24_736, "shuffle": 4260, "select": 1188}
"""Bytes of threadgroup memory: tables, activations and sums of 8 SIMD-groups, or sums alone."""
NIBBLES = 32
"""Of a load: each is looked up by itself."""

_HMMA = 16 * 8 * 16
_IMMA = 16 * 8 * 32
# A product of bytes counts as half of one of halves: matrix units have twice the rate for them.
_AS_HALVES = {"HMMA": _HMMA, "IMMA": _IMMA // 2}


@functools.cache
def store() -> dict[str, Any]:
    """Return the counts that were taken of compiled code."""
    found: dict[str, Any] = json.loads(STORE.read_text())
    return found


def is_counted(kernel: Kernel) -> bool:
    """Whether the code of a kernel has been counted."""
    return kernel.key in store()["kernels"]


def from_code(kernel: Kernel) -> Loop:
    """Return the main loop of a compiled kernel."""
    one = store()["kernels"][kernel.key]
    pipes = {name: float(n) for name, n in one["pipes"].items()}
    unit = _AS_HALVES["IMMA" if "slices" in kernel.name else "HMMA"]
    pipes["multiplications"] = pipes.get("mma", 0.0) * unit
    return Loop(pipes, one["registers"], one["group_memory"], store()["source"])


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    names = {name for part in parts for name in part}
    pipes = {name: sum(part.get(name, 0.0) for part in parts) for name in sorted(names)}
    instructions = ("alu", "slow", "shuffle", "memory", "shared")
    return pipes | {"total": sum(pipes.get(name, 0.0) for name in instructions)}


def _times(n: float, pipes: Mapping[str, float]) -> dict[str, float]:
    return {name: n * value for name, value in pipes.items()}


# Of a row and load: the places of codes and scale, the loads, the scale and the running sum.
_ROW = {"slow": 3.0, "alu": 6.0, "memory": 2.0}
_ROUND = {"alu": 12.0, "slow": 2.0}


def _tables(fmt: CodedFormat, shuffled: bool) -> dict[str, float]:
    """Return what the tables of a load take: 512 floats, 16 for each lane."""
    one_bit, activations = fmt.bits == 1, fmt.load_weights / 32
    if shuffled:  # a register holds two tables; activations come from other lanes
        pairs = 4.0 if one_bit else 0.0
        own = {"shuffle": 32.0 + pairs, "alu": 32.0 + pairs}
        return own | {"memory": activations}
    if one_bit:  # an entry and its complement at once; 4 reads of 16 bytes are distinct
        own = {"alu": 8.0 * 5, "shared": 8.0 * 3, "shared_cycles": 8.0 * (0.5 + 2)}
    else:
        own = {"alu": 16.0 * 2, "shared": 16.0 * 2, "shared_cycles": 16.0 * (0.125 + 1)}
    return _sum(own, {"memory": activations, "shared": activations, "shared_cycles": activations})


def on_apple(variant: str, fmt: CodedFormat, rows: int, norm: bool = False) -> Loop:
    """Return a round of a GEMV on Apple's chips: one load of each of its rows.

    Parameters
    ----------
    variant
        One of SET_ROWS.
    fmt
        The format of the weights.
    rows
        As many sets of rows as the variant's name says.
    norm
        Whether the kernel includes the norm of its input.
    """
    weights, memory = fmt.load_weights, GROUP_MEMORY[variant]
    if variant == "select":
        # Four lanes share a row. For 1 bit a mask, a selection of 1 or -1, a multiplication with
        # addition; for 2 bits a mask, the exponent, the level, and the same.
        lane_weights = weights / 4
        each = {"alu": 3.0 if fmt.bits == 1 else 4.0}
        row = _sum(_times(lane_weights, each), {"slow": fmt.bits - 1.0}, _ROW)
        # Activations of the lane, by fours, for all of its rows; with a norm they are multiplied.
        own = {"memory": lane_weights / 4}
        if norm:
            own = {"memory": lane_weights / 2, "alu": 4.0 * lane_weights}
        return Loop(_sum(_times(rows, row), own, _ROUND), 40 + 4 * rows, memory, "by hand")
    shuffled = variant == "shuffle"
    if shuffled:  # of two nibbles: a shift, a mask and the second one's 16, in halves of a word
        look_up = {"slow": 0.5, "alu": 2.0, "shuffle": 1.0}
    else:  # the addition to the address includes a shift
        look_up = {"slow": 1.0, "alu": 2.0, "shared": 1.0, "shared_cycles": 1.0}
    row = _sum(_times(NIBBLES, look_up), _ROW)
    own = {"memory": weights / 32, "alu": 4.0 * weights / 32} if norm else {}
    pipes = _sum(_times(rows, row), _tables(fmt, shuffled), _ROUND, own)
    return Loop(pipes, 48 + 12 * rows, memory, "by hand")


def slices_as_designed(fmt: CodedFormat, tiles: int, norm: bool) -> Loop:
    """Return a round of the GEMV on int8 matrix units where its code is not counted.

    What a load of codes takes for each tile of 16 rows, and what the tiles share: the slices of its
    activations, and the products for their sums.
    """
    each, shared, products = (37.0, 187.0, 4.0) if fmt.bits == 1 else (34.0, 118.0, 2.0)
    prepare = {"alu": 0.6 * shared, "shared": 10.0, "shared_cycles": 10.0, "mma": products}
    own = {"fma": 16.0, "memory": 8.0} if norm else {}
    tile = {"alu": 0.5 * each, "fma": 6.0, "memory": 3.0, "mma": products}
    pipes = _sum(_times(tiles, tile), prepare, own)
    pipes["total"] = each * tiles + shared + sum(own.values())
    pipes["multiplications"] = pipes["mma"] * _AS_HALVES["IMMA"]
    return Loop(pipes, 128, 26_816, "by design")


def halves_on_apple(fmt: CodedFormat, tiles: int, wide: int, halves: int) -> Loop:
    """Return a round of a product on matrix units: a block, 16 TILES rows, 8 WIDE vectors."""
    steps = fmt.load_weights // 16
    pair = {"slow": 1.0, "alu": 1.0} if fmt.bits == 1 else {"slow": 0.5, "alu": 2.0}
    rows = _times(steps * tiles * 4, pair)
    products = steps * tiles * wide * 4 * halves
    sums = {"alu": 4.0 * tiles * wide * (1.0 + halves)}
    loads = {"memory": steps * wide * halves / 2 + tiles * 4.0}
    pipes = _sum(rows, sums, loads, _ROUND)
    pipes["multiplications"] = products * 512.0
    return Loop(pipes, 24 + 8 * tiles * wide * halves, 17_440, "by hand")


def prompt_on_apple(head_dim: int) -> Loop:
    """Return a round of a prompt's attention on matrices of halves: 16 queries, 16 positions."""
    products = 2.0 * 2 * 2 * head_dim / 8
    pipes = _sum({"alu": 150.0, "slow": 24.0, "shuffle": 16.0, "memory": head_dim / 4}, _ROUND)
    pipes["multiplications"] = products * 512.0
    return Loop(pipes, 160, 0, "by hand")


def floats_on_apple(fmt: CodedFormat, eights: int) -> Loop:
    """Return a round of the product on matrices of floats: 16 rows, 8 EIGHTS vectors, 32 elements.

    A threadgroup of four SIMD-groups puts 64 rows of weights and the vectors into threadgroup
    memory, weights of 1 bit as halves.
    """
    products = 4.0 * 2 * eights
    reads = 4.0 * (2 + eights)  # of 8 x 8 floats, 256 bytes
    level = {"alu": 2.0, "slow": 1.0} if fmt.bits == 1 else {"alu": 2.0, "slow": 2.0}
    weights = _sum(_times(16.0, level), {"memory": 2.0, "shared": 2.0})
    weights["shared_cycles"] = 8.0 if fmt.bits == 1 else 16.0
    vectors = {"memory": 2.0 * eights, "shared": 2.0 * eights, "shared_cycles": 2.0 * eights}
    own = {"shared": reads, "shared_cycles": 2.0 * reads, "alu": 2.0 * products / 4}
    pipes = _sum(weights, vectors, own, _ROUND)
    pipes["multiplications"] = products * 512.0
    return Loop(pipes, 48 + 16 * eights, 15_360, "by hand")


def delta_on_apple() -> Loop:
    """Return a token of the delta rule on Apple's chips, for keys of 128 elements.

    A lane has 32 elements of the state: each is multiplied and added to for the key, faded, added
    to, and multiplied and added for the query. A read of 16 bytes is shared by eight lanes.
    """
    reads = 2.0 * 128 / 16
    pipes = {"alu": 4.0 * 32 + 16.0, "shuffle": 4.0, "memory": 1.0}
    pipes |= {"shared": reads + 3.0, "shared_cycles": reads + 3.0}
    return Loop(_sum(pipes), 112, 9280, "by hand")
