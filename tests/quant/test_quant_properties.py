"""What holds for the quantisers whatever the weights or bytes are."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oxibonsai import formats, quant
from oxibonsai.quant import QTensor

F32 = NDArray[np.float32]
TERNARY = [name for name in formats.BLOCK_FORMATS if name != "Q1_0"]

every_format = pytest.mark.parametrize("name", formats.FORMATS)
every_ternary = pytest.mark.parametrize("name", TERNARY)
every_block_format = pytest.mark.parametrize("name", formats.BLOCK_FORMATS)
few = settings(max_examples=40, deadline=None)


@st.composite
def matrices(draw: st.DrawFn) -> F32:
    """Draw 1 to 3 rows of 256 or 512 weights: anything finite, at anything from 2^-149 up."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([256, 512])))
    exponent = draw(st.one_of(st.just(0), st.integers(-149, 15)))
    if draw(st.booleans()):
        steps = npst.arrays(np.int8, shape, elements=st.integers(-4, 4))
        unit = draw(steps).astype(np.float32) / np.float32(4)
    else:
        unit = draw(npst.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
    w: F32 = np.ldexp(unit, exponent)
    return w


@st.composite
def raw_tensors(draw: st.DrawFn, name: str) -> QTensor:
    fmt = formats.get(name)
    n_rows, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = n_rows * blocks * fmt.block_bytes
    data = draw(st.binary(min_size=size, max_size=size))
    return QTensor(data, (n_rows, blocks * fmt.block_weights), name)


def scales_of(q: QTensor) -> NDArray[np.float16]:
    """Return the half scale of every block [n_rows, blocks]."""
    fmt = formats.get(q.format)
    blocks = q.data.reshape(q.shape[0], -1, fmt.block_bytes)
    return blocks[:, :, fmt.scale_offset : fmt.scale_offset + 2].copy().view(np.float16)[:, :, 0]


@every_format
@few
@given(data=st.data())
def test_any_bytes_decode_as_the_reference_says(name: str, data: st.DataObject) -> None:
    q = data.draw(raw_tensors(name))
    expected = reference.dequantize_blocks(q.data, name, q.shape)
    np.testing.assert_array_equal(quant.dequantize(q), expected)


@every_block_format
@few
@given(data=st.data())
def test_codes_and_scales_hold_the_same_weights_as_the_bytes(
    name: str, data: st.DataObject
) -> None:
    q = data.draw(raw_tensors(name))
    fmt = formats.get(name)
    codes, scales = quant.codes(q)
    levels = codes * 2.0 - 1 if fmt.bits == 1 else codes - 1.0
    with np.errstate(invalid="ignore"):
        weights = levels * np.repeat(scales.astype(np.float64), fmt.group_size, axis=1)
    np.testing.assert_array_equal(quant.dequantize(q), weights)


@every_format
@few
@given(w=matrices())
def test_quantized_bytes_decode_as_the_reference_says(name: str, w: F32) -> None:
    q = quant.quantize(w, name)
    assert q.shape == w.shape
    expected = reference.dequantize_blocks(q.data, name, q.shape)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(quant.dequantize(q), expected)


@every_format
@few
@given(w=matrices())
def test_quantizing_what_was_dequantized_changes_nothing(name: str, w: F32) -> None:
    q = quant.quantize(w, name)
    values = quant.dequantize(q)
    again = quant.quantize(values, name)
    np.testing.assert_array_equal(quant.dequantize(again), values)
    if name in reference.BLOCKS:
        # Codes of a block whose scale vanished are free: all of them are zeros.
        block_bytes = formats.get(name).block_bytes
        alive = scales_of(q) > 0
        np.testing.assert_array_equal(
            again.data.reshape(len(w), -1, block_bytes)[alive],
            q.data.reshape(len(w), -1, block_bytes)[alive],
        )


@every_ternary
@few
@given(w=matrices())
def test_a_ternary_weight_is_off_by_half_the_largest_at_most(name: str, w: F32) -> None:
    block = formats.get(name).block_weights
    q = quant.quantize(w, name)
    w64 = w.astype(np.float64)
    largest = np.abs(w64).reshape(len(w), -1, block).max(axis=2)
    rounding = np.abs(scales_of(q) - largest)
    # The ratio is rounded twice in float32.
    bound = largest / 2 * (1 + 2.0**-22) + rounding
    error = np.abs(quant.dequantize(q) - w64).reshape(len(w), -1, block).max(axis=2)
    assert (error <= bound).all()


@every_ternary
@few
@given(w=matrices())
def test_the_largest_weight_of_a_group_survives_with_its_sign(name: str, w: F32) -> None:
    block = formats.get(name).block_weights
    q = quant.quantize(w, name)
    blocks = w.reshape(-1, block)
    at = np.abs(blocks).argmax(axis=1)[:, None]
    largest = np.take_along_axis(blocks, at, axis=1)[:, 0]
    kept = np.take_along_axis(quant.dequantize(q).reshape(-1, block), at, axis=1)[:, 0]
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(kept, largest.astype(np.float16))


@every_ternary
@few
@given(w=matrices())
def test_negated_weights_give_negated_values(name: str, w: F32) -> None:
    plus, minus = quant.quantize(w, name), quant.quantize(-w, name)
    np.testing.assert_array_equal(scales_of(plus), scales_of(minus))
    np.testing.assert_array_equal(quant.dequantize(minus), -quant.dequantize(plus))


@few
@given(w=matrices())
def test_q1_0_keeps_the_signs_and_the_mean_magnitude(w: F32) -> None:
    q = quant.quantize(w, "Q1_0")
    np.testing.assert_array_equal(quant.codes(q)[0] == 1, w >= 0)
    mean = np.abs(w.astype(np.float64)).reshape(len(w), -1, 128).mean(axis=2)
    # 127 additions in float32, then the step of a half: relative, or absolute below 2^-14.
    np.testing.assert_allclose(scales_of(q), mean, rtol=2.0**-11 + 2.0**-17, atol=2.0**-25)


@few
@given(w=matrices())
def test_a_q8_0_weight_is_off_by_half_a_step_at_most(w: F32) -> None:
    q = quant.quantize(w, "Q8_0")
    w64 = w.astype(np.float64)
    step = np.abs(w64).reshape(len(w), -1, 32).max(axis=2) / 127
    bound = step * (0.5 + 127 * 2.0**-21) + 127 * np.abs(scales_of(q) - step)
    error = np.abs(quant.dequantize(q) - w64).reshape(len(w), -1, 32).max(axis=2)
    assert (error <= bound).all()


@every_format
@few
@given(w=matrices())
def test_rows_do_not_touch_each_other(name: str, w: F32) -> None:
    together = quant.quantize(w, name).data
    for i in range(len(w)):
        np.testing.assert_array_equal(quant.quantize(w[i : i + 1], name).data[0], together[i])
