"""What the writer refuses, and what it says where a file cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from oxibonsai import gguf


def write(path, metadata=None, tensors=(), **options):
    gguf.write(path, metadata or {}, tensors, **options)
    return path


ZEROS = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (5, [], r"metadata = 5 is a int, not a mapping"),
        (None, [], r"metadata = None is a NoneType"),
        ([("x", 1)], [], r"metadata = .* is a list"),
        ("x", [], r"metadata = 'x' is a str"),
        ({b"x": 1}, [], r"metadata: the key b'x' is a bytes, not a str"),
        ({1: 1}, [], r"metadata: the key 1 is a int, not a str"),
        ({None: 1}, [], r"metadata: the key None is a NoneType"),
        ({}, 5, r"tensors = 5 is a int, not an iterable"),
        ({}, None, r"tensors = None is a NoneType"),
        ({}, b"ab", r"tensors = b'ab' is a bytes"),
        ({}, {"w": ZEROS}, r"tensors = .* is a dict.*give its items\(\)"),
        ({}, ["ab"], r"tensors\[0\] is 'ab', not a pair"),
        ({}, [("w",)], r"tensors\[0\] is \('w',\), not a pair"),
        ({}, [5], r"tensors\[0\] is 5, not a pair"),
        ({}, [("v", ZEROS), (b"w", ZEROS)], r"tensors\[1\]: the name b'w' is a bytes, not a str"),
        ({}, [(5, ZEROS)], r"tensors\[0\]: the name 5 is a int"),
        ({}, [("w", (b"", 5, "F32"))], r"'w' has shape 5; a tuple of integers"),
        ({}, [("w", (b"", (1.5,), "F32"))], r"'w' has shape \(1.5,\); a tuple of integers"),
        ({}, [("w", (None, (1,), "F32"))], r"'w' has data of type NoneType"),
    ],
)
def test_what_is_of_another_type_is_refused_and_nothing_written(
    tmp_path, metadata, tensors, message
):
    with pytest.raises(TypeError, match=message):
        gguf.write(tmp_path / "m.gguf", metadata, tensors)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("alignment", ["32", 32.0, True, None, [32]])
def test_writer_refuses_an_alignment_of_another_type(tmp_path, alignment):
    with pytest.raises(TypeError, match=f"alignment = .* is a {type(alignment).__name__}"):
        write(tmp_path / "m.gguf", alignment=alignment)
    write(tmp_path / "m.gguf", alignment=np.int64(64))


def refuse(monkeypatch, name, error):
    """Let the file's folder refuse what writing it needs."""
    real = getattr(os, name)

    def refusing(path, *args, **kwargs):
        if str(path).endswith(".part"):
            raise OSError(error, os.strerror(error), path, None, *args[:1])
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, refusing)


@pytest.mark.parametrize("given", [str, Path, os.fsencode])
def test_an_error_of_writing_names_the_path_that_was_given(tmp_path, monkeypatch, given):
    path = tmp_path / "m.gguf"
    for error, kind in ((errno.EACCES, PermissionError), (errno.ENOSPC, OSError)):
        for name in ("open", "replace"):
            with monkeypatch.context() as patch:
                refuse(patch, name, error)
                with pytest.raises(kind) as caught:
                    gguf.write(given(path), {}, [])
            assert type(caught.value) is kind
            assert caught.value.errno == error
            assert caught.value.filename == str(path)
            assert caught.value.filename2 is None
            assert ".part" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError) as missing:
        gguf.write(given(tmp_path / "none" / "m.gguf"), {}, [])
    assert missing.value.filename == str(tmp_path / "none" / "m.gguf")
    assert ".part" not in str(missing.value)


def test_a_full_disk_is_said_with_the_path(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"m\.gguf") as caught:
        gguf.write(tmp_path / "m.gguf", {}, [])
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_data_is_left_as_it_is(tmp_path):
    def chunks():
        raise FileNotFoundError(errno.ENOENT, "no such file", "weights.bin")

    with pytest.raises(FileNotFoundError) as caught:
        gguf.write(tmp_path / "m.gguf", {}, [("w", (chunks, (1,), "F32"))])
    assert caught.value.filename == "weights.bin"


def test_a_file_in_a_folder_that_cannot_be_written_to_names_the_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", {"x": 1})
    before = path.read_bytes()
    refuse(monkeypatch, "open", errno.EACCES)
    with pytest.raises(PermissionError) as caught:
        gguf.write(path, {"x": 2}, [])
    assert f"a new file replaces it, for which its folder {tmp_path} is read-only" in str(
        caught.value
    )
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", b""])
def test_a_file_to_write_needs_a_name(name):
    with pytest.raises(FileNotFoundError, match="needs a name"):
        gguf.write(name, {}, [])


def test_a_folder_is_no_file_to_write_to(tmp_path):
    for name in (str(tmp_path), f"{tmp_path}/none/"):
        with pytest.raises(IsADirectoryError):
            gguf.write(name, {}, [])


def test_a_name_as_long_as_the_system_takes_is_written(tmp_path):
    path = tmp_path / ("文" * 83 + ".gguf")
    gguf.write(path, {"x": 1}, [])
    with gguf.open(path) as file:
        assert file.metadata["x"] == 1
