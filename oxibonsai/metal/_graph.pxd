from oxibonsai.metal._core cimport Device
from oxibonsai.metal._phases cimport BufferPool
from oxibonsai.metal._weights cimport WeightCache


cdef class MetalGraph:
    cdef readonly Device device
    cdef readonly WeightCache weights
    cdef BufferPool pool
    cdef double timeout_s
    cdef bint is_closed
    cdef unsigned long ffn_calls
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef int gemv(self, str what, weight, const float[::1] x, float[::1] y, n_rows, k) except -1
