"""The delta rule, convolutions, gates and rotations of every variant of the cpu kernels."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import relative_error
from op_runs import run
from recurrent_runs import Conv, Delta, Slots, random, same_bits

from oxibonsai import metal

FLOAT_VARIANTS = [name for name in metal.variants("cpu") if "-" not in name]


@pytest.fixture(params=FLOAT_VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def cpu(variant):
    with metal.Device("cpu", variant=variant, threads=1) as device:
        yield device


@pytest.mark.parametrize("key_dim", [32, 96, 256])
@pytest.mark.parametrize("value_dim", [32, 64, 96, 128, 160, 192, 224, 256])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_state_of_any_width_matches_the_definition(cpu, key_dim, value_dim, tokens):
    delta = Delta.random(tokens, 2, 1, key_dim, value_dim, states=((1, 0),))
    before = random(*delta.shape)
    y, after = delta.run(cpu, Slots().filled(delta.part, {0: before}))
    expected, state = delta.expected(before)
    assert relative_error(y, expected) < 2e-6
    assert relative_error(after.reshape(delta.shape), state) < 2e-6


@pytest.mark.parametrize("tokens", [31, 32, 33, 65])
def test_tokens_past_those_that_are_prepared_together(cpu, tokens):
    delta = Delta.random(tokens, 1, 1, 64, 96)
    y, after = delta.run(cpu, Slots().filled(delta.part, {}, np.nan))
    expected, state = delta.expected(np.zeros(delta.shape))
    assert relative_error(y, expected) < 2e-6
    assert relative_error(after.reshape(delta.shape), state) < 2e-6


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 255, 256, 257, 600])
@pytest.mark.parametrize("tokens", [1, 4])
def test_tiles_of_channels_match_the_definition(cpu, channels, tokens):
    conv = Conv(random(tokens, channels), random(channels, 4, seed=1), states=((1, 0),))
    before = random(*conv.shape, seed=2)
    y, after = conv.run(cpu, Slots().filled(conv.part, {0: before}))
    expected, state = conv.expected(before)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert same_bits(after.reshape(conv.shape), state.astype(np.float32))


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_blocks_of_every_size_match_the_definition(cpu, block):
    x, signs = random(2, 2 * block), np.sign(random(2 * block, seed=1))

    def record(c, *b):
        c.hadamard(*b, 2 * block, block=block, n_vectors=2)

    y = run(cpu, record, x, signs, np.zeros_like(x))[2]
    assert relative_error(y, reference.rotate(x, signs, block)) < 1e-6


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 128, 511, 512])
@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_heads_of_any_size_match_the_definition(cpu, dim, activation):
    x, z, norm = random(2, 3, dim), random(2, 3, dim, seed=1), random(dim, seed=2)

    def record(c, bx, bz, bn, by):
        c.gate(bx, bz, by, n_heads=3, head_dim=dim, activation=activation, norm=bn, n_vectors=2)

    y = run(cpu, record, x, z, norm, np.zeros_like(x))[3]
    np.testing.assert_allclose(y, reference.gate(x, z, activation, norm), rtol=3e-6, atol=1e-30)


@pytest.mark.threads
def test_the_same_bits_for_any_number_of_threads(variant):
    batch = tuple((5 + i, i) for i in range(9))
    delta = Delta.random(9, 6, 2, 64, 64, slots=Slots(9), states=batch, batch=True)
    prompt = Delta.random(40, 6, 2, 64, 64, slots=Slots(1))
    conv = Conv(random(9, 1500), random(1500, 4, seed=1), Slots(9), batch, batch=True)
    x, norm, signs = random(6, 5120), random(5120, seed=3), np.sign(random(5120, seed=4))

    def rotate(c, *b):
        c.hadamard(*b[:3], 5120, block=1024, n_vectors=6, norm=b[3])

    found = []
    for threads in (1, 2, 3, 7):
        with metal.Device("cpu", threads=threads, variant=variant) as device:
            ran = [
                op.run(device, op.slots.filled(op.part, {i: random(op.part) for i in range(9)}))
                if op is not prompt
                else op.run(device, op.slots.filled(op.part, {}))
                for op in (delta, prompt, conv)
            ]
            rotated = run(device, rotate, x, signs, np.zeros_like(x), norm)[2]
            found.append([part for pair in ran for part in pair] + [rotated])
    for others in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], others, strict=True))
