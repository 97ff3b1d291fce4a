from oxibonsai.metal._core cimport Device
from oxibonsai.metal._weights cimport WeightCache
from oxibonsai.metal.oxb cimport oxb_buffer, oxb_commands


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef class BufferSet:
    # The intermediate buffers of one phase. Whoever holds `lock` owns buffers and commands.
    cdef pthread_mutex_t lock
    cdef unsigned long owner  # ident of the thread that holds the lock, 0 for none
    cdef oxb_buffer *raw[4]
    cdef oxb_commands *commands
    cdef readonly tuple key
    cdef readonly list buffers


cdef class MetalGraph:
    cdef readonly Device device
    cdef readonly WeightCache weights
    cdef dict sets  # key -> BufferSet, least recently used first; guarded by sets_lock
    cdef object sets_lock
    cdef double timeout_s
    cdef bint is_closed
    cdef unsigned long ffn_calls
    cdef object __weakref__

    cdef int check_open(self) except -1
    cdef BufferSet acquire(self, tuple key)
    cdef int gemv(self, str what, weight, const float[::1] x, float[::1] y, n_rows, k) except -1
