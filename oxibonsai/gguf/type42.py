"""Tell the three formats of tensor type 42 apart.

Upstream ggml gives 42 to ``Q2_0`` (64 weights in 18 bytes), legacy Prism files to a ``Q2_0`` of 128
weights in 34 bytes with the scale first (here ``Q2_0_g128``), and OxiBonsai files to
``TQ2_0_g128``, also 34 bytes, with the scale last. No metadata says which, so the tensors must:
first the size of each one's data span, then the scales, which every quantiser writes finite and
not negative. The file is read only where one format fits and the others do not.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from oxibonsai import formats
from oxibonsai.formats import FORMATS, Format
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.types import TYPE_42

__all__ = ["FORMATS_OF_42", "Tensor42", "parse_override", "resolve"]

FORMATS_OF_42: Final[tuple[Format, ...]] = tuple(
    f for f in FORMATS.values() if f.ggml_type == TYPE_42
)
"""The formats that type 42 stands for in files that exist."""

_SAMPLE_BLOCKS: Final = 128
_HELP: Final = "name it: --type42 NAME on the command line, in Python type42=" + " | ".join(
    f'"{f.name}"' for f in FORMATS_OF_42
)


@dataclass(frozen=True)
class Tensor42:
    """A tensor of type 42, before its format is known.

    Attributes
    ----------
    name : str
        The tensor's name.
    k, weights : int
        Weights of a row, and of the tensor.
    offset : int
        First byte of the data, from the start of the file.
    span : int
        Bytes from `offset` to the next tensor or the end of the file.
    alignment : int
        Alignment of tensors in the file, in bytes, which bounds the padding behind one.
    data : buffer
        The file's bytes.
    """

    name: str
    k: int
    weights: int
    offset: int
    span: int
    alignment: int
    data: Any

    def nbytes(self, fmt: Format) -> int:
        """Return the size of the tensor in a format.

        Parameters
        ----------
        fmt : Format
            A format whose blocks fill rows of `k` weights.

        Returns
        -------
        int
            Bytes, without padding.
        """
        return self.weights // fmt.block_weights * fmt.block_bytes


def parse_override(name: str | Format | None) -> Format | None:
    """Return the format that a caller names for type 42.

    Parameters
    ----------
    name : str or Format or None
        A name that ``oxibonsai.formats.get`` knows; None where the file shall tell.

    Returns
    -------
    Format or None
        The format; None for None.

    Raises
    ------
    TypeError
        If `name` is of another type.
    ValueError
        If no format has this name, or it is none of `FORMATS_OF_42`.
    """
    if name is None:
        return None
    if not isinstance(name, (str, Format)):
        raise TypeError(
            f"type42 = {reprlib.repr(name)} is a {type(name).__name__}, not the name of a format"
        )
    found = formats.get(name)
    if found not in FORMATS_OF_42:
        names = ", ".join(f.name for f in FORMATS_OF_42)
        raise ValueError(f"type42={name!r} is not a format of tensor type 42: one of {names}")
    return found


def resolve(tensors: Sequence[Tensor42], path: str, override: Format | None) -> Format:
    """Return the one format of all tensors of type 42 in a model.

    Parameters
    ----------
    tensors : sequence of Tensor42
        All tensors of type 42 in the model, at least one.
    path : str
        The file's name, for error texts.
    override : Format or None
        The format that the caller names. It decides between formats that the spans allow, and
        replaces the check of the scales.

    Returns
    -------
    Format
        One of `FORMATS_OF_42`.

    Raises
    ------
    GGUFError
        If the spans or scales fit no format or several, or the spans contradict `override`.
    """
    allowed = _by_span(tensors, path)
    if override is not None:
        if override not in allowed:
            raise GGUFError(
                f"{path}: type42={override.name!r} contradicts the file: the data spans of its "
                f"{len(tensors)} tensors of type 42 fit only {_names(allowed)}"
            )
        return override
    refuted = {f: why for f in allowed if (why := _refute(f, tensors)) is not None}
    standing = [f for f in allowed if f not in refuted]
    if len(standing) == 1:
        return standing[0]
    if standing:
        raise GGUFError(
            f"{path}: tensor type 42 is ambiguous here: {_names(standing)} all fit the data of "
            f"{len(tensors)} tensors (first {tensors[0].name!r}); {_HELP}"
        )
    why = "; ".join(f"{f.name}: {text}" for f, text in refuted.items())
    raise GGUFError(f"{path}: no format of tensor type 42 fits its scales ({why}); {_HELP}")


def _names(found: Sequence[Format]) -> str:
    return " or ".join(f.name for f in found)


def _by_span(tensors: Sequence[Tensor42], path: str) -> list[Format]:
    """Return the formats whose size agrees with the span of every tensor."""
    allowed = list(FORMATS_OF_42)
    for t in tensors:
        filling = [f for f in FORMATS_OF_42 if t.k % f.block_weights == 0]
        possible = [f for f in filling if t.nbytes(f) <= t.span]
        if not possible:
            least = min(t.nbytes(f) for f in filling)
            raise GGUFError(
                f"{path}: tensor {t.name!r} of type 42 has {t.weights} weights, at least {least} "
                f"bytes, but only {t.span} bytes from byte {t.offset} to the next tensor or the "
                "end of the file"
            )
        # Writers pad to the alignment and no further, so the right size leaves a gap below it; a
        # small tensor can fit both block sizes so. In a file with wider gaps no size does, and only
        # a span that is too small rules a format out.
        exact = [f for f in possible if t.span - t.nbytes(f) < t.alignment]
        here = exact or possible
        remaining = [f for f in allowed if f in here]
        if not remaining:
            raise GGUFError(
                f"{path}: tensor {t.name!r} of type 42 spans {t.span} bytes for {t.weights} "
                f"weights, which fits {_names(here)}, but the tensors before it fit only "
                f"{_names(allowed)}"
            )
        allowed = remaining
    return allowed


def _refute(fmt: Format, tensors: Sequence[Tensor42]) -> str | None:
    """Return why the scales of the first blocks of each tensor rule `fmt` out, or None.

    Reading more blocks could not change which format is chosen: no block of a file in `fmt` rules
    `fmt` out, so a format that is ruled out once is wrong.
    """
    for t in tensors:
        blocks = min(t.weights // fmt.block_weights, _SAMPLE_BLOCKS)
        raw = np.frombuffer(t.data, np.uint8, blocks * fmt.block_bytes, t.offset)
        at = fmt.scale_offset
        scale = raw.reshape(blocks, fmt.block_bytes)[:, at : at + 2].copy().view("<f2")[:, 0]
        bad = np.flatnonzero(~(np.isfinite(scale) & (scale >= 0)))
        if bad.size:
            i = int(bad[0])
            return f"the scale of block {i} of {t.name!r} would be {scale[i]}"
    return None
