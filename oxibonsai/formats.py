"""The weight formats this package reads, and the one look-up of their names.

The table is that of ``shim/include/oxb_formats.h``, written as Python by
``tools/generate_formats.py``, so that this module needs neither the compiled module nor NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from oxibonsai._format_table import ROWS

__all__ = [
    "BLOCK_FORMATS",
    "CONVERTED",
    "FORMATS",
    "ConvertedType",
    "Format",
    "argument",
    "common",
    "file_type",
    "get",
]


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
        return _row_bytes(self, k)


FORMATS: Final[Mapping[str, Format]] = MappingProxyType({row[0]: Format(*row) for row in ROWS})
"""All formats by canonical name, in the order of their ids."""

BLOCK_FORMATS: Final[tuple[str, ...]] = tuple(name for name, f in FORMATS.items() if f.coded)
"""Names of the coded formats: 1-bit and ternary."""


@dataclass(frozen=True)
class ConvertedType:
    """A ggml type without kernels, and the format that it is converted to when it is loaded.

    Attributes
    ----------
    name : str
        The type's name in ggml.
    ggml_type : int
        Type id in a GGUF file.
    block_weights, block_bytes : int
        Weights and bytes of one block.
    becomes : str
        Canonical name of the smallest format that holds every value of the type exactly.
    """

    name: str
    ggml_type: int
    block_weights: int
    block_bytes: int
    becomes: str

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
        return _row_bytes(self, k)


def _row_bytes(blocks: Format | ConvertedType, k: int) -> int:
    if k <= 0 or k % blocks.block_weights:
        raise ValueError(
            f"a row of {k} weights does not fill blocks of {blocks.block_weights} ({blocks.name}): "
            f"k must be a positive multiple of {blocks.block_weights}"
        )
    return k // blocks.block_weights * blocks.block_bytes


CONVERTED: Final[Mapping[str, ConvertedType]] = MappingProxyType(
    {
        row[0]: ConvertedType(*row)
        for row in (
            ("Q4_0", 2, 32, 18, "Q8_0"),
            ("Q4_1", 3, 32, 20, "F32"),
            ("Q5_0", 6, 32, 22, "Q8_0"),
            ("Q5_1", 7, 32, 24, "F32"),
            ("Q2_K", 10, 256, 84, "F32"),
            ("Q3_K", 11, 256, 110, "F32"),
            ("Q4_K", 12, 256, 144, "F32"),
            ("Q5_K", 13, 256, 176, "F32"),
            ("Q6_K", 14, 256, 210, "F32"),
            ("IQ2_XXS", 16, 256, 66, "F32"),
            ("IQ2_XS", 17, 256, 74, "F32"),
            ("IQ3_XXS", 18, 256, 98, "F32"),
            ("IQ1_S", 19, 256, 50, "F32"),
            ("IQ4_NL", 20, 32, 18, "Q8_0"),
            ("IQ3_S", 21, 256, 110, "F32"),
            ("IQ2_S", 22, 256, 82, "F32"),
            ("IQ4_XS", 23, 256, 136, "F32"),
            ("IQ1_M", 29, 256, 56, "F32"),
            ("TQ1_0", 34, 256, 54, "TQ2_0"),
            ("MXFP4", 39, 32, 17, "BF16"),
            ("NVFP4", 40, 64, 36, "BF16"),
        )
    }
)
"""Types that files hold and no kernel reads, by name, in the order of their ids."""

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


def file_type(name: str | Format) -> Format | ConvertedType:
    """Return what a file may hold that is called `name`: a format, or a type that becomes one.

    Parameters
    ----------
    name : str or Format
        What `get` takes, or a key of `CONVERTED` in any case.

    Returns
    -------
    Format or ConvertedType
        The row of its table.

    Raises
    ------
    TypeError
        If `name` is neither a str nor a Format.
    ValueError
        If there is none of this name; the message lists all.
    """
    found = CONVERTED.get(name.upper()) if isinstance(name, str) else None
    if found is not None:
        return found
    try:
        return get(name)
    except ValueError as e:
        raise ValueError(f"{e}, {', '.join(CONVERTED)}") from None


def common(names: Iterable[str]) -> str:
    """Return the smallest format in which matrices of several formats are exact as one matrix.

    Parameters
    ----------
    names : iterable of str
        Canonical names, at least one.

    Returns
    -------
    str
        The format itself where there is one. Else ``PQ2_0`` or ``Q2_0`` for coded formats, by the
        smallest scale group; ``Q8_0`` for coded formats beside ``Q8_0``, whose weights are small
        integers times a half too; ``F32`` for all others.
    """
    found = {get(name) for name in names}
    if len(found) == 1:
        return found.pop().name
    if all(f.coded for f in found):
        return "PQ2_0" if min(f.group_size for f in found) == 128 else "Q2_0"
    if all(f.coded or f.name == "Q8_0" for f in found):
        return "Q8_0"
    return "F32"


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
