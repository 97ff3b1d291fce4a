"""The tuner on the toy driver: a product, and what is chosen and kept for it."""

from __future__ import annotations

from oxibonsai import metal
from oxibonsai.metal import ChosenVariant, Device, MetalGraph

PRODUCT = ChosenVariant(op="gemv", device_format="q1_g128", n_rows=9, k=128, n_vectors=1, name="")
OTHER = PRODUCT._replace(n_rows=16, k=256)


def names(choices):
    return [choice.name for choice in choices]


def tuned(toy, clock, fives=2e-3, threes=1e-3, products=(PRODUCT,), **options):
    clock(fives, threes)
    return metal.tune(toy.device, products, **options)


def loaded():
    """Return the choices of a new device that a graph uses."""
    with Device("toy") as device, MetalGraph(device):
        return device.chosen_variants()
