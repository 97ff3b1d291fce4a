"""The weight formats this package reads, as Python sees them.

The numbers come from the one table in ``shim/oxb_formats.h``, through the compiled module.
"""

from __future__ import annotations

from dataclasses import dataclass

from oxibonsai.metal import _core

__all__ = ["BLOCK_FORMATS", "FORMATS", "Format", "get"]


@dataclass(frozen=True)
class Format:
    """One row of the format table.

    Attributes
    ----------
    name : str
        Canonical name, such as ``"Q1_0"`` or ``"TQ2_0_g128"``.
    id : int
        Index in the table, the value that the C functions take.
    ggml_type : int
        Type id in a GGUF file. Not unique: 42 has three meanings.
    block_weights, block_bytes : int
        Weights and bytes of one block.
    scale_offset : int
        Byte offset of the half scale ``d`` in a block.
    device_format : str
        Name of the device format, such as ``"q2_g128"``.
    bits, group_size : int
        Bits per weight and weights per scale in the device format.
    coded : bool
        Whether weights are codes of 1 or 2 bits with the scales apart.
    """

    name: str
    id: int
    ggml_type: int
    block_weights: int
    block_bytes: int
    scale_offset: int
    device_format: str
    bits: int
    group_size: int
    coded: bool

    def row_bytes(self, k: int) -> int:
        """Return the bytes of a row of `k` weights; ValueError unless whole blocks fill it."""
        if k <= 0 or k % self.block_weights:
            raise ValueError(
                f"a row of {k} weights does not fill blocks of {self.block_weights} ({self.name}): "
                f"k must be a positive multiple of {self.block_weights}"
            )
        return k // self.block_weights * self.block_bytes


FORMATS: dict[str, Format] = {row[0]: Format(*row) for row in _core.format_table()}
"""All formats by canonical name."""

BLOCK_FORMATS: tuple[str, ...] = tuple(name for name, f in FORMATS.items() if f.coded)
"""Names of the 1-bit and ternary formats."""

_ALIASES = {"q1_0_g128": "Q1_0", "q2_0_g64": "Q2_0"}
_BY_KEY = {name.lower(): f for name, f in FORMATS.items()} | {
    alias: FORMATS[name] for alias, name in _ALIASES.items()
}


def get(name: str | Format) -> Format:
    """Return the format called `name`, in any case, with ``-`` or ``_``; ValueError if unknown."""
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a format is named by a str, not {type(name).__name__}")
    found = _BY_KEY.get(name.lower().replace("-", "_").replace(" ", "_"))
    if found is None:
        raise ValueError(f"unknown format {name!r}: one of {', '.join(FORMATS)}")
    return found
