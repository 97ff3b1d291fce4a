"""Reading weights from a file and their upload, in a format that kernels have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from oxibonsai import formats, quant
from oxibonsai.formats import CONVERTED, FORMATS, Format
from oxibonsai.gguf import GGUFError, GGUFFile, TensorInfo
from oxibonsai.metal import (
    Buffer,
    BufferCreationError,
    Commands,
    MetalGraph,
    Rotation,
    WeightHandle,
)
from oxibonsai.model.rotation import EMBEDDING, HEAD, Rotations

__all__ = [
    "Place",
    "Projection",
    "Turns",
    "WeightLoader",
    "check_memory",
    "factor_name",
    "loaded_bytes",
]

Place: TypeAlias = Buffer | tuple[Buffer, int]
"""A buffer, or a buffer and an offset in bytes."""


class Turns(NamedTuple):
    """Rows of a tensor in which several matrices take turns.

    Attributes
    ----------
    name : str
        The tensor.
    run : int
        Rows of a turn.
    turn, n_turns : int
        Which of the matrices it is, and how many there are.
    """

    name: str
    run: int
    turn: int
    n_turns: int


class Projection:
    """Matrices over one input whose rows stand one after another in the output.

    Tensors of one format are one handle and one GEMV; of several formats, one for each.
    """

    def __init__(self, parts: list[tuple[WeightHandle, int]]) -> None:
        self.parts = parts

    def record(
        self,
        commands: Commands,
        x: Place,
        y: Place,
        *,
        n_vectors: int = 1,
        norm: WeightHandle | None = None,
        eps: float = 1e-6,
        rotation: Rotation | None = None,
        rotated: Place | None = None,
    ) -> None:
        """Record y = W x for each of n_vectors rows of x.

        With `norm` x is normalised first, as in ``Commands.gemv``; with `rotation` it is rotated
        behind that, into `rotated`.
        """
        if rotation is not None:
            assert rotated is not None
            commands.hadamard(
                x,
                rotation.signs,
                rotated,
                self.width,
                block=rotation.block,
                n_vectors=n_vectors,
                norm=norm,
                eps=eps,
                head_size=rotation.head_size,
                n_groups=rotation.n_groups,
            )
            x, norm = rotated, None
        buffer, offset = y if isinstance(y, tuple) else (y, 0)
        for handle, first_row in self.parts:
            commands.gemv(
                handle,
                x,
                (buffer, offset + 4 * first_row),
                n_vectors=n_vectors,
                y_stride=self.n_rows,
                norm=norm,
                eps=eps,
            )

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return sum(handle.shape[0] for handle, _ in self.parts if handle.shape is not None)

    @property
    def width(self) -> int:
        """Elements of the input."""
        shape = self.parts[0][0].shape
        assert shape is not None
        return shape[1]

    @property
    def handles(self) -> list[WeightHandle]:
        """The handles, in row order."""
        return [handle for handle, _ in self.parts]


def factor_name(matrix: str) -> str:
    """Return the name of the tensor with the factor of a matrix, which NVFP4 files have."""
    return matrix.removesuffix(".weight") + ".scale"


def loaded_bytes(file: GGUFFile, skipped: tuple[str, ...] = ()) -> int:
    """Return what the tensors of a file take once they are loaded, padding apart.

    Names that begin with one of `skipped` are not loaded.
    """
    return sum(
        _rows(info)
        * FORMATS["F32" if factor_name(name) in file.tensors else _loads_as(info)].row_bytes(
            info.shape[-1]
        )
        for name, info in file.tensors.items()
        if not name.startswith(skipped)
    )


def check_memory(file: GGUFFile, limit: int, skipped: tuple[str, ...] = ()) -> None:
    """Check that what tensors grow to when they are converted can fit.

    A system that promises more memory than it has would end the process, late and without a word.

    Parameters
    ----------
    file : GGUFFile
        The file.
    limit : int
        Bytes that the device has.
    skipped : tuple of str
        As of loaded_bytes().

    Raises
    ------
    BufferCreationError
        If a file that has types without kernels takes more in memory.
    """
    grown = {
        info.type_name
        for name, info in file.tensors.items()
        if info.type_name in CONVERTED and not name.startswith(skipped)
    }
    nbytes = loaded_bytes(file, skipped)
    if grown and nbytes > limit:
        raise BufferCreationError(
            f"{file.path}: {', '.join(sorted(grown))} have no kernels and are converted when they "
            f"are loaded: the model takes {nbytes / 1e9:.1f} GB then, the device has "
            f"{limit / 1e9:.1f} GB; make a file in Q8_0 or fewer bits: llama-quantize "
            "--allow-requantize IN OUT Q8_0"
        )


class WeightLoader:
    """Uploads tensors of a file, dropping their pages as soon as they are on the device.

    Parameters
    ----------
    file : GGUFFile
        The file, whose tensors are those that the architecture expects.
    graph : MetalGraph
        Where the weights go.
    optional : mapping of str to tuple of int
        Shapes of tensors that the file may lack.
    rotations : Rotations, optional
        How the inputs of matrices are rotated.
    """

    def __init__(
        self,
        file: GGUFFile,
        graph: MetalGraph,
        optional: Mapping[str, tuple[int, ...]],
        rotations: Rotations | None = None,
    ) -> None:
        self._optional = optional
        self._file = file
        self._graph = graph
        self._rotations = rotations
        self._signs: dict[int, WeightHandle] = {}
        self._uploaded: list[WeightHandle] = []

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    @property
    def path(self) -> str:
        """The file, for error texts."""
        return self._file.path

    def matrix(self, *matrices: str | Turns) -> WeightHandle:
        """Upload matrices of one width as one, their rows one after another.

        What no kernel reads, and matrices of several formats, are converted to the smallest format
        that holds all of their values exactly. A matrix with a factor is float32, times it.
        """
        parts = [_Part.of(self._file, matrix) for matrix in matrices]
        names = tuple(part.name for part in parts)
        target = FORMATS[formats.common(map(self._runs_as, names))]
        shape = (sum(part.n_rows for part in parts), parts[0].info.shape[-1])
        unchanged = all(part.info.format == target.name for part in parts)
        if unchanged and all(self._factor(name) == 1 for name in names):
            if any(part.turns for part in parts):
                data = np.concatenate([part.data(self._file) for part in parts])
            else:
                data = self._file.joined_data(*names)
            handle = self._graph.upload_weight_soa(data, format=target, shape=shape)
        elif target.coded:
            # Codes are small, and devices have layouts of their own for whole matrices of them.
            data = np.concatenate([*self._rewritten(parts, target)])
            handle = self._graph.upload_weight_soa(data, format=target, shape=shape)
        else:
            pieces = self._rewritten(parts, target)
            handle = self._graph.upload_dense_weight(pieces, target, shape)
        return self._keep(handle, names)

    def projection(self, *matrices: str | Turns) -> Projection:
        """Upload matrices over one input: one handle for each run of tensors of one format."""
        parts: list[tuple[WeightHandle, int]] = []
        row = 0
        for _, run in groupby(matrices, key=lambda x: self._runs_as(_name_of(x))):
            found = tuple(run)
            parts.append((self.matrix(*found), row))
            row += sum(_Part.of(self._file, matrix).n_rows for matrix in found)
        return Projection(parts)

    def floats(self, name: str) -> WeightHandle:
        """Upload a matrix of any format as float32, row by row: for ops that take it as numbers."""
        pieces = list(self._rewritten([_Part.of(self._file, name)], FORMATS["F32"]))
        values = np.concatenate([piece.reshape(-1) for piece in pieces]).view("<f4")
        return self._keep(self._graph.upload_f32_weight(values.astype(np.float32)), (name,))

    def values(self, name: str) -> npt.NDArray[np.float32]:
        """Return the numbers of a vector."""
        return _float32(self._file, name)

    def vector(self, *names: str) -> WeightHandle:
        """Upload vectors as one of float32, one after another."""
        values = np.concatenate([_float32(self._file, name) for name in names])
        return self._keep(self._graph.upload_f32_weight(values), names)

    def bias(self, *names: str) -> WeightHandle | None:
        """Upload optional vectors as one of float32, zeros for those that the file does not have.

        None where all of them are zero: there is nothing to add then.
        """
        found = tuple(name for name in names if name in self)
        values = np.concatenate(
            [
                _float32(self._file, name)
                if name in self
                else np.zeros(self._optional[name], np.float32)
                for name in names
            ]
        )
        for name in found:
            self._file.release(name)
        return self._keep(self._graph.upload_f32_weight(values), found) if values.any() else None

    def rotation(self, *names: str, head_size: int = 0, n_groups: int = 1) -> Rotation | None:
        """Return how the input that matrices share is rotated, or None where it is not.

        Of the names those count that the file has. `head_size` and `n_groups` are of the order of
        its heads, as in ``metal.Rotation``.
        """
        r = self._rotations
        rotated = [name for name in names if r is not None and name in r.weights]
        if not rotated:
            return None
        return self._rotation_of(rotated[0], head_size, n_groups)

    def embedding_rotation(self) -> Rotation | None:
        """Return the rotation of the embedding's rows, or None."""
        r = self._rotations
        return self._rotation_of(EMBEDDING) if r is not None and r.embedding else None

    def head_rotation(self) -> Rotation | None:
        """Return the rotation of the head's input, or None."""
        r = self._rotations
        if r is None or not r.head:
            return None
        return self._rotation_of(EMBEDDING if r.tied_output else HEAD)

    @property
    def signs(self) -> list[WeightHandle]:
        """The signs of all rotations."""
        return list(self._signs.values())

    def close(self) -> None:
        """Release everything that was uploaded: loading has failed."""
        for handle in self._uploaded:
            handle.close()

    def _rotation_of(self, name: str, head_size: int = 0, n_groups: int = 1) -> Rotation:
        assert self._rotations is not None
        width = self._file.tensors[name].shape[-1]
        if width not in self._signs:
            signs = self._graph.upload_f32_weight(self._rotations.signs_of(width))
            self._signs[width] = self._keep(signs, ())
        return Rotation(self._signs[width], self._rotations.block_size, head_size, n_groups)

    def _rewritten(self, parts: Sequence[_Part], target: Format) -> Iterator[npt.NDArray[np.uint8]]:
        """Return the rows of matrices in a format, a few at a time, and drop what was read."""
        for part in parts:
            info = part.info
            source = FORMATS[info.format] if info.format else CONVERTED[info.type_name]
            data = part.data(self._file)
            factor = self._factor(info.name)
            for piece in quant.rewritten(data, (part.n_rows, info.shape[-1]), source, target):
                if factor != 1:
                    values = piece.view("<f4")
                    values *= factor
                yield piece
            self._file.release(info.name)

    def _runs_as(self, name: str) -> str:
        return "F32" if self._factor(name) != 1 else _loads_as(self._file.tensors[name])

    def _factor(self, name: str) -> np.float32:
        """Return what a matrix is multiplied with, by the tensor of its name that ends in scale."""
        factor = factor_name(name)
        if factor not in self:
            return np.float32(1)
        value: np.float32 = _float32(self._file, factor)[0]
        if not np.isfinite(value):
            raise GGUFError(f"{self._file.path}: {factor!r} is {value}; it must be finite")
        return value

    def _keep(self, handle: WeightHandle, names: tuple[str, ...]) -> WeightHandle:
        self._uploaded.append(handle)
        for name in names:
            self._file.release(name)
        return handle


@dataclass(frozen=True)
class _Part:
    """A matrix in a file: a tensor, or the rows of one that are one matrix's turns."""

    info: TensorInfo
    turns: Turns | None

    @classmethod
    def of(cls, file: GGUFFile, matrix: str | Turns) -> _Part:
        turns = matrix if isinstance(matrix, Turns) else None
        return cls(file.tensors[_name_of(matrix)], turns)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def n_rows(self) -> int:
        return _rows(self.info) // (1 if self.turns is None else self.turns.n_turns)

    def data(self, file: GGUFFile) -> npt.NDArray[np.uint8]:
        """Return the bytes of the rows; a row is whole blocks in every format."""
        whole = file.tensor_data(self.name)
        if self.turns is None:
            return whole
        t = self.turns
        runs = whole.reshape(-1, t.n_turns, t.run * (whole.size // _rows(self.info)))
        return runs[:, t.turn].reshape(-1)


def _name_of(matrix: str | Turns) -> str:
    return matrix.name if isinstance(matrix, Turns) else matrix


def _rows(info: TensorInfo) -> int:
    return math.prod(info.shape[:-1])


def _loads_as(info: TensorInfo) -> str:
    if info.loads_as is None:
        raise GGUFError(f"tensor {info.name!r} has type {info.type_name}, which is not computed")
    return info.loads_as


def _float32(file: GGUFFile, name: str) -> np.ndarray:
    data = file.tensor_data(name)
    match file.tensors[name].format:
        case "F32":
            return np.frombuffer(data, "<f4").astype(np.float32)
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:  # BF16: the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
