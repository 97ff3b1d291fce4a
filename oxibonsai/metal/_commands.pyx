"""Recorded command sequences."""

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint32_t, uint64_t

from oxibonsai.metal._core cimport Device, HostBytes, api, check, count_of, host_bytes
from oxibonsai.metal._pipeline cimport Pipeline
from oxibonsai.metal._weights cimport WeightHandle, bind_all, weight_of
from oxibonsai.metal.oxb cimport (
    OXB_ACTIVATIONS_INT8,
    OXB_MAX_BINDINGS,
    OXB_OK,
    oxb_attention_shape,
    oxb_binding,
    oxb_commands,
    oxb_norm,
    oxb_size,
    oxb_status,
)

from oxibonsai.metal._errors import EncodingError

cdef int MAX_IN_FLIGHT = 16


cdef uint32_t _u32(object value, str what) except? 0xffffffff:
    n = PyNumber_Index(value)
    if not 0 <= n <= 0xffffffff:
        raise EncodingError(f"{what} = {n} must fit 32 bits")
    return n


cdef oxb_size _size(object value, str what) except *:
    cdef oxb_size size
    extents = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(extents) <= 3:
        raise EncodingError(f"{what} = {value!r}: one to three extents")
    extents = (*extents, 1, 1)
    size.x, size.y, size.z = _u32(extents[0], what), _u32(extents[1], what), _u32(extents[2], what)
    return size


cdef oxb_attention_shape _attention_shape(
    n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, max_length=None
) except *:
    cdef oxb_attention_shape shape
    if kv_dtype not in ("f16", "f32"):
        raise ValueError(f"kv_dtype = {kv_dtype!r}: 'f16' or 'f32'")
    shape.n_heads = _u32(n_heads, "n_heads")
    shape.n_kv_heads = _u32(n_kv_heads, "n_kv_heads")
    shape.head_dim = _u32(head_dim, "head_dim")
    shape.max_seq = _u32(max_seq, "max_seq")
    shape.layer = _u32(layer, "layer")
    shape.kv_f16 = kv_dtype == "f16"
    shape.n_tokens = _u32(n_tokens, "n_tokens")
    shape.max_length = 0 if max_length is None else _u32(max_length, "max_length")
    if max_length is not None and shape.max_length == 0:
        raise EncodingError(f"max_length = 0 must lie in 1..{shape.max_seq}, the max_seq")
    return shape


@cython.no_gc_clear
cdef class Commands:
    """Commands(device, *, activations='float32')\n--\n
    A recorded sequence of dispatches that can be submitted any number of times.

    Record with dispatch() or with the ops (gemv(), rmsnorm(), ...), then submit() and wait(), or
    replay() for both. Each dispatch sees what the ones before it wrote. The recording keeps its
    buffers and pipelines alive. Once submitted it is sealed until reset().

    One thread uses a Commands at a time; different ones may run in different threads.

    Parameters
    ----------
    device : Device
        Where the sequence runs.
    activations : {"float32", "int8"}
        What gemv() and gate_up_swiglu() of 8 or more vectors make of them: int8 rounds them to 8 bits
        in blocks of 16 that share a scale, about 5e-3 of the result's norm. For matrices of 1 and 2
        bits on the cpu device; others stay float32, as fewer vectors do.

    Attributes
    ----------
    device : Device
        Where the sequence runs.

    Raises
    ------
    ValueError
        For other activations.
    EncodingError
        For int8 on a device without such kernels: a GPU, or the portable ones.
    """

    def __init__(self, Device device not None, *, activations="float32"):
        cdef oxb_commands *handle = NULL
        if activations not in ("float32", "int8"):
            raise ValueError(f"activations = {activations!r}: 'float32' or 'int8'")
        if self.handle:
            raise EncodingError("this Commands is made already: make a new one")
        # With the GIL: it makes a handle and asks the device nothing.
        check(api.commands_new(device.open_handle(), &handle))
        self.device = device
        self.handle = handle
        if activations == "int8":
            check(api.commands_activations(handle, OXB_ACTIVATIONS_INT8))

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
        cdef oxb_binding bound[31]
        cdef HostBytes struct = host_bytes(args)
        cdef oxb_size grid = _size(threadgroups, "threadgroups"), group = _size(threads, "threads")
        cdef uint32_t memory = _u32(threadgroup_memory, "threadgroup_memory")
        operands = tuple((f"binding {i}", value) for i, value in enumerate(bindings))
        if len(operands) > <int>OXB_MAX_BINDINGS:
            raise EncodingError(f"{len(operands)} bindings: at most {OXB_MAX_BINDINGS} are allowed")
        if struct.nbytes > 4096:
            raise EncodingError(f"an argument struct of {struct.nbytes} bytes: at most 4096 are allowed")
        bind_all(operands, bound)
        check(api.commands_dispatch(
            self.recording(), pipeline.open_handle(), bound, <uint32_t>len(operands), struct.address,
            <uint32_t>struct.nbytes, grid, group, memory,
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

    def wait(self, timeout=None, *, keep=0):
        """Wait until everything submitted has finished, or all but the last `keep` submissions.

        Parameters
        ----------
        timeout : float, optional
            Seconds for each submission; without end where left out.
        keep : int
            How many submissions may still be in flight: 0 waits for all of them.

        Raises
        ------
        ExecutionError
            Where the device failed, or did not finish in time; the buffers stay alive until it does.
        """
        cdef double seconds = timeout_seconds(timeout)
        kept = PyNumber_Index(keep)
        if kept < 0:
            raise EncodingError(f"keep = {kept} must be 0 or more")
        cdef int rest = min(kept, MAX_IN_FLIGHT)
        self.enter()
        try:
            with nogil:
                self.drain(rest, seconds)
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

    # Each op converts its numbers first and reads open handles last: a conversion may run code that closes
    # one of them.

    def gemv(self, weight, x, y, n_rows=None, k=None, *, residual=False, n_vectors=1, y_stride=None,
             norm=None, eps=1e-6):
        """Record y = W x, or y += W x, for each of n_vectors rows of x.

        x: float32 [n_vectors, k], y: float32 [n_vectors, n_rows], in Buffers. The rows of y are y_stride
        elements apart, n_rows where left out. With `norm`, float32 [k], x is taken as
        x / sqrt(mean(x^2) + eps) * norm, as rmsnorm() computes it.
        """
        cdef oxb_binding b[3]
        cdef oxb_norm normalise
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef bint add = residual
        cdef uint64_t rows, columns, vectors = count_of(n_vectors, "n_vectors")
        rows, columns = shape_of(w, n_rows, k)
        cdef uint64_t stride = rows if y_stride is None else count_of(y_stride, "y_stride")
        normalise.eps = eps
        bind_all(_with_norm(norm, (("x", x), ("y", y))), b)
        normalise.weight = b[2]
        check(api.op_gemv(self.recording(), w.matrix("gemv"), rows, columns,
                          &normalise if norm is not None else NULL, b[0], b[1], vectors, stride, add))

    def gate_up_swiglu(self, weight, x, y, n_rows=None, k=None, *, n_vectors=1, norm=None, eps=1e-6):
        """Record y = silu(W[:h] x) * (W[h:] x), h = n_rows / 2, for each of n_vectors rows of x.

        x: float32 [n_vectors, k], y: float32 [n_vectors, h]. Norm and eps as in gemv().
        """
        cdef oxb_binding b[3]
        cdef oxb_norm normalise
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef uint64_t rows, columns, vectors = count_of(n_vectors, "n_vectors")
        rows, columns = shape_of(w, n_rows, k)
        normalise.eps = eps
        bind_all(_with_norm(norm, (("x", x), ("y", y))), b)
        normalise.weight = b[2]
        check(api.op_gate_up_swiglu(self.recording(), w.matrix("gate_up_swiglu"), rows, columns,
                                    &normalise if norm is not None else NULL, b[0], b[1], vectors))

    def rmsnorm(self, x, weight, y, n, *, eps=1e-6, n_vectors=1):
        """Record y = x / sqrt(mean(x^2) + eps) * weight for each of n_vectors rows of n floats."""
        cdef oxb_binding b[3]
        cdef uint64_t size = count_of(n, "n"), vectors = count_of(n_vectors, "n_vectors")
        cdef float epsilon = eps
        bind_all((("x", x), ("weight", weight), ("y", y)), b)
        check(api.op_rmsnorm(self.recording(), b[0], b[1], b[2], size, vectors, epsilon))

    def add(self, x, y, n):
        """Record y += x over n floats."""
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n")
        bind_all((("x", x), ("y", y)), b)
        check(api.op_add(self.recording(), b[0], b[1], size))

    def embed(self, weight, tokens, state, y, n_rows=None, k=None, *, n_tokens=1):
        """Record y[t] = row tokens[position + t] of the weight; NaN where either is out of range.

        tokens: uint32; state: 16 bytes, the position as uint32 first; y: float32 [n_tokens, k].
        """
        cdef oxb_binding b[3]
        cdef WeightHandle w = weight_of(weight, "weight")
        cdef uint64_t rows, columns, count = count_of(n_tokens, "n_tokens")
        rows, columns = shape_of(w, n_rows, k)
        bind_all((("tokens", tokens), ("state", state), ("y", y)), b)
        check(api.op_embed(self.recording(), w.matrix("embed"), rows, columns, b[0], b[1], b[2], count))

    def qk_norm_rope(self, qkv, q_norm, k_norm, rope, state, *, n_heads, n_kv_heads, head_dim, max_seq,
                     layer, kv_dtype, n_tokens=1, eps=1e-6):
        """Record RMSNorm and RoPE (on halves) of the heads of q and k, in place.

        qkv: float32 [n_tokens, n_heads + 2 n_kv_heads, head_dim], of the tokens at the state's position
        and after it; rope: float32 [max_seq, 2, head_dim / 2], cosines then sines. Layer and kv_dtype are
        those of the cache and change nothing here.
        """
        cdef oxb_binding b[5]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens)
        cdef float epsilon = eps
        bind_all((("qkv", qkv), ("q_norm", q_norm), ("k_norm", k_norm), ("rope", rope),
                  ("state", state)), b)
        check(api.op_qk_norm_rope(self.recording(), b[0], b[1], b[2], b[3], b[4], &shape, epsilon))

    def kv_store(self, qkv, k_cache, v_cache, state, *, n_heads, n_kv_heads, head_dim, max_seq,
                 layer, kv_dtype, n_tokens=1):
        """Record the store of k and v at the tokens' positions.

        Caches: [layer, n_kv_heads, max_seq, head_dim] of kv_dtype, "f16" or "f32".
        """
        cdef oxb_binding b[4]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens)
        bind_all((("qkv", qkv), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state)), b)
        check(api.op_kv_store(self.recording(), b[0], b[1], b[2], b[3], &shape))

    def qkv_to_cache(self, qkv, q_norm, k_norm, rope, k_cache, v_cache, state, *, n_heads, n_kv_heads,
                     head_dim, max_seq, layer, kv_dtype, n_tokens=1, eps=1e-6):
        """Record qk_norm_rope and kv_store in one.

        The queries are left in qkv for attention(); what is left there of the keys is not defined.
        """
        cdef oxb_binding b[7]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens)
        cdef float epsilon = eps
        bind_all((("qkv", qkv), ("q_norm", q_norm), ("k_norm", k_norm), ("rope", rope),
                  ("k_cache", k_cache), ("v_cache", v_cache), ("state", state)), b)
        check(api.op_qkv_to_cache(
            self.recording(), b[0], b[1], b[2], b[3], b[4], b[5], b[6], &shape, epsilon))

    def attention(self, qkv, k_cache, v_cache, state, out, *, n_heads, n_kv_heads, head_dim, max_seq,
                  layer, kv_dtype, n_tokens=1, max_length=None, scale=None):
        """Record causal attention of each token over all positions up to its own.

        out: float32 [n_tokens, n_heads, head_dim]; scale: 1 / sqrt(head_dim) where left out. Caches as in
        kv_store. max_length is the most positions that a replay will meet, max_seq where left out: it
        decides into how many parts the work of one token is cut, and nothing else.
        """
        cdef oxb_binding b[5]
        cdef oxb_attention_shape shape = _attention_shape(
            n_heads, n_kv_heads, head_dim, max_seq, layer, kv_dtype, n_tokens, max_length)
        cdef float factor = scale if scale is not None else max(shape.head_dim, 1) ** -0.5
        bind_all((("qkv", qkv), ("k_cache", k_cache), ("v_cache", v_cache), ("state", state),
                  ("out", out)), b)
        check(api.op_attention(self.recording(), b[0], b[1], b[2], b[3], b[4], &shape, factor))

    def argmax(self, logits, out, n, *, n_vectors=1):
        """Record out[v] = the index of the largest of row v of logits [n_vectors, n].

        out: uint32 [n_vectors]. The lowest index of equal ones, and 0 where all are NaN.
        """
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n"), vectors = count_of(n_vectors, "n_vectors")
        bind_all((("logits", logits), ("out", out)), b)
        check(api.op_argmax(self.recording(), b[0], b[1], size, vectors))

    def advance(self, logits, tokens, state, n, max_tokens, *, n_tokens=1, greedy=True):
        """Record position += n_tokens and, where greedy, tokens[position] = argmax of n logits."""
        cdef oxb_binding b[3]
        cdef uint64_t size = count_of(n, "n"), limit = count_of(max_tokens, "max_tokens")
        cdef uint64_t count = count_of(n_tokens, "n_tokens")
        cdef bint choose = greedy
        bind_all((("logits", logits), ("tokens", tokens), ("state", state)), b)
        check(api.op_advance(self.recording(), b[0], b[1], b[2], size, limit, count, choose))

    def __repr__(self):
        if not self.handle:
            return "<Commands closed>"
        return f"<Commands of {api.commands_length(self.handle)} dispatches, {self.n_flight} in flight>"


cdef tuple _with_norm(norm, tuple operands):
    return operands if norm is None else (*operands, ("norm", norm))


cdef int _times(object times) except -1:
    n = PyNumber_Index(times)
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
