"""The phases of MetalGraph.

They run without the GIL, on intermediate buffers that they hold from upload to download.

Lock order: the GIL is outermost. A native lock, a BufferSet's, is only waited for without the GIL,
and so is the device.
"""

cimport cython
from libc.stdint cimport uint64_t

from oxibonsai.metal._buffer cimport Buffer
from oxibonsai.metal._core cimport Device, api, check
from oxibonsai.metal.oxb cimport (
    OXB_OK,
    oxb_binding,
    oxb_buffer,
    oxb_commands,
    oxb_status,
    oxb_submission,
    oxb_weight,
)

import threading

from oxibonsai.metal._errors import EncodingError


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)

cdef extern from "base/clock.h" nogil:
    double clock_now()


# Sets kept: a model's shapes of GEMV round up to a handful of keys, and its FFN to one.
cdef int MAX_SETS = 8


@cython.no_gc_clear
cdef class BufferSet:
    """Intermediate buffers of one phase, held by one thread at a time.

    Attributes
    ----------
    key : tuple of int
        What the set was made for, the lengths in elements of its buffers.
    buffers : list of Buffer
        float32 buffers of those lengths.
    """

    def __cinit__(self):
        pthread_mutex_init(&self.lock, NULL)

    def __init__(self, Device device not None, tuple key not None):
        cdef oxb_commands *commands = NULL
        self.key = key
        storage = device.working_storage
        self.buffers = [Buffer(device, 4 * n, storage=storage) for n in key]
        for i in range(len(key)):
            self.raw[i] = (<Buffer>self.buffers[i]).handle
            api.buffer_retain(self.raw[i])  # its Buffer may be closed by whoever acquired the set
        with nogil:
            check(api.commands_new(device.handle, &commands))
        self.commands = commands

    def __dealloc__(self):
        cdef int i
        with nogil:
            api.commands_release(self.commands)
            for i in range(4):
                api.buffer_release(self.raw[i])
        pthread_mutex_destroy(&self.lock)


cdef class BufferPool:
    """A few sets of intermediate buffers by their sizes; the least recently used one goes.

    `lock` guards the dict and is a leaf.
    """

    def __init__(self, Device device not None):
        self.device = device
        self.lock = threading.Lock()
        self.sets = {}

    cdef BufferSet acquire(self, tuple key):
        # The set for `key`, whose lock the caller takes without the GIL.
        cdef BufferSet held
        with self.lock:
            held = self.sets.pop(key, None)
            if held is not None:
                self.sets[key] = held
        if held is None:
            made = BufferSet(self.device, key)
            with self.lock:
                # Another thread may have made one meanwhile.
                held = self.sets.setdefault(key, made)
                # Freed after the lock: freeing waits for the device.
                dropped = [
                    self.sets.pop(oldest)
                    for oldest in list(self.sets)[:max(len(self.sets) - MAX_SETS, 0)]
                ]
            del dropped
        if held.owner == <unsigned long>threading.get_ident():
            raise EncodingError(
                f"this thread holds the intermediate buffers {key} in acquire_buffers(): leave its "
                "with statement first"
            )
        return held

    def retire(self, BufferSet held not None):
        """Forget a set that the device may still write to, so that nothing uses it again."""
        with self.lock:
            if self.sets.get(held.key) is held:
                del self.sets[held.key]

    def clear(self):
        """Forget all sets."""
        with self.lock:
            dropped, self.sets = self.sets, {}
        dropped.clear()


class BufferGuard:
    """Holds a BufferSet for the body of a with statement."""

    def __init__(self, pool, key):
        self._pool = pool
        self._key = key
        self._set = None

    def __enter__(self):
        cdef BufferSet held
        while True:
            held = (<BufferPool>self._pool).acquire(self._key)
            with nogil:
                pthread_mutex_lock(&held.lock)
            if not held.retired:
                break
            pthread_mutex_unlock(&held.lock)
            self._pool.retire(held)
        held.owner = threading.get_ident()
        self._set = held
        return held.buffers

    def __exit__(self, *exc):
        cdef BufferSet held = self._set
        if held is None:
            raise EncodingError("these buffers are not held: enter the with statement first")
        self._set = None
        held.owner = 0
        pthread_mutex_unlock(&held.lock)


cdef int _run(BufferSet held, double timeout) except -1 nogil:
    # Submit what was recorded and wait. The caller holds the set.
    cdef oxb_submission *submission = NULL
    cdef oxb_status status
    check(api.commands_submit(held.commands, &submission))
    status = api.submission_wait(submission, timeout)
    api.submission_release(submission)
    if status != OXB_OK:
        held.retired = True
    check(status)
    # A recording keeps its weights alive: whoever closes one counts on the memory.
    return check(api.commands_reset(held.commands))


cdef oxb_binding _at(oxb_buffer *buffer) noexcept nogil:
    cdef oxb_binding binding
    binding.buffer = buffer
    binding.offset = 0
    return binding


cdef int _gemv_locked(BufferSet held, const oxb_weight *w, uint64_t n_rows, uint64_t k,
                      const float *x, float *y, double timeout) except -1 nogil:
    check(api.commands_reset(held.commands))
    check(api.op_gemv(
        held.commands, w, n_rows, k, NULL, _at(held.raw[0]), _at(held.raw[1]), 1, 0, 0))
    check(api.buffer_write(held.raw[0], 0, x, 4 * k))
    _run(held, timeout)
    return check(api.buffer_read(held.raw[1], 0, y, 4 * n_rows))


cdef int _ffn_locked(BufferSet held, FFN *f, double timeout) except -1 nogil:
    # Buffers of the set: hidden, attention output, normed, activated.
    cdef uint64_t hidden_bytes = 4 * f.op.hidden_size
    cdef double t0 = clock_now()
    check(api.buffer_write(held.raw[0], 0, f.hidden, hidden_bytes))
    check(api.buffer_write(held.raw[1], 0, f.attn_out, 4 * f.op.attn_size))
    cdef double t1 = clock_now()
    f.op.attn_proj, f.op.gate_up, f.op.down = &f.attn_proj, &f.gate_up, &f.down
    f.op.hidden, f.op.attn = _at(held.raw[0]), _at(held.raw[1])
    f.op.normed, f.op.activated = _at(held.raw[2]), _at(held.raw[3])
    check(api.commands_reset(held.commands))
    check(api.op_feed_forward(held.commands, &f.op))
    cdef double t2 = clock_now()
    _run(held, timeout)
    cdef double t3 = clock_now()
    check(api.buffer_read(held.raw[0], 0, f.hidden, hidden_bytes))
    f.upload = t1 - t0
    f.encode = t2 - t1
    f.wait = t3 - t2
    f.download = clock_now() - t3
    return 0


cdef int gemv_phase(BufferSet held, const oxb_weight *w, uint64_t n_rows, uint64_t k,
                    const float *x, float *y, double timeout) except -1 nogil:
    pthread_mutex_lock(&held.lock)
    try:
        return 1 if held.retired else _gemv_locked(held, w, n_rows, k, x, y, timeout)
    finally:
        pthread_mutex_unlock(&held.lock)


cdef int ffn_phase(BufferSet held, FFN *f, double timeout) except -1 nogil:
    pthread_mutex_lock(&held.lock)
    f.acquired = clock_now()
    try:
        return 1 if held.retired else _ffn_locked(held, f, timeout)
    finally:
        pthread_mutex_unlock(&held.lock)
