"""The ops of hybrid models: layers that carry a state, gates, and the Hadamard transform."""

from libc.stdint cimport uint64_t

from oxibonsai.metal._core cimport api, check, count_of, u32_of
from oxibonsai.metal._weights cimport bind_all
from oxibonsai.metal.oxb cimport (
    OXB_SIGMOID,
    OXB_SILU,
    oxb_binding,
    oxb_commands,
    oxb_conv,
    oxb_delta,
    oxb_gate,
    oxb_hadamard,
    oxb_recurrent_shape,
)

from oxibonsai.metal._errors import EncodingError


cdef oxb_recurrent_shape _shape(slot_size, offset, ring, n_tokens, batch) except *:
    cdef oxb_recurrent_shape shape
    shape.slot_size = count_of(slot_size, "slot_size")
    shape.offset = count_of(offset, "offset")
    shape.ring = u32_of(ring, "ring")
    shape.n_tokens = u32_of(n_tokens, "n_tokens")
    shape.batch = bool(batch)
    shape.pad = 0
    return shape


# Elements from a row to the next; 0, as long as a row, where it is left out.
cdef uint64_t _stride(value, str what) except? 0xffffffffffffffff:
    if value is None:
        return 0
    n = count_of(value, what)
    if n == 0:
        raise EncodingError(f"{what} = 0 must be as long as a row, or more; None stands for that")
    return n


cdef class RecurrentOps:
    """RecurrentOps()\n--\n
    The ops of hybrid models, which Commands has beside its own."""

    def __init__(self):
        raise TypeError("RecurrentOps is a part of Commands: make one of those")

    cdef oxb_commands *recording(self) except NULL:
        raise EncodingError("RecurrentOps records nothing itself")

    def conv(self, x, weight, state, recurrent, y, *, n_channels, width, slot_size, offset, ring=1,
             n_tokens=1, batch=False, x_stride=None, y_stride=None):
        """Record y[t, c] = silu(sum of weight[c, j] * x[t + j - (width - 1), c] over j).

        A causal convolution along the tokens. Inputs before the first token come from the state,
        which is left with the last width - 1 inputs.

        Parameters
        ----------
        x : operand
            float32 [n_tokens, n_channels].
        weight : operand
            float32 [n_channels, width].
        state : operand
            struct oxb_decode_state: uint32 position, first token, first page and first slot of the
            sequence; one, or with batch [n_tokens].
        recurrent : operand
            float32 [slots, slot_size], the states of all layers and sequences; read and written.
            The state before position p is in slot ``first + p % ring``; the one after the tokens
            goes to slot ``first + (p + n_tokens) % ring``. At position 0 it is zero, whatever is in
            the slot. A sequence whose slots are not all there, or whose last token would pass
            position 2**32 - 2, has rows of zeros, and nothing of its state is written.
        y : operand
            float32 [n_tokens, n_channels]; it shares no byte with another operand.
        n_channels : int
            Channels.
        width : int
            Inputs of an output, 2 to 8.
        slot_size : int
            Elements of a slot.
        offset : int
            Elements of a slot before this layer's part.
        ring : int
            Slots of a sequence.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        batch : bool
            Whether each token belongs to a sequence of its own.
        x_stride, y_stride : int, optional
            Elements from one row to the next; n_channels where left out.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
        cdef oxb_conv c
        cdef oxb_binding b[5]
        c.shape = _shape(slot_size, offset, ring, n_tokens, batch)
        c.n_channels = u32_of(n_channels, "n_channels")
        c.width = u32_of(width, "width")
        c.x_stride, c.y_stride = _stride(x_stride, "x_stride"), _stride(y_stride, "y_stride")
        bind_all(
            (("x", x), ("weight", weight), ("state", state), ("recurrent", recurrent), ("y", y)), b)
        c.x, c.weight, c.state, c.recurrent, c.y = b[0], b[1], b[2], b[3], b[4]
        check(api.op_conv(self.recording(), &c))

    def delta(self, qkv, alpha_beta, a, dt_bias, state, recurrent, y, *, n_key_heads, n_value_heads,
              key_dim, value_dim, slot_size, offset, ring=1, n_tokens=1, batch=False,
              qkv_stride=None, ab_stride=None, y_stride=None, eps=1e-6, scale=None):
        """Record the gated delta rule, token after token.

        Value head h has a state S [key_dim, value_dim] and key head h % n_key_heads. With q and k
        divided by their lengths sqrt(sum of squares + eps), and q times scale::

            g = exp(a[h] * softplus(alpha[t, h] + dt_bias[h]))
            S = g * S
            d = (v - k @ S) * sigmoid(beta[t, h])
            S = S + outer(k, d)
            y[t, h] = q @ S

        Parameters
        ----------
        qkv : operand
            float32 [n_tokens]; a row holds the queries of all key heads, their keys, the values of
            all value heads.
        alpha_beta : operand
            float32 [n_tokens, 2, n_value_heads]: alpha, then beta.
        a, dt_bias : operand
            float32 [n_value_heads].
        state : operand
            struct oxb_decode_state: uint32 position, first token, first page and first slot of the
            sequence; one, or with batch [n_tokens].
        recurrent : operand
            float32 [slots, slot_size], the states of all layers and sequences; read and written.
            The state before position p is in slot ``first + p % ring``; the one after the tokens
            goes to slot ``first + (p + n_tokens) % ring``. At position 0 it is zero, whatever is in
            the slot. A sequence whose slots are not all there, or whose last token would pass
            position 2**32 - 2, has rows of zeros, and nothing of its state is written.
        y : operand
            float32 [n_tokens, n_value_heads, value_dim]; it shares no byte with another operand.
        n_key_heads : int
            Heads of queries and keys.
        n_value_heads : int
            Heads of values, a multiple of n_key_heads.
        key_dim, value_dim : int
            Elements of a key and of a value: multiples of 32, at most 256.
        slot_size : int
            Elements of a slot.
        offset : int
            Elements of a slot before this layer's part.
        ring : int
            Slots of a sequence.
        n_tokens : int
            Tokens in flight, at the state's position and after it, or with batch one for each
            state, at its position.
        batch : bool
            Whether each token belongs to a sequence of its own.
        qkv_stride, ab_stride, y_stride : int, optional
            Elements from one row to the next; as long as it is where left out.
        eps : float
            Finite and not negative.
        scale : float, optional
            Of the queries; 1 / sqrt(key_dim) where left out.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
        cdef oxb_delta d
        cdef oxb_binding b[7]
        d.shape = _shape(slot_size, offset, ring, n_tokens, batch)
        d.n_key_heads = u32_of(n_key_heads, "n_key_heads")
        d.n_value_heads = u32_of(n_value_heads, "n_value_heads")
        d.key_dim = u32_of(key_dim, "key_dim")
        d.value_dim = u32_of(value_dim, "value_dim")
        d.qkv_stride = _stride(qkv_stride, "qkv_stride")
        d.ab_stride = _stride(ab_stride, "ab_stride")
        d.y_stride = _stride(y_stride, "y_stride")
        d.eps = eps
        d.scale = scale if scale is not None else max(1, d.key_dim) ** -0.5
        bind_all((("qkv", qkv), ("alpha_beta", alpha_beta), ("a", a), ("dt_bias", dt_bias),
                  ("state", state), ("recurrent", recurrent), ("y", y)), b)
        d.qkv, d.alpha_beta, d.a, d.dt_bias = b[0], b[1], b[2], b[3]
        d.state, d.recurrent, d.y = b[4], b[5], b[6]
        check(api.op_delta(self.recording(), &d))

    def gate(self, x, z, y, *, n_heads, head_dim, activation="sigmoid", norm=None, eps=1e-6,
             n_vectors=1, x_stride=None, z_stride=None, y_stride=None):
        """Record y = activation(z) * x, or * the RMSNorm of each head of x.

        Parameters
        ----------
        x : operand
            float32 [n_vectors, n_heads, head_dim].
        z : operand
            float32 [n_vectors, n_heads, head_dim].
        y : operand
            float32 [n_vectors, n_heads, head_dim]; it may be x itself.
        n_heads : int
            Heads of a row.
        head_dim : int
            Elements of a head, at most 512.
        activation : {"sigmoid", "silu"}
            1 / (1 + exp(-z)), or z times that.
        norm : operand, optional
            float32 [head_dim]: the weight of the norm of all heads; left out, there is none.
        eps : float
            Of the norm; finite and not negative.
        n_vectors : int
            Rows.
        x_stride, z_stride, y_stride : int, optional
            Elements from one row to the next; n_heads * head_dim where left out.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
        cdef oxb_gate g
        cdef oxb_binding b[4]
        if activation not in ("sigmoid", "silu"):
            raise EncodingError(f"activation = {activation!r} must be 'sigmoid' or 'silu'")
        g.n_heads, g.head_dim = u32_of(n_heads, "n_heads"), u32_of(head_dim, "head_dim")
        g.n_vectors = count_of(n_vectors, "n_vectors")
        g.x_stride, g.z_stride = _stride(x_stride, "x_stride"), _stride(z_stride, "z_stride")
        g.y_stride = _stride(y_stride, "y_stride")
        g.activation = OXB_SILU if activation == "silu" else OXB_SIGMOID
        g.norm.eps = eps
        b[3].buffer, b[3].offset = NULL, 0
        operands = (("x", x), ("z", z), ("y", y))
        bind_all(operands if norm is None else (*operands, ("norm", norm)), b)
        g.x, g.z, g.y, g.norm.weight = b[0], b[1], b[2], b[3]
        check(api.op_gate(self.recording(), &g))

    def hadamard(self, x, signs, y, k, *, block, n_vectors=1, norm=None, eps=1e-6, inverse=False,
                 head_size=0, n_groups=1):
        """Record y = H (signs * P(n(x))) or, for the inverse, y = signs * (H x).

        H is the normalised Walsh-Hadamard transform of each block of elements of a vector,
        H[r, c] = (-1)**popcount(r & c) / sqrt(block), which is its own inverse.

        Parameters
        ----------
        x : operand
            float32 [n_vectors, k].
        signs : operand
            float32 [k] of 1 and -1.
        y : operand
            float32 [n_vectors, k]; it may be x itself where there is neither a norm nor more than
            one group.
        k : int
            Elements of a vector, a multiple of block.
        block : int
            A power of two, 16 to 4096.
        n_vectors : int
            Vectors.
        norm : operand, optional
            float32 [k]: the weight of n, the RMSNorm of a vector; left out, n changes nothing.
        eps : float
            Of the norm; finite and not negative.
        inverse : bool
            Whether the signs come behind the transform; then without norm and groups.
        head_size, n_groups : int
            P moves head r * K + j of head_size elements to head j * n_groups + r, with
            K = k / head_size / n_groups. With one group it changes nothing.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
        cdef oxb_hadamard h
        cdef oxb_binding b[4]
        h.k, h.n_vectors = count_of(k, "k"), count_of(n_vectors, "n_vectors")
        h.block = u32_of(block, "block")
        h.head_size, h.n_groups = u32_of(head_size, "head_size"), u32_of(n_groups, "n_groups")
        h.inverse = bool(inverse)
        h.norm.eps = eps
        b[3].buffer, b[3].offset = NULL, 0
        operands = (("x", x), ("signs", signs), ("y", y))
        bind_all(operands if norm is None else (*operands, ("norm", norm)), b)
        h.x, h.signs, h.y, h.norm.weight = b[0], b[1], b[2], b[3]
        check(api.op_hadamard(self.recording(), &h))

    def copy(self, source, target, n):
        """Record target = source over n words of 32 bits, which keep their bits.

        Parameters
        ----------
        source : operand
            n words of 4 bytes.
        target : operand
            The same; it shares no byte with source.
        n : int
            Words.

        Raises
        ------
        EncodingError
            Where a shape does not fit its operands, operands overlap that may not, an object
            belongs to another device or is closed, or the commands are sealed. Nothing is recorded
            then.
        TypeError
            Where an operand is none, or a number no integer.
        """
        cdef oxb_binding b[2]
        cdef uint64_t size = count_of(n, "n")
        bind_all((("source", source), ("target", target)), b)
        check(api.op_copy(self.recording(), b[0], b[1], size))
