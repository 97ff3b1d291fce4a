"""Value types of metadata and type ids of tensors, as the GGUF specification numbers them.

Source: docs/gguf.md and ggml/include/ggml.h of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from oxibonsai.formats import CONVERTED, FORMATS, Format

__all__ = ["TYPE_42", "TensorType", "Typed", "ValueType", "tensor_type"]


class ValueType(enum.IntEnum):
    """Type id of a metadata value."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12

    def __call__(self, value: Any) -> Typed:
        """Return a value with this type, as `write` takes it: ``ValueType.U64(5)``.

        Parameters
        ----------
        value : object
            A scalar, or a list, tuple or 1-D array whose elements have this type.

        Returns
        -------
        Typed
            The value and its type.
        """
        return Typed(self, value)


@dataclass(frozen=True)
class Typed:
    """A metadata value with its type in a file.

    Attributes
    ----------
    type : ValueType
        The type; for an array, that of its elements.
    value : object
        The value.
    """

    type: ValueType
    value: Any


NUMPY_TYPES: Final[dict[ValueType, np.dtype[Any]]] = {
    ValueType.U8: np.dtype("u1"),
    ValueType.I8: np.dtype("i1"),
    ValueType.U16: np.dtype("<u2"),
    ValueType.I16: np.dtype("<i2"),
    ValueType.U32: np.dtype("<u4"),
    ValueType.I32: np.dtype("<i4"),
    ValueType.F32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.U64: np.dtype("<u8"),
    ValueType.I64: np.dtype("<i8"),
    ValueType.F64: np.dtype("<f8"),
}

TYPE_42: Final = 42
"""The type id that stands for three formats: Q2_0, Q2_0_g128 (legacy) and TQ2_0_g128."""


@dataclass(frozen=True)
class TensorType:
    """What the reader knows of a ggml tensor type.

    Attributes
    ----------
    name : str
        The type's name in ggml.
    block_weights, block_bytes : int
        Weights and bytes of one block.
    format : str or None
        Canonical name in ``oxibonsai.formats``; None where no kernel reads the type as it is.
    """

    name: str
    block_weights: int
    block_bytes: int
    format: str | None = None

    @classmethod
    def of(cls, f: Format) -> TensorType:
        """Return the tensor type of one of this package's formats."""
        return cls(f.name, f.block_weights, f.block_bytes, f.name)


# Types whose tensors the reader names and measures, but this package cannot compute with.
_OTHER: Final[dict[int, tuple[str, int, int]]] = {
    9: ("Q8_1", 32, 36),
    15: ("Q8_K", 256, 292),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
}

_TYPES: Final[dict[int, TensorType]] = {
    **{i: TensorType(*row) for i, row in _OTHER.items()},
    **{t.ggml_type: TensorType(t.name, t.block_weights, t.block_bytes) for t in CONVERTED.values()},
    **{f.ggml_type: TensorType.of(f) for f in FORMATS.values() if f.ggml_type != TYPE_42},
}


def tensor_type(ggml_type: int) -> TensorType | None:
    """Return what is known of a tensor type.

    Parameters
    ----------
    ggml_type : int
        Type id in a file.

    Returns
    -------
    TensorType or None
        None for an unknown id, and for 42, which type42.py resolves.
    """
    return _TYPES.get(ggml_type)
