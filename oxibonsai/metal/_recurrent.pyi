"""The ops of hybrid models: layers that carry a state, gates, and the Hadamard transform."""

from typing import Literal, SupportsIndex, TypeAlias

from typing_extensions import disjoint_base

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._weights import WeightHandle

_Binding: TypeAlias = Buffer | tuple[Buffer, SupportsIndex] | WeightHandle

@disjoint_base
class RecurrentOps:
    """The ops of hybrid models, which Commands has beside its own."""
    def __init__(self) -> None: ...
    def conv(
        self,
        x: _Binding,
        weight: _Binding,
        state: _Binding,
        recurrent: _Binding,
        y: _Binding,
        *,
        n_channels: SupportsIndex,
        width: SupportsIndex,
        slot_size: SupportsIndex,
        offset: SupportsIndex,
        ring: SupportsIndex = 1,
        n_tokens: SupportsIndex = 1,
        batch: bool = False,
        x_stride: SupportsIndex | None = None,
        y_stride: SupportsIndex | None = None,
    ) -> None:
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
    def delta(
        self,
        qkv: _Binding,
        alpha_beta: _Binding,
        a: _Binding,
        dt_bias: _Binding,
        state: _Binding,
        recurrent: _Binding,
        y: _Binding,
        *,
        n_key_heads: SupportsIndex,
        n_value_heads: SupportsIndex,
        key_dim: SupportsIndex,
        value_dim: SupportsIndex,
        slot_size: SupportsIndex,
        offset: SupportsIndex,
        ring: SupportsIndex = 1,
        n_tokens: SupportsIndex = 1,
        batch: bool = False,
        qkv_stride: SupportsIndex | None = None,
        ab_stride: SupportsIndex | None = None,
        y_stride: SupportsIndex | None = None,
        eps: float = 1e-6,
        scale: float | None = None,
    ) -> None:
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
    def gate(
        self,
        x: _Binding,
        z: _Binding,
        y: _Binding,
        *,
        n_heads: SupportsIndex,
        head_dim: SupportsIndex,
        activation: Literal["sigmoid", "silu"] = "sigmoid",
        norm: _Binding | None = None,
        eps: float = 1e-6,
        n_vectors: SupportsIndex = 1,
        x_stride: SupportsIndex | None = None,
        z_stride: SupportsIndex | None = None,
        y_stride: SupportsIndex | None = None,
    ) -> None:
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
    def hadamard(
        self,
        x: _Binding,
        signs: _Binding,
        y: _Binding,
        k: SupportsIndex,
        *,
        block: SupportsIndex,
        n_vectors: SupportsIndex = 1,
        norm: _Binding | None = None,
        eps: float = 1e-6,
        inverse: bool = False,
        head_size: SupportsIndex = 0,
        n_groups: SupportsIndex = 1,
    ) -> None:
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
    def copy(self, source: _Binding, target: _Binding, n: SupportsIndex) -> None:
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
