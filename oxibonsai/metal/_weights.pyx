"""Weights on a device: the C reformatter, handles and the cache of uploads."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t, uintptr_t

from oxibonsai.metal._buffer cimport buffer_of
from oxibonsai.metal._core cimport Device, HostBytes, api, check, count_of, host_bytes
from oxibonsai.metal.oxb cimport (
    OXB_DEVICE_FORMAT_BF16,
    OXB_DEVICE_FORMAT_COUNT,
    OXB_DEVICE_FORMAT_F16,
    OXB_DEVICE_FORMAT_F32,
    OXB_DEVICE_FORMAT_Q8_0,
    OXB_STORAGE_PRIVATE,
    OXB_STORAGE_SHARED,
    oxb_binding,
    oxb_buffer,
    oxb_device,
    oxb_file_format,
    oxb_storage,
    oxb_weight,
)

import threading

import numpy as np

from oxibonsai import formats
from oxibonsai.metal._errors import BufferCreationError, EncodingError

# Bits of a code -> the MetalGraph method that uploads formats of such codes.
_UPLOADS = {1: "upload_q1_weight_soa", 2: "upload_tq2_weight_soa"}
# Device formats whose plain layout is the file's.
_DENSE = {
    "f32": OXB_DEVICE_FORMAT_F32,
    "f16": OXB_DEVICE_FORMAT_F16,
    "bf16": OXB_DEVICE_FORMAT_BF16,
    "q8_0": OXB_DEVICE_FORMAT_Q8_0,
}


def weight_format(name):
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
    try:
        return formats.get(name)
    except ValueError as e:
        raise EncodingError(str(e)) from None


def upload_for(name):
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
    fmt = weight_format(name)
    return _UPLOADS[fmt.bits] if fmt.coded else "upload_weight_soa"


def reformat(data, format, out=None):
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
    cdef oxb_file_format id = <oxb_file_format><int>weight_format(format).id
    cdef HostBytes source = host_bytes(data)
    cdef HostBytes target
    cdef uint64_t size = 0, codes_offset = 0
    check(api.reformat_size(id, source.nbytes, &size, &codes_offset))
    if out is None:
        out = np.empty(size, np.uint8)
    target = host_bytes(out)
    if target.read_only:
        raise ValueError("cannot reformat into a read-only array")
    if target.nbytes != size:
        raise EncodingError(f"out has {target.nbytes} bytes, the reformatted weight takes {size}")
    cdef uintptr_t a = <uintptr_t>source.address, b = <uintptr_t>target.address
    if a < b + target.nbytes and b < a + source.nbytes:
        raise EncodingError("data and out overlap: the reformatter cannot work in place")
    with nogil:
        check(api.reformat(id, source.address, source.nbytes, <void *>target.address))
    return out, codes_offset


@cython.no_gc_clear
cdef class WeightHandle:
    """WeightHandle()\n--\n
    A weight on a device, as the uploads of MetalGraph return it.

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

    def __init__(self):
        raise TypeError("a WeightHandle is made by the uploads of MetalGraph")

    def __dealloc__(self):
        if self.weight.buffer:
            with nogil:
                api.buffer_release(self.weight.buffer)

    @property
    def nbytes(self):
        """Device memory that the weight takes, in bytes."""
        self._check_open("nbytes")
        return api.buffer_length(self.weight.buffer)

    @property
    def shape(self):
        """Shape of the weight: (n_rows, k), (n,) for a float32 vector, None if it is not known."""
        if self.raw:
            return None
        if self.vector:
            return (self.weight.n_groups,)
        return (self.weight.n_rows, self.weight.k) if self.weight.n_rows else None

    @property
    def device_format(self):
        """Name of the device format, such as ``"q1_g128"``; None for raw bytes."""
        return None if self.raw else formats.FORMATS[self.format].device_format

    @property
    def closed(self):
        """Whether close() was called."""
        return self.weight.buffer == NULL

    def close(self):
        """Release the memory; idempotent.

        Recorded commands and work in flight keep it until they end.
        """
        cdef oxb_buffer *buffer = self.weight.buffer
        self.weight.buffer = NULL
        if buffer:
            with nogil:
                api.buffer_release(buffer)

    def __enter__(self):
        self._check_open("with")
        return self

    def __exit__(self, *exc):
        self.close()

    def _check_open(self, what):
        if not self.weight.buffer:
            raise EncodingError(f"{what}: the weight handle is closed: upload the weight again")
        self.device.open_handle()

    cdef const oxb_weight *matrix(self, str what) except NULL:
        self._check_open(what)
        if self.raw:
            raise EncodingError(
                f"{what}: the handle holds {self.byte_len} raw bytes, and kernels read SoA: upload "
                "the blocks with upload_q1_weight_soa or upload_tq2_weight_soa"
            )
        if self.vector:
            raise EncodingError(
                f"{what}: the handle is a float32 vector of {self.weight.n_groups}: upload a matrix"
            )
        return &self.weight

    cdef oxb_buffer *vector_buffer(self, str what) except NULL:
        self._check_open(what)
        if not self.vector:
            raise EncodingError(f"{what}: expected a float32 vector, got {self!r}")
        return self.weight.buffer

    cdef int borrow(self, str what, oxb_weight *copy) except -1:
        copy[0] = self.matrix(what)[0]
        api.buffer_retain(copy.buffer)
        return 0

    def __repr__(self):
        if not self.weight.buffer:
            return "<WeightHandle closed>"
        return f"<WeightHandle {self.format} {self.shape or ''} of {self.byte_len} bytes>"

    def __reduce__(self):
        raise TypeError("a WeightHandle cannot be pickled: it belongs to a device of this process")


cdef WeightHandle _new_handle(Device device, str format, object byte_len, oxb_weight weight):
    cdef WeightHandle handle = WeightHandle.__new__(WeightHandle)
    handle.device = device
    handle.format = format
    handle.byte_len = byte_len
    handle.weight = weight
    return handle


cdef WeightHandle weight_of(object value, str what):
    if not isinstance(value, WeightHandle):
        raise TypeError(f"{what} must be a WeightHandle, not {type(value).__name__}")
    return <WeightHandle>value


cdef int bind_all(tuple operands, oxb_binding *bindings) except -1:
    # Offsets first: converting one may run code that closes what was bound before it.
    owners = []
    for i, (what, value) in enumerate(operands):
        offset = 0
        if isinstance(value, tuple):
            if len(value) != 2:
                raise TypeError(
                    f"{what} must be a Buffer or (Buffer, offset), not a tuple of {len(value)}"
                )
            value, offset = value
        bindings[i].offset = count_of(offset, f"offset of {what}")
        owners.append(value)
    for i, value in enumerate(owners):
        what = operands[i][0]
        if isinstance(value, WeightHandle):
            bindings[i].buffer = (<WeightHandle>value).vector_buffer(what)
        else:
            bindings[i].buffer = buffer_of(value, what).open_handle()
    return 0


def upload_raw(Device device not None, data):
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
    cdef HostBytes host = host_bytes(data)
    cdef oxb_weight weight
    cdef oxb_buffer *buffer = NULL
    cdef WeightHandle handle
    if host.nbytes == 0:
        raise BufferCreationError("cannot upload an empty weight: the data has 0 bytes")
    cdef oxb_device *borrowed = device.borrow()
    cdef oxb_storage storage = (
        OXB_STORAGE_SHARED if device.working_storage == "shared" else OXB_STORAGE_PRIVATE
    )
    with nogil:
        try:
            check(api.buffer_new(borrowed, host.nbytes, storage, &buffer))
        finally:
            api.device_release(borrowed)
    weight.buffer = buffer
    weight.codes_offset = weight.n_groups = 0
    weight.device_format = OXB_DEVICE_FORMAT_COUNT  # none: no op takes raw bytes
    weight.n_rows = weight.k = weight.layout = 0
    handle = _new_handle(device, "raw", host.nbytes, weight)
    handle.raw = True
    with nogil:
        check(api.buffer_write(buffer, 0, host.address, host.nbytes))
    return handle


def upload_vector(Device device not None, const float[::1] data not None):
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
    cdef WeightHandle handle
    if data.shape[0] == 0:
        raise BufferCreationError("cannot upload an empty weight: the data has 0 elements")
    handle = upload_raw(device, data)
    handle.raw = False
    handle.vector = True
    handle.format = "F32"
    handle.weight.device_format = OXB_DEVICE_FORMAT_F32
    handle.weight.n_groups = data.shape[0]
    return handle


def upload_matrix(Device device not None, data, format, shape=None):
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
    fmt = weight_format(format)
    cdef oxb_file_format id = <oxb_file_format><int>fmt.id
    cdef HostBytes host
    cdef uint64_t n_rows = 0, k = 0
    cdef oxb_weight weight
    if shape is not None:
        n_rows, k = _matrix_shape(shape)
    # Blocks are bytes: an array of floats given here is a weight that was never quantised.
    host = host_bytes(data, 1 if fmt.coded else 0)
    cdef oxb_device *borrowed = device.borrow()
    with nogil:
        try:
            check(api.weight_upload(borrowed, id, host.address, host.nbytes, n_rows, k, &weight))
        finally:
            api.device_release(borrowed)
    return _new_handle(device, fmt.name, host.nbytes, weight)


def upload_dense(Device device not None, pieces, format, shape):
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
    fmt = weight_format(format)
    cdef uint64_t n_rows, k, at = 0, nbytes
    cdef HostBytes host
    cdef oxb_weight weight
    cdef oxb_buffer *buffer = NULL
    cdef WeightHandle handle
    if fmt.coded:
        raise EncodingError(f"{fmt.name} is no dense format: upload it whole, with upload_matrix")
    n_rows, k = _matrix_shape(shape)
    try:
        nbytes = n_rows * fmt.row_bytes(k)
    except ValueError as e:
        raise EncodingError(str(e)) from None
    cdef oxb_device *borrowed = device.borrow()
    cdef oxb_storage storage = (
        OXB_STORAGE_SHARED if device.working_storage == "shared" else OXB_STORAGE_PRIVATE
    )
    with nogil:
        try:
            check(api.buffer_new(borrowed, nbytes, storage, &buffer))
        finally:
            api.device_release(borrowed)
    weight.buffer = buffer
    weight.codes_offset = 0
    weight.n_groups = n_rows * (k // <uint64_t><int>fmt.group_size)
    weight.device_format = _DENSE[fmt.device_format]
    weight.n_rows = <unsigned int>n_rows
    weight.k = <unsigned int>k
    weight.layout = 0
    handle = _new_handle(device, fmt.name, nbytes, weight)
    for piece in pieces:
        host = host_bytes(piece)
        if host.nbytes > nbytes - at:
            raise EncodingError(
                f"a {n_rows} x {k} weight in {fmt.name} takes {nbytes} bytes, the pieces have more"
            )
        with nogil:
            check(api.buffer_write(buffer, at, host.address, host.nbytes))
        at += host.nbytes
    if at != nbytes:
        raise EncodingError(
            f"a {n_rows} x {k} weight in {fmt.name} takes {nbytes} bytes, the pieces have {at}"
        )
    return handle


cdef tuple _matrix_shape(shape):
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise EncodingError(f"shape = {shape!r}: a matrix is (n_rows, k)")
    n_rows, k = (PyNumber_Index(value) for value in shape)
    for name, value in (("n_rows", n_rows), ("k", k)):
        if not 1 <= value <= 0x7fffffff:
            raise EncodingError(f"{name} = {value} must lie in 1..2**31 - 1")
    return n_rows, k


class _Upload:
    """An upload under way: who does it, and the event that ends the others' wait."""

    def __init__(self):
        self.thread = threading.get_ident()
        self.finished = threading.Event()


cdef class WeightCache:
    """WeightCache()\n--\n
    Uploaded weights by (kind of upload, key).

    Notes
    -----
    Any number of threads may use one cache. It holds a reference to each handle: what is evicted is
    freed with its last user.
    """

    # Lock order: `_lock` guards the dicts and is a leaf. It is never held while a producer runs,
    # while bytes are uploaded, or while one thread waits for another's upload.

    def __init__(self):
        self._lock = threading.Lock()
        self._ready = {}
        self._uploading = {}
        self._waiting = {}  # thread -> the upload it waits for

    @staticmethod
    def _key(key):
        number = PyNumber_Index(key)
        if not 0 <= number < 1 << 64:
            raise EncodingError(f"key = {number} must lie in 0..2**64 - 1")
        return number

    def get(self, kind, key, upload):
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
        place = (kind, self._key(key))
        while True:
            with self._lock:
                handle = self._ready.get(place)
                if handle is not None and not handle.closed:
                    return handle, True
                pending = self._uploading.get(place)
                if pending is None:
                    mine = self._uploading[place] = _Upload()
                    break
                self._check_wait(place, pending)
                me = threading.get_ident()
                self._waiting[me] = pending
            try:
                pending.finished.wait()
            finally:
                with self._lock:
                    del self._waiting[me]
        try:
            handle = upload()
        except BaseException:
            with self._lock:
                del self._uploading[place]
            mine.finished.set()
            raise
        with self._lock:
            del self._uploading[place]
            self._ready[place] = handle
        mine.finished.set()
        return handle, False

    def _check_wait(self, place, pending):
        # A circle of threads, each waiting for the next one's upload, would wait for ever.
        while pending is not None:
            if pending.thread == threading.get_ident():
                raise EncodingError(
                    f"the producer of weight {place[1]} ({place[0]}) asks for that weight, itself "
                    "or through another thread's producer: produce it without the cache"
                )
            pending = self._waiting.get(pending.thread)

    def __len__(self):
        return len(self._ready)

    def __contains__(self, place):
        return place in self._ready

    @property
    def nbytes(self):
        """Device memory that the cached weights take, in bytes."""
        with self._lock:
            handles = list(self._ready.values())
        return sum(handle.nbytes for handle in handles if not handle.closed)

    def evict(self, key, kind=None):
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
        number = self._key(key)
        with self._lock:
            places = [p for p in self._ready if p[1] == number and kind in (None, p[0])]
            # Freed with this list, after the lock: freeing may run other code.
            evicted = [self._ready.pop(place) for place in places]
        return len(evicted)

    def clear(self):
        """Forget all weights; their memory is freed with the last user of each handle."""
        with self._lock:
            evicted, self._ready = self._ready, {}
        evicted.clear()

    def __repr__(self):
        return f"<WeightCache of {len(self)} weights, {self.nbytes} bytes>"
