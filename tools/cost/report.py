"""Predicted times beside those of tools/mac_check.sh, or of benchmarks/report_times.py."""

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

_VECTORS = re.compile(r"(\d+) vectors (\w+)$")
_ATTENTION = re.compile(r"attention of 1 at (\d+) f16$")
_SHAPE = re.compile(r"(\d+) x (\d+)$")
_HEADS = re.compile(r"(\d+) of (\d+) over (\d+)$")
_MEASURED = ("predicted us", "measured us", "ratio")


def chip_of(report: dict[str, Any]) -> Chip:
    """Return the chip of a report; raise ValueError where the model does not know it."""
    machine = report.get("machine") or {}
    device = report.get("device") or {}
    name, cores = str(machine.get("chip") or device.get("name")), machine.get("gpu_cores")
    known = next((CHIPS[word] for word in name.split() if word in CHIPS), None)
    known = CHIPS.get(name.removeprefix("Apple "), known)
    if known is None:
        raise ValueError(f"the cost model has no chip {name!r}; it has {', '.join(CHIPS)}")
    return apple_with(known, cores) if isinstance(cores, int) else known


def _ratio(predicted: float, measured: float) -> str:
    if not measured > 0:
        raise ValueError(f"{measured} was not measured: times and speeds are above 0")
    return f"{predicted / measured:.2f}"


def _cells(predicted: float, measured: float) -> list[str]:
    return [us(predicted), us(measured), _ratio(predicted, measured)]


def variant_times(row: dict[str, Any], chip: Chip) -> dict[str, tuple[float, float]]:
    """Return predicted and measured seconds of the variants in a row that the model knows."""
    swiglu = row["op"] == "swiglu"
    n_rows = row["n_rows"] // 2 if swiglu else row["n_rows"]
    product, fmt = Product("", n_rows, row["k"], swiglu, swiglu), FORMATS.get(row["format"])
    if fmt is None:
        return {}
    known = variants_of(chip, product)
    return {
        name: (estimate(chip, gemv(chip, product, fmt, name)).seconds, seconds)
        for name, seconds in row["seconds"].items()
        if name in known
    }


def _variants(report: dict[str, Any], chip: Chip) -> Iterator[list[str]]:
    for row in report["variants"]:
        times = variant_times(row, chip)
        best = [min(times, key=lambda name: times[name][i]) for i in (0, 1)] if times else []
        for name, (predicted, measured) in times.items():
            words = ("predicted", "measured")
            fastest = " and ".join(w for w, b in zip(words, best, strict=True) if b == name)
            matrix = f"{row['n_rows']} x {row['k']}"
            product = f"{row['op']} {row['format']}"
            yield [product, matrix, name, *_cells(predicted, measured), fastest]


def works_of(row: dict[str, Any], chip: Chip) -> list[Work]:
    """Return the dispatches of a row about several vectors or attention; of others nothing."""
    shape, many = _SHAPE.match(row["shape"]), _VECTORS.match(row["name"])
    if shape and many and many[2] in FORMATS:
        product = Product("", int(shape[1]), int(shape[2]))
        return [gemm(chip, product, FORMATS[many[2]], int(many[1]))]
    heads, attention = _HEADS.match(row["shape"]), _ATTENTION.match(row["name"])
    if heads and attention:
        of = Heads(int(heads[1]), int(heads[3]), int(heads[2]))
        return list(decode_attention(chip, of, int(attention[1])))
    return []


def _others(report: dict[str, Any], chip: Chip) -> Iterator[list[str]]:
    for row in report["kernels"]:
        works = works_of(row, chip)
        if works:
            predicted = sum(estimate(chip, work).seconds for work in works)
            yield [row["name"], row["shape"], *_cells(predicted, row["seconds"])]


def _models(report: dict[str, Any], chip: Chip) -> Iterator[list[str]]:
    shape = SHAPES["1.7B"]  # that of the check's synthetic model
    for one in report.get("models", ()):
        if not one["model"].startswith("synthetic"):
            continue
        tokens, chunk = one["prompt_tokens"], one["chunk"]
        speeds = {
            f"prompt of {tokens} in chunks of {chunk}": (
                tokens / seconds_of(prompt(chip, shape, Q1, tokens, min(chunk, tokens))),
                one["prompt_tokens_per_second"],
            ),
            f"decode after {tokens}, chunk {chunk}": (
                1 / seconds_of(decode(chip, shape, Q1, tokens)),
                one["decode_tokens_per_second"],
            ),
        }
        for what, (predicted, measured) in speeds.items():
            yield [what, f"{predicted:.0f}", f"{measured:.0f}", _ratio(predicted, measured)]


def compared(report: dict[str, Any]) -> str:
    """Return the tables of what the model knows of a report, or of report_times.py's times."""
    chip = chip_of(report)
    lines = [f"{chip.name}, {chip.cores} GPU cores", ""]
    rate = report["bandwidth_bytes_per_second"]
    if rate:
        lines += [f"Memory: predicted {chip.read / 1e9:.0f} GB/s, measured {rate / 1e9:.0f}.", ""]
    header = ["product", "matrix", "variant", *_MEASURED, "fastest"]
    lines += [table(header, list(_variants(report, chip))), ""]
    lines += [table(["operation", "shape", *_MEASURED], list(_others(report, chip))), ""]
    header = ["1.7B, tokens a second", "predicted", "measured", "ratio"]
    return "\n".join([*lines, table(header, list(_models(report, chip)))])
