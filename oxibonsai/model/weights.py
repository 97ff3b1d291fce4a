"""Reading weights from a file: which tensors it must have, and their upload."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TypeAlias

import numpy as np

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.metal import Buffer, Commands, MetalGraph, WeightHandle

__all__ = ["Place", "Projection", "WeightLoader", "check_tensors"]

Place: TypeAlias = Buffer | tuple[Buffer, int]
"""A buffer, or a buffer and an offset in bytes."""


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
    ) -> None:
        """Record y = W x for each of n_vectors rows of x.

        With `norm` x is normalised first, as in ``Commands.gemv``.
        """
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
    def handles(self) -> list[WeightHandle]:
        """The handles, in row order."""
        return [handle for handle, _ in self.parts]


def check_tensors(file: GGUFFile, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise GGUFError unless the file has every tensor of `shapes`, in its shape, and no other.

    ``output.weight`` may be missing: the head is the embedding then.
    """
    missing = [name for name in shapes if name not in file.tensors and name != "output.weight"]
    if missing:
        raise GGUFError(
            f"{file.path}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
        )
    for name, info in file.tensors.items():
        if name not in shapes:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has no place in a {architecture} model; leaving it "
                "out would change the result"
            )
        if info.shape != shapes[name]:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has shape {info.shape}, {shapes[name]} is needed"
            )
        if len(info.shape) == 1 and info.format not in ("F32", "F16", "BF16"):
            raise GGUFError(
                f"{file.path}: tensor {name!r} is {info.format}; a vector must be F32, F16 or BF16"
            )


class WeightLoader:
    """Uploads tensors of a file, dropping their pages as soon as they are on the device.

    Parameters
    ----------
    file : GGUFFile
        The file, which check_tensors() has passed.
    graph : MetalGraph
        Where the weights go.
    """

    def __init__(self, file: GGUFFile, graph: MetalGraph) -> None:
        self._file = file
        self._graph = graph
        self._uploaded: list[WeightHandle] = []

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def matrix(self, *names: str) -> WeightHandle:
        """Upload matrices of one format and width as one, their rows one after another."""
        infos = [self._file.tensors[name] for name in names]
        for info in infos[1:]:
            if info.format != infos[0].format:
                raise GGUFError(
                    f"{self._file.path}: {infos[0].name!r} is {infos[0].format} and {info.name!r} "
                    f"is {info.format}; the fused kernel needs one format for both"
                )
        n_rows = sum(info.shape[0] for info in infos)
        handle = self._graph.upload_weight_soa(
            self._file.joined_data(*names),
            format=infos[0].format,
            shape=(n_rows, infos[0].shape[1]),
        )
        return self._keep(handle, names)

    def projection(self, *names: str) -> Projection:
        """Upload matrices over one input: one handle for each run of tensors of one format."""
        parts: list[tuple[WeightHandle, int]] = []
        row = 0
        for _, run in groupby(names, key=lambda name: self._file.tensors[name].format):
            tensors = tuple(run)
            parts.append((self.matrix(*tensors), row))
            row += sum(self._file.tensors[name].shape[0] for name in tensors)
        return Projection(parts)

    def vector(self, *names: str) -> WeightHandle:
        """Upload vectors as one of float32, one after another."""
        values = np.concatenate([_float32(self._file, name) for name in names])
        return self._keep(self._graph.upload_f32_weight(values), names)

    def close(self) -> None:
        """Release everything that was uploaded: loading has failed."""
        for handle in self._uploaded:
            handle.close()

    def _keep(self, handle: WeightHandle, names: tuple[str, ...]) -> WeightHandle:
        self._uploaded.append(handle)
        for name in names:
            self._file.release(name)
        return handle


def _float32(file: GGUFFile, name: str) -> np.ndarray:
    data = file.tensor_data(name)
    match file.tensors[name].format:
        case "F32":
            return np.frombuffer(data, "<f4").astype(np.float32)
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:  # BF16: the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
