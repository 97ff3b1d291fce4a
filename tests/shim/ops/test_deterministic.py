"""Products whose bits do not depend on how many vectors are multiplied at once."""

from __future__ import annotations

import numpy as np
import pytest
from cases import ALL_FORMATS, activations, block, random_weight, upload
from op_runs import SENTINEL

from oxibonsai import metal

COUNTS = (2, 3, 5, 9, 33)
DISTANCE = 7  # elements between the rows of the output


def products(device, x, n_out, record, **options):
    """Return the rows of the output of `record(commands, x, y)` for the vectors x."""
    y = np.full((len(x), n_out + DISTANCE), SENTINEL)
    with device.commands(**options) as commands, device.upload(x) as bx, device.upload(y) as by:
        record(commands, bx, by, len(x), n_out + DISTANCE)
        commands.replay()
        by.read(y)
    assert (y[:, n_out:] == SENTINEL).all()
    return y[:, :n_out].copy().view(np.uint32)


def check_all_counts(device, x, n_out, record):
    """Hold each vector of several to the bits that it has alone, in either kind of recording."""
    alone = np.concatenate([products(device, x[[i]], n_out, record) for i in range(len(x))])
    for count in (1, *COUNTS):
        together = products(device, x[:count], n_out, record, deterministic=True)
        np.testing.assert_array_equal(together, alone[:count])


@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_vector_has_the_same_bits_alone_and_among_others(device, graph, name, plain):
    n_rows, k = 37, 3 * block(name)
    q, x = random_weight(name, n_rows, k), activations(max(COUNTS) * k).reshape(-1, k)
    x[1, 3], x[4, 5] = np.inf, 3e5
    with upload(graph, q, plain) as handle:

        def gemv(commands, bx, by, count, stride):
            commands.gemv(handle, bx, by, n_rows, k, n_vectors=count, y_stride=stride)

        check_all_counts(device, x, n_rows, gemv)


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q2_0", "F16", "Q8_0"])
def test_a_normed_vector_has_the_same_bits_alone_and_among_others(device, graph, name):
    n_rows, k = 40, 2 * block(name)
    q, x = random_weight(name, n_rows, k), activations(max(COUNTS) * k).reshape(-1, k)
    with upload(graph, q) as handle, device.upload(1 + activations(k, 4) / 4) as norm:

        def gemv(commands, bx, by, count, stride):
            commands.gemv(handle, bx, by, n_vectors=count, y_stride=stride, norm=norm)

        def residual(commands, bx, by, count, stride):
            commands.gemv(
                handle, bx, by, n_vectors=count, y_stride=stride, norm=norm, residual=True
            )

        check_all_counts(device, x, n_rows, gemv)
        check_all_counts(device, x, n_rows, residual)


@pytest.mark.parametrize("normed", [False, True], ids=["as it is", "normed"])
@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128", "Q2_0", "F16", "Q8_0"])
def test_gate_up_swiglu_has_the_same_bits_alone_and_among_others(device, graph, name, normed):
    half, k = 21, 2 * block(name)
    q = random_weight(name, 2 * half, k)
    x = activations(max(COUNTS) * k).reshape(-1, k) / np.float32(8)
    with upload(graph, q) as handle, device.upload(1 + activations(k, 4) / 4) as weight:
        alone = []
        for vectors in [*x[:, None], *(x[:count] for count in COUNTS)]:
            s = np.full((len(vectors), half), SENTINEL)
            options = {"deterministic": True} if len(vectors) > 1 else {}
            with device.commands(**options) as c, device.upload(vectors) as bx:
                by = device.upload(s)
                norm = {"norm": weight} if normed else {}
                c.gate_up_swiglu(handle, bx, by, n_vectors=len(vectors), **norm)
                c.replay()
                by.read(s)
                by.close()
            if len(vectors) == 1:
                alone.append(s[0])
            else:
                expected = np.array(alone[: len(vectors)])
                np.testing.assert_array_equal(s.view(np.uint32), expected.view(np.uint32))


@pytest.mark.large
def test_long_rows_have_the_same_bits_alone_and_among_others(device, graph):
    # Past the tables that a panel's kernels build at once, for any number of vectors.
    for name, k in (("Q1_0", 25 * 1024), ("TQ2_0_g128", 18 * 1024)):
        q, x = random_weight(name, 17, k), activations(max(COUNTS) * k).reshape(-1, k)
        with upload(graph, q) as handle:

            def gemv(commands, bx, by, count, stride, handle=handle):
                commands.gemv(handle, bx, by, n_vectors=count, y_stride=stride)

            check_all_counts(device, x, 17, gemv)


def test_deterministic_products_take_no_int8_activations():
    k = 256
    q, x = random_weight("Q1_0", 16, k), activations(16 * k).reshape(16, k)
    with metal.Device("cpu") as device, metal.MetalGraph(device) as graph:
        try:
            device.commands(activations="int8").close()
        except metal.EncodingError:
            pytest.skip("no int8 kernels on this cpu")
        with upload(graph, q) as handle:

            def gemv(commands, bx, by, count, stride):
                commands.gemv(handle, bx, by, n_vectors=count, y_stride=stride)

            def result(**options):
                return products(device, x, 16, gemv, **options)

            exact = result()
            assert (result(activations="int8") != exact).any()
            np.testing.assert_array_equal(result(activations="int8", deterministic=True), exact)


def test_commands_of_a_graph_may_be_deterministic(graph):
    graph.commands(deterministic=True).close()
