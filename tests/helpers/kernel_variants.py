"""Every variant of a product's kernel, chosen in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from oxibonsai import metal


@contextmanager
def chosen(device: metal.Device, *product: object, name: str, n_vectors: int = 1) -> Iterator[None]:
    """Have `device` take a variant for a product (op, format, n_rows, k) inside the block."""
    device.choose_variant(*product, name, n_vectors)
    try:
        yield
    finally:
        device.choose_variant(*product, None, n_vectors)


def each_variant(device: metal.Device, *product: object, n_vectors: int = 1) -> Iterator[str]:
    """Yield the name of each variant while it is chosen; "" where the device has one form."""
    names = device.kernel_variants(*product, n_vectors)
    if not names:
        yield ""
    for name in names:
        with chosen(device, *product, name=name, n_vectors=n_vectors):
            yield name
