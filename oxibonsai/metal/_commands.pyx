"""Recorded command sequences."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from oxibonsai.metal._core cimport Device, HostBytes, api, check, host_bytes
from oxibonsai.metal._pipeline cimport Pipeline
from oxibonsai.metal._weights cimport WeightHandle, bind_vector, weight_of
from oxibonsai.metal.oxb cimport (
    OXB_MAX_BINDINGS,
    OXB_OK,
    oxb_attention_shape,
    oxb_binding,
    oxb_commands,
    oxb_size,
    oxb_status,
    oxb_weight,
)

from oxibonsai.metal._errors import EncodingError

cdef int MAX_IN_FLIGHT = 16


cdef uint64_t count_of(object value, str what) except? 0xffffffffffffffff:
    n = value.__index__()
    if not 0 <= n <= 0x7fffffffffffffff:
        raise EncodingError(f"{what} = {n} must lie in 0..2**63 - 1")
    return n


cdef oxb_size _size(object value, str what) except *:
    cdef oxb_size size
    extents = (value,) if hasattr(value, "__index__") else tuple(value)
    if not 1 <= len(extents) <= 3:
        raise EncodingError(f"{what} = {value!r}: one to three extents")
    padded = [*extents, 1, 1]
    for extent in padded[:3]:
        if not 0 <= extent.__index__() <= 0xffffffff:
            raise EncodingError(f"{what} = {value!r}: extents must fit 32 bits")
    size.x, size.y, size.z = padded[0], padded[1], padded[2]
    return size


cdef oxb_attention_shape _attention_shape(dict kw) except *:
    cdef oxb_attention_shape shape
    for name in ("n_heads", "n_kv_heads", "head_dim", "max_seq", "layer"):
        if not 0 <= kw[name].__index__() <= 0xffffffff:
            raise EncodingError(f"{name} = {kw[name]} must fit 32 bits")
    if kw["kv_dtype"] not in ("f16", "f32"):
        raise ValueError(f"kv_dtype = {kw['kv_dtype']!r}: 'f16' or 'f32'")
    shape.n_heads = kw["n_heads"]
    shape.n_kv_heads = kw["n_kv_heads"]
    shape.head_dim = kw["head_dim"]
    shape.max_seq = kw["max_seq"]
    shape.layer = kw["layer"]
    shape.kv_f16 = kw["kv_dtype"] == "f16"
    return shape


@cython.no_gc_clear
cdef class Commands:
    """A recorded sequence of dispatches that can be submitted any number of times.

    Record with dispatch() or with the ops (gemv(), rmsnorm(), ...), then submit() and wait(), or
    replay() for both. Each dispatch sees what the ones before it wrote. The recording keeps its
    buffers and pipelines alive. Once submitted it is sealed until reset().

    One thread uses a Commands at a time; different ones may run in different threads.

    Parameters
    ----------
    device : Device
        Where the sequence runs.
    """

    def __init__(self, Device device not None):
        cdef oxb_commands *handle = NULL
        if self.handle:
            raise EncodingError("this Commands is made already: make a new one")
        device.open_handle()
        with nogil:
            check(api.commands_new(device.handle, &handle))
        self.device = device
        self.handle = handle

    def __dealloc__(self):
        # What is still in flight keeps itself and its buffers alive until the device is done.
        cdef int i
        with nogil:
            for i in range(self.n_flight):
                api.submission_release(self.flight[i])
            if self.handle:
                api.commands_release(self.handle)

    cdef oxb_commands *recording(self) except NULL:
        if not self.handle:
            raise EncodingError("the commands are closed: record new ones")
        if self.busy:
            raise EncodingError("the commands are in use by another thread: give each thread its own")
        self.device.open_handle()
        return self.handle

    cdef int enter(self) except -1:
        self.recording()
        self.busy = True
        return 0

    @property
    def closed(self):
        """Whether close() was called."""
        return self.handle == NULL

    def close(self):
        """Let go of the recording. Work in flight ends by itself. Idempotent."""
        cdef oxb_commands *handle = self.handle
        cdef int i
        if not handle:
            return
        if self.busy:
            raise EncodingError("the commands are in use by another thread: close them after")
        self.handle = NULL
        with nogil:
            for i in range(self.n_flight):
                api.submission_release(self.flight[i])
            self.n_flight = 0
            api.commands_release(handle)

    def __enter__(self):
        self.recording()
        return self

    def __exit__(self, *exc):
        self.close()

    def __len__(self):
        return api.commands_length(self.recording())

    def reset(self):
        """Forget the recording, to record another.

        Raises
        ------
        EncodingError
            While a submission is in flight.
        """
        check(api.commands_reset(self.recording()))

    def dispatch(self, Pipeline pipeline not None, bindings, args=b"", *, threadgroups, threads=1,
                 threadgroup_memory=0):
        """Record one run of `pipeline`.

        Parameters
        ----------
        pipeline : Pipeline
            The kernel.
        bindings : sequence of Buffer or (Buffer, int)
            Buffers for the indices from 0 on, each with an offset in bytes where a pair is given.
        args : buffer
            The argument struct (at most 4096 bytes), bound after the last buffer.
        threadgroups, threads : int or tuple of up to 3 ints
            Threadgroups of the grid, and threads of a threadgroup.
        threadgroup_memory : int
            Bytes of dynamic threadgroup memory.

        Raises
        ------
        EncodingError
            Where a limit of the device is passed; nothing is recorded then.
        """
        cdef oxb_commands *handle = self.recording()
        cdef oxb_binding bound[31]
        cdef HostBytes struct = host_bytes(args)
        cdef uint32_t n = 0
        bindings = list(bindings)
        if len(bindings) > <int>OXB_MAX_BINDINGS:
            raise EncodingError(f"{len(bindings)} bindings: at most {OXB_MAX_BINDINGS} are allowed")
        for value in bindings:
            bind_vector(value, f"binding {n}", &bound[n])
            n += 1
        if struct.nbytes > 4096:
            raise EncodingError(f"an argument struct of {struct.nbytes} bytes: at most 4096 are allowed")
        memory = count_of(threadgroup_memory, "threadgroup_memory")
        if memory > 0xffffffff:
            raise EncodingError(f"threadgroup_memory = {memory}: it must fit 32 bits")
        check(api.commands_dispatch(
            handle, pipeline.open_handle(), bound, n, struct.address, struct.nbytes,
            _size(threadgroups, "threadgroups"), _size(threads, "threads"), memory,
        ))

    cdef int drain(self, int keep, double timeout) except -1 nogil:
        # Wait for all but the last `keep` submissions. One that timed out stays in the list.
        cdef oxb_status status = OXB_OK
        cdef int i
        while self.n_flight > keep:
            status = api.submission_wait(self.flight[0], timeout)
            if status != OXB_OK and not api.submission_done(self.flight[0]):
                break
            if status == OXB_OK and api.submission_times(self.flight[0], &self.last) == OXB_OK:
                self.timed = True
            api.submission_release(self.flight[0])
            self.n_flight -= 1
            for i in range(self.n_flight):
                self.flight[i] = self.flight[i + 1]
            if status != OXB_OK:
                break
        return check(status)

    cdef int run(self, int times, double timeout) except -1 nogil:
        cdef int _i
        for _i in range(times):
            if self.n_flight == MAX_IN_FLIGHT:
                self.drain(MAX_IN_FLIGHT - 1, timeout)
            check(api.commands_submit(self.handle, &self.flight[self.n_flight]))
            self.n_flight += 1
        return 0

    def submit(self, times=1):
        """Submit the recording `times` times, in order, and return without waiting.

        At most 16 submissions are in flight: past that it waits for the oldest. The cpu device runs
        them before it returns.
        """
        cdef int n = _times(times)
        self.enter()
        try:
            with nogil:
                self.run(n, -1)
        finally:
            self.busy = False

    def wait(self, timeout=None):
        """Wait until everything submitted has finished.

        Parameters
        ----------
        timeout : float, optional
            Seconds for each submission; without end where left out.

        Raises
        ------
        ExecutionError
            Where the device failed, or did not finish in time; the buffers stay alive until it does.
        """
        cdef double seconds = timeout_seconds(timeout)
        self.enter()
        try:
            with nogil:
                self.drain(0, seconds)
        finally:
            self.busy = False

    def replay(self, times=1, timeout=None):
        """Submit the recording `times` times and wait for all of them, without Python in between."""
        cdef int n = _times(times)
        cdef double seconds = timeout_seconds(timeout)
        self.enter()
        try:
            with nogil:
                self.run(n, seconds)
                self.drain(0, seconds)
        finally:
            self.busy = False

    @property
    def in_flight(self):
        """Submissions that nobody has waited for."""
        return self.n_flight

    @property
    def device_time(self):
        """Seconds the device took for the last submission waited for; None before the first."""
        return self.last.end - self.last.start if self.timed else None

    def gemv(self, weight, x, y, n_rows=None, k=None, *, residual=False):
        """Record y = W x, or y += W x. x: float32 [k], y: float32 [n_rows], in Buffers."""
        cdef oxb_commands *handle = self.recording()
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef const oxb_weight *matrix = w.matrix("gemv")
        cdef oxb_binding bx, by
        bind_vector(x, "x", &bx)
        bind_vector(y, "y", &by)
        rows, columns = shape_of(w, n_rows, k)
        check(api.op_gemv(handle, matrix, rows, columns, bx, by, bool(residual)))

    def gate_up_swiglu(self, weight, x, y, n_rows=None, k=None):
        """Record y = silu(W[:h] x) * (W[h:] x), h = n_rows / 2. y: float32 [h]."""
        cdef oxb_commands *handle = self.recording()
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef const oxb_weight *matrix = w.matrix("gate_up_swiglu")
        cdef oxb_binding bx, by
        bind_vector(x, "x", &bx)
        bind_vector(y, "y", &by)
        rows, columns = shape_of(w, n_rows, k)
        check(api.op_gate_up_swiglu(handle, matrix, rows, columns, bx, by))

    def rmsnorm(self, x, weight, y, n, *, eps=1e-6, n_vectors=1):
        """Record y = x / sqrt(mean(x^2) + eps) * weight for each of n_vectors rows of n floats."""
        cdef oxb_commands *handle = self.recording()
        cdef oxb_binding bx, bw, by
        bind_vector(x, "x", &bx)
        bind_vector(weight, "weight", &bw)
        bind_vector(y, "y", &by)
        check(api.op_rmsnorm(handle, bx, bw, by, count_of(n, "n"), count_of(n_vectors, "n_vectors"), eps))

    def add(self, x, y, n):
        """Record y += x over n floats."""
        cdef oxb_commands *handle = self.recording()
        cdef oxb_binding bx, by
        bind_vector(x, "x", &bx)
        bind_vector(y, "y", &by)
        check(api.op_add(handle, bx, by, count_of(n, "n")))

    def embed(self, weight, tokens, state, y, n_rows=None, k=None):
        """Record y = row tokens[position] of the weight; NaN where either is out of range.

        tokens: uint32; state: 16 bytes, the position as uint32 first.
        """
        cdef oxb_commands *handle = self.recording()
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef const oxb_weight *matrix = w.matrix("embed")
        cdef oxb_binding bt, bs, by
        bind_vector(tokens, "tokens", &bt)
        bind_vector(state, "state", &bs)
        bind_vector(y, "y", &by)
        rows, columns = shape_of(w, n_rows, k)
        check(api.op_embed(handle, matrix, rows, columns, bt, bs, by))

    def qk_norm_rope(self, qkv, q_norm, k_norm, rope, state, *, eps=1e-6, **shape):
        """Record RMSNorm and RoPE (on halves) of the heads of q and k, in place.

        qkv: float32 [n_heads + 2 n_kv_heads, head_dim]; rope: float32 [max_seq, 2, head_dim / 2],
        cosines then sines. `shape`: n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype.
        """
        cdef oxb_commands *handle = self.recording()
        cdef oxb_attention_shape s = _attention_shape(shape)
        cdef oxb_binding bq, bn, bk, br, bs
        bind_vector(qkv, "qkv", &bq)
        bind_vector(q_norm, "q_norm", &bn)
        bind_vector(k_norm, "k_norm", &bk)
        bind_vector(rope, "rope", &br)
        bind_vector(state, "state", &bs)
        check(api.op_qk_norm_rope(handle, bq, bn, bk, br, bs, &s, eps))

    def kv_store(self, qkv, k_cache, v_cache, state, **shape):
        """Record the store of k and v at the token's position.

        Caches: [layer, n_kv_heads, max_seq, head_dim] of kv_dtype. `shape` as in qk_norm_rope.
        """
        cdef oxb_commands *handle = self.recording()
        cdef oxb_attention_shape s = _attention_shape(shape)
        cdef oxb_binding bq, bk, bv, bs
        bind_vector(qkv, "qkv", &bq)
        bind_vector(k_cache, "k_cache", &bk)
        bind_vector(v_cache, "v_cache", &bv)
        bind_vector(state, "state", &bs)
        check(api.op_kv_store(handle, bq, bk, bv, bs, &s))

    def attention(self, qkv, k_cache, v_cache, state, out, *, scale=None, **shape):
        """Record decode attention of the token over all positions up to its own.

        out: float32 [n_heads, head_dim]; scale: 1 / sqrt(head_dim) where left out. `shape` as in
        qk_norm_rope.
        """
        cdef oxb_commands *handle = self.recording()
        cdef oxb_attention_shape s = _attention_shape(shape)
        cdef oxb_binding bq, bk, bv, bs, bo
        bind_vector(qkv, "qkv", &bq)
        bind_vector(k_cache, "k_cache", &bk)
        bind_vector(v_cache, "v_cache", &bv)
        bind_vector(state, "state", &bs)
        bind_vector(out, "out", &bo)
        cdef float factor = (s.head_dim ** -0.5 if s.head_dim else 0.0) if scale is None else scale
        check(api.op_attention(handle, bq, bk, bv, bs, bo, &s, factor))

    def advance(self, logits, tokens, state, n, max_tokens, *, greedy=True):
        """Record position += 1 and, where greedy, tokens[position] = argmax of n logits."""
        cdef oxb_commands *handle = self.recording()
        cdef oxb_binding bl, bt, bs
        bind_vector(logits, "logits", &bl)
        bind_vector(tokens, "tokens", &bt)
        bind_vector(state, "state", &bs)
        check(api.op_advance(handle, bl, bt, bs, count_of(n, "n"), count_of(max_tokens, "max_tokens"),
                             bool(greedy)))

    def __repr__(self):
        if not self.handle:
            return "<Commands closed>"
        return f"<Commands of {api.commands_length(self.handle)} dispatches, {self.n_flight} in flight>"


cdef int _times(object times) except -1:
    n = times.__index__()
    if not 1 <= n <= 0x7fffffff:
        raise EncodingError(f"times = {n} must lie in 1..2**31 - 1")
    return n


cdef double timeout_seconds(object timeout) except? -2:
    # The shim's convention: negative is without end.
    if timeout is None:
        return -1
    cdef double seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout = {timeout!r}: seconds, 0 or more, or None")
    return seconds


cdef tuple shape_of(WeightHandle weight, n_rows, k):
    shape = weight.shape
    if n_rows is None or k is None:
        if shape is None:
            raise EncodingError("the weight was uploaded without a shape: give n_rows and k")
        n_rows = shape[0] if n_rows is None else n_rows
        k = shape[1] if k is None else k
    return count_of(n_rows, "n_rows"), count_of(k, "k")
