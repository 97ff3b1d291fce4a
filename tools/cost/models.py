"""Whole models: the dispatches of a decoded token and of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from cost.chips import Chip
from cost.estimate import Estimate, Work, estimate
from cost.formats import CodedFormat
from cost.kernels import (
    Heads,
    Product,
    best,
    decode_attention,
    default_rows,
    float_gemm,
    gemm,
    gemv,
    prompt_attention,
    small,
    step_attention,
)
from cost.recurrent import Recurrent, convolution, delta_rule, gate, rotation

QKV, OUTPUT, GATE_UP, DOWN = "q, k, v", "attention's output", "gate and up", "down"
HEAD = "head"


@dataclass(frozen=True)
class Layer:
    """Layers of one kind: their products, and what they keep of the past."""

    n: int
    products: tuple[Product, ...]
    heads: Heads | None
    """None in a layer with a recurrent state."""
    recurrent: Recurrent | None = None
    gated: bool = False
    """Whether a gate follows the heads of attention."""
    rotated: bool = False
    """Whether what its products take is rotated, each by a dispatch, which has the norm too."""


@dataclass(frozen=True)
class Shape:
    """A model's shape."""

    name: str
    layers: tuple[Layer, ...]
    head: Product

    def weight_bytes(self, fmt: CodedFormat) -> int:
        """Return the bytes of the matrices that a token reads."""
        rows = [(p.matrix_rows, p.k, one.n) for one in self.layers for p in one.products]
        rows.append((self.head.n_rows, self.head.k, 1))
        return sum(n * fmt.nbytes(r, k) for r, k, n in rows)


def _qwen3(name: str, n: int, hidden: int, inner: int, n_heads: int, n_kv_heads: int) -> Shape:
    heads = Heads(n_heads, n_kv_heads, 128)
    layer = Layer(
        n,
        (
            Product(QKV, (n_heads + 2 * n_kv_heads) * 128, hidden, norm=True),
            Product(OUTPUT, hidden, n_heads * 128),
            Product(GATE_UP, inner, hidden, norm=True, swiglu=True),
            Product(DOWN, hidden, inner),
        ),
        heads,
    )
    return Shape(name, (layer,), Product(HEAD, 151_936, hidden, norm=True))


def _hybrid(name: str, *, rotated: bool = False) -> Shape:
    """Return the shape of Bonsai-27B: three layers of four have a recurrent state."""
    norm = not rotated
    ffn = (
        Product(GATE_UP, 17_408, 5120, norm=norm, swiglu=True),
        Product(DOWN, 5120, 17_408),
    )
    attention = (Product(QKV, 2 * 6144 + 2 * 1024, 5120, norm=norm), Product(OUTPUT, 5120, 6144))
    recurrent = (
        Product("q, k, v and z", 10_240 + 6144, 5120, norm=norm),
        Product("alpha and beta", 96, 5120, norm=True),  # not of what is rotated
        Product("recurrent output", 5120, 6144),
    )
    state = Recurrent(16, 48, 128, 128, 4)
    layers = (
        Layer(16, (*attention, *ffn), Heads(24, 4, 256), gated=True, rotated=rotated),
        Layer(48, (*recurrent, *ffn), None, state, rotated=rotated),
    )
    return Shape(name, layers, Product(HEAD, 248_320, 5120, norm=True))


SHAPES = {
    one.name: one
    for one in (
        _qwen3("1.7B", 28, 2048, 6144, 16, 8),
        _qwen3("8B", 36, 4096, 12_288, 32, 8),
        _hybrid("27B"),
        _hybrid("27B, rotated", rotated=True),
    )
}


@dataclass(frozen=True)
class Part:
    """A dispatch of a step, and how often it occurs."""

    name: str
    times: int
    variant: str
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Seconds of all of them."""
        return self.times * self.estimate.seconds


def _product(chip: Chip, product: Product, fmt: CodedFormat, variant: str | None) -> Part:
    if variant == "lookup" and chip.family == "nvidia":
        name = f"lookup-{default_rows(product)}"
        return Part(product.name, 1, name, estimate(chip, gemv(chip, product, fmt, name)))
    return Part(product.name, 1, *best(chip, product, fmt, variant))


def _other_works(chip: Chip, layer: Layer, tokens: int) -> list[tuple[str, Work]]:
    """Return what a layer does for some tokens besides its products and attention."""
    works = []
    if layer.rotated:
        for product in layer.products:
            if product.name != "alpha and beta":
                norm = product.name not in (OUTPUT, DOWN, "recurrent output")
                works.append(("rotation", rotation(chip, product.k, tokens, norm=norm)))
    if layer.recurrent is not None:
        works.append(("convolution", convolution(chip, layer.recurrent, tokens)))
        works.append(("delta rule", delta_rule(chip, layer.recurrent, tokens)))
        works.append(("gate", gate(chip, layer.recurrent.values, tokens)))
    if layer.gated and layer.heads is not None:
        values = layer.heads.n_heads * layer.heads.head_dim
        works.append(("gate", gate(chip, values, tokens)))
    return works


def decode(
    chip: Chip, shape: Shape, fmt: CodedFormat, positions: int = 128, variant: str | None = None
) -> list[Part]:
    """Return the dispatches of one decoded token.

    Parameters
    ----------
    chip
        Where it runs.
    shape
        The model's shape.
    fmt
        The format of all matrices.
    positions
        How many positions attention reads.
    variant
        The kind of GEMV, of which the fastest is taken for each shape; None is any. Look-up on
        NVIDIA has the rows that the driver chooses; look-up goes with attention by lanes, as in
        what was measured, others with attention on matrix units.
    """
    parts: list[Part] = []

    def add(name: str, times: int, work: Work) -> None:
        parts.append(Part(name, times, "", estimate(chip, work)))

    for layer in shape.layers:
        for product in layer.products:
            one = _product(chip, product, fmt, variant)
            parts.append(Part(one.name, layer.n, one.variant, one.estimate))
        for name, work in _other_works(chip, layer, 1):
            add(name, layer.n, work)
        if layer.heads is None:
            continue
        add("heads to cache", layer.n, small(chip, 4.0 * layer.products[0].n_rows, 3.0))
        if variant == "lookup" or layer.heads.head_dim > 128:
            works = list(decode_attention(chip, layer.heads, positions))
        else:
            works = step_attention(chip, layer.heads, positions)
        for name, work in zip(("attention", "splits"), works, strict=False):
            add(name, layer.n, work)
    head = _product(chip, shape.head, fmt, variant)
    parts.append(head)
    add("choice", 1, small(chip, 4.0 * shape.head.n_rows, 3.0))
    add("choice of blocks", 2, small(chip, 4096.0, 4.0))
    return parts


def prompt(
    chip: Chip, shape: Shape, fmt: CodedFormat, tokens: int = 512, chunk: int = 128, halves: int = 2
) -> list[Part]:
    """Return the dispatches of a prompt, fed in chunks.

    Parameters
    ----------
    chip
        Where it runs.
    shape
        The model's shape.
    fmt
        The format of all matrices.
    tokens
        Tokens of the prompt, a multiple of `chunk`.
    chunk
        Tokens of a chunk.
    halves
        Halves that stand for an activation: 2, or 1 where rounding is allowed; 0 multiplies
        matrices of floats, as Apple's chips can.
    """
    parts: list[Part] = []

    def add(name: str, times: int, work: Work) -> None:
        parts.append(Part(name, times, "", estimate(chip, work)))

    for start in range(0, tokens, chunk):
        for layer in shape.layers:
            for product in layer.products:
                if halves == 0:
                    add(product.name, layer.n, float_gemm(product, fmt, chunk))
                    continue
                add(product.name, layer.n, gemm(chip, product, fmt, chunk, halves))
                add("halves", layer.n, small(chip, 8.0 * chunk * product.k))
            for name, work in _other_works(chip, layer, chunk):
                add(name, layer.n, work)
            if layer.heads is None:
                continue
            add("heads to cache", layer.n, small(chip, 8.0 * chunk * layer.products[0].n_rows, 3.0))
            attention = prompt_attention(chip, layer.heads, chunk, start, half=halves == 1)
            add("attention", layer.n, attention)
    return parts


def seconds_of(parts: list[Part]) -> float:
    """Return the seconds of all dispatches."""
    return sum(part.seconds for part in parts)
