"""The names of the kernels that a device's recordings took."""

from __future__ import annotations

from collections.abc import Iterable

from oxibonsai.metal import Device

__all__ = ["kernel_names", "names_by_op"]


def kernel_names(device: Device) -> str:
    """Return the variants by op, such as ``"gemv lookup-2, lookup-4; swiglu lookup-2"``.

    Parameters
    ----------
    device : Device
        Where the recordings were made.

    Returns
    -------
    str
        Those of every product that was recorded, in the order of their names; empty on a device
        with one form of each kernel.
    """
    return names_by_op((variant.op, variant.name) for variant in device.recorded_variants())


def names_by_op(variants: Iterable[tuple[str, str]]) -> str:
    """Return the names of variants (op, name), each once, behind their ops.

    Parameters
    ----------
    variants : iterable of tuple
        Op and name of each.

    Returns
    -------
    str
        As kernel_names() returns it.
    """
    found: dict[str, set[str]] = {}
    for op, name in variants:
        found.setdefault(op, set()).add(name)
    return "; ".join(f"{op} {', '.join(sorted(found[op]))}" for op in sorted(found))
