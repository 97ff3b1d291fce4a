"""What tensors a model has: their formats, sizes and places, over all of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oxibonsai.formats import CONVERTED, Format
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.part import Described, Part
from oxibonsai.gguf.type42 import Tensor42, resolve
from oxibonsai.gguf.types import TYPE_42, TensorType, tensor_type

__all__ = ["TensorInfo", "measure"]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file and what it holds.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        Rows first, GGUF's ``ne`` reversed: ``(n_rows, k)`` for a matrix, ``(k,)`` for a vector.
    ggml_type : int
        Type id in the file.
    type_name : str
        Name of the type, for error texts; known for more types than `format`.
    format : str or None
        Canonical name in ``oxibonsai.formats``; None where no kernel reads the type as it is.
    offset : int
        Bytes from the start of the file, or of the part that has it.
    nbytes : int
        Bytes of the data, without padding; for an unknown type id, bytes up to the next tensor.
    part : int
        Which file of a split model has it, from 0; 0 in a single file.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    type_name: str
    format: str | None
    offset: int
    nbytes: int
    part: int = 0

    @property
    def loads_as(self) -> str | None:
        """Format in which it is computed with.

        `format`, or what one of ``oxibonsai.formats.CONVERTED`` becomes; None where this package
        cannot compute with it.
        """
        if self.format is not None:
            return self.format
        converted = CONVERTED.get(self.type_name)
        return converted.becomes if converted else None


def measure(parts: Sequence[Part], override: Format | None) -> dict[str, TensorInfo]:
    """Give every tensor its format and size.

    Parameters
    ----------
    parts : sequence of Part
        The files of a model, in order.
    override : Format or None
        The format that the caller names for type 42.

    Returns
    -------
    dict of str to TensorInfo
        All tensors, in the files' order.

    Raises
    ------
    GGUFError
        If a tensor overlaps another or is cut off, is in two parts, does not fill blocks, or is of
        type 42 and it cannot be told which format that is.
    """
    home: dict[str, Part] = {}
    for part in parts:
        for d in part.described:
            if d.name in home:
                raise GGUFError(
                    f"{part.path}: tensor {d.name!r} is in {home[d.name].path} too; one of the "
                    "parts is of another model"
                )
            home[d.name] = part
    spans = [_spans(part) for part in parts]
    of_42 = [
        Tensor42(d.name, d.ne[0], d.weights, d.offset, span[d.name], part.alignment, part.data)
        for part, span in zip(parts, spans, strict=True)
        for d in part.described
        if d.ggml_type == TYPE_42
    ]
    types = {d.name: _type_of(part, d) for part in parts for d in part.described}
    if of_42:
        found = TensorType.of(resolve(of_42, parts[0].path, override))
        types.update((t.name, found) for t in of_42)
    return {
        name: info
        for i, (part, span) in enumerate(zip(parts, spans, strict=True))
        for name, info in _measure_part(i, part, span, types).items()
    }


def _spans(part: Part) -> dict[str, int]:
    """Return the bytes from each tensor of a file to the next, or to the end."""
    order = sorted(part.described, key=lambda d: d.offset)
    ends = [*(d.offset for d in order[1:]), part.size]
    return {d.name: end - d.offset for d, end in zip(order, ends, strict=False)}


def _type_of(part: Part, d: Described) -> TensorType | None:
    kind = tensor_type(d.ggml_type)
    smallest = 64 if d.ggml_type == TYPE_42 else kind.block_weights if kind else 1
    if d.ne[0] % smallest:
        type_name = kind.name if kind else f"{d.ggml_type}"
        raise GGUFError(
            f"{part.path}: tensor {d.name!r} has rows of {d.ne[0]} weights, which do not fill "
            f"blocks of {smallest} (type {type_name})"
        )
    return kind


def _measure_part(
    number: int, part: Part, span: dict[str, int], types: dict[str, TensorType | None]
) -> dict[str, TensorInfo]:
    # The size of an unknown type is its span, at least 1 so that overlapping tensors are found.
    sizes = {
        d.name: d.weights // t.block_weights * t.block_bytes
        if (t := types[d.name])
        else max(span[d.name], 1)
        for d in part.described
    }
    order = sorted(part.described, key=lambda d: d.offset)
    followed_by = [f"tensor {d.name!r}" for d in order[1:]] + ["the end of the file"]
    for i, (d, limit) in enumerate(zip(order, followed_by, strict=False), 1):
        if sizes[d.name] > span[d.name]:
            why = ": it is cut short, download it again" if i == len(order) else ""
            raise GGUFError(
                f"{part.path}: tensor {d.name!r} needs {sizes[d.name]} bytes from byte {d.offset}, "
                f"but {limit} is at {d.offset + span[d.name]}, {span[d.name]} bytes on{why}"
            )
    return {
        d.name: TensorInfo(
            name=d.name,
            shape=d.ne[::-1],
            ggml_type=d.ggml_type,
            type_name=t.name if (t := types[d.name]) else f"unknown type {d.ggml_type}",
            format=t.format if t else None,
            offset=d.offset,
            nbytes=sizes[d.name],
            part=number,
        )
        for d in part.described
    }
