"""Dense matrices that are uploaded a few rows at a time."""

from __future__ import annotations

import numpy as np
import pytest
from cases import held_by, random_weight

from oxibonsai.metal import EncodingError, MetalGraph


@pytest.fixture
def graph(device):
    return MetalGraph(device)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("step", [1, 7, 64, 10**6])
def test_a_dense_matrix_may_come_in_pieces(graph, device, name, step):
    w = random_weight(name, 5, 96)
    raw = w.data.reshape(-1)
    pieces = (raw[i : i + step].copy() for i in range(0, raw.size, step))
    whole = graph.upload_weight_soa(w)
    handle = graph.upload_dense_weight(pieces, name, [5, 96])
    assert (handle.format, handle.shape) == (name, (5, 96))
    assert (handle.nbytes, handle.byte_len) == (whole.nbytes, whole.byte_len)
    x = device.upload(np.random.default_rng(0).standard_normal(96, np.float32))
    results = []
    for weight in (whole, handle):
        y = device.upload(np.zeros(5, np.float32))
        with device.commands() as commands:
            commands.gemv(weight, x, y)
            commands.replay()
        found = np.empty(5, np.float32)
        y.read(found)
        results.append(found)
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("pieces", "format", "shape", "text"),
    [
        ([bytes(64), bytes(60)], "F32", (1, 32), "takes 128 bytes, the pieces have 124"),
        ([bytes(64), bytes(68)], "F32", (1, 32), "takes 128 bytes, the pieces have more"),
        ([], "Q8_0", (2, 32), "takes 68 bytes, the pieces have 0"),
        ([bytes(18)], "Q1_0", (1, 128), "Q1_0 is no dense format: upload it whole"),
        ([bytes(34)], "Q8_0", (1, 31), "31 weights does not fill blocks of 32"),
        ([bytes(34)], "Q9", (1, 32), "unknown weight format 'Q9'"),
        ([bytes(128)], "F32", (0, 32), "n_rows = 0 must lie in"),
        ([bytes(128)], "F32", 32, r"a matrix is \(n_rows, k\)"),
    ],
)
def test_pieces_that_are_no_matrix_are_refused(graph, pieces, format, shape, text):
    before = held_by(graph.device)
    with pytest.raises(EncodingError, match=text):
        graph.upload_dense_weight(iter(pieces), format, shape)
    assert held_by(graph.device) == before


def test_a_piece_that_raises_leaves_nothing(graph):
    def pieces():
        yield bytes(64)
        raise KeyError("no more")

    before = held_by(graph.device)
    with pytest.raises(KeyError, match="no more"):
        graph.upload_dense_weight(pieces(), "F32", (1, 32))
    assert held_by(graph.device) == before
    with pytest.raises(TypeError):
        graph.upload_dense_weight([3], "F32", (1, 32))
    with pytest.raises(TypeError):
        graph.upload_dense_weight(None, "F32", (1, 32))
    assert held_by(graph.device) == before
