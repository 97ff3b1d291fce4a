"""Libraries and pipelines: kernels made ready to run."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint32_t
from libc.string cimport memset

from oxibonsai.metal._core cimport Device, api, check
from oxibonsai.metal.oxb cimport (
    OXB_ACCESS_UNKNOWN,
    OXB_ACCESS_WRITE,
    OXB_ARGUMENT_STRUCT,
    OXB_ARGUMENT_THREADGROUP,
    OXB_CONSTANT_BOOL,
    OXB_CONSTANT_F32,
    OXB_CONSTANT_I32,
    OXB_CONSTANT_U32,
    OXB_MAX_CONSTANTS,
    oxb_argument,
    oxb_constant,
    oxb_device,
    oxb_library,
    oxb_pipeline,
    oxb_pipeline_info,
)

from typing import NamedTuple

from oxibonsai.metal._errors import CompilationError, EncodingError


cdef str _program(Device device, str source):
    # What the device's compiler takes: the cuda driver compiles a translation.
    if device.driver != "cuda":
        return source
    from oxibonsai.msl import cuda
    try:
        return cuda.translate(source, "program.metal")
    except cuda.CompileError as error:
        raise CompilationError(str(error)) from None


@cython.no_gc_clear
cdef class Library:
    """Library(device, source)\n--\n
    Kernels compiled from Metal Shading Language.

    Parameters
    ----------
    device : Device
        Whose compiler is used.
    source : str
        The program.

    Attributes
    ----------
    device : Device
        Whose compiler was used.

    Raises
    ------
    CompilationError
        With the compiler's log; on the cpu device always, for it runs only the kernels that ship.
    """

    def __init__(self, Device device not None, str source not None):
        cdef oxb_library *handle = NULL
        cdef bytes text = _program(device, source).encode()
        cdef const char *p = text
        cdef size_t n = len(text)
        if self.handle:
            raise EncodingError("this Library is made already: make a new one")
        cdef oxb_device *borrowed = device.borrow()
        with nogil:
            try:
                check(api.library_new(borrowed, p, n, &handle))
            finally:
                api.device_release(borrowed)
        self.device = device
        self.handle = handle

    def __dealloc__(self):
        if self.handle:
            with nogil:
                api.library_release(self.handle)

    cdef oxb_library *open_handle(self) except NULL:
        if not self.handle:
            raise EncodingError("the library is closed: compile it again")
        self.device.open_handle()
        return self.handle

    def close(self):
        """Release the library; its pipelines stay.

        Closing it again does nothing.
        """
        cdef oxb_library *handle = self.handle
        self.handle = NULL
        if handle:
            with nogil:
                api.library_release(handle)

    def pipeline(self, function, *, constants=None):
        """Make a kernel of this library ready to run.

        Parameters
        ----------
        function : str
            Name of the kernel.
        constants : dict of int to bool, int or float, optional
            Function constants by index.

        Returns
        -------
        Pipeline
            On the library's device.

        Raises
        ------
        CompilationError
            For an unknown kernel, an unknown constant, or one that has no value or another type.
        EncodingError
            Where the library or its device is closed.
        """
        return Pipeline(self.device, function, constants=constants, library=self)


class PipelineInfo(NamedTuple):
    """Limits of a pipeline.

    Attributes
    ----------
    max_threads : int
        Threads of the largest threadgroup that it runs with.
    simd_width : int
        Threads of a SIMD-group; 1 on the cpu device.
    static_threadgroup_memory : int
        Bytes that a threadgroup takes beside the dynamic ones.
    """

    max_threads: int
    simd_width: int
    static_threadgroup_memory: int


class Argument(NamedTuple):
    """What a kernel takes at one index: every dispatch is checked by it when it is recorded.

    Attributes
    ----------
    kind : {"buffer", "struct", "threadgroup"}
        A buffer, in whose place the argument struct may stand where the kernel only reads it; the
        argument struct and nothing else; or dynamic threadgroup memory.
    binding : int
        Index at which it is bound. The argument struct follows the last buffer.
    size : int
        Bytes: of a struct exactly, of what a buffer is bound to at least.
    alignment : int
        Bytes of which a buffer's offset is a multiple; 0 where the driver does not know.
    writable : bool or None
        Whether the kernel writes it; None where the driver does not know.
    optional : bool
        Whether the kernel does without it, since it does not use it.
    """

    kind: str
    binding: int
    size: int
    alignment: int
    writable: bool | None
    optional: bool


cdef object _argument(const oxb_argument *a):
    kind = ("threadgroup" if a.kind == OXB_ARGUMENT_THREADGROUP
            else "struct" if a.kind == OXB_ARGUMENT_STRUCT else "buffer")
    writable = None if a.access == OXB_ACCESS_UNKNOWN else a.access == OXB_ACCESS_WRITE
    return Argument(kind, a.index, a.size, a.alignment, writable, bool(a.optional))


cdef int _fill_constant(oxb_constant *c, index, value) except -1:
    number = PyNumber_Index(index)
    if not 0 <= number <= 0xffffffff:  # the shim refuses those past 65535
        raise CompilationError(f"function constant {number}: indices are 0 to 65535")
    memset(c, 0, sizeof(oxb_constant))
    c.index = number
    if isinstance(value, bool):
        c.type = OXB_CONSTANT_BOOL
        c.value.u32 = value
    elif isinstance(value, float):
        c.type = OXB_CONSTANT_F32
        c.value.f32 = value
    else:
        integer = PyNumber_Index(value)
        if not -(1 << 31) <= integer < 1 << 32:
            raise CompilationError(f"function constant {number} = {integer} does not fit 32 bits")
        if integer < 0:
            c.type = OXB_CONSTANT_I32
            c.value.i32 = integer
        else:
            c.type = OXB_CONSTANT_U32
            c.value.u32 = integer
    return 0


@cython.no_gc_clear
cdef class Pipeline:
    """Pipeline(device, function, *, constants=None, library=None)\n--\n
    A kernel compiled with its function constants, ready to run.

    Parameters
    ----------
    device : Device
        Where it runs.
    function : str
        Name of the kernel.
    constants : dict of int to bool, int or float, optional
        Function constants by index.
    library : Library, optional
        Where the kernel is; left out, the kernels that ship.

    Attributes
    ----------
    device : Device
        Where it runs.
    function : str
        Name of the kernel.

    Raises
    ------
    CompilationError
        For an unknown kernel, an unknown constant, or one that has no value or another type.
    EncodingError
        Where the library or the device is closed.
    """

    def __init__(self, Device device not None, str function not None, *, constants=None,
                 Library library=None):
        cdef oxb_constant values[16]
        cdef oxb_pipeline *handle = NULL
        cdef oxb_library *source = NULL
        cdef bytes name = function.encode()
        cdef const char *p = name
        cdef uint32_t n = 0
        if self.handle:
            raise EncodingError("this Pipeline is made already: make a new one")
        if b"\0" in name:
            raise CompilationError(f"no kernel {function!r}: a name has no NUL")
        if library is not None:
            library.open_handle()
        constants = dict(constants or {})
        for index in sorted(constants)[:<int>OXB_MAX_CONSTANTS]:
            _fill_constant(&values[n], index, constants[index])
            n += 1
        n = <uint32_t>len(constants)  # the shim refuses more than there is room for here
        cdef oxb_device *borrowed = device.borrow()
        if library is not None:
            source = library.handle
            api.library_retain(source)
        with nogil:
            try:
                check(api.pipeline_new(borrowed, source, p, values, n, &handle))
            finally:
                api.library_release(source)
                api.device_release(borrowed)
        self.device = device
        self.function = function
        self.handle = handle

    def __dealloc__(self):
        if self.handle:
            with nogil:
                api.pipeline_release(self.handle)

    cdef oxb_pipeline *open_handle(self) except NULL:
        if not self.handle:
            raise EncodingError(f"the pipeline {self.function} is closed: make a new one")
        self.device.open_handle()
        return self.handle

    @property
    def info(self):
        """Limits of the pipeline.

        Returns
        -------
        PipelineInfo
            Threads and bytes.

        Raises
        ------
        EncodingError
            Where the pipeline or its device is closed.
        """
        cdef oxb_pipeline_info i
        api.pipeline_get_info(self.open_handle(), &i)
        return PipelineInfo(i.max_threads, i.simd_width, i.static_threadgroup_memory)

    @property
    def arguments(self):
        """What the kernel takes, by which every dispatch of it is checked.

        Returns
        -------
        tuple of Argument
            Empty where the device's driver does not know.

        Raises
        ------
        EncodingError
            Where the pipeline or its device is closed.
        """
        cdef oxb_pipeline_info info
        cdef uint32_t i
        api.pipeline_get_info(self.open_handle(), &info)
        return tuple([_argument(&info.arguments[i]) for i in range(info.n_arguments)])

    def close(self):
        """Release the pipeline; commands that recorded it keep it.

        Closing it again does nothing.
        """
        cdef oxb_pipeline *handle = self.handle
        self.handle = NULL
        if handle:
            with nogil:
                api.pipeline_release(handle)
