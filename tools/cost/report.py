"""Predicted times beside those of a report of tools/mac_check.sh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cost.chips import CHIPS, Chip, apple_with
from cost.estimate import Work, estimate
from cost.formats import FORMATS
from cost.kernels import Heads, Product, decode_attention, gemm, gemv, variants_of
from cost.models import SHAPES, decode, prompt, seconds_of
from cost.tables import Q1, table, us

# "gemv Q1_0", "gemv Q1_0 norm", "gate_up_swiglu Q1_0 norm", and with a variant at the end
_GEMV = re.compile(r"(gemv|gate_up_swiglu) (\w+?)(?: (residual|norm))?(?: ([a-z]+-\d+))?$")
_VECTORS = re.compile(r"(\d+) vectors (\w+)$")
_ATTENTION = re.compile(r"attention of 1 at (\d+) f16$")
_SHAPE = re.compile(r"(\d+) x (\d+)$")
_HEADS = re.compile(r"(\d+) of (\d+) over (\d+)$")


def chip_of(report: dict[str, Any]) -> Chip:
    """Return the chip of a report; raise ValueError where the model does not know it."""
    machine = report["machine"]
    name, cores = str(machine.get("chip")), machine.get("gpu_cores")
    known = CHIPS.get(name.removeprefix("Apple "))
    if known is None:
        raise ValueError(f"the cost model has no chip {name!r}; it has {', '.join(CHIPS)}")
    return apple_with(name, cores) or known if isinstance(cores, int) else known


def _of_product(row: dict[str, Any], chip: Chip) -> list[tuple[str, Work]]:
    """Return the dispatches that a row may be: one for each variant where it names none."""
    shape, found = _SHAPE.match(row["shape"]), _GEMV.match(row["name"])
    if not shape or not found or found[2] not in FORMATS:
        return []
    n_rows, k, swiglu = int(shape[1]), int(shape[2]), found[1] != "gemv"
    fmt = FORMATS[found[2]]
    product = Product("", n_rows // 2 if swiglu else n_rows, k, found[3] == "norm", swiglu)
    names = [n for n in variants_of(chip, product) if n == (found[4] or n)]
    return [(name, gemv(chip, product, fmt, name)) for name in names]


def works_of(row: dict[str, Any], chip: Chip) -> list[tuple[str, Work]]:
    """Return what the model knows of a row of a report: a variant's name and its dispatch."""
    shape, many = _SHAPE.match(row["shape"]), _VECTORS.match(row["name"])
    if shape and many and many[2] in FORMATS:
        product = Product("", int(shape[1]), int(shape[2]))
        return [("halves", gemm(chip, product, FORMATS[many[2]], int(many[1])))]
    heads, attention = _HEADS.match(row["shape"]), _ATTENTION.match(row["name"])
    if heads and attention:
        of = Heads(int(heads[1]), int(heads[3]), int(heads[2]))
        return [("", decode_attention(chip, of, int(attention[1]))[0])]
    return _of_product(row, chip)


def _kernels(report: dict[str, Any], chip: Chip) -> Iterator[list[str]]:
    for row in report["kernels"]:
        works = works_of(row, chip)
        if not works:
            continue
        times = {name: estimate(chip, work).seconds for name, work in works}
        # A row without a variant's name is that of the device's default, which it does not tell.
        name = min(times, key=lambda one: abs(times[one] - row["seconds"]))
        ratio = f"{times[name] / row['seconds']:.2f}"
        shown = name if len(works) == 1 else f"nearest: {name}"
        cells = [us(times[name]), us(row["seconds"]), ratio]
        yield [row["name"], row["shape"], shown, *cells]


def _models(report: dict[str, Any], chip: Chip) -> Iterator[list[str]]:
    # Its synthetic model has the shape of the 1.7B.
    shape = SHAPES["1.7B"]
    for one in report["models"]:
        if not one["model"].startswith("synthetic"):
            continue
        tokens, chunk = one["prompt_tokens"], one["chunk"]
        predicted = tokens / seconds_of(prompt(chip, shape, Q1, tokens, min(chunk, tokens)))
        measured = one["prompt_tokens_per_second"]
        what = f"prompt of {tokens} in chunks of {chunk}"
        cells = [f"{predicted:.0f}", f"{measured:.0f}", f"{predicted / measured:.2f}"]
        yield [what, *cells]
        predicted = 1 / seconds_of(decode(chip, shape, Q1, tokens))
        measured = one["decode_tokens_per_second"]
        cells = [f"{predicted:.0f}", f"{measured:.0f}", f"{predicted / measured:.2f}"]
        yield [f"decode after {tokens}", *cells]


def compared(report: dict[str, Any]) -> str:
    """Return the tables of a report: what the model knows of it, predicted and measured."""
    chip = chip_of(report)
    lines = [f"{chip.name}, {chip.cores} GPU cores", ""]
    rate = report["bandwidth_bytes_per_second"]
    if rate:
        lines += [f"Memory: predicted {chip.read / 1e9:.0f} GB/s, measured {rate / 1e9:.0f}.", ""]
    header = ["operation", "shape", "variant", "predicted us", "measured us", "ratio"]
    lines += [table(header, list(_kernels(report, chip))), ""]
    header = ["1.7B, tokens a second", "predicted", "measured", "ratio"]
    return "\n".join([*lines, table(header, list(_models(report, chip)))])
