"""Tensor type 42 stands for three formats; the reader tells them apart or refuses."""

from __future__ import annotations

import numpy as np
import pytest
from gguf_bytes import Raw, Tensor
from model_files import TERNARY_MODEL, make_layout, unpack_tq2_0_g128

from oxibonsai import formats, gguf

NAMES = ("Q2_0", "Q2_0_g128", "TQ2_0_g128")
HELP = r'--type42 NAME .*type42="TQ2_0_g128" \| "Q2_0" \| "Q2_0_g128"'


def blocks(fmt: str, weights: int, seed: int = 0, codes: int | None = None) -> bytes:
    """Return blocks of random codes 0 to 2, or of one code byte, with scales of 0.5."""
    f = formats.get(fmt)
    n = weights // f.block_weights
    raw = np.empty((n, f.block_bytes), np.uint8)
    if codes is None:
        quads = np.random.default_rng(seed).integers(0, 3, (n, f.block_bytes, 4), np.uint8)
        raw[:] = quads @ np.array([1, 4, 16, 64], np.uint8)
    else:
        raw[:] = codes
    at = f.scale_offset
    raw[:, at : at + 2] = np.full((n, 1), 0.5, "<f2").view(np.uint8)
    return raw.tobytes()


def build(path, *tensors: Tensor, **options):
    path.write_bytes(Raw(tensors=list(tensors), **options).build())
    return path


def formats_of(path, **options) -> set[str | None]:
    with gguf.open(path, **options) as file:
        return {t.format for t in file.tensors.values() if t.ggml_type == 42}


@pytest.mark.parametrize("fmt", NAMES)
def test_the_demo_model_is_recognised_in_each_format(tmp_path, fmt):
    path = make_layout(TERNARY_MODEL, tmp_path / "m.gguf", fmt)
    assert formats_of(path) == {fmt}


def test_the_demo_model_in_its_own_format_has_sane_weights():
    with gguf.open(TERNARY_MODEL) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
        codes, scales = unpack_tq2_0_g128(file.tensor_data(info.name), *info.shape)
    assert codes.max() == 2
    assert np.all((scales >= 0) & (scales < 1))


@pytest.mark.parametrize("pad_last", [True, False])
@pytest.mark.parametrize("fmt", NAMES)
@pytest.mark.parametrize("weights", [4096, 2**17])
def test_one_tensor_is_enough_with_or_without_padding_at_the_end(tmp_path, fmt, weights, pad_last):
    tensor = Tensor("w", (128, weights // 128), 42, blocks(fmt, weights))
    path = build(tmp_path / "m.gguf", tensor, pad_last=pad_last)
    assert formats_of(path) == {fmt}
    with gguf.open(path) as file:
        assert file.tensors["w"].nbytes == len(tensor.data)


def test_a_row_of_64_weights_can_only_be_q2_0(tmp_path):
    path = build(tmp_path / "m.gguf", Tensor("w", (64, 3), 42, blocks("Q2_0", 192, codes=0x55)))
    assert formats_of(path) == {"Q2_0"}


def test_a_small_tensor_takes_the_format_that_a_large_one_shows(tmp_path):
    # 512 weights are 144 or 136 bytes, both 160 with padding; zeros as codes say nothing either.
    small = Tensor("small", (512,), 42, bytes(144))
    large = Tensor("large", (512, 64), 42, blocks("Q2_0", 2**15))
    for tensors in ((small, large), (large, small)):
        assert formats_of(build(tmp_path / "m.gguf", *tensors)) == {"Q2_0"}


@pytest.mark.parametrize("fmt", ["Q2_0_g128", "TQ2_0_g128"])
def test_all_zero_data_of_34_byte_blocks_is_refused_and_the_way_out_named(tmp_path, fmt):
    path = build(tmp_path / "m.gguf", Tensor("w", (128, 64), 42, bytes(64 * 34)))
    with pytest.raises(gguf.GGUFError, match=HELP) as caught:
        gguf.open(path)
    assert "TQ2_0_g128 or Q2_0_g128 all fit" in str(caught.value)
    assert "'w'" in str(caught.value)
    assert formats_of(path, type42=fmt) == {fmt}


@pytest.mark.parametrize("fmt", NAMES)
def test_a_small_all_zero_tensor_fits_all_three_and_each_can_be_named(tmp_path, fmt):
    path = build(tmp_path / "m.gguf", Tensor("w", (128,), 42, bytes(36)))
    with pytest.raises(gguf.GGUFError, match="TQ2_0_g128 or Q2_0 or Q2_0_g128 all fit"):
        gguf.open(path)
    assert formats_of(path, type42=fmt) == {fmt}


def test_codes_that_read_as_a_good_scale_are_ambiguous(tmp_path):
    # 0x55 is four zero weights, and 0x5555 as a half is 85.3.
    data = blocks("TQ2_0_g128", 2**13, codes=0x55)
    path = build(tmp_path / "m.gguf", Tensor("w", (128, 64), 42, data))
    with pytest.raises(gguf.GGUFError, match="TQ2_0_g128 or Q2_0_g128 all fit"):
        gguf.open(path)


def test_one_negative_scale_in_the_wrong_position_decides(tmp_path):
    data = bytearray(blocks("TQ2_0_g128", 2**13, codes=0x55))
    data[5 * 34 + 1] = 0x95  # weight 7 of block 5 is +1: a negative half at the front
    path = build(tmp_path / "m.gguf", Tensor("w", (128, 64), 42, bytes(data)))
    assert formats_of(path) == {"TQ2_0_g128"}


@pytest.mark.parametrize(("bad", "shown"), [(0x7C00, "inf"), (0x7E00, "nan"), (0xB800, "-0.5")])
@pytest.mark.parametrize("fmt", NAMES)
def test_a_file_that_no_format_fits_is_refused_with_the_scale(tmp_path, fmt, bad, shown):
    f = formats.get(fmt)
    raw = np.frombuffer(blocks(fmt, 2**13), np.uint8).reshape(-1, f.block_bytes).copy()
    raw[7, f.scale_offset : f.scale_offset + 2] = np.array([bad], "<u2").view(np.uint8)
    path = build(tmp_path / "m.gguf", Tensor("w", (128, 64), 42, raw.tobytes()))
    with pytest.raises(gguf.GGUFError, match=HELP) as caught:
        gguf.open(path)
    assert f"{fmt}: the scale of block 7 of 'w' would be {shown}" in str(caught.value)
    assert formats_of(path, type42=fmt) == {fmt}


@pytest.mark.parametrize(
    ("fmt", "wrong"),
    [("Q2_0", "Q2_0_g128"), ("Q2_0", "TQ2_0_g128"), ("TQ2_0_g128", "Q2_0"), ("Q2_0_g128", "Q2_0")],
)
def test_a_name_that_contradicts_the_spans_is_refused(tmp_path, fmt, wrong):
    tensors = [Tensor(n, (128, 64), 42, blocks(fmt, 2**13)) for n in ("a", "b")]
    path = build(tmp_path / "m.gguf", *tensors)
    with pytest.raises(
        gguf.GGUFError, match=rf"type42='{wrong}' contradicts the file: .* 2 tensors"
    ):
        gguf.open(path, type42=wrong)


@pytest.mark.parametrize("name", ["PQ2_0", "Q1_0", "nonsense"])
def test_a_name_that_is_no_format_of_type_42_is_a_value_error(name):
    with pytest.raises(ValueError, match=name):
        gguf.open(TERNARY_MODEL, type42=name)


def test_tensors_of_two_formats_in_one_file_are_refused(tmp_path):
    path = build(
        tmp_path / "m.gguf",
        Tensor("a", (128, 64), 42, blocks("Q2_0", 2**13)),
        Tensor("b", (128, 64), 42, blocks("TQ2_0_g128", 2**13)),
    )
    with pytest.raises(gguf.GGUFError, match=r"'b' of type 42 spans 2176 bytes for 8192 weights"):
        gguf.open(path)


def test_scales_in_two_positions_in_one_file_are_refused(tmp_path):
    path = build(
        tmp_path / "m.gguf",
        Tensor("a", (128, 64), 42, blocks("Q2_0_g128", 2**13)),
        Tensor("b", (128, 64), 42, blocks("TQ2_0_g128", 2**13)),
    )
    with pytest.raises(gguf.GGUFError, match="no format of tensor type 42 fits its scales"):
        gguf.open(path)


@pytest.mark.parametrize("fmt", NAMES)
def test_a_file_with_wide_gaps_falls_back_on_the_scales(tmp_path, fmt):
    data = blocks(fmt, 2**13)
    gap = bytes(4096 - len(data))
    path = build(tmp_path / "m.gguf", *(Tensor(n, (128, 64), 42, data + gap) for n in ("a", "b")))
    assert formats_of(path) == {fmt}


def test_other_types_do_not_depend_on_type_42(tmp_path):
    path = tmp_path / "m.gguf"
    gguf.write(path, {}, [("w", (bytes(34 * 4), (4, 128), "PQ2_0"))])
    with gguf.open(path, type42="Q2_0") as file:
        assert file.tensors["w"].format == "PQ2_0"
