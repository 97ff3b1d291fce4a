"""A 1-bit matrix on a device, multiplied by vectors in C, without the GIL."""

from cpython.pycapsule cimport PyCapsule_Import
from libc.stdint cimport uint64_t

from oxibonsai.metal.oxb cimport (
    OXB_ABI_VERSION,
    OXB_FILE_FORMAT_Q1_0,
    OXB_OK,
    OXB_STORAGE_SHARED,
    oxb_api,
    oxb_binding,
    oxb_buffer,
    oxb_commands,
    oxb_device,
    oxb_status,
    oxb_submission,
    oxb_weight,
)

from oxibonsai import metal

# The import of oxibonsai.metal has filled the capsule. The table may be longer than the one that
# this module was compiled with, never shorter.
cdef const oxb_api *api = <const oxb_api *>PyCapsule_Import("oxibonsai.metal._core._C_API", 0)

if api.abi_version != OXB_ABI_VERSION or api.struct_size < sizeof(oxb_api):
    raise ImportError("oxibonsai has another C API than this module was built for: build it again")


cdef class Matrix:
    """A weight of n_rows x k in Q1_0, its vectors' buffers and the product, recorded once.

    One product runs at a time: give each thread a Matrix of its own.
    """

    cdef oxb_device *device
    cdef oxb_buffer *x
    cdef oxb_buffer *y
    cdef oxb_commands *commands
    cdef oxb_weight weight
    cdef readonly uint64_t n_rows, k

    def __cinit__(self, const unsigned char[:, ::1] blocks not None, uint64_t k,
                  str device="cpu"):
        cdef bytes driver = device.encode()
        cdef const char *name = driver
        cdef oxb_status status
        self.n_rows, self.k = blocks.shape[0], k
        with nogil:
            status = self.open(name, &blocks[0, 0], blocks.shape[0] * blocks.shape[1])
        check(status)

    cdef oxb_status open(self, const char *driver, const unsigned char *blocks,
                         uint64_t length) noexcept nogil:
        cdef oxb_binding x, y
        cdef oxb_status status = api.device_open(driver, 0, NULL, &self.device)
        if status == OXB_OK:
            status = api.weight_upload(self.device, OXB_FILE_FORMAT_Q1_0, blocks, length,
                                       self.n_rows, self.k, &self.weight)
        if status == OXB_OK:
            status = api.buffer_new(self.device, 4 * self.k, OXB_STORAGE_SHARED, &self.x)
        if status == OXB_OK:
            status = api.buffer_new(self.device, 4 * self.n_rows, OXB_STORAGE_SHARED, &self.y)
        if status == OXB_OK:
            status = api.commands_new(self.device, &self.commands)
        if status == OXB_OK:
            x.buffer, y.buffer = self.x, self.y
            x.offset = y.offset = 0
            status = api.op_gemv(self.commands, &self.weight, self.n_rows, self.k, NULL, x, y,
                                 1, 0, 0)
        return status

    cdef oxb_status run(self, const float *x, float *y) noexcept nogil:
        """y = W x: write x, run the recording, wait, read y. No Python object is touched."""
        cdef oxb_submission *submission = NULL
        cdef oxb_status status = api.buffer_write(self.x, 0, x, 4 * self.k)
        if status == OXB_OK:
            status = api.commands_submit(self.commands, &submission)
        if status == OXB_OK:
            status = api.submission_wait(submission, -1)
            api.submission_release(submission)
        if status == OXB_OK:
            status = api.buffer_read(self.y, 0, y, 4 * self.n_rows)
        return status

    def multiply(self, const float[::1] x not None, float[::1] y not None):
        """Fill y with W x; other Python threads run meanwhile."""
        cdef oxb_status status
        if <uint64_t>x.shape[0] != self.k or <uint64_t>y.shape[0] != self.n_rows:
            raise ValueError(f"x and y have {x.shape[0]} and {y.shape[0]} elements, "
                             f"the matrix is {self.n_rows} x {self.k}")
        with nogil:
            status = self.run(&x[0], &y[0])
        check(status)

    def __dealloc__(self):
        # In any order: what is still needed is held by what needs it. NULL is allowed.
        api.commands_release(self.commands)
        api.buffer_release(self.x)
        api.buffer_release(self.y)
        api.buffer_release(self.weight.buffer)
        api.device_release(self.device)


cdef int check(oxb_status status) except -1:
    """Raise what the failed call of this thread says; its text has the numbers."""
    if status != OXB_OK:
        raise metal.MetalGraphError(api.last_error().decode())
    return 0
