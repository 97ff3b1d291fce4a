"""Buffers: device memory that Python, NumPy and other libraries can share."""

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import CapsuleType, Self, disjoint_base

from oxibonsai.metal._core import Device, _Bytes, _Storage

_Out = TypeVar("_Out", bound=_Bytes)
_Scalar = TypeVar("_Scalar", bound=np.generic)

@disjoint_base
class Buffer:
    """Memory of a device.

    Shared storage has an address on the host: the Buffer exports it through the buffer protocol
    (one dimension of bytes) and DLPack. Private storage is reached by read(), write() and fill().

    Parameters
    ----------
    device : Device
        Where the memory lives.
    nbytes : int
        Length in bytes, at least 1. The memory starts as zeros.
    storage : {"shared", "private"}
        Whether the host has an address for the memory.

    Attributes
    ----------
    device : Device
        Where the memory lives.
    storage : str
        ``"shared"`` or ``"private"``.
    read_only : bool
        Whether the buffer wraps read-only host memory.

    Raises
    ------
    BufferCreationError
        If the device does not have that much memory; the text says how much there is.

    Notes
    -----
    Any number of threads may use one buffer, but nothing orders the host's reads and writes against
    work in flight: wait for the Commands that use the memory first. Recorded commands keep the
    memory alive after close(). A buffer cannot be closed while an array over its memory exists.
    """
    def __init__(
        self, device: Device, nbytes: SupportsIndex, *, storage: _Storage = "shared"
    ) -> None: ...
    @staticmethod
    def from_data(
        device: Device, data: _Bytes, *, copy: bool = True, storage: _Storage = "shared"
    ) -> Buffer:
        """Make a Buffer from the bytes of `data`.

        Parameters
        ----------
        device : Device
            Where the Buffer lives.
        data : buffer or DLPack exporter
            Any contiguous array or bytes-like object, read-only ones too.
        copy : bool
            False wraps the memory itself, such as an mmapped file: nothing is copied, `data` is
            kept alive as long as the device needs it, and both sides see each other's writes. The
            address must be a multiple of 16.
        storage : {"shared", "private"}
            Storage of the copy; wrapped memory is always shared.

        Returns
        -------
        Buffer
            The new buffer, of the length of `data`.

        Raises
        ------
        BufferCreationError
            If `data` is empty, too large, or cannot be wrapped.
        ValueError
            If `storage` is no storage, or private for wrapped memory.
        """
    @property
    def device(self) -> Device:
        """Where the memory lives."""
    @property
    def storage(self) -> _Storage:
        """``"shared"`` or ``"private"``."""
    @property
    def read_only(self) -> bool:
        """Whether the buffer wraps read-only host memory."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""
    def close(self) -> None:
        """Release the memory; idempotent.

        Work in flight and recorded commands keep it until they end.

        Raises
        ------
        BufferError
            If a memoryview or an array over the memory exists.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def nbytes(self) -> int:
        """Length in bytes."""
    def __len__(self) -> int: ...
    @property
    def address(self) -> int | None:
        """Host address of shared storage, None for private."""
    def read(self, out: _Out, offset: SupportsIndex = 0) -> _Out:
        """Copy bytes of the buffer into an array.

        Parameters
        ----------
        out : writable buffer
            A contiguous array, which is filled.
        offset : int
            Byte of the buffer at which to start.

        Returns
        -------
        writable buffer
            `out`.

        Raises
        ------
        EncodingError
            If the range passes the end of the buffer.
        ValueError
            If `out` is read-only.
        """
    def write(self, data: _Bytes, offset: SupportsIndex = 0) -> None:
        """Copy the bytes of an array into the buffer.

        Parameters
        ----------
        data : buffer or DLPack exporter
            A contiguous array or bytes-like object.
        offset : int
            Byte of the buffer at which to start.

        Raises
        ------
        EncodingError
            If the range passes the end of the buffer, or the buffer wraps read-only memory.
        """
    def fill(
        self,
        value: SupportsIndex = 0,
        offset: SupportsIndex = 0,
        nbytes: SupportsIndex | None = None,
    ) -> None:
        """Set a range of bytes to one value.

        Parameters
        ----------
        value : int
            The byte, 0 to 255.
        offset : int
            Byte of the buffer at which to start.
        nbytes : int, optional
            Length of the range in bytes; up to the end of the buffer if left out.

        Raises
        ------
        EncodingError
            If the range passes the end of the buffer, `value` is no byte, or the buffer wraps
            read-only memory.
        """
    @overload
    def view(
        self,
        dtype: type[np.uint8] = ...,
        shape: int | Sequence[int] | None = None,
        offset: SupportsIndex = 0,
    ) -> NDArray[np.uint8]:
        """Return a NumPy array over the shared memory, without a copy.

        Parameters
        ----------
        dtype : dtype
            Type of the elements.
        shape : int or tuple of int, optional
            Shape of the array; one dimension of all whole elements that fit if left out.
        offset : int
            Byte of the buffer at which the array starts.

        Returns
        -------
        ndarray
            The array. The buffer cannot be closed while it exists.

        Raises
        ------
        EncodingError
            If the array passes the end of the buffer.
        BufferError
            If the storage is private.
        """
    @overload
    def view(
        self,
        dtype: type[_Scalar] | np.dtype[_Scalar],
        shape: int | Sequence[int] | None = None,
        offset: SupportsIndex = 0,
    ) -> NDArray[_Scalar]:
        """Return a NumPy array over the shared memory, without a copy.

        Parameters
        ----------
        dtype : dtype
            Type of the elements.
        shape : int or tuple of int, optional
            Shape of the array; one dimension of all whole elements that fit if left out.
        offset : int
            Byte of the buffer at which the array starts.

        Returns
        -------
        ndarray
            The array. The buffer cannot be closed while it exists.

        Raises
        ------
        EncodingError
            If the array passes the end of the buffer.
        BufferError
            If the storage is private.
        """
    @overload
    def view(
        self,
        dtype: DTypeLike,
        shape: int | Sequence[int] | None = None,
        offset: SupportsIndex = 0,
    ) -> NDArray[Any]:
        """Return a NumPy array over the shared memory, without a copy.

        Parameters
        ----------
        dtype : dtype
            Type of the elements.
        shape : int or tuple of int, optional
            Shape of the array; one dimension of all whole elements that fit if left out.
        offset : int
            Byte of the buffer at which the array starts.

        Returns
        -------
        ndarray
            The array. The buffer cannot be closed while it exists.

        Raises
        ------
        EncodingError
            If the array passes the end of the buffer.
        BufferError
            If the storage is private.
        """
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(self, **kwargs: Any) -> CapsuleType:
        """Export the shared memory through DLPack, as uint8 on the CPU.

        Parameters
        ----------
        **kwargs
            What the array API passes: stream, max_version, dl_device, copy.

        Returns
        -------
        capsule
            A DLPack tensor over the memory, which it keeps alive.

        Raises
        ------
        BufferError
            If the storage is private.
        """
    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the device of the exported memory: the CPU, as it has a host address.

        Returns
        -------
        tuple of int
            DLPack's (device type, index), (1, 0).
        """
