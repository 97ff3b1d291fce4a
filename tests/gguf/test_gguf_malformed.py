"""Files that lie: each lie is a GGUFError with the file's name, the value and the limit."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, U32, Raw, Tensor, array, pair, string
from model_files import Q1_MODEL

from oxibonsai import gguf

F32, Q1_0, TYPE_42 = 0, 41, 42
U8_ARRAY = 0
ROW = Tensor("w", (32,), F32, bytes(128))


def scalar(kind: int, value: bytes) -> Raw:
    return Raw(pairs=[pair("k", kind, value)])


def one(**changes) -> Raw:
    tensor = {"name": "w", "ne": (32,), "type": F32, "data": bytes(128)} | changes
    return Raw(tensors=[Tensor(**tensor)])


def named_alignment(value: int) -> Raw:
    return Raw(pairs=[pair("general.alignment", U32, struct.pack("<I", value))])


LIES = {
    "magic": (Raw(magic=b"GGML"), r"starts with b'GGML', not b'GGUF'"),
    "big-endian magic": (Raw(magic=b"FUGG"), "big-endian"),
    "big-endian version": (Raw(version=0x03000000), r"big-endian.*0x3000000"),
    "version 1": (Raw(version=1), "version 1; versions 2 and 3 are read"),
    "version 4": (Raw(version=4), "version 4;"),
    "metadata count": (
        Raw(n_pairs=2**60),
        rf"metadata at offset 24 needs {13 * 2**60} bytes \({2**60} x 13\).* 32 bytes has 8 left",
    ),
    "tensor count": (
        Raw(n_tensors=2**60),
        rf"tensor descriptions at offset 24 needs {32 * 2**60} bytes .* 32 bytes has 8 left",
    ),
    "key length": (
        Raw(pairs=[struct.pack("<Q", 2**63) + bytes(24)]),
        rf"metadata key 0 at offset 32 needs {2**63} bytes .* 64 bytes has 32 left",
    ),
    "key not UTF-8": (
        Raw(pairs=[pair(b"ab\xff", U32, bytes(4))]),
        r"key 0 is not UTF-8: byte 0xff at 2",
    ),
    "duplicate key": (
        Raw(pairs=[pair("k", U32, bytes(4))] * 2),
        r"metadata 'k' appears twice, the second time as key 1",
    ),
    "value type": (scalar(13, bytes(8)), r"'k' has value type 13; types are 0 to 12"),
    "bool": (scalar(BOOL, b"\2"), r"'k' is a bool of value 2; it must be 0 or 1"),
    "string length": (
        scalar(STRING, struct.pack("<Q", 1000) + b"abc"),
        r"'k' at offset 45 needs 1000 bytes .* 64 bytes has 19 left",
    ),
    "array count": (
        scalar(ARRAY, array(U32, 2**61, bytes(16))),
        rf"'k' at offset 49 needs {2**63} bytes \({2**61} x 4\).* 96 bytes has 47 left",
    ),
    "array element type": (
        scalar(ARRAY, array(77, 1, bytes(8))),
        r"the elements of metadata 'k' has value type 77",
    ),
    "array bool": (
        scalar(ARRAY, array(BOOL, 3, b"\0\1\7")),
        r"'k'\[2\] is a bool of value 7; it must be 0 or 1",
    ),
    "string array count": (
        scalar(ARRAY, array(STRING, 2**60, bytes(16))),
        rf"'k' at offset 49 needs {2**63} bytes \({2**60} x 8\)",
    ),
    "string array too short": (
        scalar(ARRAY, array(STRING, 2, string("x" * 39))),
        r"'k' has 2 strings, but the file of 96 bytes ends before string 1 at offset 96",
    ),
    "string in an array": (
        scalar(ARRAY, array(STRING, 2, string("x") + struct.pack("<Q", 2**64 - 1))),
        rf"'k'\[1\] at offset 66 needs {2**64 - 1} bytes, but the file of 96 bytes has 30 left",
    ),
    "nested array count": (
        scalar(ARRAY, array(ARRAY, 2**58, bytes(16))),
        rf"'k' at offset 49 needs {12 * 2**58} bytes",
    ),
    "nested arrays too deep": (
        scalar(
            ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, bytes(32)))))
        ),
        r"nests arrays deeper than 4",
    ),
    "alignment 0": (named_alignment(0), r"general.alignment is 0; it must be a power of two"),
    "alignment 4": (named_alignment(4), r"general.alignment is 4; .* a multiple of 8"),
    "alignment 48": (named_alignment(48), r"general.alignment is 48; it must be a power of two"),
    "alignment text": (
        Raw(pairs=[pair("general.alignment", STRING, string("32"))]),
        r"general.alignment is '32' of type STRING; it must be a U32",
    ),
    "tensor name length": (
        # No pair is counted, so that what stands in its place is read as a tensor's name.
        Raw(n_tensors=1, n_pairs=0, pairs=[struct.pack("<Q", 2**40) + bytes(32)]),
        rf"tensor name 0 at offset 32 needs {2**40} bytes .* the file of 64 bytes has 32 left",
    ),
    "tensor name not UTF-8": (one(name=b"\xc3("), r"tensor name 0 is not UTF-8: byte 0xc3 at 0"),
    "duplicate tensor": (
        Raw(tensors=[ROW, ROW]),
        r"tensor 'w' appears twice, the second time as tensor 1",
    ),
    "no dimensions": (one(ne=()), r"'w' has 0 dimensions; 1 to 4 are allowed"),
    "five dimensions": (one(ne=(1,) * 5), r"'w' has 5 dimensions; 1 to 4 are allowed"),
    "dimension count": (one(n_dims=2**32 - 1), r"'w' has 4294967295 dimensions"),
    "dimension 0": (one(ne=(32, 0)), r"'w' has dimension 1 of 0"),
    "product": (
        one(ne=(2**32, 2**31)),
        rf"'w' has dimensions \({2**32}, {2**31}\) with a product of {2**63}; the limit",
    ),
    "product that wraps 64 bits": (one(ne=(2**33, 2**31)), rf"a product of {2**64}"),
    "row of Q1_0": (
        one(ne=(64,), type=Q1_0),
        r"rows of 64 weights, which do not fill blocks of 128 \(type Q1_0\)",
    ),
    "row of type 42": (one(ne=(96,), type=TYPE_42), r"rows of 96 .* blocks of 64 \(type 42\)"),
    "row of Q4_K": (one(ne=(128,), type=12), r"rows of 128 .* blocks of 256 \(type Q4_K\)"),
    "offset not aligned": (
        one(offset=16),
        r"'w' has offset 16, not a multiple of the alignment 32",
    ),
    "offset past the end": (
        one(offset=2**40),
        rf"'w' starts at byte {64 + 2**40} .* past the end of the file of 192 bytes",
    ),
    "offset at the end": (one(offset=128), r"'w' starts at byte 192 .* the file of 192 bytes"),
    "offset that wraps 64 bits": (one(offset=2**64 - 32), r"past the end"),
    "tensor cut off": (
        one(data=bytes(96)),
        r"'w' needs 128 bytes from byte 64, but the end of the file is at 160, 96 bytes on",
    ),
    "tensor of type 42 cut off": (
        one(ne=(1280,), type=TYPE_42, data=bytes(320)),
        r"'w' of type 42 has 1280 weights, at least 340 bytes, but only 320 bytes from byte 64",
    ),
    "overlap": (
        Raw(tensors=[ROW, Tensor("v", (32,), F32, bytes(128), offset=96)]),
        r"'w' needs 128 bytes from byte 96, but tensor 'v' is at 192, 96 bytes on",
    ),
    "the same data twice": (
        Raw(tensors=[ROW, Tensor("v", (32,), F32, offset=0)]),
        r"'w' needs 128 bytes from byte 96, but tensor 'v' is at 96, 0 bytes on",
    ),
    "the same data twice, unknown type": (
        Raw(tensors=[Tensor("w", (8,), 999, bytes(32)), Tensor("v", (8,), 999, offset=0)]),
        r"'w' needs 1 bytes",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_refused_with_its_numbers(tmp_path, lie):
    raw, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(raw.build())
    with pytest.raises(gguf.GGUFError, match=message) as caught:
        gguf.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lie", ["metadata count", "tensor count", "array count", "key length"])
def test_a_lie_about_a_size_allocates_nothing(tmp_path, lie):
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[lie][0].build())
    tracemalloc.start()
    try:
        with pytest.raises(gguf.GGUFError):
            gguf.open(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(gguf.GGUFError, match=r"is a directory; a GGUF file is needed"):
        gguf.open(tmp_path)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(gguf.GGUFError, match=r"empty\.gguf is empty \(0 bytes\)"):
        gguf.open(empty)
    with pytest.raises(FileNotFoundError):
        gguf.open(tmp_path / "missing.gguf")
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(gguf.GGUFError, match=r"pipe\.gguf is not a regular file"):
        gguf.open(pipe)


@pytest.mark.timing
def test_time_of_nested_arrays_does_not_grow_with_the_length_of_their_key(tmp_path):
    def seconds(key: str) -> float:
        inner = array(U8_ARRAY, 0, b"") * 30000
        path = tmp_path / "nested.gguf"
        path.write_bytes(Raw(pairs=[pair(key, ARRAY, array(ARRAY, 30000, inner))]).build())
        start = time.perf_counter()
        with gguf.open(path) as file:
            assert len(file.metadata[key]) == 30000
        return time.perf_counter() - start

    seconds("k")
    assert seconds("k" * 500_000) < 5 * seconds("k") + 0.2


def small_file() -> bytes:
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (8, 34), np.uint8)
    blocks[:, 32:] = np.full(8, 0.5, "<f2")[:, None].view(np.uint8)
    return Raw(
        pairs=[
            pair("general.architecture", STRING, string("qwen3")),
            pair("n", U32, struct.pack("<I", 7)),
            pair("yes", BOOL, b"\1"),
            pair("words", ARRAY, array(STRING, 3, string("a") + string("") + string("öß"))),
            pair("bytes", ARRAY, array(U8_ARRAY, 5, bytes(range(5)))),
            pair("nested", ARRAY, array(ARRAY, 1, array(BOOL, 2, b"\0\1"))),
            pair("general.alignment", U32, struct.pack("<I", 32)),
        ],
        tensors=[
            Tensor("codes", (256, 4), TYPE_42, blocks.tobytes()),
            Tensor("norm", (4,), F32, bytes(16)),
        ],
        pad_last=False,
    ).build()


def use(path) -> None:
    """Open a file and touch all that it holds."""
    with gguf.open(path) as file:
        for value in file.metadata.values():
            repr(value)
        for name, info in file.tensors.items():
            assert file.tensor_data(name).size == info.nbytes
            file.release(name)


def test_truncation_at_every_byte_raises_a_gguf_error(tmp_path):
    raw = small_file()
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw)
    use(path)
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(gguf.GGUFError, match=r"cut\.gguf"):
            gguf.open(path)


def test_truncation_of_a_model_raises_a_gguf_error(tmp_path):
    raw = Q1_MODEL.read_bytes()
    with gguf.open(Q1_MODEL) as file:
        starts = [info.offset for info in file.tensors.values()]
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw)
    for size in sorted({s + d for s in starts for d in (-1, 0, 1)} | {len(raw) - 1}, reverse=True):
        os.truncate(path, size)
        with pytest.raises(gguf.GGUFError, match=r"cut\.gguf"):
            gguf.open(path)


def test_flipped_bytes_raise_a_gguf_error_or_nothing(tmp_path):
    raw = small_file()
    rng = np.random.default_rng(4)
    path = tmp_path / "flip.gguf"
    header = len(raw) - 300
    messages = []
    for trial in range(2000):
        flipped = bytearray(raw)
        for _ in range(1 + trial % 3):
            flipped[rng.integers(0, header)] = rng.choice([0, 1, 0x7F, 0xFF, rng.integers(0, 256)])
        path.write_bytes(flipped)
        try:
            use(path)
        except gguf.GGUFError as e:
            messages.append(str(e))
    assert len(messages) > 500
    assert all(str(path) in m for m in messages)


def test_a_file_cut_anywhere_is_to_be_downloaded_again(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    gguf.write(
        path,
        {"name": "x", "numbers": [1, 2, 3], "words": ["a", "bc"], "flags": [True, False]},
        [("w", np.zeros((4, 32), np.float32)), ("v", np.zeros((4, 32), np.float32))],
    )
    raw = path.read_bytes()
    for n in range(1, len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(gguf.GGUFError, match=r"it is cut short.* download it again"):
            gguf.open(path)
