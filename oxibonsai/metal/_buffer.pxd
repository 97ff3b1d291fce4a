from oxibonsai.metal._core cimport Device
from oxibonsai.metal.oxb cimport oxb_buffer


cdef class Buffer:
    cdef oxb_buffer *handle  # one reference; NULL once closed
    cdef readonly Device device
    cdef readonly str storage
    cdef readonly bint read_only
    cdef Py_ssize_t exports
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
    cdef object __weakref__

    cdef oxb_buffer *open_handle(self) except NULL


cdef Buffer buffer_of(object value, str what)
