"""The tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable

from cost import counts
from cost.banks import ACCESSES
from cost.chips import CHIPS, SIMD_WIDTH, Chip
from cost.estimate import Loop, Work, estimate
from cost.formats import FORMATS, CodedFormat
from cost.kernels import (
    Product,
    decode_attention,
    gemv,
    variants_of,
)
from cost.measured import ATTENTION, GEMVS, SPEEDS, Speed
from cost.models import SHAPES, Part, Shape, decode, prompt, seconds_of

PRODUCTS = [
    Product("", n_rows, k)
    for n_rows, k in ((4096, 4096), (6144, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096))
]
Q1, TERNARY = FORMATS["Q1_0"], FORMATS["TQ2_0_g128"]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def apple_chips() -> list[Chip]:
    """Return Apple's chips, the oldest first."""
    return [chip for chip in CHIPS.values() if chip.family == "apple"]


def us(seconds: float) -> str:
    """Return a time in microseconds, with as many digits as it is worth."""
    return f"{1e6 * seconds:.1f}" if seconds < 1e-4 else f"{1e6 * seconds:.0f}"


def chips() -> str:
    """Return the chips: what the model takes them to be, and where that is published."""
    rows = [
        [
            chip.name,
            str(chip.cores),
            f"{chip.clock / 1e9:.2f}",
            f"{chip.bandwidth / 1e9:.0f}",
            f"{chip.read / 1e9:.0f}",
            f"{2e-12 * chip.peak_matrix:.1f}",
            ", ".join(source if "(" in source else f"<{source}>" for source in chip.sources),
        ]
        for chip in CHIPS.values()
    ]
    header = ["chip", "cores", "GHz", "GB/s", "of them read", "TFLOPS of half matrices", "sources"]
    return table(header, rows)


def _instructions(name: str, fmt: CodedFormat, rows: int, loop: Loop, chip: Chip) -> list[str]:
    weights = rows * fmt.load_weights  # of the SIMD-group
    need = chip.cycles(loop.pipes)
    most = max(need, key=lambda one: need[one])
    pipes = loop.pipes
    return [
        name,
        fmt.file_format,
        f"{pipes['total']:.0f}",
        f"{pipes.get('alu', 0) + pipes.get('fma', 0) + pipes.get('imad', 0):.0f}",
        f"{pipes.get('slow', 0) + pipes.get('convert', 0):.0f}",
        f"{pipes.get('shuffle', 0):.0f}",
        f"{pipes.get('shared_cycles', 0):.0f}",
        f"{SIMD_WIDTH * pipes['total'] / weights:.2f}",
        f"{weights / need[most]:.0f}",
        most,
        loop.source,
    ]


def instructions(family: str) -> str:
    """Return the instructions of one round of each variant of a GEMV."""
    chip = CHIPS["H200" if family == "nvidia" else "M1"]
    product = Product("", 24_576, 4096)
    rows = []
    for fmt in FORMATS.values():
        for name in variants_of(chip, product):
            kind, _, number = name.partition("-")
            if number.endswith("x16"):  # the code of x8
                continue
            rows_of_round = counts.SET_ROWS.get(kind, 16) * int(number.split("x")[0])
            loop = gemv(chip, product, fmt, name).loop
            rows.append(_instructions(name, fmt, rows_of_round, loop, chip))
    header = ["variant", "format", "instructions", "arithmetic", "slow", "shuffles"]
    header += ["threadgroup memory", "a weight", "weights a clock and core", "limit", "counted"]
    return table(header, rows)


def conflicts() -> str:
    """Return the turns that accesses to threadgroup memory take."""
    rows = [[one.kernel, one.what, str(one.words), str(one.turns)] for one in ACCESSES]
    return table(["kernel", "32 lanes at once", "words of a lane", "turns"], rows)


def measured_gemvs() -> str:
    """Return measured GEMVs beside predicted ones."""
    rows = []
    for one in GEMVS:
        chip, product = CHIPS[one.card], Product("", one.n_rows, one.k)
        found = estimate(chip, gemv(chip, product, FORMATS[one.format], one.variant))
        rows.append(
            [
                one.card,
                f"{one.n_rows} x {one.k}",
                one.format,
                one.variant,
                us(found.seconds),
                us(one.seconds),
                f"{found.seconds / one.seconds:.2f}",
                found.bound,
            ]
        )
    header = [
        "card",
        "matrix",
        "format",
        "variant",
        "predicted us",
        "measured us",
        "ratio",
        "limit",
    ]
    return table(header, rows)


def predicted_speed(one: Speed) -> float:
    """Return the tokens a second that the model gives for a measurement."""
    chip, shape = CHIPS[one.card], SHAPES[one.model]
    if one.what == "prompt":
        parts = prompt(chip, shape, Q1, one.tokens, one.chunk, one.halves)
        return one.tokens / seconds_of(parts)
    return 1 / seconds_of(decode(chip, shape, Q1, one.tokens, one.variant))


def measured_speeds() -> str:
    """Return measured speeds of models, and times of attention, beside predicted ones."""
    rows = []
    for one in SPEEDS:
        predicted = predicted_speed(one)
        what = f"{one.model}, {one.what} of {one.tokens}"
        if one.what == "decode":
            what = f"{one.model}, decode at {one.tokens} positions"
        ratio = f"{predicted / one.speed:.2f}"
        rows.append([one.card, what, f"{predicted:.0f} tok/s", f"{one.speed:.0f} tok/s", ratio])
    heads = SHAPES["8B"].layers[0].heads
    assert heads is not None
    for positions, seconds in ATTENTION.items():
        found = sum(
            estimate(CHIPS["H200"], work).seconds
            for work in decode_attention(CHIPS["H200"], heads, positions)
        )
        what = f"8B, attention of one token at {positions}"
        cells = [f"{us(found)} us", f"{us(seconds)} us", f"{found / seconds:.2f}"]
        rows.append(["H200", what, *cells])
    return table(["card", "what", "predicted", "measured", "ratio"], rows)


def _times(chip: Chip, works: list[Work]) -> list[str]:
    found = [estimate(chip, work) for work in works]
    return [f"{us(one.seconds)} ({us(one.limit)})" for one in found]


def variants(fmt: CodedFormat, chips_of: list[Chip], products: list[Product]) -> str:
    """Return each variant's time, and in brackets its limit by bytes and instructions alone."""
    rows = []
    for chip in chips_of:
        for product in products:
            names = variants_of(chip, product)
            cells = _times(chip, [gemv(chip, product, fmt, name) for name in names])
            rows.append([chip.name, f"{product.n_rows} x {product.k}", *cells])
    names = variants_of(chips_of[0], products[0])
    return table(["chip", "matrix", *names], rows)


def _prompt_speed(chip: Chip, shape: Shape, halves: int) -> str:
    if halves == 0 and chip.family == "nvidia":
        return ""
    chunk = 512 if halves == 1 and chip.family == "nvidia" else 128
    return f"{512 / seconds_of(prompt(chip, shape, Q1, 512, chunk, halves)):.0f}"


def predictions() -> str:
    """Return tokens a second of whole models on every chip."""
    rows = []
    for chip in CHIPS.values():
        kinds = ("lookup",) if chip.family == "nvidia" else counts.SET_ROWS
        for shape in SHAPES.values():
            decoded = {k: 1 / seconds_of(decode(chip, shape, Q1, variant=k)) for k in kinds}
            fastest = 1 / seconds_of(decode(chip, shape, Q1))
            far = 1 / seconds_of(decode(chip, shape, Q1, 8192))
            ternary = 1 / seconds_of(decode(chip, shape, TERNARY))
            limit = chip.bandwidth / shape.weight_bytes(Q1)
            rows.append(
                [
                    chip.name,
                    shape.name,
                    *(f"{decoded[k]:.0f}" if k in decoded else "" for k in counts.SET_ROWS),
                    f"{fastest:.0f}",
                    f"{far:.0f}",
                    f"{limit:.0f}",
                    f"{ternary:.0f}",
                    *(_prompt_speed(chip, shape, halves) for halves in (2, 1, 0)),
                ]
            )
    header = ["chip", "model", *counts.SET_ROWS, "fastest of each", "at 8,192", "bytes alone"]
    header += ["ternary", "prompt, two halves", "prompt, one half", "prompt, floats"]
    return table(header, rows)


def _parts(parts: list[Part]) -> list[list[str]]:
    total = seconds_of(parts)
    return [
        [
            part.name,
            part.variant,
            str(part.times),
            us(part.estimate.seconds),
            f"{part.seconds / total:.0%}",
            part.estimate.bound,
        ]
        for part in parts
    ]


def step(chip_name: str, shape: str = "8B") -> str:
    """Return the dispatches of one decoded token in Q1_0."""
    parts = decode(CHIPS[chip_name], SHAPES[shape], Q1)
    header = ["dispatch", "variant", "times", "us", "share", "limit"]
    return table(header, _parts(parts))


TABLES: dict[str, Callable[[], str]] = {
    "chips": chips,
    "instructions-nvidia": lambda: instructions("nvidia"),
    "instructions-apple": lambda: instructions("apple"),
    "conflicts": conflicts,
    "measured-gemvs": measured_gemvs,
    "measured-speeds": measured_speeds,
    "variants-nvidia": lambda: variants(Q1, [CHIPS["H200"]], PRODUCTS),
    "variants-nvidia-ternary": lambda: variants(TERNARY, [CHIPS["H200"]], PRODUCTS),
    "variants-apple": lambda: variants(Q1, apple_chips(), [PRODUCTS[0], PRODUCTS[2]]),
    "predictions": predictions,
    "step-nvidia": lambda: step("H200"),
    "step-apple": lambda: step("M4 Pro"),
    "step-hybrid": lambda: step("H200", "27B, rotated"),
}
"""The tables by the names that the page marks them with."""
