"""The C reformatter, blocks as files hold them to scales and codes, against the definition."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import reference
from cases import ALL_FORMATS, BLOCK_FORMATS, DENSE_FORMATS, dense, random_weight
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai import formats, metal, quant
from oxibonsai.metal import EncodingError
from oxibonsai.quant import QTensor

every_format = pytest.mark.parametrize("name", ALL_FORMATS)
every_block_format = pytest.mark.parametrize("name", BLOCK_FORMATS)


def unpack(soa, codes_offset, q):
    """Return codes [n_rows, k] and scales [n_rows, groups] of a reformatted weight."""
    fmt = formats.get(q.format)
    n_rows, k = q.shape
    n_groups = n_rows * k // fmt.group_size
    if fmt.device_format == "t1_g128":
        return unpack_digits(soa, codes_offset, n_groups, (n_rows, k))
    scales = soa[: 2 * n_groups].view(np.float16).reshape(n_rows, -1)
    shifts = np.arange(0, 8, fmt.bits)
    codes = (soa[codes_offset:, None] >> shifts) & ((1 << fmt.bits) - 1)
    return codes.reshape(n_rows, k), scales


def unpack_digits(soa, codes_offset, n_groups, shape):
    """Return what `unpack` does, of base-3 digits: run q of load l has codes 64 l + 16 q and on."""
    entries = soa[: 4 * n_groups].reshape(-1, 4)
    groups = soa[codes_offset:].reshape(-1, 2, 3, 4).astype(int)  # [group][load][byte][run]
    codes = np.empty((n_groups, 2, 4, 16), int)
    for n in range(5):
        digits = ((groups * 3**n % 256) * 3 >> 8).transpose(0, 1, 3, 2)
        if n < 4:
            codes[..., n:12:4] = digits
        else:
            codes[..., 12:15] = digits
    beside = entries[:, 2:].astype(int)[:, :, None] >> 2 * np.arange(4) & 3
    codes[..., 15] = beside
    scales = np.ascontiguousarray(entries[:, :2]).view(np.float16)
    return codes.reshape(shape), scales.reshape(shape[0], -1)


def values(soa, codes_offset, q):
    """Return the weights in float64, as a kernel reads them."""
    fmt = formats.get(q.format)
    codes, scales = unpack(soa, codes_offset, q)
    levels = np.array([-1, 1] if fmt.bits == 1 else [-1, 0, 1, 2], np.float64)
    with np.errstate(invalid="ignore"):
        return levels[codes] * np.repeat(scales, fmt.group_size, axis=1).astype(np.float64)


def any_bytes(name, n_blocks, seed):
    fmt = formats.get(name)
    data = np.random.default_rng(seed).integers(0, 256, n_blocks * fmt.block_bytes, np.uint8)
    return QTensor(data, (1, n_blocks * fmt.block_weights), name)


@every_block_format
@given(n_blocks=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_any_blocks_keep_their_values(name, n_blocks, seed):
    # Random bytes hold every code, and scales of every kind.
    q = any_bytes(name, n_blocks, seed)
    np.testing.assert_array_equal(values(*metal.reformat(q.data, name), q), dense(q))


@every_block_format
@given(n_blocks=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_codes_and_scales_are_those_of_quant(name, n_blocks, seed):
    q = any_bytes(name, n_blocks, seed)
    codes, scales = unpack(*metal.reformat(q.data, name), q)
    expected_codes, expected_scales = quant.codes(q)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales.view(np.uint16), expected_scales.view(np.uint16))


@every_block_format
def test_quantised_weights_come_back_as_dequantize_has_them(name):
    w = np.random.default_rng(3).standard_normal((5, 512), np.float32)
    q = quant.quantize(w, name)
    np.testing.assert_array_equal(values(*metal.reformat(q.data, name), q), quant.dequantize(q))


@every_block_format
def test_codes_start_at_a_multiple_of_16_after_zeros(name):
    fmt = formats.get(name)
    for n_blocks in range(1, 18):
        q = any_bytes(name, n_blocks, n_blocks)
        soa, codes_offset = metal.reformat(q.data, name)
        n_groups = q.shape[1] // fmt.group_size
        digits = fmt.device_format == "t1_g128"
        scale_bytes = (4 if digits else 2) * n_groups
        code_bytes = 24 * n_groups if digits else q.shape[1] * fmt.bits // 8
        assert codes_offset % 16 == 0
        assert scale_bytes <= codes_offset < scale_bytes + 16
        assert not soa[scale_bytes:codes_offset].any()
        assert len(soa) == codes_offset + code_bytes


def test_every_byte_of_digits_stands_for_what_the_formula_says():
    # Those of 243 and more are made by no quantiser.
    blocks = np.zeros((256, 28), np.uint8)
    blocks[:, :26] = np.arange(256)[:, None] + 7 * np.arange(26)
    blocks[:, 26:] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    q = QTensor(blocks.reshape(1, -1), (1, 256 * 128), "PTQ1_0")
    soa, codes_offset = metal.reformat(q.data, "PTQ1_0")
    np.testing.assert_array_equal(values(soa, codes_offset, q), dense(q))


def test_digits_take_no_more_memory_than_in_the_file():
    for n_blocks in (1, 4, 5, 1000):
        soa, _ = metal.reformat(bytes(28 * n_blocks), "PTQ1_0")
        assert len(soa) <= 28 * n_blocks + 12  # the padding of the scales


@pytest.mark.parametrize("name", DENSE_FORMATS)
def test_formats_without_codes_are_copied(name):
    q = random_weight(name, 3, 64)
    soa, codes_offset = metal.reformat(q.data, name)
    assert codes_offset == 0
    np.testing.assert_array_equal(soa, q.data.reshape(-1))
    assert not np.shares_memory(soa, q.data)


@every_format
def test_memory_at_any_address_and_read_only_is_taken(name):
    q = any_bytes(name, 37, 1)
    expected, codes_offset = metal.reformat(q.data, name)
    raw = q.data.tobytes()
    memory = mmap.mmap(-1, len(raw) + 16)
    for shift in (0, 1, 3, 15):
        shifted = np.frombuffer(b"x" * shift + raw, np.uint8)[shift:]
        memory[shift : shift + len(raw)] = raw
        view = memoryview(memory)[shift : shift + len(raw)]
        for source in (shifted, view, view.toreadonly(), shifted.tobytes(), bytearray(raw)):
            soa, offset = metal.reformat(source, name)
            assert offset == codes_offset
            np.testing.assert_array_equal(soa, expected)
        view.release()


@every_format
def test_a_result_can_go_to_memory_of_the_caller(name):
    q = any_bytes(name, 9, 2)
    expected, codes_offset = metal.reformat(q.data, name)
    # At an odd address, between bytes that stay.
    memory = np.full(len(expected) + 7, 0xEE, np.uint8)
    out = memory[3:-4]
    returned, offset = metal.reformat(q.data, name, out)
    assert returned is out
    assert offset == codes_offset
    np.testing.assert_array_equal(out, expected)
    assert (memory[:3] == 0xEE).all()
    assert (memory[-4:] == 0xEE).all()


@every_format
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_length_that_is_no_multiple_of_the_block_is_refused(name, extra):
    size = formats.get(name).block_bytes
    label = {"Q1_0": "Q1", "TQ2_0_g128": "TQ2"}.get(name, name)
    n = 3 * size + extra
    with pytest.raises(EncodingError) as caught:
        metal.reformat(bytes(n), name)
    text = f"{label} SoA reformat failed: input length {n} is not a multiple of {size}"
    assert str(caught.value) == text


@every_format
def test_an_empty_input_is_refused(name):
    with pytest.raises(EncodingError, match="reformat failed: input length 0"):
        metal.reformat(b"", name)


def test_an_output_of_another_length_is_refused():
    out = np.zeros(31, np.uint8)
    with pytest.raises(EncodingError, match="out has 31 bytes, the reformatted weight takes 32"):
        metal.reformat(bytes(18), "Q1_0", out)
    assert not out.any()


def test_input_and_output_must_lie_apart():
    memory = np.zeros(100, np.uint8)
    for start in (0, 17, 18 - 1):
        with pytest.raises(EncodingError, match="overlap"):
            metal.reformat(memory[:18], "Q1_0", memory[start : start + 32])
    metal.reformat(memory[:18], "Q1_0", memory[18:50])


def test_a_read_only_output_is_refused():
    with pytest.raises(ValueError, match="read-only"):
        metal.reformat(bytes(18), "Q1_0", bytes(32))


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(EncodingError, match=r"unknown weight format 'Q9'.*Q1_0"):
        metal.reformat(bytes(18), "Q9")


def test_a_strided_array_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        metal.reformat(np.zeros(36, np.uint8)[::2], "Q1_0")


def test_the_reference_and_this_file_agree_on_a_block_by_hand():
    # d = 1.5, weights 0 and 9 positive.
    raw = b"\x00\x3e" + b"\x01\x02" + bytes(14)
    soa, codes_offset = metal.reformat(raw, "Q1_0")
    assert codes_offset == 16
    assert soa.tobytes() == b"\x00\x3e" + bytes(14) + b"\x01\x02" + bytes(14)
    w64 = reference.dequantize_blocks(raw, "Q1_0", (1, 128))[0]
    assert np.flatnonzero(w64 > 0).tolist() == [0, 9]
