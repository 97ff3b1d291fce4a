"""What is chosen where nothing is given: the device where some are refused, and the chunk."""

from __future__ import annotations

import contextlib
import io
from itertools import pairwise

from metal_sim.scenarios_prompts import of_8b_shape, set_rate
from metal_sim.session import Simulation
from oxibonsai import metal
from oxibonsai.cli import main


def the_default_is_the_first_device_that_is_not_refused(sim: Simulation) -> None:
    sim.set_devices(3)
    for refused in range(4):
        for index in range(refused):
            sim.set_simd_width(index, 64)
        first = metal.devices()[0]
        expected = ("metal", refused) if refused < 3 else ("cpu", 0)
        assert (first.driver, first.index) == expected
        with metal.Device() as device:
            assert (device.driver, device.index) == expected
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["devices"]) == 0
        assert out.getvalue().startswith("{}:{}  ".format(*expected)), out.getvalue()


def a_lane_takes_more_rows_where_the_others_fill_the_cores(sim: Simulation) -> None:
    # Rows of a lane for products of 4,096, 24,576 and 151,936 rows.
    for name, expected in (
        ("Apple M1", "244"),
        ("Apple M4 Pro", "144"),
        ("Apple M5 Max", "144"),
        ("Apple M3 Ultra", "124"),
        ("Apple Paravirtual device", "244"),
    ):
        sim.set_name(name)
        with metal.Device("metal") as device:
            for n_rows, rows in zip((4096, 24576, 151936), expected, strict=True):
                first = device.kernel_variants("gemv", "q1_g128", n_rows, 4096)[0]
                assert first == f"shuffle-{rows}", (name, n_rows)
                most = min(int(rows), 2)
                first = device.kernel_variants("swiglu", "q2_g64", 2 * n_rows, 4096)[0]
                assert first == f"shuffle-{most}", (name, n_rows)


def codes_that_32_bits_do_not_number_are_refused(sim: Simulation) -> None:
    with metal.Device("metal") as device:
        for op in ("gemv", "swiglu", "gemm", "gemm_halves"):
            assert device.kernel_variants(op, "q1_g128", 2**25 - 2, 2**14, 8)
            assert not device.kernel_variants(op, "q1_g128", 2**25, 2**14, 8)
            assert not device.kernel_variants(op, "q2_g64", 2**24, 2**14, 8)


def a_prompt_is_cut_by_the_rate_from_its_second_chunk_on(sim: Simulation) -> None:
    ids = [i % 1000 for i in range(512)]
    for rate, sizes in ((0.1e12, {32, 64}), (4e12, {128})):
        with metal.Device("metal") as device, of_8b_shape(device) as model:
            set_rate(sim, rate)
            sim.set_dry(1)
            ends = [0]
            with model.session(max_seq=600) as session:
                session.forward(ids, logits=None, progress=lambda n, _, to=ends: to.append(n))
                assert session.chunk in sizes
            found = [stop - start for start, stop in pairwise(ends[:-1])]
            assert found[0] == 128, "the rate is not known yet"
            assert set(found[1:]) <= sizes, found
        sim.reset()
