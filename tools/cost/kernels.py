"""Dispatches of the ops: how a matrix or a context becomes threadgroups, rounds and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cost import counts
from cost.chips import Chip
from cost.compiled import Kernel
from cost.estimate import Estimate, Loop, Work, estimate
from cost.formats import FORMATS, CodedFormat

SPLITS = 8
"""SIMD-groups of a threadgroup, which divide k (shaders/lookup.h)."""
SLICES_SIMDGROUPS = 8
FIRST = FORMATS["Q1_0"]
"""A format that every variant takes."""


@dataclass(frozen=True)
class Product:
    """A coded matrix times a vector."""

    name: str
    n_rows: int
    """Of the result; a SwiGLU's matrix has twice as many."""
    k: int
    norm: bool = False
    swiglu: bool = False

    @property
    def matrix_rows(self) -> int:
        """Rows of the matrix."""
        return self.n_rows * (2 if self.swiglu else 1)

    def nbytes(self, fmt: CodedFormat) -> int:
        """Return the bytes that one product moves: weights, input and output."""
        return fmt.nbytes(self.matrix_rows, self.k) + 4 * (self.k + self.n_rows)


def _kernel(product: Product, fmt: CodedFormat, kind: str, number: int) -> Kernel:
    """Return the kernel of a variant on NVIDIA's cards."""
    end = "" if kind == "lookup" else f"_{kind}"
    if product.swiglu:
        family = "swiglu" if kind == "lookup" else kind
        return Kernel(family, f"fused_gate_up_swiglu_{fmt.name}_norm{end}", (number,))
    family, form = "gemv" if kind == "lookup" else kind, "_norm" if product.norm else ""
    return Kernel(family, f"gemv_{fmt.name}{form}{end}", (number,))


def variants_of(chip: Chip, product: Product) -> list[str]:
    """Return the names of the variants of a GEMV on a chip."""
    rows = (1, 2) if product.swiglu else (1, 2, 4)
    if chip.family == "apple":
        return [f"{kind}-{n}" for kind in counts.SET_ROWS for n in rows]
    tiles = (1, 2, 3, 4) if product.swiglu else (1, 2, 3, 4, 6, 8)
    slices = [f"slices-{n}" for n in tiles] if product.n_rows % 16 == 0 else []
    kinds = [k for k in counts.SET_ROWS if counts.is_counted(_kernel(product, FIRST, k, 1))]
    return [*(f"{kind}-{n}" for kind in kinds for n in rows), *slices]


def gemv(chip: Chip, product: Product, fmt: CodedFormat, variant: str) -> Work:
    """Return the dispatch of a GEMV or SwiGLU by one variant, such as "lookup-2"."""
    kind, _, number = variant.partition("-")
    n, nbytes, matrices = int(number), product.nbytes(fmt), product.matrix_rows // product.n_rows
    kernel = _kernel(product, fmt, kind, n)
    if chip.family == "apple":
        loop = counts.on_apple(kind, fmt, n * matrices, product.norm)
    elif counts.is_counted(kernel):
        loop = counts.from_code(kernel)
    else:
        loop = counts.slices_as_designed(fmt, n * matrices, product.norm)
    if kind == "slices":
        rounds = math.ceil(product.k / (fmt.load_weights * SLICES_SIMDGROUPS))
        threadgroups = math.ceil(product.n_rows / (16 * n))
        return Work(loop, threadgroups, SLICES_SIMDGROUPS, rounds, nbytes, early=True)
    rounds = math.ceil(product.k / fmt.load_weights / SPLITS)
    threadgroups = math.ceil(product.n_rows / (counts.SET_ROWS[kind] * n))
    return Work(loop, threadgroups, SPLITS, rounds, nbytes)


def best(
    chip: Chip, product: Product, fmt: CodedFormat, kind: str | None = None
) -> tuple[str, Estimate]:
    """Return the variant that is predicted to be the fastest, and its time.

    Parameters
    ----------
    chip
        Where it runs.
    product
        The matrix.
    fmt
        Its format.
    kind
        What the variant's name starts with, such as "shuffle"; None is any.
    """
    names = [n for n in variants_of(chip, product) if kind in (None, n.partition("-")[0])]
    found = {name: estimate(chip, gemv(chip, product, fmt, name)) for name in names}
    name = min(found, key=lambda one: found[one].seconds)
    return name, found[name]


def default_rows(product: Product) -> int:
    """Return the rows of a lane of the look-up that the measured GEMVs had."""
    rows = 1
    while rows < (2 if product.swiglu else 4) and product.n_rows // (64 * rows) >= 256:
        rows *= 2
    return rows


def halves_tile(product: Product, fmt: CodedFormat, n_vectors: int) -> tuple[int, int, int]:
    """Return tiles and eights of a SIMD-group, and SIMD-groups over the rows, as fit_halves."""
    eights = math.ceil(n_vectors / 8)
    wide = 2 if eights > 1 else 1
    columns = math.ceil(eights / wide)
    few = wide == 2 and fmt.bits == 2
    tiles, rows = (2, 8) if few else (4, 4)
    while rows > 1 and product.matrix_rows * columns // (16 * tiles * rows) < 240:
        rows //= 2
    if product.matrix_rows * columns // (16 * tiles) < 120:
        tiles = 2
    return tiles, wide, rows


def gemm(chip: Chip, product: Product, fmt: CodedFormat, n_vectors: int, halves: int = 2) -> Work:
    """Return the dispatch of a product with several vectors, given as one or two halves each."""
    tiles, wide, rows = halves_tile(product, fmt, n_vectors)
    if chip.family == "apple":
        loop = counts.halves_on_apple(fmt, tiles, wide, halves)
    else:
        name = f"gemm_{fmt.name}_halves"
        loop = counts.from_code(Kernel("gemm_halves", name, (10 * tiles + wide, 1)))
        if halves == 1:
            loop = one_half(loop)
    threadgroups = math.ceil(product.matrix_rows / (16 * tiles * rows)) * math.ceil(
        n_vectors / (8 * wide)
    )
    blocks = product.k / fmt.load_weights
    nbytes = fmt.nbytes(product.matrix_rows, product.k)
    nbytes += n_vectors * (2 * halves * product.k + 4 * product.n_rows)
    return Work(loop, threadgroups, 8, blocks / (8 // rows), nbytes, waits=1)


def float_gemm(product: Product, fmt: CodedFormat, n_vectors: int) -> Work:
    """Return the dispatch of a product with several vectors on matrices of floats, on Apple."""
    eights = 4 if n_vectors > 16 else 2 if n_vectors > 8 else 1
    threadgroups = math.ceil(product.matrix_rows / 64) * math.ceil(n_vectors / (8 * eights))
    nbytes = fmt.nbytes(product.matrix_rows, product.k)
    nbytes += 4 * n_vectors * (product.k + product.n_rows)
    loop = counts.floats_on_apple(fmt, eights)
    return Work(loop, threadgroups, 4, product.k / 32, nbytes, waits=1)


def one_half(loop: Loop) -> Loop:
    """Return what is left of a round on two halves where there is one: half of the products."""
    pipes = dict(loop.pipes)
    products = pipes["mma"] / 2
    pipes |= {"mma": products, "multiplications": pipes["multiplications"] / 2}
    # A scale and an addition of each sum fall away, and half of the loads of vectors.
    pipes["total"] -= products + pipes.get("fma", 0.0) / 3 + pipes["memory"] / 4
    return replace(loop, pipes=pipes, source=f"{loop.source}, one half by hand")


@dataclass(frozen=True)
class Heads:
    """The heads of a model's attention."""

    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def position_bytes(self) -> int:
        """Bytes of a position of a layer in f16."""
        return 2 * 2 * self.n_kv_heads * self.head_dim

    @property
    def queries(self) -> int:
        """Queries of a threadgroup: heads that share a key-value head."""
        return min(4, self.n_heads // self.n_kv_heads)


# Of a block of 32 positions and the queries of a threadgroup (shaders/attention.h), for a head of
# 128: the scores and the values are 32 multiplications of a lane for each query and 16 positions.
def _block_of_attention(chip: Chip, heads: Heads) -> Loop:
    queries, width = heads.queries, heads.head_dim / 128
    fma = 2 * 128.0 * queries * width
    pipes = {
        "fma": fma,
        "half": 2 * 128.0 * width,
        "shuffle": 24.0 * queries + 10.0 * queries,
        "memory": 64.0 * width,
        "shared": 40.0 * queries,
        "shared_cycles": 64.0 * queries,
        "alu": 120.0,
        "sfu": 2.0 * queries,
    }
    pipes["total"] = sum(n for name, n in pipes.items() if name != "shared_cycles")
    if chip.family == "apple":
        pipes |= {"alu": 120.0 + fma, "slow": pipes["half"] / 4}
    return Loop(pipes, 96, 13_000, "by hand")


def decode_attention(chip: Chip, heads: Heads, positions: int) -> tuple[Work, Work]:
    """Return attention of one token, and the dispatch that adds up the splits.

    The second is there for one split too: a step is recorded for more positions than it meets.
    """
    split = 128
    while split * 64 < positions:
        split *= 2
    splits = math.ceil(positions / split)
    blocks = math.ceil(min(positions, split) / 32)
    groups = heads.n_heads // heads.queries
    nbytes = positions * heads.position_bytes
    # A block waits twice for 16 of its keys, then four times for 8 of its values; before that the
    # kernel waits for the position, the queries and the page, after it for the other SIMD-groups.
    main = Work(
        _block_of_attention(chip, heads),
        groups * splits,
        4,
        math.ceil(blocks / 4),
        nbytes,
        waits=5.0 * math.ceil(blocks / 4),
        near_waits=8,
    )
    return main, small(chip, 8.0 * splits * heads.n_heads * heads.head_dim, near_waits=5)


def prompt_attention(chip: Chip, heads: Heads, tokens: int, before: int = 0) -> Work:
    """Return attention of a prompt's tokens, by the kernel without matrix units."""
    groups = heads.n_heads // heads.queries * tokens
    blocks = (before + tokens / 2) / 32
    nbytes = (before + tokens) * heads.position_bytes
    return Work(_block_of_attention(chip, heads), groups, 4, blocks / 4, nbytes, waits=5)


def small(chip: Chip, nbytes: float, near_waits: float = 1.0, threadgroups: int = 0) -> Work:
    """Return a dispatch that only waits for its loads: norms, rotations, additions, the choice."""
    pipes = {"total": 60.0, "alu": 30.0, "memory": 10.0}
    groups = threadgroups or max(1, round(nbytes / 65_536))
    return Work(Loop(pipes, 32, 0, "by hand"), groups, 8, 1, nbytes, near_waits=near_waits)
