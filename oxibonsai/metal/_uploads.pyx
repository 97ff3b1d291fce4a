"""The uploads of MetalGraph, plain and cached by key."""

cimport cython

from oxibonsai.metal._core cimport host_bytes

from oxibonsai.metal._errors import EncodingError
from oxibonsai.metal._weights import (
    upload_dense,
    upload_for,
    upload_matrix,
    upload_raw,
    upload_vector,
    weight_format,
)


def _split(data, default_format, shape):
    """Return (bytes-like, format, shape) of a QTensor or of plain bytes."""
    from oxibonsai.quant import QTensor
    if not isinstance(data, QTensor):
        return data, default_format, shape
    if shape is not None and tuple(shape) != data.shape:
        raise EncodingError(f"shape = {tuple(shape)}, the tensor is {data.shape}")
    return data.data, data.format, data.shape


@cython.no_gc_clear
cdef class WeightUploads:
    """What MetalGraph uploads to its device, and caches.

    Attributes
    ----------
    device : Device
        Where it runs.
    weights : WeightCache
        What the get_or_upload methods have cached.
    """

    cdef int check_open(self) except -1:
        if self.is_closed or self.device is None:
            raise EncodingError("the graph is closed: make a new MetalGraph")
        self.device.open_handle()
        return 0

    def upload_weight(self, data):
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
        self.check_open()
        return upload_raw(self.device, _split(data, None, None)[0])

    def upload_weight_soa(self, data, format=None, shape=None):
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
        self.check_open()
        data, found, shape = _split(data, format, shape)
        if found is None:
            raise EncodingError("upload_weight_soa: give the format of the bytes")
        if format is not None and weight_format(format).name != weight_format(found).name:
            raise EncodingError(f"upload_weight_soa: the tensor is {found}, not {format}")
        return upload_matrix(self.device, data, found, shape)

    def upload_dense_weight(self, pieces, format, shape):
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
        self.check_open()
        return upload_dense(self.device, pieces, format, shape)

    def upload_q1_weight_soa(self, data, shape=None):
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
        return self._upload_codes("upload_q1_weight_soa", data, "Q1_0", shape)

    def upload_tq2_weight_soa(self, data, shape=None):
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
        return self._upload_codes("upload_tq2_weight_soa", data, "TQ2_0_g128", shape)

    def _upload_codes(self, method, data, default_format, shape):
        self.check_open()
        data, format, shape = _split(data, default_format, shape)
        right = upload_for(format)
        if right != method:
            raise EncodingError(f"{method}: the tensor is {format}: upload it with {right}")
        return upload_matrix(self.device, data, format, shape)

    def _cached(self, kind, key, upload, data=None, shape=None):
        self.check_open()
        handle, hit = self.weights.get(kind, key, upload)
        if hit and data is not None:
            _check_hit(kind, key, handle, data, shape)
        return handle

    def get_or_upload_weight(self, key, data):
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
        return self._cached("raw", key, lambda: self.upload_weight(data), data)

    def get_or_upload_weight_lazy(self, key, produce):
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
        return self._cached("raw", key, lambda: self.upload_weight(produce()))

    def get_or_upload_q1_weight_soa(self, key, data, shape=None):
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
        return self._cached("q1", key, lambda: self.upload_q1_weight_soa(data, shape), data, shape)

    def get_or_upload_q1_weight_soa_lazy(self, key, produce, shape=None):
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
        return self._cached("q1", key, lambda: self.upload_q1_weight_soa(produce(), shape))

    def get_or_upload_tq2_weight_soa(self, key, data, shape=None):
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
        return self._cached(
            "tq2", key, lambda: self.upload_tq2_weight_soa(data, shape), data, shape
        )

    def get_or_upload_tq2_weight_soa_lazy(self, key, produce, shape=None):
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
        return self._cached("tq2", key, lambda: self.upload_tq2_weight_soa(produce(), shape))

    def upload_f32_weight(self, const float[::1] data not None):
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
        self.check_open()
        return upload_vector(self.device, data)

    def get_or_upload_f32_weight(self, key, const float[::1] data not None):
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
        return self._cached("f32", key, lambda: self.upload_f32_weight(data), data)


def _check_hit(kind, key, handle, data, shape):
    data, format, shape = _split(data, None, shape)
    length = host_bytes(data).nbytes
    if length != handle.byte_len:
        raise EncodingError(
            f"weight {key} ({kind}) is cached with {handle.byte_len} bytes, the call gives "
            f"{length}: use another key, or evict() it first"
        )
    if format is not None and format != handle.format:
        raise EncodingError(
            f"weight {key} ({kind}) is cached as {handle.format}, the call gives {format}"
        )
    if shape is not None and tuple(shape) != handle.shape:
        raise EncodingError(
            f"weight {key} ({kind}) is cached as {handle.shape}, the call gives {tuple(shape)}"
        )
