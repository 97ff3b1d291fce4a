"""The uploads of MetalGraph, plain and cached by key."""

from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex, TypeAlias

from typing_extensions import disjoint_base

from oxibonsai.formats import Format
from oxibonsai.metal._core import Device, _Bytes, _Floats
from oxibonsai.metal._weights import WeightCache, WeightHandle
from oxibonsai.quant import QTensor

_Matrix: TypeAlias = QTensor | _Bytes
_Shape: TypeAlias = Sequence[SupportsIndex]

@disjoint_base
class WeightUploads:
    """What MetalGraph uploads to its device, and caches.

    Attributes
    ----------
    device : Device
        Where it runs.
    weights : WeightCache
        What the get_or_upload methods have cached.
    """
    @property
    def device(self) -> Device:
        """Where it runs."""
    @property
    def weights(self) -> WeightCache:
        """What the get_or_upload methods have cached."""
    def upload_weight(self, data: _Matrix) -> WeightHandle:
        """Upload bytes as they are.

        Parameters
        ----------
        data : QTensor or buffer
            Contiguous bytes, at least one.

        Returns
        -------
        WeightHandle
            A handle that no kernel reads: encode_gemv raises EncodingError and names the right
            upload.

        Raises
        ------
        BufferCreationError
            If `data` is empty, or larger than the device's memory.
        """
    def upload_weight_soa(
        self, data: _Matrix, format: str | Format | None = None, shape: _Shape | None = None
    ) -> WeightHandle:
        """Reformat a weight of any file format for the kernels and upload it.

        Parameters
        ----------
        data : QTensor or buffer
            The matrix, or its bytes as a file holds them.
        format : str or Format, optional
            File format of the bytes, as ``oxibonsai.formats.get`` knows it; a QTensor knows its
            own.
        shape : tuple of int, optional
            (n_rows, k). Without it the weight has the plain layout, and its shape is checked when
            it is used.

        Returns
        -------
        WeightHandle
            The weight, owned by the caller.

        Raises
        ------
        EncodingError
            If the format is unknown, missing or not that of the tensor, or the length is not that
            of the shape or no whole number of blocks.
        """
    def upload_dense_weight(
        self, pieces: Iterable[_Bytes], format: str | Format, shape: _Shape
    ) -> WeightHandle:
        """Upload a dense matrix that comes a few rows at a time.

        Parameters
        ----------
        pieces : iterable of buffers
            The bytes of the matrix, row by row, divided anywhere.
        format : str or Format
            ``F32``, ``F16``, ``BF16`` or ``Q8_0``.
        shape : tuple of int
            (n_rows, k).

        Returns
        -------
        WeightHandle
            The weight, owned by the caller; beside it one piece is in memory at a time.

        Raises
        ------
        EncodingError
            If the format is unknown or coded, `k` does not fill whole blocks, or the pieces have
            more or fewer bytes than `shape` asks for.
        BufferCreationError
            If the device does not have that much memory.
        """
    def upload_q1_weight_soa(self, data: _Matrix, shape: _Shape | None = None) -> WeightHandle:
        """Reformat Q1_0 blocks (18 bytes for 128 weights) and upload them.

        Parameters
        ----------
        data : QTensor or buffer
            A QTensor in Q1_0, or any contiguous bytes.
        shape : tuple of int, optional
            (n_rows, k). Without it the weight has the plain layout, and its shape is checked when
            it is used.

        Returns
        -------
        WeightHandle
            The weight, owned by the caller.

        Raises
        ------
        EncodingError
            If the length is 0, no multiple of 18, or not that of the shape.
        """
    def upload_tq2_weight_soa(self, data: _Matrix, shape: _Shape | None = None) -> WeightHandle:
        """Reformat ternary blocks and upload them.

        Parameters
        ----------
        data : QTensor or buffer
            A QTensor in any 2-bit or ternary format, or contiguous bytes in TQ2_0_g128 (34 bytes
            for 128 weights).
        shape : tuple of int, optional
            (n_rows, k). Without it the weight has the plain layout, and its shape is checked when
            it is used.

        Returns
        -------
        WeightHandle
            The weight, owned by the caller.

        Raises
        ------
        EncodingError
            If the length is 0, no whole number of blocks, or not that of the shape.
        """
    def upload_f32_weight(self, data: _Floats) -> WeightHandle:
        """Upload a float32 vector, such as a norm's weight.

        Parameters
        ----------
        data : float32 [n]
            The vector, contiguous.

        Returns
        -------
        WeightHandle
            A handle of shape (n,), owned by the caller.

        Raises
        ------
        BufferCreationError
            If `data` is empty, or larger than the device's memory.
        """
    def get_or_upload_weight(self, key: SupportsIndex, data: _Matrix) -> WeightHandle:
        """Return the cached raw weight of a key, uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        data : QTensor or buffer
            Contiguous bytes, as upload_weight takes.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If the cached weight has another length than `data`.
        """
    def get_or_upload_weight_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix]
    ) -> WeightHandle:
        """Return the cached raw weight of a key, producing and uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        produce : callable
            Called without arguments on a miss; returns a QTensor or a buffer, as upload_weight
            takes.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If `produce` asks for the same key.

        Notes
        -----
        `produce` runs in one thread, without the cache's lock; others that miss the key wait. If it
        raises, the cache is unchanged.
        """
    def get_or_upload_q1_weight_soa(
        self, key: SupportsIndex, data: _Matrix, shape: _Shape | None = None
    ) -> WeightHandle:
        """Return the cached Q1 weight of a key, uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        data : QTensor or buffer
            A QTensor in Q1_0, or Q1_0 blocks.
        shape : tuple of int, optional
            (n_rows, k), as in upload_q1_weight_soa.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If the cached weight has another length, format or shape than `data`, or `data` cannot
            be uploaded.
        """
    def get_or_upload_q1_weight_soa_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix], shape: _Shape | None = None
    ) -> WeightHandle:
        """Return the cached Q1 weight of a key, producing and uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        produce : callable
            Called without arguments on a miss; returns a QTensor or a buffer, as
            upload_q1_weight_soa takes.
        shape : tuple of int, optional
            (n_rows, k), as in upload_q1_weight_soa.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If what `produce` returns cannot be uploaded, or `produce` asks for the same key.

        Notes
        -----
        `produce` runs in one thread, without the cache's lock; others that miss the key wait. If it
        raises, the cache is unchanged.
        """
    def get_or_upload_tq2_weight_soa(
        self, key: SupportsIndex, data: _Matrix, shape: _Shape | None = None
    ) -> WeightHandle:
        """Return the cached ternary weight of a key, uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        data : QTensor or buffer
            A QTensor in any 2-bit or ternary format, or TQ2_0_g128 blocks.
        shape : tuple of int, optional
            (n_rows, k), as in upload_tq2_weight_soa.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If the cached weight has another length, format or shape than `data`, or `data` cannot
            be uploaded.
        """
    def get_or_upload_tq2_weight_soa_lazy(
        self, key: SupportsIndex, produce: Callable[[], _Matrix], shape: _Shape | None = None
    ) -> WeightHandle:
        """Return the cached ternary weight of a key, producing and uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        produce : callable
            Called without arguments on a miss; returns a QTensor or a buffer, as
            upload_tq2_weight_soa takes.
        shape : tuple of int, optional
            (n_rows, k), as in upload_tq2_weight_soa.

        Returns
        -------
        WeightHandle
            The cached weight, which other callers share.

        Raises
        ------
        EncodingError
            If what `produce` returns cannot be uploaded, or `produce` asks for the same key.

        Notes
        -----
        `produce` runs in one thread, without the cache's lock; others that miss the key wait. If it
        raises, the cache is unchanged.
        """
    def get_or_upload_f32_weight(self, key: SupportsIndex, data: _Floats) -> WeightHandle:
        """Return the cached float32 vector of a key, uploading it on a miss.

        Parameters
        ----------
        key : int
            Unsigned 64-bit integer; each kind of upload has a key space of its own.
        data : float32 [n]
            The vector, contiguous.

        Returns
        -------
        WeightHandle
            The cached vector, which other callers share.

        Raises
        ------
        EncodingError
            If the cached vector has another length than `data`.
        """
