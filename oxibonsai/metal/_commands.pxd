from oxibonsai.metal._core cimport Device
from oxibonsai.metal._recurrent cimport RecurrentOps
from oxibonsai.metal._weights cimport WeightHandle
from oxibonsai.metal.oxb cimport oxb_commands, oxb_submission, oxb_times


cdef class Commands(RecurrentOps):
    cdef oxb_commands *handle
    cdef readonly Device device
    cdef oxb_submission *flight[16]  # OXB_MAX_IN_FLIGHT, oldest first
    cdef int n_flight
    cdef oxb_times last
    cdef bint timed
    cdef bint busy  # a thread is in wait() or submit() without the GIL

    cdef oxb_commands *recording(self) except NULL
    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int run(self, int times, double timeout) except -1 nogil
    cdef int drain(self, int keep, double timeout) except -1 nogil


cdef double timeout_seconds(object timeout) except? -2

# (n_rows, k) as given, or as the handle knows them.
cdef tuple shape_of(WeightHandle weight, n_rows, k)
