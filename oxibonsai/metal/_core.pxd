from libc.stdint cimport uint32_t, uint64_t

from oxibonsai.metal.oxb cimport oxb_api, oxb_device, oxb_status

cdef const oxb_api *api

cdef int check(oxb_status status) except -1 nogil

# An integer in 0..2**63 - 1, EncodingError outside it, TypeError for what is no integer.
cdef uint64_t count_of(object value, str what) except? 0xffffffffffffffff

# The same in 0..2**32 - 1.
cdef uint32_t u32_of(object value, str what) except? 0xffffffff


cdef class Device:
    cdef oxb_device *handle  # one reference; NULL once closed
    cdef readonly str driver
    cdef readonly int index
    cdef object tuning_lock  # held while the tuner's choices are read
    cdef bint tuning_begun
    cdef bint tuning_loaded
    cdef object __weakref__

    cdef oxb_device *open_handle(self) except NULL
    # With a reference of the caller's own: another thread may close the device without the GIL
    # held.
    cdef oxb_device *borrow(self) except NULL


cdef class HostBytes:
    # A contiguous view of host memory, held through the buffer protocol.
    cdef Py_buffer view
    cdef bint held
    cdef const void *address
    cdef size_t nbytes
    cdef bint read_only


cdef HostBytes host_bytes(object data, Py_ssize_t itemsize=*)
