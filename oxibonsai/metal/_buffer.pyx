"""Buffers: device memory that Python, NumPy and other libraries can share."""

from cpython.buffer cimport PyBUF_WRITABLE
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t

from oxibonsai.metal._core cimport Device, HostBytes, api, check, count_of, host_bytes
from oxibonsai.metal._owners cimport drain_owners, hold_owner, release_owner
from oxibonsai.metal.oxb cimport (
    OXB_OK,
    OXB_STORAGE_PRIVATE,
    OXB_STORAGE_SHARED,
    oxb_buffer,
    oxb_device,
    oxb_status,
    oxb_storage,
)

import numpy as np

from oxibonsai.metal._errors import BufferCreationError, EncodingError


cdef class Buffer:
    """Buffer(device, nbytes, *, storage='shared')\n--\n
    Memory of a device.

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

    def __cinit__(self, Device device not None, *args, **kwargs):
        self.device = device

    def __init__(self, Device device not None, nbytes, *, storage="shared"):
        cdef oxb_storage where = self._storage(storage)
        cdef uint64_t length = nbytes_checked(nbytes)
        cdef oxb_buffer *handle = NULL
        drain_owners()  # which may free memory
        if self.handle:
            raise EncodingError("this Buffer is made already: make a new one")
        cdef oxb_device *borrowed = device.borrow()
        with nogil:
            try:
                check(api.buffer_new(borrowed, length, where, &handle))
            finally:
                api.device_release(borrowed)
        self.handle = handle
        self.storage = storage
        self.strides[0] = 1

    def __dealloc__(self):
        if self.handle:
            with nogil:
                api.buffer_release(self.handle)
            drain_owners()

    @staticmethod
    def _storage(storage):
        if storage == "shared":
            return OXB_STORAGE_SHARED
        if storage == "private":
            return OXB_STORAGE_PRIVATE
        raise ValueError(f"storage = {storage!r}: 'shared' or 'private'")

    @staticmethod
    def from_data(Device device not None, data, *, copy=True, storage="shared"):
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
        cdef HostBytes host = host_bytes(data)
        cdef oxb_buffer *handle = NULL
        cdef Buffer buffer
        if host.nbytes == 0:
            raise BufferCreationError("cannot make a buffer of 0 bytes: the data is empty")
        if copy:
            buffer = Buffer(device, host.nbytes, storage=storage)
            with nogil:
                check(api.buffer_write(buffer.handle, 0, host.address, host.nbytes))
            return buffer
        if storage != "shared":
            raise ValueError(f"storage = {storage!r}: memory wrapped without a copy is 'shared'")
        buffer = Buffer.__new__(Buffer, device)
        device.open_handle()  # an open one, before anything is held
        cdef void *held = hold_owner(host)
        cdef oxb_device *borrowed = device.borrow()
        cdef oxb_status status
        with nogil:
            status = api.buffer_wrap(borrowed, <void *>host.address, host.nbytes, host.read_only,
                                     release_owner, held, &handle)
            if status != OXB_OK:
                release_owner(held)
            api.device_release(borrowed)
        try:
            check(status)
        finally:
            drain_owners()
        buffer.handle = handle
        buffer.storage = storage
        buffer.read_only = host.read_only
        buffer.strides[0] = 1
        return buffer

    cdef oxb_buffer *open_handle(self) except NULL:
        if not self.handle:
            raise EncodingError("the buffer is closed: make a new one")
        self.device.open_handle()
        return self.handle

    @property
    def closed(self):
        """Whether close() was called."""
        return self.handle == NULL

    def close(self):
        """Release the memory; idempotent.

        Work in flight and recorded commands keep it until they end.

        Raises
        ------
        BufferError
            If a memoryview or an array over the memory exists.
        """
        cdef oxb_buffer *handle = self.handle
        if not handle:
            return
        if self.exports:
            raise BufferError(
                f"cannot close a buffer with {self.exports} exported view"
                f"{'s' if self.exports > 1 else ''}: release the arrays over it first"
            )
        self.handle = NULL
        with nogil:
            api.buffer_release(handle)
        drain_owners()

    def __enter__(self):
        self.open_handle()
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def nbytes(self):
        """Length in bytes."""
        return api.buffer_length(self.open_handle())

    def __len__(self):
        return api.buffer_length(self.open_handle())

    @property
    def address(self):
        """Host address of shared storage, None for private."""
        cdef void *contents = api.buffer_contents(self.open_handle())
        return <size_t>contents if contents else None

    def read(self, out, offset=0):
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
        cdef uint64_t start = count_of(offset, "offset")
        cdef HostBytes host = host_bytes(out)
        if host.read_only:
            raise ValueError("cannot read into a read-only array")
        cdef oxb_buffer *handle = self.open_handle()
        api.buffer_retain(handle)
        try:
            with nogil:
                check(api.buffer_read(handle, start, <void *>host.address, host.nbytes))
        finally:
            api.buffer_release(handle)
        return out

    def write(self, data, offset=0):
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
        cdef uint64_t start = count_of(offset, "offset")
        cdef HostBytes host = host_bytes(data)
        cdef oxb_buffer *handle = self.open_handle()
        api.buffer_retain(handle)
        try:
            with nogil:
                check(api.buffer_write(handle, start, host.address, host.nbytes))
        finally:
            api.buffer_release(handle)

    def fill(self, value=0, offset=0, nbytes=None):
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
        cdef uint64_t start = count_of(offset, "offset"), total, count = 0
        if nbytes is not None:
            count = count_of(nbytes, "nbytes")
        byte = PyNumber_Index(value)
        if not 0 <= byte <= 255:
            raise EncodingError(f"cannot fill with {byte}: a byte is 0 to 255")
        cdef unsigned char c = byte
        cdef oxb_buffer *handle = self.open_handle()
        if nbytes is None:
            total = api.buffer_length(handle)
            count = total - start if start < total else 0
        api.buffer_retain(handle)
        try:
            with nogil:
                check(api.buffer_fill(handle, start, count, c))
        finally:
            api.buffer_release(handle)

    def view(self, dtype=np.uint8, shape=None, offset=0):
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
        dtype = np.dtype(dtype)
        start = count_of(offset, "offset")
        if shape is None:
            shape = (max(len(self) - start, 0) // dtype.itemsize,)
        count = int(np.prod(shape, dtype=np.int64)) if np.ndim(shape) else int(shape)
        if start + count * dtype.itemsize > len(self):
            raise EncodingError(
                f"{count} elements of {dtype} at byte {start} need "
                f"{start + count * dtype.itemsize} bytes, the buffer has {len(self)}"
            )
        return np.frombuffer(self, dtype, count, start).reshape(shape)

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef oxb_buffer *handle = self.open_handle()
        cdef void *contents = api.buffer_contents(handle)
        if not contents:
            raise BufferError("private storage has no host address: use read() and write()")
        if flags & PyBUF_WRITABLE and self.read_only:
            raise BufferError("the buffer wraps read-only memory")
        self.shape[0] = api.buffer_length(handle)
        view.buf = contents
        view.obj = self
        view.len = self.shape[0]
        view.itemsize = 1
        view.readonly = self.read_only
        view.format = b"B"
        view.ndim = 1
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    def __dlpack__(self, **kwargs):
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
        return np.frombuffer(self, np.uint8).__dlpack__(**kwargs)

    def __dlpack_device__(self):
        """Return the device of the exported memory: the CPU, as it has a host address.

        Returns
        -------
        tuple of int
            DLPack's (device type, index), (1, 0).
        """
        return (1, 0)

    def __repr__(self):
        if not self.handle:
            return "<Buffer closed>"
        kind = f"{self.storage}{', read-only' if self.read_only else ''}"
        nbytes = api.buffer_length(self.handle)
        return f"<Buffer of {nbytes} bytes, {kind}, on {self.device.driver}>"

    def __reduce__(self):
        raise TypeError(
            "a Buffer cannot be pickled: its memory belongs to a device of this process"
        )


cdef uint64_t nbytes_checked(object value) except? 0:
    n = PyNumber_Index(value)
    if not 1 <= n <= 0x7fffffffffffffff:
        raise BufferCreationError(f"cannot make a buffer of {n} bytes: 1 to 2**63 - 1 are allowed")
    return n


cdef Buffer buffer_of(object value, str what):
    if not isinstance(value, Buffer):
        raise TypeError(f"{what} must be a Buffer, not {type(value).__name__}")
    return <Buffer>value
