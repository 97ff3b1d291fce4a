"""Models in several files: the first part opens all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai import gguf, quant
from oxibonsai.gguf import GGUFError, ValueType

U16 = ValueType.U16


def tensor(i: int) -> np.ndarray:
    return np.full((4, 32), i, np.float32)


def part(folder: Path, number: int, count: int) -> Path:
    return folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"


def write_parts(
    folder: Path, tensors: list[dict[str, Any]], n_tensors: int | None = None, **first: Any
) -> Path:
    """Write a part for each dict and return the first part's path."""
    count = len(tensors)
    total = sum(map(len, tensors)) if n_tensors is None else n_tensors
    for i, found in enumerate(tensors):
        metadata: dict[str, Any] = {
            "split.no": U16(i),
            "split.count": U16(count),
            "split.tensors.count": ValueType.I32(total),
        }
        if i == 0:
            metadata = {"general.name": "whole", **metadata, **first}
        gguf.write(part(folder, i, count), metadata, found.items())
    return part(folder, 0, count)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_parts(
        tmp_path, [{"a": tensor(1), "b": tensor(2)}, {"c": tensor(3)}, {"d": tensor(4)}]
    )


def test_first_part_opens_all(three: Path) -> None:
    with gguf.open(three) as file:
        assert file.metadata["general.name"] == "whole"
        assert list(file.tensors) == ["a", "b", "c", "d"]
        assert [t.part for t in file.tensors.values()] == [0, 0, 1, 2]
        assert file.paths == tuple(str(part(three.parent, i, 3)) for i in range(3))
        assert file.size == sum(os.path.getsize(path) for path in file.paths)
        for i, name in enumerate("abcd"):
            data = file.tensor_data(name).view("<f4")
            assert (data == i + 1).all()
            file.release(name)
            assert (file.tensor_data(name).view("<f4") == i + 1).all()


def test_tensors_are_joined_over_parts(three: Path) -> None:
    with gguf.open(three) as file:
        joined = file.joined_data("b", "c", "d").view("<f4").reshape(3, -1)
        np.testing.assert_array_equal(joined[:, 0], [2, 3, 4])
        assert file.joined_data("a", "b").base is not None
        # Tensors at the end of one part and the start of the next are no neighbours.
        assert file.tensors["c"].offset == file.tensors["d"].offset


def test_closing_closes_all_parts_and_leaves_views(three: Path) -> None:
    file = gguf.open(three)
    view = file.tensor_data("d")
    file.close()
    file.close()
    assert file.closed
    assert view.view("<f4")[0] == 4
    for name in "ad":
        with pytest.raises(ValueError, match="is closed"):
            file.tensor_data(name)


def test_first_part_may_have_no_tensors(tmp_path: Path) -> None:
    with gguf.open(write_parts(tmp_path, [{}, {"a": tensor(1)}])) as file:
        assert list(file.tensors) == ["a"]
        assert file.tensor_data("a").view("<f4")[0] == 1


@pytest.mark.parametrize("number", [1, 2])
def test_another_part_names_the_first(three: Path, number: int) -> None:
    path = part(three.parent, number, 3)
    with pytest.raises(GGUFError, match=f"part {number + 1} of 3 of a model") as caught:
        gguf.open(path)
    assert str(three) in str(caught.value)
    assert str(path) in str(caught.value)


def test_another_part_of_any_name_says_that_it_is_one(three: Path) -> None:
    path = part(three.parent, 1, 3).rename(three.with_name("other.gguf"))
    with pytest.raises(GGUFError, match=r"part 2 of 3.*NAME-00001-of-00003\.gguf"):
        gguf.open(path)


@pytest.mark.parametrize("number", [1, 2])
def test_missing_part_is_named_with_its_path(three: Path, number: int) -> None:
    path = part(three.parent, number, 3)
    path.unlink()
    with pytest.raises(GGUFError, match=f"part {number + 1} of 3 .* is missing") as caught:
        gguf.open(three)
    assert str(path) in str(caught.value)


def test_first_part_of_another_name_says_which_it_needs(three: Path) -> None:
    path = three.rename(three.with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"first of 3 parts.*NAME-00001-of-00003\.gguf"):
        gguf.open(path)
    # Nor does a name with another count find them.
    path = path.rename(three.with_name("m-00001-of-00004.gguf"))
    with pytest.raises(GGUFError, match=r"NAME-00001-of-00003\.gguf"):
        gguf.open(path)


def test_parts_are_found_beside_the_first_wherever_that_is(three: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(three.parent)
    with gguf.open(three.name) as file:
        assert len(file.tensors) == 4
    monkeypatch.chdir("/")
    with gguf.open(os.path.relpath(three)) as file:
        assert len(file.tensors) == 4


def test_part_of_another_model_is_refused(three: Path) -> None:
    second, third = part(three.parent, 1, 3), part(three.parent, 2, 3)
    second.write_bytes(third.read_bytes())
    with pytest.raises(GGUFError, match=r"is part 3 of 3 .*; part 2 of 3 .* is needed"):
        gguf.open(three)
    gguf.write(second, {}, {"c": tensor(3)}.items())
    with pytest.raises(GGUFError, match="is no part of a model"):
        gguf.open(three)


def test_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    path = write_parts(tmp_path, [{"a": tensor(1)}, {"a": tensor(2)}])
    with pytest.raises(GGUFError, match=r"tensor 'a' is in .* too") as caught:
        gguf.open(path)
    assert str(path) in str(caught.value)


def test_wrong_number_of_tensors_is_refused(tmp_path: Path) -> None:
    path = write_parts(tmp_path, [{"a": tensor(1)}, {"b": tensor(2)}], n_tensors=3)
    with pytest.raises(GGUFError, match=r"have 2 tensors, but split\.tensors\.count is 3"):
        gguf.open(path)


def test_damaged_part_is_named(three: Path) -> None:
    path = part(three.parent, 2, 3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GGUFError, match="end of the file") as caught:
        gguf.open(three)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_part_is_a_file_of_any_name(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(path, {"split.count": U16(count), "split.no": U16(0)}, {"a": tensor(1)}.items())
    with gguf.open(path) as file:
        assert file.paths == (str(path),)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"split.count": "2"}, r"split\.count is '2'"),
        ({"split.count": ValueType.I32(-1)}, r"split\.count is -1"),
        ({"split.count": 2}, r"split\.no is None"),
        ({"split.count": 2, "split.no": 2}, r"split\.no is 2; 0 to 1"),
        ({"split.count": 2**32 - 1, "split.no": 0}, "first of 4294967295 parts"),
    ],
)
def test_absurd_counts_are_refused(tmp_path: Path, metadata: Any, message: str) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    gguf.write(path, metadata, {"a": tensor(1)}.items())
    with pytest.raises(GGUFError, match=message):
        gguf.open(path)


@pytest.mark.parametrize("name", ["TQ2_0_g128", "Q2_0_g128", "Q2_0"])
def test_type_42_is_one_format_over_all_parts(tmp_path: Path, name: str) -> None:
    # The second part's zeros fit two formats at least; the first part decides.
    w = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    zeros = np.zeros((64, 128), np.float32)
    path = write_parts(
        tmp_path, [{"a": quant.quantize(w, name)}, {"b": quant.quantize(zeros, name)}]
    )
    with gguf.open(path) as file:
        assert {t.format for t in file.tensors.values()} == {name}
    alone = tmp_path / "alone.gguf"
    gguf.write(alone, {}, {"b": quant.quantize(zeros, name)}.items())
    if name != "Q2_0":
        with pytest.raises(GGUFError, match="--type42"):
            gguf.open(alone)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_any_division_has_the_tensors_of_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts: list[dict[str, Any]] = []
    for i, size in enumerate(sizes):
        parts.append({})
        for j in range(size):
            shape = tuple(rng.integers(1, 5, 2).tolist())
            parts[-1][f"{i}.{j}"] = rng.standard_normal(shape).astype(np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        gguf.open(write_parts(Path(folder), parts)) as file,
    ):
        found = {n: file.tensor_data(n).view("<f4").copy() for n in file.tensors}
        whole = [t for part in parts for t in part.values()]
        if whole:
            joined = file.joined_data(*file.tensors).view("<f4")
            np.testing.assert_array_equal(joined, np.concatenate([t.ravel() for t in whole]))
        assert [t.shape for t in file.tensors.values()] == [t.shape for t in whole]
        assert file.size == sum(map(os.path.getsize, file.paths))
    assert list(found) == [name for part in parts for name in part]


@pytest.mark.parametrize("first_small", [False, True])
def test_parts_that_the_package_gguf_writes_are_read(tmp_path: Path, first_small: bool) -> None:
    path = tmp_path / "peer.gguf"
    writer = GGUFWriter(path, "qwen3", split_max_tensors=2, small_first_shard=first_small)
    writer.add_block_count(7)
    for i in range(5):
        writer.add_tensor(f"t{i}", tensor(i))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    count = 4 if first_small else 3
    with gguf.open(tmp_path / f"peer-00001-of-{count:05d}.gguf") as file:
        assert file.metadata["qwen3.block_count"] == 7
        assert list(file.tensors) == [f"t{i}" for i in range(5)]
        for i in range(5):
            assert (file.tensor_data(f"t{i}").view("<f4") == i).all()
    with pytest.raises(GGUFError, match=r"peer-00001-of-0000\d\.gguf"):
        gguf.open(tmp_path / f"peer-00002-of-{count:05d}.gguf")


def test_parts_of_llama_cpp_names_with_more_digits(tmp_path: Path) -> None:
    stem = "Qwen3-8B-00001-of-00009-Q4_K_M"
    for i in range(2):
        gguf.write(
            tmp_path / f"{stem}-{i + 1:05d}-of-00002.gguf",
            {"split.no": U16(i), "split.count": U16(2)},
            {f"t{i}": tensor(i)}.items(),
        )
    with gguf.open(tmp_path / f"{stem}-00001-of-00002.gguf") as file:
        assert list(file.tensors) == ["t0", "t1"]


def test_another_part_names_no_first_that_is_not_there(three: Path) -> None:
    three.rename(three.with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"part 2 of 3.*NAME-00001-of-00003\.gguf") as caught:
        gguf.open(part(three.parent, 1, 3))
    assert str(three) not in str(caught.value)


@pytest.mark.parametrize("name", ["link.gguf", "m-00001-of-00003.gguf", "m-00001-of-00009.gguf"])
def test_a_link_of_any_name_opens_the_parts_beside_its_file(three: Path, name: str) -> None:
    folder = three.parent / "links"
    folder.mkdir()
    (folder / name).symlink_to(three)
    with gguf.open(folder / name) as file:
        assert list(file.tensors) == ["a", "b", "c", "d"]


def test_parts_beside_a_link_come_before_those_of_its_file(three: Path) -> None:
    store = three.parent / "blobs"
    store.mkdir()
    for i in range(3):
        path = part(three.parent, i, 3)
        path.rename(store / f"{i}")
        path.symlink_to(store / f"{i}")
    with gguf.open(three) as file:
        assert list(file.tensors) == ["a", "b", "c", "d"]


def test_parts_may_be_named_in_capitals(three: Path) -> None:
    for i in range(3):
        path = part(three.parent, i, 3)
        path.rename(path.with_suffix(".GGUF"))
    with gguf.open(three.with_suffix(".GGUF")) as file:
        assert list(file.tensors) == ["a", "b", "c", "d"]
