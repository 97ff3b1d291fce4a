from libc.stdint cimport uint64_t

from oxibonsai.metal._core cimport Device
from oxibonsai.metal.oxb cimport oxb_buffer, oxb_commands, oxb_feed_forward, oxb_weight


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef class BufferSet:
    # The intermediate buffers of one phase. Whoever holds `lock` owns buffers and commands.
    cdef pthread_mutex_t lock
    cdef unsigned long owner  # ident of the thread that holds the set in a BufferGuard, 0 for none
    cdef bint retired  # the device may still write to it; read and set under the lock
    cdef oxb_buffer *raw[4]
    cdef oxb_commands *commands
    cdef readonly tuple key
    cdef readonly list buffers


cdef class BufferPool:
    cdef Device device
    cdef object lock
    cdef dict sets  # key -> BufferSet, least recently used first

    cdef BufferSet acquire(self, tuple key)


cdef struct FFN:
    oxb_feed_forward op  # its weights are the three below; the phase binds the set's buffers
    oxb_weight attn_proj
    oxb_weight gate_up
    oxb_weight down
    float *hidden
    const float *attn_out
    # Seconds each step took; the lock was got at `acquired`.
    double acquired
    double upload
    double encode
    double wait
    double download


# Each holds the set's lock for the whole phase. Returns 1, with nothing done, if the set was
# retired while this thread waited: acquire another.
cdef int gemv_phase(BufferSet held, const oxb_weight *w, uint64_t n_rows, uint64_t k,
                    const float *x, float *y, double timeout) except -1 nogil
cdef int ffn_phase(BufferSet held, FFN *f, double timeout) except -1 nogil
