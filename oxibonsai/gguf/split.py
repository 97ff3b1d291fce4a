"""Models in several files: ``NAME-00001-of-00003.gguf`` and those that follow it.

Source: llama_split_path in src/llama.cpp and tools/gguf-split of
https://github.com/ggml-org/llama.cpp. The first part has the model's metadata. Every part has
``split.no`` (from 0) and ``split.count``, and most have ``split.tensors.count``: the tensors of all
parts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.metadata import Metadata

__all__ = ["Split", "part_path", "read_split"]

_NAME: Final = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<suffix>\.gguf)",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Split:
    """What a file says of the parts of its model.

    Attributes
    ----------
    number : int
        Which part it is, from 0.
    count : int
        How many parts there are, at least 2.
    n_tensors : int or None
        Tensors of all parts; None where the file does not say.
    """

    number: int
    count: int
    n_tensors: int | None


def read_split(metadata: Metadata, path: str) -> Split | None:
    """Return what a file says of the parts of its model.

    Parameters
    ----------
    metadata : Metadata
        The file's.
    path : str
        The file's name, for error texts.

    Returns
    -------
    Split or None
        None for a model in one file.

    Raises
    ------
    GGUFError
        For a value that is no count, or a part beyond the last.
    """
    count = _count(metadata, "split.count", path)
    if count is None or count < 2:
        return None
    number = _count(metadata, "split.no", path)
    if number is None or number >= count:
        raise GGUFError(
            f"{path} is one of {count} parts of a model (split.count), but split.no is {number}; "
            f"0 to {count - 1} are parts"
        )
    return Split(number, count, _count(metadata, "split.tensors.count", path))


def _count(metadata: Metadata, key: str, path: str) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GGUFError(f"{path}: {key} is {value!r}; a number of at least 0 is needed")
    return value


def part_path(path: str, number: int, count: int) -> str | None:
    """Return the path of another part of the same model.

    A link may have any name, and the file that it leads to the parts beside it.

    Parameters
    ----------
    path : str
        Path of any part.
    number, count : int
        Which part is wanted, from 0, and how many there are.

    Returns
    -------
    str or None
        Its path in the same folder, or in that of the file that a link leads to; None where the
        name of `path` is not that of one of `count` parts.
    """
    beside = _beside(path, number, count)
    if os.path.islink(path) and not (beside and os.path.exists(beside)):
        behind = _beside(os.path.realpath(path), number, count)
        if behind and (beside is None or os.path.exists(behind)):
            return behind
    return beside


def _beside(path: str, number: int, count: int) -> str | None:
    folder, name = os.path.split(path)
    found = _NAME.fullmatch(name)
    if found is None or int(found["count"]) != count:
        return None
    last = f"{found['stem']}-{number + 1:05d}-of-{count:05d}{found['suffix']}"
    return os.path.join(folder, last)
