"""Quantisers, dequantisers and QTensor against hand-computed blocks and the float64 reference."""

from __future__ import annotations

import copy
import dataclasses
import mmap
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from numpy.typing import NDArray

from oxibonsai import formats, quant
from oxibonsai.quant import QTensor, convert

F32 = np.float32
TERNARY = [name for name in formats.BLOCK_FORMATS if name != "Q1_0"]


def row(*pattern: float, k: int) -> NDArray[np.float32]:
    """Return one row [1, k] that repeats `pattern`."""
    return np.resize(np.array(pattern, F32), (1, k))


def impulse(k: int, at: int, value: float, rest: float = 0.0) -> NDArray[np.float32]:
    w = np.full((1, k), rest, F32)
    w[0, at] = value
    return w


def random_blocks(name: str, n_rows: int, blocks_per_row: int, seed: int = 0) -> QTensor:
    """Return blocks of random bytes: every code, a different scale in each, some of them odd."""
    fmt = formats.get(name)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows * blocks_per_row, fmt.block_bytes), np.uint8)
    scales = rng.standard_normal(len(blocks)).astype(np.float16)
    odd = [np.inf, -np.inf, np.nan, 0.0, -0.0, 6e-8, 65504.0]
    scales[: len(odd)] = odd
    at = fmt.scale_offset
    blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return QTensor(blocks, (n_rows, blocks_per_row * fmt.block_weights), name)


# Hand-computed blocks

GOLDEN = {
    # The mean of |x| is 1 = 0x3C00; even weights are +1, so every byte is 0b01010101.
    "Q1_0 alternating": ("Q1_0", row(1, -1, k=128), "003c" + "55" * 16),
    # Sum 16 / 128 = 0.125 = 0x3000; zero of either sign is >= 0.
    "Q1_0 zeros are plus": (
        "Q1_0",
        np.concatenate([row(-2, k=8), row(0.0, -0.0, k=120)], axis=1),
        "0030" + "00" + "ff" * 15,
    ),
    # 16392 + 2^-10 is a tie that stays at 16392, so in order the mean is 128.0625, which ties to
    # 128 = 0x5800. Adding the small ones first would give 0x5801.
    "Q1_0 sums in order": ("Q1_0", impulse(128, 0, 16392, 2.0**-10), "0058" + "ff" * 16),
    # -d, 0, d, d/4 are codes 0, 1, 2, 1: 0b01_10_01_00.
    "Q2_0": ("Q2_0", row(-2, 0, 2, 0.5, k=64), "0040" + "64" * 16),
    "Q2_0_g128": ("Q2_0_g128", row(-2, 0, 2, 0.5, k=128), "0040" + "64" * 32),
    "PQ2_0": ("PQ2_0", row(-2, 0, 2, 0.5, k=128), "0040" + "64" * 32),
    "TQ2_0_g128": ("TQ2_0_g128", row(-2, 0, 2, 0.5, k=128), "64" * 32 + "0040"),
    # Halves of d go away from zero: codes 2, 2, 0, 1.
    "Q2_0 halves": ("Q2_0", row(1, 0.5, -0.5, 0.25, k=64), "003c" + "4a" * 16),
    "TQ2_0_g128 halves": ("TQ2_0_g128", row(1, 0.5, -0.5, 0.25, k=128), "4a" * 32 + "003c"),
    "Q2_0 zeros": ("Q2_0", row(0, -0.0, k=64), "0000" + "55" * 16),
    "TQ2_0_g128 zeros": ("TQ2_0_g128", row(0, -0.0, k=128), "55" * 32 + "0000"),
    "TQ2_0 zeros": ("TQ2_0", row(0, k=256), "55" * 64 + "0000"),
    # Runs of 32 are bit pairs 0 to 3 of the same bytes.
    "TQ2_0 runs": (
        "TQ2_0",
        np.concatenate([row(x, k=32) for x in (-1, 0, 1, 0) * 2], axis=1),
        "64" * 64 + "003c",
    ),
    # Weight 229 = 128 + 32 * 3 + 5 is bit pair 3 of byte 37: 0b10_01_01_01.
    "TQ2_0 one weight": ("TQ2_0", impulse(256, 229, 1), "55" * 37 + "95" + "55" * 26 + "003c"),
    # Five digits 1: ceil(121 * 256 / 243) = 128; four: ceil(120 * 256 / 243) = 127.
    "PTQ1_0 zeros": ("PTQ1_0", row(0, k=128), "80" * 24 + "7f7f" + "0000"),
    # Digits 2: ceil(242 * 256 / 243) = 255 and ceil(240 * 256 / 243) = 253.
    "PTQ1_0 ones": ("PTQ1_0", row(1, k=128), "ff" * 24 + "fdfd" + "003c"),
    # Weight 18 is digit 1 of byte 2: ceil(2 * 27 * 256 / 243) = 57.
    "PTQ1_0 first run": ("PTQ1_0", impulse(128, 18, 1, -1), "0000" + "39" + "00" * 23 + "003c"),
    # Weight 115 = 80 + 8 * 4 + 3 is digit 4 of byte 19: ceil(2 * 256 / 243) = 3.
    "PTQ1_0 second run": ("PTQ1_0", impulse(128, 115, 1, -1), "00" * 19 + "03" + "00" * 6 + "003c"),
    # Weight 127 = 120 + 2 * 3 + 1 is digit 3 of the last byte: ceil(2 * 3 * 256 / 243) = 7.
    "PTQ1_0 last run": ("PTQ1_0", impulse(128, 127, 1, -1), "00" * 25 + "07" + "003c"),
    # d = 127 / 127 = 1; halves go away from zero, 0.49999997 to it.
    "Q8_0": (
        "Q8_0",
        np.array([[127, -127, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997] + [0] * 24], F32),
        "003c" + "7f8101ff0203fd00" + "00" * 24,
    ),
    # 1 / 1e-40 overflows float32; the scale is a zero half, so the codes are zeros too.
    "TQ2_0 vanishing": ("TQ2_0", impulse(256, 0, 1e-40), "55" * 64 + "0000"),
    "PTQ1_0 vanishing": ("PTQ1_0", impulse(128, 0, 1e-40), "80" * 24 + "7f7f" + "0000"),
    "Q8_0 vanishing": ("Q8_0", impulse(32, 0, 1e-40), "00" * 34),
    "F32": ("F32", row(1, -2, k=2), "0000803f" + "000000c0"),
    # 1 + 2^-11 ties to 1, 1 + 3 * 2^-11 to 1 + 2^-9.
    "F16": ("F16", row(1 + 2**-11, 1 + 3 * 2**-11, k=2), "003c" + "023c"),
    # 1 + 2^-8 ties to 1, 1 + 3 * 2^-8 to 1 + 2^-6.
    "BF16": ("BF16", row(1 + 2**-8, 1 + 3 * 2**-8, k=2), "803f" + "823f"),
}


@pytest.mark.parametrize(("name", "w", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_quantize_gives_the_hand_computed_bytes(
    name: str, w: NDArray[np.float32], expected: str
) -> None:
    q = quant.quantize(w, name)
    assert q.data.tobytes().hex() == expected
    assert (q.format, q.shape, q.data.shape) == (name, w.shape, (1, len(expected) // 2))


def test_a_half_of_d_is_decided_by_each_projects_own_rule() -> None:
    d = F32(41)
    assert d * (F32(1) / d) < 1  # so ggml's x * (1 / d) is less than one half for x = d / 2
    w = row(41, 20.5, -20.5, 0, k=256)  # d, d / 2, -d / 2, 0
    decided = {name: quant.codes(quant.quantize(w, name))[0][0, :4] for name in TERNARY}
    by_ratio = [2, 1, 1, 1]
    by_threshold = [2, 2, 0, 1]
    for name in TERNARY:
        expected = by_threshold if name == "TQ2_0_g128" else by_ratio
        assert decided[name].tolist() == expected, name


def test_neighbouring_groups_keep_their_own_scales() -> None:
    for name in formats.BLOCK_FORMATS:
        fmt = formats.get(name)
        w = np.repeat(np.array([[1, 2, 4, 8], [16, 32, 64, 128]], F32), fmt.block_weights, axis=1)
        q = quant.quantize(w, name)
        np.testing.assert_array_equal(quant.dequantize(q), w)
        scales = quant.codes(q)[1]
        np.testing.assert_array_equal(np.repeat(scales, fmt.group_size, axis=1), w)


# Decoding


def test_the_format_table_agrees_with_the_reference_table() -> None:
    assert set(formats.BLOCK_FORMATS) == set(reference.LEVELS)
    for name, block in reference.BLOCKS.items():
        fmt = formats.get(name)
        assert (fmt.block_weights, fmt.block_bytes, fmt.scale_offset) == (
            block.weights,
            block.size,
            block.scale,
        )


@pytest.mark.parametrize("name", reference.BLOCKS)
def test_dequantize_equals_the_reference_on_random_bytes(name: str) -> None:
    q = random_blocks(name, 4, 8)
    expected = reference.dequantize_blocks(q.data, name, q.shape)
    assert np.isinf(expected).any()
    assert np.isnan(expected).any()
    result = quant.dequantize(q)
    assert result.dtype == F32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_dequantize_of_plain_floats_equals_the_reference_for_every_kind_of_value(name: str) -> None:
    fmt = formats.get(name)
    every_top_half = np.arange(1 << 16, dtype="<u4")
    bits = every_top_half << 16 if name == "F32" else every_top_half.astype("<u2")
    q = QTensor(bits, (256, 256), name)
    assert q.nbytes == 65536 * fmt.block_bytes
    expected = reference.dequantize_blocks(q.data, name, q.shape)
    np.testing.assert_array_equal(quant.dequantize(q), expected)


@pytest.mark.parametrize("name", formats.BLOCK_FORMATS)
def test_codes_times_scales_are_the_reference_weights(name: str) -> None:
    q = random_blocks(name, 4, 8, seed=1)
    fmt = formats.get(name)
    codes, scales = quant.codes(q)
    assert codes.dtype == np.uint8
    assert codes.shape == q.shape
    assert scales.dtype == np.float16
    assert scales.shape == (4, q.shape[1] // fmt.group_size)
    assert codes.max() == (1 if fmt.bits == 1 else 2 if name in ("TQ2_0_g128", "PTQ1_0") else 3)
    levels = codes * 2.0 - 1 if fmt.bits == 1 else codes - 1.0
    with np.errstate(invalid="ignore"):
        weights = levels * np.repeat(scales.astype(np.float64), fmt.group_size, axis=1)
    np.testing.assert_array_equal(weights, reference.dequantize_blocks(q.data, name, q.shape))


def test_code_3_is_a_zero_in_tq2_0_g128_and_twice_the_scale_elsewhere() -> None:
    half = np.array([1.5], np.float16).tobytes()
    for name, value in {"TQ2_0_g128": 0, "Q2_0_g128": 3, "PQ2_0": 3, "Q2_0": 3, "TQ2_0": 3}.items():
        fmt = formats.get(name)
        filled = b"\xff" * (fmt.block_bytes - 2)
        data = half + filled if fmt.scale_offset == 0 else filled + half
        q = QTensor(data, (1, fmt.block_weights), name)
        assert (quant.dequantize(q) == value).all(), name


def test_ptq1_0_encodes_every_digit_combination_so_that_it_decodes() -> None:
    combinations = np.array(np.meshgrid(*[[-1, 0, 1]] * 5)).reshape(5, 243).T
    w = np.zeros((243, 128), F32)
    for byte in range(16):
        w[:, byte:80:16] = combinations
    for byte in range(8):
        w[:, 80 + byte : 120 : 8] = combinations
    for byte in range(2):
        w[:, 120 + byte :: 2] = combinations[:, :4]
    w[121] = 0  # the combination of zeros alone has no scale to carry it
    q = quant.quantize(w, "PTQ1_0")
    assert len(np.unique(q.data[:, 0])) == 243
    np.testing.assert_array_equal(quant.dequantize(q), w)
    np.testing.assert_array_equal(reference.dequantize_blocks(q.data, "PTQ1_0", q.shape), w)


def test_ptq1_0_decodes_all_256_values_of_every_byte_as_the_reference_does() -> None:
    data = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 28, axis=1)
    data[:, 26:] = np.array([1], np.float16).view(np.uint8)
    q = QTensor(data, (256, 128), "PTQ1_0")
    expected = reference.dequantize_blocks(data, "PTQ1_0", q.shape)
    assert set(np.unique(expected)) == {-1, 0, 1}
    np.testing.assert_array_equal(quant.dequantize(q), expected)


# Input of quantize


@pytest.mark.parametrize("name", formats.FORMATS)
def test_layout_and_float_type_of_the_input_do_not_change_the_bytes(name: str) -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((6, 512)).astype(np.float16).astype(F32)
    original = w.copy()
    expected = quant.quantize(w, name).data
    wide = np.zeros((12, 1024), F32)
    wide[::2, ::2] = w
    same_values: list[Any] = [
        wide[::2, ::2],
        np.asfortranarray(w),
        w.astype(np.float64),
        w.astype(np.float16),
        w.astype(">f4"),
        w.astype(np.longdouble),
        w.tolist(),
    ]
    for other in same_values:
        np.testing.assert_array_equal(quant.quantize(other, name).data, expected)
    np.testing.assert_array_equal(w, original)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_the_result_does_not_depend_on_the_chunks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = np.random.default_rng(3).standard_normal((7, 512)).astype(F32)
    whole = quant.quantize(w, name)
    values = quant.dequantize(whole)
    codes = quant.codes(whole) if name in formats.BLOCK_FORMATS else None
    monkeypatch.setattr(convert, "_CHUNK_WEIGHTS", 3 * 512)
    np.testing.assert_array_equal(quant.quantize(w, name).data, whole.data)
    np.testing.assert_array_equal(quant.dequantize(whole), values)
    if codes is not None:
        for chunked, expected in zip(quant.codes(whole), codes, strict=True):
            np.testing.assert_array_equal(chunked, expected)


def test_quantizing_a_large_matrix_takes_little_memory_beside_it() -> None:
    w = np.random.default_rng(4).standard_normal((4096, 4096), F32)
    tracemalloc.start()
    try:
        q = quant.quantize(w, "PTQ1_0")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - q.nbytes < w.nbytes / 2, f"{peak} bytes for a matrix of {w.nbytes}"


@pytest.mark.parametrize("name", formats.FORMATS)
def test_no_floating_point_error_escapes_even_where_numpy_raises_them(name: str) -> None:
    w = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float64)
    with np.errstate(all="raise"):
        for scale in (1, 1e-8, 1e-30, 1e-38, 1e-40, 1e-45, 1e-60, 0):
            q = quant.quantize(w * scale, name)
            assert np.isfinite(quant.dequantize(q)).all()
        quant.dequantize(random_blocks(name, 1, 8))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_, np.complex64, "S4"])
def test_weights_that_are_not_real_floats_are_a_type_error(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"real floating-point, not .*astype\(np\.float32\)"):
        quant.quantize(np.ones((1, 128)).astype(dtype), "Q1_0")


@pytest.mark.parametrize("shape", [(), (128,), (1, 1, 128)])
def test_weights_that_are_no_matrix_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \[n_rows, k\], not \("):
        quant.quantize(np.ones(shape, F32), "Q1_0")


@pytest.mark.parametrize("shape", [(0, 128), (3, 0)])
def test_empty_weights_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are empty"):
        quant.quantize(np.ones(shape, F32), "Q1_0")


@pytest.mark.parametrize("name", reference.BLOCKS)
def test_a_row_that_does_not_fill_blocks_is_refused(name: str) -> None:
    block = formats.get(name).block_weights
    for k in (block - 1, block + 1, block // 2):
        with pytest.raises(ValueError, match=f"{k} weights .* multiple of {block}"):
            quant.quantize(np.ones((2, k), F32), name)


def test_an_unknown_format_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'Q3_0'.*Q1_0, .*TQ2_0_g128"):
        quant.quantize(np.ones((1, 256), F32), "Q3_0")


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_nan_or_infinity_is_named_by_row_and_column(
    name: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_CHUNK_WEIGHTS", 2 * 256)
    w = np.ones((9, 256), F32)
    w[7, 130] = w[7, 200] = w[8, 0] = bad
    with pytest.raises(ValueError, match=f"weight {bad} at row 7, column 130 "):
        quant.quantize(w, name)


def test_a_float64_beyond_float32_is_named_with_its_own_value() -> None:
    w = np.ones((2, 128))
    w[1, 3] = -1e300
    with pytest.raises(ValueError, match=r"weight -1e\+300 at row 1, column 3 is not a finite"):
        quant.quantize(w, "Q1_0")


@pytest.mark.parametrize("name", [*TERNARY, "F16"])
def test_a_value_that_rounds_to_an_infinite_half_is_refused_and_the_largest_kept(name: str) -> None:
    largest = np.nextafter(F32(65520), F32(0))  # what still rounds to 65504
    q = quant.quantize(impulse(256, 255, float(largest)), name)
    assert quant.dequantize(q).max() == 65504
    message = "65520" if name != "F16" else "weight 65520 at row 1, column 255 overflows F16"
    w = np.concatenate([np.zeros((1, 256), F32), impulse(256, 255, -65520)])
    with pytest.raises(ValueError, match=message.replace("weight ", "weight -")) as info:
        quant.quantize(w, name)
    assert "row 1" in str(info.value)
    if name != "F16":
        first = 256 - formats.get(name).block_weights
        assert f"row 1, columns {first} to 255 overflows the half" in str(info.value)


def test_scales_of_q1_0_and_q8_0_are_what_must_fit_a_half() -> None:
    assert quant.dequantize(quant.quantize(row(65519, k=128), "Q1_0")).max() == 65504
    with pytest.raises(ValueError, match="scale 65520 of row 0, columns 0 to 127 overflows"):
        quant.quantize(row(65520, k=128), "Q1_0")
    with pytest.raises(ValueError, match="scale inf of row 0"):
        quant.quantize(row(3e38, k=128), "Q1_0")
    assert quant.dequantize(quant.quantize(row(127 * 65504.0, k=32), "Q8_0")).max() == 127 * 65504
    with pytest.raises(ValueError, match="scale 65520 of row 0, columns 0 to 31 overflows"):
        quant.quantize(row(127 * 65520.0, k=32), "Q8_0")


def test_bf16_refuses_what_rounds_to_infinity() -> None:
    largest = np.array([0x7F7F7FFF], np.uint32).view(F32)[0]  # half a step above the last bfloat16
    assert np.isfinite(quant.dequantize(quant.quantize(row(largest, k=2), "BF16"))).all()
    with pytest.raises(ValueError, match=r"weight 3.4\S+ at row 0, column 1 overflows BF16"):
        quant.quantize(impulse(2, 1, float(np.finfo(F32).max)), "BF16")


def test_f32_has_memory_of_its_own() -> None:
    w = np.ones((2, 4), F32)
    assert not np.shares_memory(quant.quantize(w, "F32").data, w)


def test_codes_of_a_plain_format_is_an_error_that_says_what_to_call() -> None:
    for name in ("F32", "F16", "BF16", "Q8_0"):
        q = quant.quantize(np.ones((1, 32), F32), name)
        with pytest.raises(ValueError, match=rf"{name} has no .*dequantize\(q\)"):
            quant.codes(q)


@pytest.mark.parametrize("function", [quant.dequantize, quant.codes])
def test_decoding_something_else_than_a_qtensor_is_a_type_error(function: Any) -> None:
    with pytest.raises(TypeError, match="expected a QTensor, not ndarray"):
        function(np.zeros((1, 18), np.uint8))


# QTensor

RAW = bytes(range(36)) * 2


@pytest.mark.parametrize(
    "data",
    [
        RAW,
        bytearray(RAW),
        memoryview(RAW),
        memoryview(RAW).cast("B", (4, 18)),
        np.frombuffer(RAW, np.uint8),
        np.frombuffer(RAW, np.uint8).reshape(2, 36),
        np.frombuffer(RAW, np.float16),
        np.frombuffer(RAW, ">i4").reshape(3, 3, 2),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_buffer_is_taken_without_a_copy(data: Any) -> None:
    q = QTensor(data, (2, 256), "Q1_0")
    assert q.data.shape == (2, 36)
    assert q.data.dtype == np.uint8
    assert q.data.flags.c_contiguous
    assert q.nbytes == 72
    assert q.data.tobytes() == RAW
    view = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    assert np.shares_memory(q.data, view)


def test_a_mapped_file_stays_mapped_at_any_offset(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    path.write_bytes(b"x" + RAW)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = np.frombuffer(mapped, np.uint8)
    q = QTensor(whole[1:], [np.int64(4), 128], "q1_0_g128")
    assert np.shares_memory(q.data, whole)
    assert not q.data.flags.writeable
    assert (q.shape, q.format) == ((4, 128), "Q1_0")
    expected = quant.dequantize(QTensor(RAW, (4, 128), "Q1_0"))
    np.testing.assert_array_equal(quant.dequantize(q), expected)
    for name in ("F32", "F16", "BF16"):
        width = formats.get(name).block_bytes
        shifted = QTensor(whole[1:], (1, 72 // width), name)
        aligned = QTensor(RAW, (1, 72 // width), name)
        np.testing.assert_array_equal(quant.dequantize(shifted), quant.dequantize(aligned))


@pytest.mark.parametrize("size", [0, 71, 73, 144])
def test_a_wrong_length_is_refused_with_the_numbers(size: int) -> None:
    message = rf"Q1_0 of shape \(2, 256\) takes 2 x 36 = 72 bytes, the data has {size}$"
    with pytest.raises(ValueError, match=message):
        QTensor(bytes(size), (2, 256), "Q1_0")


@pytest.mark.parametrize("shape", [5, (1,), (1, 2, 3), (1.0, 128), ("1", "128"), None])
def test_a_shape_that_is_not_two_integers_is_a_type_error(shape: Any) -> None:
    with pytest.raises(TypeError, match="two integers"):
        QTensor(RAW, shape, "Q1_0")


@pytest.mark.parametrize("shape", [(0, 128), (-4, 128), (4, 0), (-4, -128)])
def test_a_shape_that_is_not_positive_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        QTensor(RAW, shape, "Q1_0")


def test_a_shape_that_does_not_fill_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"100 weights .* multiple of 128"):
        QTensor(RAW, (4, 100), "Q1_0")


def test_data_that_are_not_contiguous_bytes_are_refused() -> None:
    array = np.zeros((4, 36), np.uint8)
    for strided in (array[:, ::2], array[::2], np.asfortranarray(array), memoryview(RAW)[::2]):
        with pytest.raises(ValueError, match=r"C-contiguous.*ascontiguousarray"):
            QTensor(strided, (4, 128), "Q1_0")
    for no_bytes in (RAW.hex(), list(RAW), None, 72):
        with pytest.raises(TypeError, match="bytes-like or a NumPy array, not "):
            QTensor(no_bytes, (4, 128), "Q1_0")
    with pytest.raises(TypeError, match="Python objects"):
        QTensor(np.array([None] * 9), (4, 128), "Q1_0")


def test_a_qtensor_is_frozen_and_says_what_it_is() -> None:
    q = QTensor(RAW, (4, 128), formats.get("Q1_0"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.format = "PQ2_0"  # type: ignore[misc]
    assert repr(q) == "QTensor(format='Q1_0', shape=(4, 128), nbytes=72)"


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))]
)
def test_a_qtensor_copies_and_pickles(clone: Any) -> None:
    q = QTensor(RAW, (4, 128), "Q1_0")
    other = clone(q)
    assert (other.format, other.shape, other.data.tobytes()) == (q.format, q.shape, RAW)
