"""Weights on a device: the C reformatter, handles and the cache of uploads."""

from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

from oxibonsai.formats import Format
from oxibonsai.metal._core import Device, _Bytes, _Floats

_Out = TypeVar("_Out", bound=_Bytes)

def weight_format(name: str | Format) -> Format:
    """Return the Format called `name`.

    Parameters
    ----------
    name : str or Format
        A name that ``oxibonsai.formats.get`` knows.

    Returns
    -------
    Format
        The row of the format table.

    Raises
    ------
    EncodingError
        If no format has this name; the text lists those there are.
    TypeError
        If `name` is neither a str nor a Format.
    """

def upload_for(name: str | Format) -> str:
    """Return the name of the MetalGraph method that uploads weights in a format.

    Parameters
    ----------
    name : str or Format
        The file format.

    Returns
    -------
    str
        Name of the method, such as ``"upload_tq2_weight_soa"``.

    Raises
    ------
    EncodingError
        If no format has this name; the text lists those there are.
    """

@overload
def reformat(data: _Bytes, format: str | Format, out: None = None) -> tuple[NDArray[np.uint8], int]:
    """Reformat blocks of a file format to its device format.

    Parameters
    ----------
    data : buffer
        Contiguous bytes, a whole number of blocks; read-only memory is fine.
    format : str or Format
        File format of `data`: a name that ``oxibonsai.formats.get`` knows.
    out : writable buffer, optional
        Where the result goes, of exactly its length; a new uint8 array if left out.

    Returns
    -------
    tuple of (uint8 array, int)
        The bytes, `out` if it was given: float16 scales first, then the codes; and the offset in
        bytes at which the codes start, a multiple of 16. A dense format is copied as it is, and the
        offset is 0.

    Raises
    ------
    EncodingError
        If the format is unknown, the length of `data` is 0 or no whole number of blocks, `out` has
        another length than the result, or the two overlap.
    ValueError
        If `out` is read-only.
    """

@overload
def reformat(data: _Bytes, format: str | Format, out: _Out) -> tuple[_Out, int]:
    """Reformat blocks of a file format to its device format.

    Parameters
    ----------
    data : buffer
        Contiguous bytes, a whole number of blocks; read-only memory is fine.
    format : str or Format
        File format of `data`: a name that ``oxibonsai.formats.get`` knows.
    out : writable buffer, optional
        Where the result goes, of exactly its length; a new uint8 array if left out.

    Returns
    -------
    tuple of (uint8 array, int)
        The bytes, `out` if it was given: float16 scales first, then the codes; and the offset in
        bytes at which the codes start, a multiple of 16. A dense format is copied as it is, and the
        offset is 0.

    Raises
    ------
    EncodingError
        If the format is unknown, the length of `data` is 0 or no whole number of blocks, `out` has
        another length than the result, or the two overlap.
    ValueError
        If `out` is read-only.
    """

@disjoint_base
class WeightHandle:
    """A weight on a device, as the uploads of MetalGraph return it.

    Attributes
    ----------
    device : Device
        Where the weight lives.
    format : str
        File format of the input, such as ``"Q1_0"``; ``"raw"`` for an upload as it is.
    byte_len : int
        Length of the input in bytes.

    Raises
    ------
    TypeError
        If it is called: the uploads of MetalGraph make handles.

    Notes
    -----
    Any number of threads may use one handle. It owns the device memory: close() or the end of the
    last reference frees it, once no recorded commands and no work in flight use it.
    """
    def __init__(self) -> None: ...
    @property
    def device(self) -> Device:
        """Where the weight lives."""
    @property
    def format(self) -> str:
        """File format of the input, such as ``"Q1_0"``; ``"raw"`` for an upload as it is."""
    @property
    def byte_len(self) -> int:
        """Length of the input in bytes."""
    @property
    def nbytes(self) -> int:
        """Device memory that the weight takes, in bytes."""
    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the weight: (n_rows, k), (n,) for a float32 vector, None if it is not known."""
    @property
    def device_format(self) -> str | None:
        """Name of the device format, such as ``"q1_g128"``; None for raw bytes."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""
    def close(self) -> None:
        """Release the memory; idempotent.

        Recorded commands and work in flight keep it until they end.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

def upload_raw(device: Device, data: _Bytes) -> WeightHandle:
    """Upload bytes as they are.

    Parameters
    ----------
    device : Device
        Where the weight will live.
    data : buffer or DLPack exporter
        Contiguous bytes, at least one.

    Returns
    -------
    WeightHandle
        A handle that no kernel reads, of format ``"raw"``.

    Raises
    ------
    BufferCreationError
        If `data` is empty, or larger than the device's memory.
    """

def upload_vector(device: Device, data: _Floats) -> WeightHandle:
    """Upload a float32 vector, such as a norm's weight.

    Parameters
    ----------
    device : Device
        Where the weight will live.
    data : float32 [n]
        The vector, contiguous.

    Returns
    -------
    WeightHandle
        A handle of shape (n,), for the operands of Commands that take a vector.

    Raises
    ------
    BufferCreationError
        If `data` is empty, or larger than the device's memory.
    """

def upload_matrix(
    device: Device,
    data: _Bytes,
    format: str | Format,
    shape: Sequence[SupportsIndex] | None = None,
) -> WeightHandle:
    """Reformat a matrix for the device's kernels and upload it.

    Parameters
    ----------
    device : Device
        Where the weight will live.
    data : buffer or DLPack exporter
        The blocks of the matrix, row by row.
    format : str or Format
        File format of `data`: a name that ``oxibonsai.formats.get`` knows.
    shape : tuple of int, optional
        (n_rows, k). With it the device may choose a layout of its own; without it the weight has
        the plain layout, and its shape is checked when an op is recorded.

    Returns
    -------
    WeightHandle
        The matrix in the device format.

    Raises
    ------
    EncodingError
        If the format is unknown, or the length of `data` is no whole number of blocks or not that
        of `shape`.
    BufferCreationError
        If the device does not have that much memory.
    """

def upload_dense(
    device: Device,
    pieces: Iterable[_Bytes],
    format: str | Format,
    shape: Sequence[SupportsIndex],
) -> WeightHandle:
    """Upload a dense matrix that comes a few rows at a time, into the plain layout.

    Parameters
    ----------
    device : Device
        Where the weight will live.
    pieces : iterable of buffers or DLPack exporters
        The bytes of the matrix, row by row, divided anywhere.
    format : str or Format
        ``F32``, ``F16``, ``BF16`` or ``Q8_0``.
    shape : tuple of int
        (n_rows, k).

    Returns
    -------
    WeightHandle
        The matrix; beside it one piece is in memory at a time.

    Raises
    ------
    EncodingError
        If the format is unknown or coded, `k` does not fill whole blocks, or the pieces have more
        or fewer bytes than `shape` asks for.
    BufferCreationError
        If the device does not have that much memory.
    """

@disjoint_base
class WeightCache:
    """Uploaded weights by (kind of upload, key).

    Notes
    -----
    Any number of threads may use one cache. It holds a reference to each handle: what is evicted is
    freed with its last user.
    """
    def __init__(self) -> None: ...
    def get(
        self, kind: str, key: SupportsIndex, upload: Callable[[], WeightHandle]
    ) -> tuple[WeightHandle, bool]:
        """Return the weight of a key, uploading it on a miss.

        Parameters
        ----------
        kind : str
            Kind of upload; each has a key space of its own.
        key : int
            Unsigned 64-bit integer.
        upload : callable
            Called without arguments on a miss; returns the WeightHandle to keep.

        Returns
        -------
        tuple of (WeightHandle, bool)
            The handle, and whether it was cached.

        Raises
        ------
        EncodingError
            If `key` does not fit 64 bits, or `upload` waits for the same key.

        Notes
        -----
        If several threads miss one key, one runs `upload` without the cache's lock and the others
        wait for it. If it raises, the cache is unchanged and the next thread tries.
        """
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    @property
    def nbytes(self) -> int:
        """Device memory that the cached weights take, in bytes."""
    def evict(self, key: SupportsIndex, kind: str | None = None) -> int:
        """Forget the weights of a key.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer.
        kind : str, optional
            Kind of upload; all kinds if left out.

        Returns
        -------
        int
            How many weights were forgotten. Their memory is freed with the last user of each
            handle.

        Raises
        ------
        EncodingError
            If `key` does not fit 64 bits.
        """
    def clear(self) -> None:
        """Forget all weights; their memory is freed with the last user of each handle."""
