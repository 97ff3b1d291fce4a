from oxibonsai.metal._core cimport Device
from oxibonsai.metal._weights cimport WeightCache


cdef class WeightUploads:
    cdef readonly Device device
    cdef readonly WeightCache weights
    cdef bint is_closed

    cdef int check_open(self) except -1
