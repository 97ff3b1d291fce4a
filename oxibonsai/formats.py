"""The weight formats this package reads, and the one look-up of their names.

The table is that of ``shim/include/oxb_formats.h``, written as Python by
``tools/generate_formats.py``, so that this module needs neither the compiled module nor NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from oxibonsai._format_table import ROWS

__all__ = ["BLOCK_FORMATS", "FORMATS", "Format", "argument", "get"]


@dataclass(frozen=True)
class Format:
    """A file format and the device format it becomes: one row of the format table.

    Attributes
    ----------
    name : str
        Canonical name, such as ``"Q1_0"`` or ``"TQ2_0_g128"``.
    id : int
        Number of the file format in the table, which the C functions take.
    ggml_type : int
        Type id in a GGUF file. Not unique: 42 stands for three formats.
    block_weights, block_bytes : int
        Weights and bytes of one block; 1 weight a block in ``F32``, ``F16`` and ``BF16``.
    scale_offset : int
        Byte offset of the half scale ``d`` in a block; 0 where a block has none.
    device_format : str
        Name of the device format, part of the names of its kernels, such as ``"q2_g128"``.
    bits : int
        Bits per weight in the device format, scales aside.
    group_size : int
        Weights that share a scale in the device format; 1 where weights have no scale.
    coded : bool
        True where weights are codes of 1 or 2 bits, stored apart from their scales; False for the
        dense formats ``F32``, ``F16``, ``BF16`` and ``Q8_0``.
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
        """Return the size of a row of `k` weights.

        Parameters
        ----------
        k : int
            Weights in the row, a positive multiple of `block_weights`.

        Returns
        -------
        int
            Bytes of the row's blocks.

        Raises
        ------
        ValueError
            If `k` is not positive or does not fill whole blocks.
        """
        if k <= 0 or k % self.block_weights:
            raise ValueError(
                f"a row of {k} weights does not fill blocks of {self.block_weights} ({self.name}): "
                f"k must be a positive multiple of {self.block_weights}"
            )
        return k // self.block_weights * self.block_bytes


FORMATS: Final[Mapping[str, Format]] = MappingProxyType({row[0]: Format(*row) for row in ROWS})
"""All formats by canonical name, in the order of their ids."""

BLOCK_FORMATS: Final[tuple[str, ...]] = tuple(name for name, f in FORMATS.items() if f.coded)
"""Names of the coded formats: 1-bit and ternary."""

# Names that other projects give to these formats, most of them with the block's length.
_ALIASES: Final = {
    "q1_0_g128": "Q1_0",
    "q2_0_g64": "Q2_0",
    "pq2_0_g128": "PQ2_0",
    "ptq1_0_g128": "PTQ1_0",
    "tq2_0_g256": "TQ2_0",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
}
_BY_KEY: Final = {name.lower(): f for name, f in FORMATS.items()} | {
    alias: FORMATS[name] for alias, name in _ALIASES.items()
}


def get(name: str | Format) -> Format:
    """Return the format called `name`.

    Parameters
    ----------
    name : str or Format
        A canonical name or an alias, such as ``"q1_0_g128"`` for ``Q1_0``, in any case and with
        ``_``, ``-`` or a space between its parts. A Format is returned as it is.

    Returns
    -------
    Format
        The row of the table.

    Raises
    ------
    TypeError
        If `name` is neither a str nor a Format.
    ValueError
        If no format has this name; the message lists the canonical names.
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a format is named by a str, not {type(name).__name__}")
    found = _BY_KEY.get(name.lower().replace("-", "_").replace(" ", "_"))
    if found is None:
        raise ValueError(f"unknown weight format {name!r}: one of {', '.join(FORMATS)}")
    return found


def argument(text: str) -> str:
    """Return the canonical name of the format called `text`, as the ``type`` of an option.

    Parameters
    ----------
    text : str
        A name that `get` knows.

    Returns
    -------
    str
        The canonical name, to be compared with the option's ``choices``.

    Raises
    ------
    argparse.ArgumentTypeError
        If no format has this name, with the message of `get`.
    """
    from argparse import ArgumentTypeError

    try:
        return get(text).name
    except ValueError as e:
        raise ArgumentTypeError(str(e)) from None
