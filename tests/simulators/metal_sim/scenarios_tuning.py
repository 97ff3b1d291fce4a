"""The tuner on a clock that counts threads: what it chooses is the best that could be chosen."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from metal_sim.session import Simulation
from oxibonsai import metal
from oxibonsai.metal import ChosenVariant

PRODUCTS = [
    ChosenVariant("gemv", "q1_g128", 1024, 256, "", 1),
    ChosenVariant("gemv", "q2_g128", 96, 128, "", 2),
    ChosenVariant("swiglu", "q2_g64", 4096, 128, "", 1),
    ChosenVariant("gemv", "f16", 96, 64, "", 1),
    ChosenVariant("gemm", "f32", 96, 64, "", 16),
    ChosenVariant("gemm_half", "q1_g128", 512, 256, "", 64),
]


@contextmanager
def counting(sim: Simulation) -> Iterator[metal.Device]:
    """Open a device on which a thread takes a nanosecond and computes nothing, with a new cache."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ):
        os.environ.pop("OXIBONSAI_TUNING", None)
        os.environ["XDG_CACHE_HOME"] = cache
        with metal.Device("metal") as device:
            sim.library.metal_sim_set_dry(1)
            sim.set_cost(None, 1e-9)
            yield device
            sim.library.metal_sim_set_dry(0)


def the_choice_of_the_tuner_is_the_best_fixed_variant(sim: Simulation) -> None:
    with counting(sim) as device:
        found = metal.tune(device, PRODUCTS, budget=1e9)
        chosen = device.chosen_variants()
        assert [m.variant.product for m in found.measured] == [p.product for p in PRODUCTS]
        assert device.recorded_variants() == []
        again = metal.tune(device, PRODUCTS, budget=1e9, keep=False)
        for measured, fixed in zip(found.measured, again.measured, strict=True):
            assert len(fixed.seconds) > 1
            chosen_seconds = fixed.seconds[measured.variant.name]
            assert chosen_seconds <= 1.02 * min(fixed.seconds.values())
        assert [v for v in chosen if v.op == "gemv"]


def what_the_tuner_found_is_what_the_next_graph_records(sim: Simulation) -> None:
    with counting(sim) as device:
        found = metal.tune(device, PRODUCTS[:1])
        best = found.measured[0].variant
        assert best.name != found.measured[0].default
        sim.library.metal_sim_set_dry(0)
        with metal.Device("metal") as other, metal.MetalGraph(other) as graph:
            assert other.chosen_variants() == [best]
            sim.library.metal_sim_set_dry(1)
            with (
                graph.upload_weight_soa(bytes(1024 * 2 * 18), "Q1_0", (1024, 256)) as handle,
                other.buffer(1024) as x,
                other.buffer(4096) as y,
            ):

                def described(**options: bool) -> str:
                    with other.commands(**options) as commands:
                        commands.gemv(handle, x, y)
                        return commands.describe()

                tuned = described()
                deterministic = described(deterministic=True)
                other.choose_variant(*best[:4], None)
                assert described() == deterministic != tuned
                other.choose_variant(*best[:4], best.name)
                assert described() == tuned
