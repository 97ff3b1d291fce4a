"""The C ABI's Python side: errors, devices and the function table for the other modules."""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.number cimport PyNumber_Index
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t

from oxibonsai.metal.oxb cimport (
    OXB_API_CAPSULE,
    OXB_FILE_FORMAT_COUNT,
    OXB_OK,
    oxb_api,
    oxb_device,
    oxb_device_info,
    oxb_device_options,
    oxb_device_stats,
    oxb_file_format,
    oxb_file_format_info,
    oxb_device_format,
    oxb_device_format_info,
    oxb_status,
)

import os
from contextlib import contextmanager
from typing import NamedTuple

from oxibonsai.metal import _errors


cdef extern from "oxb_shim.h" nogil:
    const oxb_api *oxb_api_table()
    const oxb_file_format_info *oxb_file_format_of(oxb_file_format format)
    const oxb_device_format_info *oxb_device_format_of(oxb_device_format format)

api = oxb_api_table()

_C_API = PyCapsule_New(<void *>api, OXB_API_CAPSULE, NULL)

_ENVIRONMENT = "OXIBONSAI_DEVICE"


cdef int _raise(oxb_status status) except -1:
    cdef bytes text = api.last_error()
    raise _errors.BY_CODE[<int>status](text.decode("utf-8", "replace"))


cdef int check(oxb_status status) except -1 nogil:
    # The one translator from status to exception. The message is this thread's, so that it may be read
    # after the GIL was waited for.
    if status != OXB_OK:
        with gil:
            _raise(status)
    return 0


cdef uint64_t count_of(object value, str what) except? 0xffffffffffffffff:
    n = PyNumber_Index(value)
    if not 0 <= n <= 0x7fffffffffffffff:
        raise _errors.EncodingError(f"{what} = {n} must lie in 0..2**63 - 1")
    return n


def format_table():
    """Return the weight formats as tuples (name, id, ggml_type, block_weights, block_bytes,
    scale_offset, device_format, bits, group_size, coded)."""
    cdef const oxb_file_format_info *f
    cdef const oxb_device_format_info *device
    rows = []
    for i in range(<int>OXB_FILE_FORMAT_COUNT):
        f = oxb_file_format_of(<oxb_file_format>i)
        device = oxb_device_format_of(f.device_format)
        rows.append((
            f.name.decode(), i, f.ggml_type, f.block_weights, f.block_bytes, f.scale_offset,
            device.name.decode(), device.bits, device.group_size, bool(device.coded),
        ))
    return rows


@cython.final
cdef class HostBytes:
    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef HostBytes host_bytes(object data, Py_ssize_t itemsize=0):
    # Any C-contiguous exporter, read-only ones too; arrays of a device come in through DLPack.
    # itemsize 0 takes any element.
    cdef HostBytes host = HostBytes()
    if not PyObject_CheckBuffer(data):
        if not hasattr(data, "__dlpack__"):
            raise TypeError(
                f"expected bytes or an array that exports its memory, not {type(data).__name__}"
            )
        import numpy as np
        data = np.from_dlpack(data)
    # Without PyBUF_STRIDES an exporter refuses what is not C-contiguous, in its own words.
    PyObject_GetBuffer(data, &host.view, PyBUF_ND | PyBUF_FORMAT)
    host.held = True
    if host.view.format != NULL and b"O" in <bytes>host.view.format:
        raise TypeError("an array of Python objects holds no bytes of its own: convert it first")
    if itemsize and host.view.itemsize != itemsize:
        raise TypeError(
            f"expected elements of {itemsize} byte{'s' if itemsize > 1 else ''}, got "
            f"{host.view.itemsize} bytes (format {(<bytes>host.view.format).decode()!r})"
        )
    host.address = host.view.buf
    host.nbytes = host.view.len
    host.read_only = host.view.readonly
    return host


class DeviceInfo(NamedTuple):
    """What a device says of itself. Sizes in bytes."""

    name: str
    driver: str
    index: int
    variant: str
    simd_width: int
    unified_memory: bool
    threads: int
    max_buffer_length: int
    max_threadgroup_memory: int
    recommended_working_set: int


class DeviceStats(NamedTuple):
    """What a device holds and does at this moment."""

    buffers: int
    allocated_bytes: int
    in_flight: int
    submissions: int


cdef tuple _parse_name(str name):
    driver, colon, index = name.partition(":")
    if not driver or "\0" in driver or (colon and not index.isdecimal()):
        raise _errors.DeviceNotFoundError(
            f"no device {name!r}: a device is named by a driver, as in 'metal', or 'metal:1' by index"
        )
    return driver, int(index) if colon else 0


cdef int _prepare_cuda() except -1:
    # Where there is a GPU: the driver looks for NVRTC by name, and Python knows the packages.
    cdef uint32_t count = 0
    cdef oxb_status status
    with nogil:
        status = api.device_count("cuda", &count)
    if status == OXB_OK and count > 0:
        from oxibonsai.metal import _nvrtc
        _nvrtc.preload()
    return 0


cdef class Device:
    """A device that runs the kernels: Apple's Metal, an NVIDIA GPU, or the CPU.

    Parameters
    ----------
    name : str, optional
        ``"metal"``, ``"cuda"``, ``"cpu"``, or with an index ``"cuda:1"``. Left out, the environment variable
        ``OXIBONSAI_DEVICE`` names it, else it is the first driver with a device: metal, cuda, cpu.
    threads : int, optional
        Threads of the cpu device, the caller's included. Left out, the environment variable
        ``OXIBONSAI_THREADS``, else the processors this process may run on (on macOS the
        performance cores).
    variant : str, optional
        Which of ``variants("cpu")`` the cpu device runs, such as ``"avx2"``. Left out, the environment
        variable ``OXIBONSAI_CPU_VARIANT``, else the first of them.

    Raises
    ------
    DeviceNotFoundError
        Where there is no such device or variant; the text says which there are.
    ValueError
        Where `threads` is not in 1..1024.
    """

    def __init__(self, name=None, *, threads=None, variant=None):
        cdef oxb_device_options options
        cdef const char *driver_name = NULL
        cdef uint32_t index = 0
        cdef oxb_device_info info
        cdef oxb_device *handle = NULL
        if self.handle:
            raise _errors.EncodingError("this Device is open already: make a new one")
        if name is None:
            name = os.environ.get(_ENVIRONMENT) or None
        elif not isinstance(name, str):
            raise TypeError(f"a device is named by a str, not {type(name).__name__}")
        options.threads = 0
        if threads is not None:
            count = PyNumber_Index(threads)
            if not 1 <= count <= 1024:
                raise ValueError(f"threads = {count}: 1 to 1024 are allowed")
            options.threads = count
        options.variant = NULL
        if variant is not None:
            if not isinstance(variant, str):
                raise TypeError(f"a variant is named by a str, not {type(variant).__name__}")
            encoded_variant = variant.encode()
            options.variant = encoded_variant
        if name is not None:
            driver, number = _parse_name(name)
            if number > 0xffff:
                raise _errors.DeviceNotFoundError(f"no device {name!r}: the index is past 65535")
            encoded = driver.encode()
            driver_name = encoded
            index = number
        if name is None or driver == "cuda":
            _prepare_cuda()
        with nogil:
            check(api.device_open(driver_name, index, &options, &handle))
        self.handle = handle
        api.device_get_info(handle, &info)
        self.driver = info.driver.decode("utf-8", "replace")
        self.index = info.index

    def __dealloc__(self):
        if self.handle:
            with nogil:
                api.device_release(self.handle)

    cdef oxb_device *open_handle(self) except NULL:
        if not self.handle:
            raise _errors.EncodingError("the device is closed: open a new Device")
        return self.handle

    cdef oxb_device *borrow(self) except NULL:
        api.device_retain(self.open_handle())
        return self.handle

    @property
    def closed(self):
        """Whether close() was called."""
        return self.handle == NULL

    def close(self):
        """Let go of the device. What was made from it ends with its own last user; idempotent."""
        cdef oxb_device *handle = self.handle
        self.handle = NULL
        if handle:
            with nogil:
                api.device_release(handle)

    def __enter__(self):
        self.open_handle()
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def info(self):
        """The device's name, limits and the kernels in use, as a DeviceInfo."""
        cdef oxb_device_info i
        api.device_get_info(self.open_handle(), &i)
        return DeviceInfo(
            i.name.decode("utf-8", "replace"), i.driver.decode(), i.index, i.variant.decode(),
            i.simd_width, bool(i.unified_memory), i.threads, i.max_buffer_length,
            i.max_threadgroup_memory, i.recommended_working_set,
        )

    @property
    def name(self):
        """The device's product name."""
        return self.info.name

    @property
    def working_storage(self):
        """The storage for what kernels work on: "private" on a device with memory of its own.

        Shared storage is the host's memory there, which kernels reach over the bus.
        """
        return "shared" if self.info.unified_memory else "private"

    @property
    def stats(self):
        """Live buffers, bytes allocated, submissions in flight and so far, as a DeviceStats."""
        cdef oxb_device_stats s
        api.device_get_stats(self.open_handle(), &s)
        return DeviceStats(s.buffers, s.allocated_bytes, s.in_flight, s.submissions)

    def buffer(self, nbytes, *, storage="shared"):
        """Return a new Buffer of `nbytes` bytes, zeroed. See Buffer."""
        from oxibonsai.metal._buffer import Buffer
        return Buffer(self, nbytes, storage=storage)

    def upload(self, data, *, copy=True, storage="shared"):
        """Return a Buffer with the bytes of `data`. See Buffer.from_data."""
        from oxibonsai.metal._buffer import Buffer
        return Buffer.from_data(self, data, copy=copy, storage=storage)

    def library(self, source):
        """Compile Metal Shading Language `source` (str). See Library."""
        from oxibonsai.metal._pipeline import Library
        return Library(self, source)

    def pipeline(self, function, *, constants=None, library=None):
        """Return the Pipeline of the kernel `function`. See Pipeline."""
        from oxibonsai.metal._pipeline import Pipeline
        return Pipeline(self, function, constants=constants, library=library)

    def commands(self, *, activations="float32"):
        """Return an empty Commands to record into. See Commands."""
        from oxibonsai.metal._commands import Commands
        return Commands(self, activations=activations)

    @contextmanager
    def capture(self, path):
        """Capture what the device does inside the ``with`` block to the file `path`, for Xcode.

        Metal writes a ``.gputrace``, which must not exist yet, and does so only in a process that was
        started with ``METAL_CAPTURE_ENABLED=1``. Wait for the work inside the block.

        Raises
        ------
        EncodingError
            Where the device cannot capture, or not to that path.
        """
        self._capture(os.fsencode(path))
        try:
            yield
        finally:
            self._capture(None)

    def _capture(self, path):
        cdef oxb_device *handle = self.open_handle()
        cdef const char *p
        if path is None:
            with nogil:
                check(api.capture_stop(handle))
            return
        if b"\0" in path:
            raise ValueError(f"embedded null in the path {path!r}")
        p = path
        with nogil:
            check(api.capture_start(handle, p))

    def __repr__(self):
        state = "closed" if self.handle == NULL else repr(self.info.name)
        return f"<Device {self.driver}:{self.index} {state}>"

    def __reduce__(self):
        raise TypeError("a Device cannot be pickled: open it in the process that uses it")


def devices():
    """List every device present, the default first, as DeviceInfo.

    A driver that cannot say how many devices it has counts as having none.
    """
    cdef uint32_t count
    cdef const char *name
    found = []
    for i in range(api.driver_count()):
        name = api.driver_name(i)
        count = 0
        with nogil:
            api.device_count(name, &count)
        for index in range(count):
            try:
                with Device(f"{name.decode()}:{index}") as device:
                    found.append(device.info)
            except _errors.DeviceNotFoundError:
                # Present but refused, such as a GPU of another SIMD width: Device() names the reason.
                continue
    return found


def variants(str driver not None):
    """Return the variants of its kernels that a driver can run here, the best first.

    Those of "cpu" are named after instruction sets; other drivers have none to choose from.
    """
    cdef list found = []
    cdef const char *name
    encoded = driver.encode()
    while True:
        name = api.device_variant(encoded, len(found))
        if name == NULL:
            return tuple(found)
        found.append((<bytes>name).decode())


def load_driver(path):
    """Load a driver from the shared library at `path`; Device() then looks at it first.

    Raises
    ------
    DeviceNotFoundError
        Where the library cannot be loaded, is no driver, or is of another ABI version.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"embedded null in the path {path!r}")
    cdef const char *p = encoded
    with nogil:
        check(api.driver_load(p))
