from libc.stdint cimport uint64_t

from oxibonsai.metal._core cimport Device
from oxibonsai.metal._weights cimport WeightHandle
from oxibonsai.metal.oxb cimport oxb_binding, oxb_commands, oxb_submission, oxb_times, oxb_weight


cdef class Commands:
    cdef oxb_commands *handle
    cdef readonly Device device
    cdef oxb_submission *flight[16]  # OXB_MAX_IN_FLIGHT, oldest first
    cdef int n_flight
    cdef oxb_times last
    cdef bint timed
    cdef bint busy  # a thread is in wait() or submit() without the GIL

    cdef oxb_commands *recording(self) except NULL
    cdef int enter(self) except -1
    cdef int run(self, int times, double timeout) except -1 nogil
    cdef int drain(self, int keep, double timeout) except -1 nogil


cdef double timeout_seconds(object timeout) except? -2

# (n_rows, k) as given, or as the handle knows them.
cdef tuple shape_of(WeightHandle weight, n_rows, k)


# The second half of a transformer layer. Weights and bindings are borrowed.
cdef struct FeedForward:
    const oxb_weight *attn_proj  # [hidden_size, attn_size]
    const oxb_weight *gate_up  # [2 intermediate_size, hidden_size]
    const oxb_weight *down  # [hidden_size, intermediate_size]
    oxb_binding attn  # [n_vectors, attn_size]
    oxb_binding hidden  # [n_vectors, hidden_size], read and written
    oxb_binding norm  # [hidden_size]
    oxb_binding normed  # [n_vectors, hidden_size], or no buffer where nobody reads it
    oxb_binding activated  # [n_vectors, intermediate_size]
    uint64_t attn_size
    uint64_t hidden_size
    uint64_t intermediate_size
    uint64_t n_vectors
    float eps

cdef int record_feed_forward(oxb_commands *commands, const FeedForward *f) except -1 nogil
