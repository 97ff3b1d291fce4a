"""Read GGUF files, trusting nothing in them.

Source: docs/gguf.md in https://github.com/ggml-org/ggml, versions 2 and 3, little-endian. A file
holds a header, metadata, tensor descriptions and the aligned tensor data, which is only mapped.
Every count, length and offset is compared with the file's size before memory is allocated.
"""

from __future__ import annotations

import itertools
import os
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from oxibonsai.formats import CONVERTED, FORMATS, Format
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.missing import explain_piece
from oxibonsai.gguf.part import Part
from oxibonsai.gguf.split import Split, part_path, read_split
from oxibonsai.gguf.tensors import TensorInfo, measure
from oxibonsai.gguf.type42 import parse_override

__all__ = ["GGUFFile", "check_supported", "hadamard_keys"]

_HADAMARD: Final = "prism.hadamard."


class GGUFFile:
    """A GGUF model, mapped read-only: one file, or all parts of one that is split.

    The first part of a split model, ``NAME-00001-of-00003.gguf``, opens those beside it. Opening
    reads the metadata and the tensor descriptions. Tensor data is read only to decide which
    format type 42 stands for, a few kilobytes per tensor. If another process truncates the file
    while it is mapped, access ends this process with SIGBUS, as with any mapping.

    Parameters
    ----------
    path : str or path-like
        The file, or the first part.
    type42 : {"Q2_0", "Q2_0_g128", "TQ2_0_g128"}, optional
        The format that tensor type 42 stands for in this file, for files whose data fit several;
        a name that ``oxibonsai.formats.get`` knows.

    Attributes
    ----------
    path : str
        The path as given.
    paths : tuple of str
        All parts; `path` alone for a single file.
    size : int
        Bytes of all parts.
    version : int
        GGUF version, 2 or 3.
    alignment : int
        Alignment of tensor data in bytes.
    metadata : Metadata
        Mapping of key to value.
    tensors : dict of str to TensorInfo
        All tensors in the file's order, part after part.

    Raises
    ------
    GGUFError
        If the file is not a complete, consistent GGUF, or `type42` contradicts its data; if it is
        another part of a split model than the first, or a part is missing or of another model. The
        message says what to do, also for what is no GGUF at all.
    ValueError
        If `type42` is no format of type 42.
    FileNotFoundError, PermissionError
        From the operating system.
    """

    def __init__(self, path: str | os.PathLike[str], *, type42: str | Format | None = None) -> None:
        self.path = os.fsdecode(path)
        self._parts: list[Part] = []
        self._closed = False
        override = parse_override(type42)
        try:
            first = self._add(self.path)
            self.version, self.metadata, self.alignment = (
                first.version,
                first.metadata,
                first.alignment,
            )
            split = read_split(first.metadata, self.path)
            if split is not None:
                self._add_others(split)
            self.paths = tuple(part.path for part in self._parts)
            self.size = sum(part.size for part in self._parts)
            self.tensors = measure(self._parts, override)
            if split and split.n_tensors not in (None, len(self.tensors)):
                raise GGUFError(
                    f"{self.path}: its {split.count} parts have {len(self.tensors)} tensors, but "
                    f"split.tensors.count is {split.n_tensors}: download the parts again"
                )
        except BaseException as e:
            self.close()
            piece = explain_piece(self.path) if type(e) is GGUFError else None
            if piece is not None:
                raise GGUFError(f"{e}; {piece}") from None
            raise

    def _add(self, path: str) -> Part:
        part = Part(path)
        self._parts.append(part)
        return part

    def _add_others(self, split: Split) -> None:
        """Open the parts behind the first."""
        if split.number:
            first = part_path(self.path, 0, split.count)
            pattern = f"NAME-00001-of-{split.count:05d}.gguf"
            if first is not None and not os.path.exists(first):
                # Nothing of that name is there, so that it is no advice.
                first, pattern = None, f"{pattern}, which has to be beside it under that name"
            raise GGUFError(
                f"{self.path} is part {split.number + 1} of {split.count} of a model: open the "
                f"first part, {first or pattern}, and the others are read with it"
            )
        for number in range(1, split.count):
            path = part_path(self.path, number, split.count)
            if path is None:
                raise GGUFError(
                    f"{self.path} is the first of {split.count} parts of a model; the others are "
                    f"found by its name, which must be NAME-00001-of-{split.count:05d}.gguf"
                )
            try:
                part = self._add(path)
            except FileNotFoundError:
                raise GGUFError(
                    f"part {number + 1} of {split.count} of the model {self.path} is missing: "
                    f"there is no file {path}; all parts must be in one folder"
                ) from None
            other = read_split(part.metadata, path)
            if other is None or (other.number, other.count) != (number, split.count):
                says = f"part {other.number + 1} of {other.count}" if other else "no part"
                raise GGUFError(
                    f"{path} is {says} of a model by its metadata; part {number + 1} of "
                    f"{split.count} of {self.path} is needed"
                )

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed " if self.closed else ""
        return f"<{state}GGUFFile {self.path!r}: {len(self.tensors)} tensors, {self.size} bytes>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give the mapping up; idempotent. Metadata and tensor descriptions stay readable.

        Views from `tensor_data` stay valid: the memory is unmapped when the last of them goes.
        """
        self._closed = True
        for part in self._parts:
            part.close()

    def _place(self, name: str) -> tuple[Part, TensorInfo]:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        try:
            info = self.tensors[name]
        except KeyError:
            raise KeyError(
                f"{self.path} has no tensor {name!r} among its {len(self.tensors)}"
            ) from None
        return self._parts[info.part], info

    def tensor_data(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of a tensor, without a copy.

        Parameters
        ----------
        name : str
            A key of `tensors`.

        Returns
        -------
        ndarray of uint8, shape [nbytes]
            A read-only view of the mapped file.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        part, info = self._place(name)
        return np.frombuffer(part.data, np.uint8, info.nbytes, info.offset)

    def joined_data(self, name: str, *others: str) -> npt.NDArray[np.uint8]:
        """Return the bytes of tensors, one after another.

        Parameters
        ----------
        name, *others : str
            Keys of `tensors`, in the order of the result.

        Returns
        -------
        ndarray of uint8, shape [sum of nbytes]
            Read-only: a view of the mapped file where it holds the tensors in this order without
            gaps, else a copy.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        names = (name, *others)
        infos = [self._place(name)[1] for name in names]
        if all(
            a.part == b.part and a.offset + a.nbytes == b.offset
            for a, b in itertools.pairwise(infos)
        ):
            nbytes = sum(info.nbytes for info in infos)
            data = self._parts[infos[0].part].data
            return np.frombuffer(data, np.uint8, nbytes, infos[0].offset)
        joined = np.concatenate([self.tensor_data(name) for name in names])
        joined.flags.writeable = False
        return joined

    def release(self, name: str) -> None:
        """Drop the pages of a tensor from memory; the next access reads them from the file again.

        Only whole pages inside the tensor are dropped. Does nothing on systems without ``madvise``.

        Parameters
        ----------
        name : str
            A key of `tensors`.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        ValueError
            If the file is closed.
        """
        part, info = self._place(name)
        part.release(info.offset, info.offset + info.nbytes)


def hadamard_keys(file: GGUFFile) -> list[str]:
    """Return the metadata keys that describe how the weights were rotated.

    Parameters
    ----------
    file : GGUFFile
        May be closed.

    Returns
    -------
    list of str
        Keys that start with ``prism.hadamard.``; empty where the weights take their inputs as they
        are.
    """
    return [key for key in file.metadata if key.startswith(_HADAMARD)]


def check_supported(file: GGUFFile, skipped: tuple[str, ...] = ()) -> None:
    """Check that this package can compute with the weights of a file.

    Parameters
    ----------
    file : GGUFFile
        May be closed.
    skipped : tuple of str
        Tensors whose names begin with one of these are not looked at.

    Raises
    ------
    GGUFError
        If a tensor has a type that is neither in ``oxibonsai.formats.FORMATS`` nor in
        ``CONVERTED``.
    """
    for info in file.tensors.values():
        if info.loads_as is None and not info.name.startswith(skipped):
            raise GGUFError(
                f"{file.path}: tensor {info.name!r} has type {info.type_name} "
                f"({info.ggml_type}); supported are {', '.join((*FORMATS, *CONVERTED))}. "
                "llama-quantize gives all matrices another type with --allow-requantize, embedding "
                "and head alone with --token-embedding-type q8_0 --output-tensor-type q8_0"
            )
