"""The metadata of rotated weights: what is read, and that all else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rotated_models import EMBEDDING, HEAD, Folding

from oxibonsai import gguf
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.model.rotation import Rotations, check_rotated, read_rotations

PREFIX = "prism.hadamard."
INPUTS = (("attn_q.weight", "attn_k.weight"), ("ffn_down.weight",))
SHAPES = {
    EMBEDDING: (2, 64),
    HEAD: (2, 64),
    "blk.0.attn_q.weight": (2, 64),
    "blk.0.attn_k.weight": (2, 64),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.ffn_down.weight": (2, 96),
}
FOLDING = Folding(block=32)
GOOD = FOLDING.metadata(SHAPES)
TIED_SHAPES = {name: shape for name, shape in SHAPES.items() if name != HEAD}
TIED = Folding(version=2, block=32).metadata(TIED_SHAPES)
WIDTHS = np.array([64, 96])
SIGNS = np.concatenate([FOLDING.signs(64), FOLDING.signs(96)]).astype(int)


def read(
    path: Path, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]] = SHAPES
) -> Rotations | None:
    """Write a file and read its rotation."""
    write(path, metadata, shapes)
    return read_file(path)


def write(path: Path, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = [(name, np.ones(shape, np.float32)) for name, shape in shapes.items()]
    pairs = {key: value for key, value in metadata.items() if value is not None}
    gguf.write(path, pairs, tensors)


def read_file(path: Path) -> Rotations | None:
    """Read the rotation of a file, with the check of an architecture."""
    with gguf.open(path) as file:
        found = read_rotations(file)
        if found is not None:
            check_rotated(file, found, "test", INPUTS, 1)
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_reads_version_1(path):
    found = read(path, GOOD)
    assert found is not None
    assert (found.version, found.block_size, found.sign_mode) == (1, 32, "explicit")
    assert found.weights == tuple(sorted(set(SHAPES) - {EMBEDDING, "blk.0.attn_norm.weight"}))
    assert (found.embedding, found.head, found.tied_output) == (True, True, False)
    assert not found.gdn_v_grouped
    for width in (64, 96):
        assert found.signs_of(width).dtype == np.float32
        np.testing.assert_array_equal(found.signs_of(width), FOLDING.signs(width))


def test_what_it_is_fits_a_line_and_tells_signs_and_names_apart(path):
    others = [FOLDING, Folding(block=32, seed=6), Folding(block=32, names=("ffn_down",))]
    shown = {repr(read(path, folding.metadata(SHAPES))) for folding in others}
    assert len(shown) == 3
    assert max(map(len, shown)) < 200


def test_layers_that_do_not_run_may_be_rotated(path):
    shapes = {**SHAPES, "blk.1.attn_q.weight": (2, 64), "blk.1.other.weight": (2, 64)}
    names = {PREFIX + "weight_names": [*GOOD[PREFIX + "weight_names"], "blk.1.other.weight"]}
    write(path, {**GOOD, **names}, shapes)
    with gguf.open(path) as file:
        found = read_rotations(file)
        assert found is not None
        check_rotated(file, found, "test", INPUTS, 1, ("blk.1.",))
        with pytest.raises(GGUFError, match=r"'blk\.1\.other\.weight', whose input"):
            check_rotated(file, found, "test", INPUTS, 1)


def test_reads_version_2(path):
    found = read(path, TIED, TIED_SHAPES)
    assert found is not None
    assert (found.version, found.embedding, found.head, found.tied_output) == (2, True, True, True)


def test_reads_signs_that_are_all_1(path):
    found = read(path, Folding(block=32, explicit=False).metadata(SHAPES))
    assert found is not None
    np.testing.assert_array_equal(found.signs_of(96), np.ones(96))
    ones = {PREFIX + "sign_widths": WIDTHS, PREFIX + "sign_values": np.ones(160, np.int8)}
    same = read(path, {**Folding(block=32, explicit=False).metadata(SHAPES), **ones})
    assert same == found


def test_a_file_without_prism_keys_has_none(path):
    assert read(path, {"general.name": "prism"}) is None


def test_a_file_may_rotate_some_of_the_inputs(path):
    found = read(path, Folding(block=32, names=("ffn_down",), embedding=False).metadata(SHAPES))
    assert found is not None
    assert found.weights == ("blk.0.ffn_down.weight", HEAD)
    assert not found.embedding
    names = {PREFIX + "weight_names": ["blk.0.ffn_down.weight"]}
    found = read(path, {**GOOD, **names})
    assert found is not None
    assert found.embedding
    assert not found.head


SIGNED = [ValueType.I8, ValueType.I16, ValueType.I32, ValueType.I64]
SCALARS = [*SIGNED, ValueType.U8, ValueType.U16, ValueType.U32, ValueType.U64]


@pytest.mark.parametrize("kind", SCALARS, ids=lambda kind: kind.name)
def test_integers_may_have_any_width(path, kind):
    changes = {
        "version": kind(1),
        "block_size": kind(32),
        "sign_widths": kind([64, 96]),
        "gdn_v_grouped": kind(0),
    }
    if kind in SIGNED:
        changes["sign_values"] = kind(SIGNS.tolist())
    found = read(path, {**GOOD, **{PREFIX + key: value for key, value in changes.items()}})
    assert found == read(path, GOOD)


WRONG: list[tuple[str, Any, str]] = [
    ("version", None, "missing"),
    ("version", 0, "1..2"),
    ("version", 3, "1..2"),
    ("version", True, "integer"),
    ("version", 1.0, "integer"),
    ("version", "1", "integer"),
    ("version", [1], "integer"),
    ("version", 2, "tied_output is not true"),
    ("block_size", None, "missing"),
    ("block_size", 8, "16..4096"),
    ("block_size", 8192, "16..4096"),
    ("block_size", ValueType.U64(2**63), "16..4096"),
    ("block_size", ValueType.I32(-32), "16..4096"),
    ("block_size", 48, "power of two"),
    ("block_size", 64, "does not divide 96, the width of 'blk.0.ffn_down.weight'"),
    ("transform", None, "missing"),
    ("transform", "hadamard", "normalized-sylvester-walsh-hadamard"),
    ("transform", 1, "normalized-sylvester-walsh-hadamard"),
    ("axis", None, "missing"),
    ("axis", "output", "input-last-dimension"),
    ("sign_mode", None, "missing"),
    ("sign_mode", "random", "'identity' and 'explicit'"),
    ("sign_mode", 0, "'identity' and 'explicit'"),
    ("sign_mode", "identity", "sign_values has values of -1"),
    ("sign_widths", None, "sign_values has 160 values; the widths of sign_widths are 0"),
    ("sign_widths", [64, 64], "64 twice"),
    ("sign_widths", [64], "160 values; the widths of sign_widths are 64"),
    ("sign_widths", [96, 64, 1], "width 1, for which sign_values has 0"),
    ("sign_widths", [160], "no signs for the width 64"),
    ("sign_widths", [0, 64, 96], "width 0"),
    ("sign_widths", [-64, 64, 96], "width -64"),
    ("sign_widths", np.array([2**64 - 64, 64, 96], np.uint64), "width 18446744073709551552"),
    ("sign_widths", 64, "array of integers"),
    ("sign_widths", [64.0, 96.0], "array of integers"),
    ("sign_widths", ["64", "96"], "array of integers"),
    ("sign_widths", [True, False], "array of integers"),
    ("sign_values", None, "width 64, for which sign_values has 0"),
    ("sign_values", SIGNS[:-1], "width 96, for which sign_values has 95"),
    ("sign_values", np.append(SIGNS, 1), "161 values; the widths of sign_widths are 160"),
    ("sign_values", np.where(np.arange(160) == 7, 0, SIGNS), "[7] is 0; 1 or -1"),
    ("sign_values", np.where(np.arange(160) == 159, 2, SIGNS), "[159] is 2; 1 or -1"),
    ("sign_values", SIGNS.astype(np.uint8), "is 255; 1 or -1"),
    ("sign_values", SIGNS.astype(np.float32), "array of integers"),
    ("sign_values", SIGNS > 0, "array of integers"),
    ("weight_names", None, "missing"),
    ("weight_names", ValueType.STRING([]), "names no weight"),
    ("weight_names", "blk.0.attn_q.weight", "array of names"),
    ("weight_names", [1, 2], "array of names"),
    ("weight_names", ["blk.9.attn_q.weight"], "'blk.9.attn_q.weight', but there is no such"),
    ("weight_names", [EMBEDDING], "'token_embd.weight', whose input is not rotated in test"),
    ("weight_names", ["blk.0.attn_norm.weight"], "'blk.0.attn_norm.weight', whose input"),
    (
        "weight_names",
        ["blk.0.attn_k.weight"],
        "has 'blk.0.attn_k.weight' without 'blk.0.attn_q.weight'",
    ),
    ("inverse_weight_names", [HEAD], "'output.weight'; only 'token_embd.weight'"),
    ("inverse_weight_names", 1, "array of names"),
    ("gdn_v_grouped", 2, "true or false"),
    ("gdn_v_grouped", "true", "true or false"),
    ("gdn_v_grouped", 1.0, "true or false"),
    ("gdn_v_grouped", True, "is true, but weight_names has no '*.ssm_out.weight'"),
    ("gdn_v_grouped", 1, "is true, but weight_names has no '*.ssm_out.weight'"),
    ("tied_output", True, "is true, which version 1 does not have"),
    ("tied_output", [True], "true or false"),
    ("seed", 1, "not known here"),
    ("", 1, "not known here"),
]


@pytest.mark.parametrize(("key", "value", "text"), WRONG)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(path, key, value, text):
    with pytest.raises(GGUFError) as caught:
        read(path, {**GOOD, PREFIX + key: value})
    assert str(path) in str(caught.value)
    assert PREFIX in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("key", ["prism.other", "prism.", "prism.version", "prism.hadamard"])
def test_another_key_of_prism_is_refused_with_and_without_a_rotation(path, key):
    for metadata in ({}, GOOD):
        with pytest.raises(GGUFError, match=f"{key} is not known here"):
            read(path, {**metadata, key: 1})


@pytest.mark.parametrize(
    ("changes", "head", "text"),
    [
        ({"tied_output": False}, False, "tied_output is not true"),
        ({"tied_output": None}, False, "tied_output is not true"),
        ({}, True, "tied_output is true, but there is a tensor 'output.weight'"),
        ({"inverse_weight_names": None}, False, "inverse_weight_names lacks 'token_embd.weight'"),
        ({"weight_names": [HEAD]}, False, "'output.weight', but there is no such tensor"),
        ({"version": 1, "tied_output": False}, False, "needs version 2"),
    ],
)
def test_a_tied_head_that_contradicts_itself_is_refused(path, changes, head, text):
    with pytest.raises(GGUFError, match=text):
        read(
            path,
            {**TIED, **{PREFIX + key: value for key, value in changes.items()}},
            SHAPES if head else TIED_SHAPES,
        )


def test_version_1_with_the_embedding_as_it_is_may_share_it(path):
    found = read(path, Folding(block=32, embedding=False).metadata(TIED_SHAPES), TIED_SHAPES)
    assert found is not None
    assert not found.embedding
    assert not found.head


NUMBERS = (
    st.integers(0, 2**64 - 1).map(ValueType.U64)
    | st.integers(-(2**63), 2**63 - 1).map(ValueType.I64)
    | st.sampled_from([0, 1, 2, 16, 32, 64, 96, 4096])
)
KINDS = st.sampled_from(list(ValueType))
TEXTS = st.text(max_size=8) | st.sampled_from([*SHAPES, "identity", "explicit"])
VALUES = (
    st.booleans()
    | NUMBERS
    | st.floats(width=32)
    | TEXTS
    | st.lists(TEXTS, min_size=1, max_size=4)
    | st.lists(st.integers(-3, 100), min_size=1, max_size=6)
    | st.builds(lambda kind: kind([]), KINDS.filter(lambda kind: kind is not ValueType.ARRAY))
    | st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2), min_size=1, max_size=2)
)
KEYS = st.sampled_from([*GOOD, PREFIX + "seed", "prism.other", "prism"])


@given(
    st.sampled_from([(GOOD, SHAPES), (TIED, TIED_SHAPES), (TIED, SHAPES), (GOOD, TIED_SHAPES)]),
    st.dictionaries(KEYS, VALUES, max_size=3),
    st.sets(KEYS, max_size=2),
)
@settings(deadline=None, max_examples=300)
def test_mutated_metadata_are_read_or_refused(tmp_path_factory, base, changes, left_out):
    metadata, shapes = base
    pairs = {key: value for key, value in metadata.items() if key not in left_out} | changes
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    write(path, pairs, shapes)
    try:
        found = read_file(path)
    except GGUFError:
        return
    if found is None:
        assert not any(key.startswith("prism.") for key in pairs)
        return
    for name in found.weights:
        width = shapes[name][-1]
        assert width % found.block_size == 0
        assert set(found.signs_of(width)) <= {1.0, -1.0}
