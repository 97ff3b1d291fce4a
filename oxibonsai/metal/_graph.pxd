from oxibonsai.metal._phases cimport BufferPool
from oxibonsai.metal._uploads cimport WeightUploads


cdef class MetalGraph(WeightUploads):
    cdef BufferPool pool
    cdef double timeout_s
    cdef unsigned long ffn_calls
    cdef object __weakref__

    cdef int gemv(self, str what, weight, const float[::1] x, float[::1] y, n_rows, k) except -1
