"""Dispatches of the ops: how a matrix or a context becomes threadgroups, rounds and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cost import counts
from cost.chips import Chip
from cost.compiled import PROMPT, SLICES_TILES, STEP, Kernel
from cost.estimate import Estimate, Loop, Work, estimate
from cost.formats import FORMATS, CodedFormat

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
    if chip.family == "apple":
        return [f"{kind}-{n}" for kind in counts.SET_ROWS for n in (1, 2, 4)]
    rows = (1, 2) if product.swiglu else (1, 2, 4)
    kinds = [k for k in counts.SET_ROWS if counts.is_counted(_kernel(product, FIRST, k, 1))]
    tiles = SLICES_TILES[:3] if product.swiglu else SLICES_TILES
    slices = [f"slices-{n}x{m}" for n in tiles for m in (8, 16)] if product.n_rows % 16 == 0 else []
    return [*(f"{kind}-{n}" for kind in kinds for n in rows), *slices]


def gemv(chip: Chip, product: Product, fmt: CodedFormat, variant: str) -> Work:
    """Return the dispatch of a GEMV or SwiGLU by one variant.

    A name such as "lookup-2" has the rows of a lane, "slices-3x8" tiles and SIMD-groups.
    """
    kind, _, numbers = variant.partition("-")
    n, simdgroups = (int(x) for x in (numbers if "x" in numbers else f"{numbers}x8").split("x"))
    nbytes, matrices = product.nbytes(fmt), product.matrix_rows // product.n_rows
    kernel = _kernel(product, fmt, kind, n)
    if chip.family == "apple":
        loop = counts.on_apple(kind, fmt, n * matrices, product.norm)
    elif counts.is_counted(kernel):
        loop = counts.from_code(kernel)
    else:
        loop = counts.slices_as_designed(fmt, n * matrices, product.norm)
    rounds = math.ceil(product.k / fmt.load_weights / simdgroups)
    threadgroups = math.ceil(product.n_rows / (counts.SET_ROWS.get(kind, 16) * n))
    return Work(loop, threadgroups, simdgroups, rounds, nbytes, early=kind == "slices")


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
    if halves == 1 and chip.family == "nvidia":
        return _half_gemm(chip, product, fmt, n_vectors)
    tiles, wide, rows = halves_tile(product, fmt, n_vectors)
    if chip.family == "apple":
        loop = counts.halves_on_apple(fmt, tiles, wide, halves)
    else:
        name = f"gemm_{fmt.name}_halves"
        loop = counts.from_code(Kernel("gemm_halves", name, (10 * tiles + wide, 1)))
    threadgroups = math.ceil(product.matrix_rows / (16 * tiles * rows)) * math.ceil(
        n_vectors / (8 * wide)
    )
    blocks = product.k / fmt.load_weights
    nbytes = fmt.nbytes(product.matrix_rows, product.k)
    nbytes += n_vectors * (2 * halves * product.k + 4 * product.n_rows)
    return Work(loop, threadgroups, 8, blocks / (8 // rows), nbytes, waits=1)


def _half_gemm(chip: Chip, product: Product, fmt: CodedFormat, n_vectors: int) -> Work:
    """Return the fastest dispatch by shaders/gemm_half.h: 64 vectors by 256, 128 or 64 rows."""
    nbytes = fmt.nbytes(product.matrix_rows, product.k)
    nbytes += n_vectors * (2 * product.k + 4 * product.n_rows)
    works = []
    for rows, simdgroups, shape in ((256, 8, 444), (128, 4, 442), (64, 4, 242)):
        loop = counts.from_code(Kernel("gemm_half", f"gemm_{fmt.name}_half", (shape,)))
        groups = math.ceil(product.matrix_rows / rows) * math.ceil(n_vectors / 64)
        works.append(Work(loop, groups, simdgroups, product.k / fmt.load_weights, nbytes, waits=1))
    return min(works, key=lambda work: estimate(chip, work).seconds)


def float_gemm(product: Product, fmt: CodedFormat, n_vectors: int) -> Work:
    """Return the dispatch of a product with several vectors on matrices of floats, on Apple."""
    eights = 4 if n_vectors > 16 else 2 if n_vectors > 8 else 1
    threadgroups = math.ceil(product.matrix_rows / 64) * math.ceil(n_vectors / (8 * eights))
    nbytes = fmt.nbytes(product.matrix_rows, product.k)
    nbytes += 4 * n_vectors * (product.k + product.n_rows)
    loop = counts.floats_on_apple(fmt, eights)
    return Work(loop, threadgroups, 4, product.k / 32, nbytes, waits=1)


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
        """Queries of a threadgroup by lanes: heads that share a key-value head."""
        most = 4 if self.head_dim <= 128 else 2 if self.head_dim <= 256 else 1
        while self.n_heads // self.n_kv_heads % most:
            most //= 2
        return most


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


def step_attention(chip: Chip, heads: Heads, positions: int) -> list[Work]:
    """Return attention of one token on matrix units, and what adds up its splits."""
    loop = counts.from_code(STEP) if chip.family == "nvidia" else _block_of_attention(chip, heads)
    groups = heads.n_heads // min(8, heads.n_heads // heads.n_kv_heads)
    most = 8
    while most < 64 and 2 * most * groups <= chip.cores:
        most *= 2
    splits = 1 if positions <= 256 else min(most, math.ceil(positions / 128))
    rounds = math.ceil(positions / splits / 8 / 16)
    nbytes = positions * heads.position_bytes
    main = Work(loop, groups * splits, 8, rounds, nbytes, near_waits=5)
    rest = small(chip, 4.0 * splits * heads.n_heads * heads.head_dim, near_waits=3)
    return [main] if splits == 1 else [main, rest]


def prompt_attention(
    chip: Chip, heads: Heads, tokens: int, before: int = 0, *, half: bool = False
) -> Work:
    """Return attention of a prompt's tokens, by lanes, or by matrices of halves."""
    positions = before + tokens / 2
    nbytes = (before + tokens) * heads.position_bytes
    if half and heads.head_dim <= 128:  # 16 queries of a SIMD-group, 16 positions a round
        on_nvidia = chip.family == "nvidia"
        loop = counts.from_code(PROMPT) if on_nvidia else counts.prompt_on_apple(heads.head_dim)
        groups = math.ceil(tokens * heads.n_heads / 64)
        return Work(loop, groups, 4, positions / 16, nbytes, waits=2, near_waits=2)
    groups = heads.n_heads // heads.queries * tokens
    return Work(_block_of_attention(chip, heads), groups, 4, positions / 32 / 4, nbytes, waits=5)


def small(chip: Chip, nbytes: float, near_waits: float = 1.0, threadgroups: int = 0) -> Work:
    """Return a dispatch that only waits for its loads: norms, rotations, additions, the choice."""
    pipes = {"total": 60.0, "alu": 30.0, "memory": 10.0}
    groups = threadgroups or max(1, round(nbytes / 65_536))
    return Work(Loop(pipes, 32, 0, "by hand"), groups, 8, 1, nbytes, near_waits=near_waits)
