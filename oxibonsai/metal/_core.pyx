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

from oxibonsai.metal._owners cimport drain_owners, stop_asking
from oxibonsai.metal.oxb cimport (
    OXB_API_CAPSULE,
    OXB_FILE_FORMAT_COUNT,
    OXB_MAX_PRODUCT_COUNT,
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
    OXB_DEVICE_FORMAT_COUNT,
    oxb_product,
    oxb_status,
)

import atexit
import os
import threading
from contextlib import contextmanager, suppress
from typing import NamedTuple

from oxibonsai.metal import _errors


cdef extern from "oxb_shim.h" nogil:
    enum: OXB_MAX_VARIANTS  # as a size of an array
    const oxb_api *oxb_api_table()
    bint oxb_wait_all(double timeout)
    const oxb_file_format_info *oxb_file_format_of(oxb_file_format format)
    const oxb_device_format_info *oxb_device_format_of(oxb_device_format format)

api = oxb_api_table()

_C_API = PyCapsule_New(<void *>api, OXB_API_CAPSULE, NULL)

_ENVIRONMENT = "OXIBONSAI_DEVICE"


# The end of the process. Work in flight is waited for, so that the device's threads are at rest
# when libraries take themselves down; what does not end in time is left to the system. Nothing is
# closed: finalisers and other exit functions still use devices.

cdef extern from "Python.h":
    int Py_AtExit(void (*call)() noexcept)

cdef double EXIT_SECONDS = 2  # the longest wait, once before the interpreter ends and once after


cdef void _after_the_interpreter() noexcept nogil:
    # For what finalisers submitted, and threads that no longer need the interpreter.
    oxb_wait_all(EXIT_SECONDS)


def _at_exit():
    stop_asking()
    with nogil:
        oxb_wait_all(EXIT_SECONDS)
    drain_owners()


atexit.register(_at_exit)
Py_AtExit(_after_the_interpreter)


cdef int _raise(oxb_status status) except -1:
    cdef bytes text = api.last_error()
    raise _errors.BY_CODE[<int>status](text.decode("utf-8", "replace"))


cdef int check(oxb_status status) except -1 nogil:
    # The one translator from status to exception. The message is this thread's, so that it may be
    # read after the GIL was waited for.
    if status != OXB_OK:
        with gil:
            _raise(status)
    return 0


cdef uint64_t count_of(object value, str what) except? 0xffffffffffffffff:
    n = PyNumber_Index(value)
    if not 0 <= n <= 0x7fffffffffffffff:
        raise _errors.EncodingError(f"{what} = {n} must lie in 0..2**63 - 1")
    return n


cdef uint32_t u32_of(object value, str what) except? 0xffffffff:
    n = PyNumber_Index(value)
    if not 0 <= n <= 0xffffffff:
        raise _errors.EncodingError(f"{what} = {n} must fit 32 bits")
    return n


def format_table():
    """Return the C table of weight formats.

    Returns
    -------
    list of tuple
        (name, id, ggml_type, block_weights, block_bytes, scale_offset, device_format, bits,
        group_size, coded) for each file format, as the fields of ``oxibonsai.formats.Format``.
    """
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
    """A contiguous view of host memory, held through the buffer protocol until it is freed."""

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
    """What a device is and what its limits are.

    Attributes
    ----------
    name : str
        Product name.
    driver : str
        ``"metal"``, ``"cuda"``, ``"cpu"``, or the name of a loaded driver.
    index : int
        Number of the device among those of its driver.
    variant : str
        Variant of the kernels in use, such as ``"avx2"``.
    simd_width : int
        Lanes of a SIMD-group.
    unified_memory : bool
        Whether kernels reach shared storage as fast as private storage.
    threads : int
        Threads of the cpu device, the caller's included; 0 on other devices.
    max_buffer_length : int
        Largest buffer, in bytes.
    max_threadgroup_memory : int
        Largest threadgroup memory, in bytes.
    recommended_working_set : int
        Memory that the buffers in use should not exceed together, in bytes.
    compiler : str
        What compiles kernels for it at run time, with versions, such as
        ``"CUDA 13.0, NVRTC 12.9"``; empty where the system or the package's build does.
    """

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
    compiler: str


class RefusedDevice(NamedTuple):
    """A device that is present and cannot be used.

    Attributes
    ----------
    driver : str
        Name of the driver.
    index : int
        Number of the device among those of its driver.
    reason : str
        What opening it raises, which names what the device lacks.
    """

    driver: str
    index: int
    reason: str


class FoundDevices(NamedTuple):
    """The devices of this machine.

    Attributes
    ----------
    usable : list of DeviceInfo
        Those that can be opened, the default first.
    refused : list of RefusedDevice
        Those that cannot, in the order of the drivers.
    """

    usable: list[DeviceInfo]
    refused: list[RefusedDevice]


class DeviceStats(NamedTuple):
    """What a device holds and does at this moment.

    Attributes
    ----------
    buffers : int
        Live buffers.
    allocated_bytes : int
        Bytes the device allocated for them; wrapped host memory is not counted.
    in_flight : int
        Submissions that have not finished.
    submissions : int
        Submissions since the device was opened.
    work_per_second : float
        Multiply-adds a second that finished submissions took; 0.0 where the device's driver
        measures none, and before the first.
    """

    buffers: int
    allocated_bytes: int
    in_flight: int
    submissions: int
    work_per_second: float


class ChosenVariant(NamedTuple):
    """A kernel that a device takes for a product: one that was chosen, or that was recorded.

    The order is that of ``Device.choose_variant``, which takes one as ``*chosen``.

    Attributes
    ----------
    op : str
        Name of the op, such as ``"gemv"``.
    device_format : str
        Format of the matrix on the device, such as ``"q1_g128"``.
    n_rows : int
        Rows of the matrix; those of gate and up together for SwiGLU.
    k : int
        Columns of the matrix.
    name : str
        The variant, one of ``Device.kernel_variants(...)``.
    n_vectors : int
        The most vectors that it holds for: a power of two. It does not hold for half as many.
    """

    op: str
    device_format: str
    n_rows: int
    k: int
    name: str
    n_vectors: int

    @property
    def product(self) -> tuple[str, str, int, int, int]:
        """What there is but the name, in the order of ``Device.kernel_variants``."""
        return self.op, self.device_format, self.n_rows, self.k, self.n_vectors


cdef uint64_t _count(object value, str what) except? 0:
    n = PyNumber_Index(value)
    if not 1 <= n <= OXB_MAX_PRODUCT_COUNT:
        raise _errors.EncodingError(f"{what} = {n} must lie in 1..{OXB_MAX_PRODUCT_COUNT}")
    return n


cdef bytes _name(str text):
    # No name has what is escaped here; a NUL would end the text for C.
    return text.encode("ascii", "backslashreplace").replace(b"\0", b"\\0")


cdef oxb_product _product(
    bytes op, str device_format, object n_rows, object k, object n_vectors
) except *:
    # Borrows `op`.
    cdef oxb_product product
    names = [
        oxb_device_format_of(<oxb_device_format>i).name.decode()
        for i in range(<int>OXB_DEVICE_FORMAT_COUNT)
    ]
    if device_format not in names:
        raise _errors.EncodingError(
            f"no device format {device_format!r}: there are {', '.join(names)}"
        )
    product.op = op
    product.device_format = names.index(device_format)
    product.pad = 0
    product.n_rows = _count(n_rows, "n_rows")
    product.k = _count(k, "k")
    product.n_vectors = _count(n_vectors, "n_vectors")
    return product


cdef tuple _parse_name(str name):
    driver, colon, index = name.partition(":")
    if not driver or "\0" in driver or (colon and not index.isdecimal()):
        raise _errors.DeviceNotFoundError(
            f"no device {name!r}: a device is named by a driver, as in 'metal', or by driver and "
            "index, as in 'metal:1'"
        )
    return driver, int(index) if colon else 0


cdef str _name_of_environment():
    return os.environ.get(_ENVIRONMENT) or None


cdef int _prepare_cuda() except -1:
    # Only if there is a GPU: the driver looks for NVRTC by name and finds it once it is loaded from
    # the package that PyPI has.
    cdef uint32_t count = 0
    cdef oxb_status status
    with nogil:
        status = api.device_count("cuda", &count)
    if status == OXB_OK and count > 0:
        from oxibonsai.metal import _nvrtc
        _nvrtc.preload()
    return 0


cdef oxb_device *_open(str name, const oxb_device_options *options) except NULL:
    cdef const char *driver_name = NULL
    cdef uint32_t index = 0
    cdef oxb_device *handle = NULL
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
        check(api.device_open(driver_name, index, options, &handle))
    return handle


cdef class Device:
    """Device(name=None, *, threads=None, variant=None)\n--\n
    A device that runs the kernels: Apple's Metal, an NVIDIA GPU, or the CPU.

    Parameters
    ----------
    name : str, optional
        ``"metal"``, ``"cuda"``, ``"cpu"``, or with an index ``"cuda:1"``. Left out, the environment
        variable ``OXIBONSAI_DEVICE`` names it, else the first device that is not refused is taken,
        of metal, cuda, cpu.
    threads : int, optional
        Threads of the cpu device, the caller's included, 1 to 1024. Left out, the environment
        variable ``OXIBONSAI_THREADS``, else the processors this process may run on (on macOS the
        performance cores).
    variant : str, optional
        Which of ``variants("cpu")`` the cpu device runs, such as ``"avx2"``. Left out, the
        environment variable ``OXIBONSAI_CPU_VARIANT``, else the first of them.

    Attributes
    ----------
    driver : str
        Name of the driver: ``"metal"``, ``"cuda"``, ``"cpu"``, or that of a loaded driver.
    index : int
        Number of the device among those of its driver.

    Raises
    ------
    DeviceNotFoundError
        If there is no such device or variant, and the text lists those there are; or if the device
        cannot run the kernels, and the text says what it lacks.
    CompilationError
        If the environment variable ``OXIBONSAI_METALLIB`` asks for a metallib that is missing or
        that Metal refuses.
    EncodingError
        If the environment variable ``OXIBONSAI_METAL_DEBUG`` has another value than 0 and 1.
    ValueError
        If `threads` is not in 1..1024.

    Notes
    -----
    Any number of threads may use one device; what they submit runs in the order of submission. What
    was made from a device keeps it alive, so they may be closed in any order. A device cannot be
    pickled: open it in the process that uses it.
    """

    def __cinit__(self):
        self.tuning_lock = threading.RLock()

    def __init__(self, name=None, *, threads=None, variant=None):
        cdef oxb_device_options options
        cdef oxb_device_info info
        cdef oxb_device *handle = NULL
        if self.handle:
            raise _errors.EncodingError("this Device is open already: make a new one")
        if name is not None and not isinstance(name, str):
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
            handle = _open(name, &options)
        else:
            named = _name_of_environment()
            try:
                handle = _open(named, &options)
            except _errors.DeviceNotFoundError as error:
                # Nobody typed that name here. Some errors are of another variable, and say so.
                if named is None or "OXIBONSAI_" in str(error):
                    raise
                raise _errors.DeviceNotFoundError(
                    f"{_ENVIRONMENT} = {named!r}: {error}"
                ) from None
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
        """Release the device; idempotent.

        Work in flight finishes. New calls on the device or on what was made from it raise
        EncodingError, and its memory is freed with its last user.
        """
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
        """The device's name, limits and the variant of its kernels, as a DeviceInfo."""
        cdef oxb_device_info i
        api.device_get_info(self.open_handle(), &i)
        return DeviceInfo(
            i.name.decode("utf-8", "replace"), i.driver.decode(), i.index, i.variant.decode(),
            i.simd_width, bool(i.unified_memory), i.threads, i.max_buffer_length,
            i.max_threadgroup_memory, i.recommended_working_set, i.compiler.decode(),
        )

    @property
    def name(self):
        """The device's product name."""
        return self.info.name

    @property
    def working_storage(self):
        """The storage for what kernels read and write: "private" if the device has its own memory.

        On such a device shared storage is host memory, which kernels reach over the bus. It is
        "shared" on a device with unified memory.
        """
        return "shared" if self.info.unified_memory else "private"

    @property
    def stats(self):
        """Live buffers, bytes allocated, submissions and the measured rate, as a DeviceStats."""
        cdef oxb_device_stats s
        api.device_get_stats(self.open_handle(), &s)
        return DeviceStats(
            s.buffers, s.allocated_bytes, s.in_flight, s.submissions, s.work_per_second
        )

    def buffer(self, nbytes, *, storage="shared"):
        """Allocate a Buffer of zeros.

        Parameters
        ----------
        nbytes : int
            Length in bytes, at least 1.
        storage : {"shared", "private"}
            Whether the host has an address for the memory.

        Returns
        -------
        Buffer
            The new buffer, which keeps the device alive.

        Raises
        ------
        BufferCreationError
            If the device does not have that much memory.
        """
        from oxibonsai.metal._buffer import Buffer
        return Buffer(self, nbytes, storage=storage)

    def upload(self, data, *, copy=True, storage="shared"):
        """Make a Buffer from the bytes of `data`, as Buffer.from_data does.

        Parameters
        ----------
        data : buffer or DLPack exporter
            Any contiguous array or bytes-like object, read-only ones too.
        copy : bool
            False wraps the memory of `data` instead of copying it, which not every device can.
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
        """
        from oxibonsai.metal._buffer import Buffer
        return Buffer.from_data(self, data, copy=copy, storage=storage)

    def library(self, source):
        """Compile kernels from source.

        Parameters
        ----------
        source : str
            A program in the Metal Shading Language.

        Returns
        -------
        Library
            The compiled kernels.

        Raises
        ------
        CompilationError
            If `source` does not compile; always on the cpu device, which has no compiler.
        """
        from oxibonsai.metal._pipeline import Library
        return Library(self, source)

    def pipeline(self, function, *, constants=None, library=None):
        """Make a kernel ready to run.

        Parameters
        ----------
        function : str
            Name of the kernel.
        constants : dict of int to bool, int or float, optional
            Function constants by index.
        library : Library, optional
            Where the kernel is; the kernels that ship if left out.

        Returns
        -------
        Pipeline
            The kernel, compiled with these constants.

        Raises
        ------
        CompilationError
            If there is no such kernel, or a constant does not fit it.
        """
        from oxibonsai.metal._pipeline import Pipeline
        return Pipeline(self, function, constants=constants, library=library)

    def commands(self, *, activations="float32", deterministic=False):
        """Make an empty recording.

        Parameters
        ----------
        activations : {"float32", "half", "int8"}
            What matrix products of many vectors make of the vectors; see Commands.
        deterministic : bool
            Give each vector of a product the bits that it has alone; see Commands.

        Returns
        -------
        Commands
            A recording for one thread at a time.

        Raises
        ------
        EncodingError
            If the device has no kernels for these activations or for deterministic products.
        """
        from oxibonsai.metal._commands import Commands
        return Commands(self, activations=activations, deterministic=deterministic)

    def kernel_variants(
        self, str op not None, str device_format not None, n_rows, k, n_vectors=1
    ):
        """List the variants of the kernel that multiplies a matrix by vectors.

        All of them give the product within the same bounds; which is the fastest depends on the
        device and on the shape.

        Parameters
        ----------
        op : {"gemv", "swiglu", "gemm", "swiglu_gemm", "gemm_halves", "gemm_half"}
            The op, as the driver has it.
        device_format : str
            Format of the matrix on the device, such as ``"q1_g128"``.
        n_rows, k : int
            Rows of the matrix, those of gate and up together for SwiGLU, and its columns.
        n_vectors : int
            Vectors by which it is multiplied.

        Returns
        -------
        tuple of str
            The variants, the device's default first; empty where it has one form of the kernel.

        Raises
        ------
        EncodingError
            If there is no such op or format, or no such matrix.
        """
        cdef const char *names[OXB_MAX_VARIANTS]
        cdef uint32_t n = 0
        encoded = _name(op)
        cdef oxb_product product = _product(encoded, device_format, n_rows, k, n_vectors)
        cdef oxb_device *handle = self.open_handle()
        with nogil:
            check(api.device_kernel_variants(handle, &product, names, &n))
        return tuple([(<bytes>names[i]).decode() for i in range(n)])

    def choose_variant(
        self, str op not None, str device_format not None, n_rows, k, name, n_vectors=1
    ):
        """Choose the kernel that multiplies a matrix by vectors, in what is recorded from here on.

        The choice holds for every number of vectors that rounds up to the same power of two.
        Deterministic recordings do not take it.

        Parameters
        ----------
        op : {"gemv", "swiglu", "gemm", "swiglu_gemm", "gemm_halves", "gemm_half"}
            The op, as the driver has it.
        device_format : str
            Format of the matrix on the device, such as ``"q1_g128"``.
        n_rows, k : int
            Rows of the matrix, those of gate and up together for SwiGLU, and its columns.
        name : str or None
            One of ``kernel_variants(...)`` for the same product; None goes back to the default.
        n_vectors : int
            Vectors by which it is multiplied.

        Raises
        ------
        EncodingError
            If there is no such op, format, matrix or variant; the text lists those there are.
        """
        cdef const char *variant = NULL
        encoded = _name(op)
        cdef oxb_product product = _product(encoded, device_format, n_rows, k, n_vectors)
        cdef oxb_device *handle = self.open_handle()
        if name is not None:
            if not isinstance(name, str):
                raise TypeError(f"a variant is named by a str, not {type(name).__name__}")
            encoded_name = _name(name)
            variant = encoded_name
        with nogil:
            check(api.device_choose_variant(handle, &product, variant))

    def chosen_variants(self):
        """List the choices of kernels that this device has.

        Returns
        -------
        list of ChosenVariant
            In the order in which they were first made, without those that went back to the default.
        """
        return [choice for choice, _ in self._products() if choice.name]

    def recorded_variants(self):
        """List the products that were recorded on this device, with the kernel that each took last.

        Deterministic recordings do not count, nor do products of which the device has one form.

        Returns
        -------
        list of ChosenVariant
            In the order in which they were first recorded or chosen, the first 4096 of them.
        """
        return [
            choice._replace(name=used) for choice, used in self._products() if used is not None
        ]

    def _products(self):
        cdef oxb_product product
        cdef const char *chosen = NULL
        cdef const char *used = NULL
        cdef oxb_device *handle = self.open_handle()
        found = []
        while api.device_product(handle, len(found), &product, &chosen, &used):
            choice = ChosenVariant(
                product.op.decode(),
                oxb_device_format_of(<oxb_device_format>product.device_format).name.decode(),
                product.n_rows, product.k,
                chosen.decode() if chosen != NULL else "",
                product.n_vectors,
            )
            found.append((choice, used.decode() if used != NULL else None))
        return found

    def load_tuning(self):
        """Choose what tune() found on this machine for this device, where it kept something.

        It is done once for a device: later calls do nothing, and those of other threads meanwhile
        wait for it. A product that has a choice keeps it.
        MetalGraph calls it, so that a device is tuned before anything of a model is recorded. The
        environment variable ``OXIBONSAI_TUNING=0`` switches it off.
        """
        self.open_handle()
        if self.tuning_loaded:
            return
        from oxibonsai.metal._tuning import load_choices
        with self.tuning_lock:
            if self.tuning_begun:  # by another thread, which is done, or by what logs a warning
                return
            self.tuning_begun = True
            try:
                load_choices(self)
                self.tuning_loaded = True
            finally:
                self.tuning_begun = self.tuning_loaded

    @contextmanager
    def capture(self, path):
        """Capture what the device does inside a ``with`` block to a file for Xcode.

        Parameters
        ----------
        path : path-like
            The ``.gputrace`` to write, which must not exist yet.

        Returns
        -------
        context manager
            It starts the capture on entry and writes the file on exit.

        Raises
        ------
        EncodingError
            If the device cannot capture, or not to that path.

        Notes
        -----
        Of the drivers that ship, Metal alone captures, in a process that was started with
        ``MTL_CAPTURE_ENABLED=1``. Wait for the work inside the block: what runs later is not in the
        file.
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


def probe_devices():
    """Try every device, and tell which can be used and why the others cannot.

    Returns
    -------
    FoundDevices
        The usable devices, the default first, and the refused ones with the reason. A driver that
        cannot count its devices has none. The default is the one that the environment variable
        ``OXIBONSAI_DEVICE`` names, where it names one of them. A device that a wrong variable of
        the environment keeps from opening is in neither list: ``Device(name)`` says which one.

    Notes
    -----
    A device is refused if it lacks something that the kernels are built on, such as SIMD-groups of
    32 threads, or computes it wrongly. ``Device()`` then takes the next one.
    """
    cdef uint32_t count
    cdef const char *name
    found, refused = [], []
    for i in range(api.driver_count()):
        name = api.driver_name(i)
        count = 0
        with nogil:
            api.device_count(name, &count)
        for index in range(count):
            driver = name.decode()
            try:
                with Device(f"{driver}:{index}") as device:
                    found.append(device.info)
            except _errors.DeviceNotFoundError as error:
                if "OXIBONSAI_" not in str(error):  # a wrong variable, of which Device() tells
                    refused.append(RefusedDevice(driver, index, str(error)))
            except _errors.CompilationError:
                continue  # a metallib that the environment asks for, of which Device() tells
    named = _name_of_environment()
    if named is not None:
        with suppress(_errors.DeviceNotFoundError):  # Device() tells that it names none
            default = _parse_name(named)
            found.sort(key=lambda info: (info.driver, info.index) != default)
    return FoundDevices(found, refused)


def devices():
    """List the devices that can be opened, the default first.

    Returns
    -------
    list of DeviceInfo
        One for each device; ``probe_devices()`` lists those that are refused as well.
    """
    return probe_devices().usable


def variants(str driver not None):
    """List the variants of its kernels that a driver can run on this machine.

    Parameters
    ----------
    driver : str
        Name of a driver, such as ``"cpu"``.

    Returns
    -------
    tuple of str
        The variants, the fastest first. Those of "cpu" are named after instruction sets; the other
        drivers have none to choose from.
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
    """Load a driver from a shared library; Device() then tries it before the others.

    Parameters
    ----------
    path : path-like
        A shared library that exports ``oxb_driver_entry``, as oxb_driver.h describes. It stays
        loaded until the process ends.

    Raises
    ------
    DeviceNotFoundError
        If the library cannot be loaded, is no driver, or was built for another ABI version.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"embedded null in the path {path!r}")
    cdef const char *p = encoded
    with nogil:
        check(api.driver_load(p))
