from oxibonsai.metal._core cimport Device
from oxibonsai.metal.oxb cimport oxb_library, oxb_pipeline


cdef class Library:
    cdef oxb_library *handle
    cdef readonly Device device

    cdef oxb_library *open_handle(self) except NULL


cdef class Pipeline:
    cdef oxb_pipeline *handle
    cdef readonly Device device
    cdef readonly str function

    cdef oxb_pipeline *open_handle(self) except NULL
