"""The gate behind heads, on every device, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from op_runs import SENTINEL, run
from recurrent_runs import random, same_bits, sized, spaced

from oxibonsai.metal import EncodingError


def gate(device, x, z, activation, norm=None, strides=(None, None, None), **more):
    """Return y [t, heads, dim] of x and z, after a check of what is left alone."""
    tokens, heads, dim = x.shape
    out = np.full((tokens + 1, strides[2] or heads * dim), SENTINEL)
    arrays = [spaced(x, strides[0]), spaced(z, strides[1]), out]

    def record(c, bx, bz, by, *norms):
        c.gate(
            bx, bz, by, n_heads=heads, head_dim=dim, activation=activation, n_vectors=tokens,
            norm=norms[0] if norms else None,
            x_stride=strides[0], z_stride=strides[1], y_stride=strides[2], **more,
        )  # fmt: skip

    after = run(device, record, *arrays, *([] if norm is None else [norm]))
    assert same_bits(after[0], arrays[0])
    assert same_bits(after[1], arrays[1])
    y = after[2]
    assert (y[-1] == SENTINEL).all()
    assert (y[:, heads * dim :] == SENTINEL).all()
    return y[:-1, : heads * dim].reshape(x.shape)


@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim"),
    [(1, 1, 1), (1, 1, 33), (2, 3, 32), (3, 5, 64), (2, 6, 128), (1, 2, 256), (2, 1, 512),
     (9, 7, 2)],
)  # fmt: skip
def test_the_gate_matches_the_definition(device, tokens, heads, dim, normed, activation):
    x, z = random(tokens, heads, dim) * np.float32(3), random(tokens, heads, dim, seed=1)
    norm = 1 + random(dim, seed=2) / 4 if normed else None
    y = gate(device, x, z * np.float32(4), activation, norm)
    expected = reference.gate(x, z * np.float32(4), activation, norm)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("tokens", [1, 4])
def test_the_gate_in_place(device, tokens, normed):
    x, z, norm = random(tokens, 3, 40), random(tokens, 3, 40, seed=1), random(40, seed=2)

    def record(c, bx, bz, bn):
        c.gate(
            bx, bz, bx, n_heads=3, head_dim=40, n_vectors=tokens, norm=bn if normed else None,
            x_stride=120, y_stride=120,
        )  # fmt: skip

    y = run(device, record, x, z, norm)[0]
    expected = reference.gate(x, z, "sigmoid", norm if normed else None)
    np.testing.assert_allclose(y, expected, rtol=2e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.25])
def test_eps_is_added_to_the_mean_square(device, eps):
    x, z, norm = random(2, 2, 64) * np.float32(1e-2), random(2, 2, 64, seed=1), random(64, seed=2)
    y = gate(device, x, z, "silu", norm, eps=eps)
    np.testing.assert_allclose(y, reference.gate(x, z, "silu", norm, eps), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_gates_at_their_ends(device, activation):
    z = np.array([0, -0.0, 30, -30, 90, -90, 200, -200, 1e4, -1e4, 3e38, -3e38, 1e-40, np.inf])
    z = z.astype(np.float32).reshape(1, 1, -1)
    x = np.full_like(z, -1)
    y, expected = gate(device, x, z, activation), reference.gate(x, z, activation)
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=1e-37)
    assert gate(device, x[..., :1], np.float32([[[-np.inf]]]), "sigmoid").tolist() == [[[0]]]


def test_zeros_infinities_and_nan_go_where_the_definition_has_them(device):
    x, z = random(1, 3, 32), random(1, 3, 32, seed=1)
    x[0, 0], x[0, 1, 3], z[0, 2, 4], z[0, 1, 5] = 0, np.inf, np.nan, np.inf
    for norm in (None, np.ones(32, np.float32)):
        y, expected = gate(device, x, z, "silu", norm), reference.gate(x, z, "silu", norm)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-37)
        assert (y[0, 0] == 0).all()


@pytest.mark.parametrize(
    ("small", "large"), [(1e-18, 1e18), (1e-38, 1e30), (1e-40, 1e38), (1e-44, 3e38)]
)
@pytest.mark.parametrize("dim", [50, 512])
def test_a_norm_of_large_and_of_small_heads(device, small, large, dim):
    x, z, norm = random(1, 2, dim), random(1, 2, dim, seed=1), random(dim, seed=2)
    x[0, 0], x[0, 1] = sized(x[0, 0], large), sized(x[0, 1], small)
    y = gate(device, x, z, "sigmoid", norm, eps=0.0)
    np.testing.assert_allclose(y, reference.gate(x, z, "sigmoid", norm, 0.0), rtol=2e-6)


@given(
    tokens=st.integers(1, 5), heads=st.integers(1, 9), dim=st.integers(1, 100),
    gaps=st.tuples(*[st.integers(0, 7)] * 3), normed=st.booleans(),
    activation=st.sampled_from(["sigmoid", "silu"]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_matches_the_definition(
    device, tokens, heads, dim, gaps, normed, activation, seed
):
    x, z = random(tokens, heads, dim, seed=seed), random(tokens, heads, dim, seed=seed + 1)
    norm = random(dim, seed=seed + 2) if normed else None
    y = gate(device, x, z, activation, norm, tuple(heads * dim + gap for gap in gaps))
    expected = reference.gate(x, z, activation, norm)
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=1e-30)


def test_x_and_z_may_lie_in_one_row(device):
    both = random(3, 2, 80)  # a row of x, then one of z

    def record(c, b, by):
        c.gate(b, (b, 320), by, n_heads=4, head_dim=20, n_vectors=3, x_stride=160, z_stride=160)

    y = run(device, record, both, np.zeros((3, 80), np.float32))[1]
    np.testing.assert_allclose(y, reference.gate(both[:, 0], both[:, 1], "sigmoid"), rtol=2e-6)


def test_a_norm_may_be_a_weight_handle(device, graph):
    x, z, norm = random(2, 3, 16), random(2, 3, 16, seed=1), random(16, seed=2)
    with graph.upload_f32_weight(norm) as handle:

        def record(c, *b):
            c.gate(*b, n_heads=3, head_dim=16, n_vectors=2, norm=handle)

        y = run(device, record, x, z, np.zeros_like(x))[2]
    np.testing.assert_allclose(y, reference.gate(x, z, "sigmoid", norm), rtol=2e-6, atol=1e-30)


# Errors

GOOD = {"n_heads": 2, "head_dim": 8, "n_vectors": 3}
WRONG = [
    ({"n_heads": 0}, r"n_heads = 0 must lie in 1\.\.4096"),
    ({"n_heads": 4097}, r"n_heads = 4097 must lie in 1\.\.4096"),
    ({"head_dim": 0}, r"head_dim = 0 must lie in 1\.\.512"),
    ({"head_dim": 513}, r"head_dim = 513 must lie in 1\.\.512"),
    ({"n_vectors": 0}, r"n_vectors = 0 must lie in 1\.\."),
    ({"n_vectors": 2**20 + 1}, r"n_vectors = 1048577 must lie in 1\.\."),
    ({"activation": "relu"}, "activation = 'relu' must be 'sigmoid' or 'silu'"),
    ({"x_stride": 15}, r"x_stride = 15 must lie in 16\.\."),
    ({"z_stride": 15}, r"z_stride = 15 must lie in 16\.\."),
    ({"y_stride": 2**31}, r"y_stride = 2147483648 must lie in 16\.\."),
    ({"z_stride": 0}, "z_stride = 0 must be as long as a row"),
    ({"x_stride": 17}, "input too short: need 200 bytes, got 192"),
    ({"z_stride": 17}, "z too short: need 200 bytes, got 192"),
    ({"y_stride": 17}, "output too short: need 200 bytes, got 192"),
    ({"n_vectors": 4}, "input too short: need 256 bytes, got 192"),
]


@pytest.fixture
def operands(device):
    buffers = {name: device.buffer(192) for name in "xzy"}
    yield buffers
    for buffer in buffers.values():
        buffer.close()


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_shape_is_refused(device, operands, change, message):
    with device.commands() as commands:
        commands.gate(**operands, **GOOD)
        with pytest.raises(EncodingError, match=message):
            commands.gate(**operands, **{**GOOD, **change})
        assert len(commands) == 1


@pytest.mark.parametrize("eps", [-1e-6, np.nan, np.inf])
def test_a_wrong_norm_is_refused(device, operands, eps):
    with device.buffer(32) as norm, device.buffer(28) as short, device.commands() as commands:
        with pytest.raises(EncodingError, match=r"eps = .* must be finite and not negative"):
            commands.gate(**operands, **GOOD, norm=norm, eps=eps)
        with pytest.raises(EncodingError, match="norm too short: need 32 bytes, got 28"):
            commands.gate(**operands, **GOOD, norm=short)
        commands.gate(**operands, **GOOD, eps=eps)  # of no concern without one
        with pytest.raises(EncodingError, match="norm and output overlap"):
            commands.gate(**operands, **GOOD, norm=operands["y"])


@pytest.mark.parametrize("name", ["x", "z", "y"])
def test_an_operand_that_is_none_or_starts_at_odd_bytes_is_refused(device, operands, name):
    with device.commands() as commands:
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            commands.gate(**{**operands, name: None}, **GOOD)
        with device.buffer(256) as b, pytest.raises(EncodingError, match="starts at byte 2"):
            commands.gate(**{**operands, name: (b, 2)}, **GOOD)
        assert len(commands) == 0


def test_operands_that_overlap_the_output_are_refused_but_for_x_itself(device, operands):
    with device.buffer(1024) as b, device.commands() as commands:
        for name, shown in (("x", "input"), ("z", "z")):
            with pytest.raises(EncodingError, match=f"{shown} and output overlap in one buffer"):
                commands.gate(**{**operands, name: (b, 188), "y": b}, **GOOD)
            commands.gate(**{**operands, name: (b, 192), "y": b}, **GOOD)
        with pytest.raises(EncodingError, match="z and output overlap"):
            commands.gate(**{**operands, "z": b, "y": b}, **GOOD)
        commands.gate(**{**operands, "x": b, "y": b}, **GOOD)
        with pytest.raises(EncodingError, match="input and output overlap"):
            commands.gate(**{**operands, "x": b, "y": b}, **GOOD, x_stride=20)
        one = {**GOOD, "n_vectors": 1}
        commands.gate(**{**operands, "x": b, "y": b}, **one, x_stride=20)
